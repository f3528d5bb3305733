// The operations of a program. Work is shared out in ways that never change the order of a float operation.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "program.h"

namespace kvern {
namespace {

constexpr int64_t kWorthSharing = 16384;  // values of work below which one thread is quicker than a pool
constexpr int kRowsTogether = 16;         // prefill rows of one attention item
constexpr int kLinearRows = 64;           // rows that a weight tile serves before the next tile is read

}  // namespace

template <class F>
void Program::for_rows(int rows, int64_t work_per_row, F&& f) {
    if (rows * work_per_row < kWorthSharing || pool_->workers() == 1) return f(0, rows);
    pool_->parallel_for(rows, 1,
                        [&](int64_t begin, int64_t end, int) { f(static_cast<int>(begin), static_cast<int>(end)); });
}

// Angles are rounded to float32 as the models were trained; their cosines are exact to float32.
void Program::fill_angles(const StepView& step) {
    for (size_t i = 0; i < spec_.ropes.size(); ++i) {
        const std::vector<float>& frequencies = spec_.ropes[i];
        const size_t half = frequencies.size();
        float *cosine = cosines_[i].get(), *sine = sines_[i].get();
        for_rows(static_cast<int>(step.rows), static_cast<int64_t>(half) * 64, [&](int begin, int end) {
            for (int r = begin; r < end; ++r)
                for (size_t d = 0; d < half; ++d) {
                    const auto angle = static_cast<double>(static_cast<float>(step.positions[r]) * frequencies[d]);
                    cosine[static_cast<size_t>(r) * half + d] = static_cast<float>(std::cos(angle));
                    sine[static_cast<size_t>(r) * half + d] = static_cast<float>(std::sin(angle));
                }
        });
    }
}

void Program::run(const std::vector<Operation>& ops, const StepView& step, const int32_t* index, int rows) {
    for (size_t i = 0; i < ops.size(); ++i) {
        const Operation& op = ops[i];
        switch (op.code) {
            case OpCode::embed:
                run_embed(op, step, index, rows);
                break;
            case OpCode::norm: {
                const auto w = static_cast<int32_t>(width(op.a) / op.parts);
                const NormWork work{slot(op.a),
                                    slot(op.out),
                                    static_cast<size_t>(width(op.a)),
                                    static_cast<size_t>(width(op.out)),
                                    op.a == kResidual ? index : nullptr,
                                    spec_.vectors[static_cast<size_t>(op.vector)].data(),
                                    w,
                                    op.parts,
                                    op.value};
                for_rows(rows, width(op.a), [&](int begin, int end) { kernels_.rows.norm(work, begin, end); });
                break;
            }
            case OpCode::encode:
                run_encode(op, rows);
                break;
            case OpCode::linear: {
                size_t count = 1;  // neighbours read the same rows: one parallel region for all
                while (i + count < ops.size() && ops[i + count].code == OpCode::linear) ++count;
                run_linears(&op, count, step, rows);
                i += count - 1;
                break;
            }
            case OpCode::attend:
                run_attend(op, step);
                break;
            case OpCode::gate: {
                const auto w = static_cast<size_t>(width(op.a));
                const GateWork work{slot(op.a), slot(op.b), slot(op.out),        w,
                                    w,          w,          static_cast<int>(w), static_cast<Activation>(op.parts)};
                for_rows(rows, width(op.a) * 8, [&](int begin, int end) { kernels_.rows.gate(work, begin, end); });
                break;
            }
            case OpCode::add: {
                const auto w = static_cast<size_t>(spec_.hidden);
                const AddWork work{slot(kResidual), slot(op.a), w, w, index, spec_.hidden};
                for_rows(rows, spec_.hidden, [&](int begin, int end) { kernels_.rows.add(work, begin, end); });
                break;
            }
        }
    }
}

void Program::run_embed(const Operation& op, const StepView& step, const int32_t* index, int rows) {
    const PackedWeight& table = *spec_.weights[static_cast<size_t>(op.weight)];
    for_rows(rows, int64_t{spec_.hidden} * 4, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) {
            float* out = slot(kResidual) + int64_t{index[i]} * spec_.hidden;
            table.row(step.tokens[index[i]], out);
            if (op.value != 1.0f) kernels_.rows.scale(out, static_cast<size_t>(spec_.hidden), op.value);
        }
    });
}

EncodedRows Program::encoded(int index, int rows) {
    const Encoding& e = spec_.encodings[static_cast<size_t>(index)];
    if (e.code == RowCode::f32) return plain_rows(slot(e.slot), width(e.slot), rows, width(e.slot));
    return encoded_rows_view(e.code, rows, width(e.slot), encodings_[static_cast<size_t>(index)].get());
}

void Program::run_encode(const Operation& op, int rows) {
    const EncodedRows out = encoded(op.a, rows);
    if (out.code == RowCode::f32) return;
    const int32_t from = spec_.encodings[static_cast<size_t>(op.a)].slot;
    for_rows(rows, width(from) * 2,
             [&](int begin, int end) { kernels_.linear.encode(slot(from), width(from), out, begin, end); });
}

// Items are (matrix, block of rows, tile of 16 outputs); each worker runs one contiguous share of them.
void Program::run_linears(const Operation* ops, size_t count, const StepView& step, int rows) {
    struct Job {
        EncodedRows x;
        LinearWork work;
        int64_t tiles, first;  // of all items
    };
    constexpr size_t kTogether = 8;
    const int64_t blocks = (rows + kLinearRows - 1) / kLinearRows;
    for (size_t done = 0; done < count; done += kTogether) {
        const size_t now = std::min(kTogether, count - done);
        Job jobs[kTogether];
        int64_t items = 0;
        for (size_t j = 0; j < now; ++j) {
            const Operation& op = ops[done + j];
            Job& job = jobs[j];
            const WeightView& weight = spec_.weights[static_cast<size_t>(op.weight)]->view();
            job.x = encoded(op.a, rows);
            job.work = {weight, &job.x, op.out == kLogits ? step.logits : slot(op.out), width(op.out),
                        op.vector < 0 ? nullptr : spec_.vectors[static_cast<size_t>(op.vector)].data()};
            job.tiles = (weight.n + 15) / 16;
            job.first = items;
            items += blocks * job.tiles;
        }
        pool_->parallel_for(items, 1, [&](int64_t begin, int64_t end, int) {
            size_t j = 0;
            while (begin < end) {
                while (j + 1 < now && begin >= jobs[j + 1].first) ++j;
                const Job& job = jobs[j];
                const int64_t block = (begin - job.first) / job.tiles, tile = (begin - job.first) % job.tiles;
                const int64_t last = std::min(job.tiles, tile + end - begin);
                kernels_.linear.tiles[static_cast<int>(job.work.weight.format)](
                    job.work, block * kLinearRows, std::min<int64_t>(rows, (block + 1) * kLinearRows), tile, last);
                begin += last - tile;
            }
        });
    }
}

void Program::append_rows(const Operation& op, const StepView& step) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    const KvLayout& layout = layouts_[static_cast<size_t>(op.layer)];
    const auto rope = static_cast<size_t>(shape.rope);
    const size_t half = spec_.ropes[rope].size();
    std::vector<int32_t>& slices = active_.slices;
    for_rows(static_cast<int>(active_.rows.size()), width(op.a) * 4, [&](int begin, int end) {
        size_t s = 0;
        for (int i = begin; i < end; ++i) {
            while (i >= active_.begin[s + 1]) ++s;
            const int32_t position = active_.positions[static_cast<size_t>(i)];
            const int32_t page = step.block_table[slices[s] * step.table_width + position / kPageTokens];
            const size_t angle = static_cast<size_t>(active_.rows[static_cast<size_t>(i)]) * half;
            kernels_.attention.rope_append(
                {slot(op.a) + i * width(op.a), slot(op.b) + i * width(op.b), slot(op.c) + i * width(op.c),
                 cosines_[rope].get() + angle, sines_[rope].get() + angle,
                 pages_.page(page) + layer_offsets_[static_cast<size_t>(op.layer)], &layout, shape.heads,
                 shape.kv_heads, static_cast<int>(2 * half), position % kPageTokens});
        }
    });
}

// Attention items in descending cost, so that workers which take the next one finish close together.
void Program::list_items(const LayerShape& shape) {
    items_.clear();
    const int group = shape.heads / shape.kv_heads;
    const int together = std::max(1, std::min(kRowsTogether, kMaxVectors / group));
    for (size_t s = 0; s < active_.slices.size(); ++s) {
        for (int32_t begin = active_.begin[s]; begin < active_.begin[s + 1]; begin += together) {
            const int32_t end = std::min(begin + together, active_.begin[s + 1]);
            const int32_t last = active_.positions[static_cast<size_t>(end) - 1];
            const int32_t first = active_.positions[static_cast<size_t>(begin)];
            const int32_t from = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
            for (int32_t head = 0; head < shape.kv_heads; ++head)
                items_.push_back({active_.slices[s], head, begin, end, from / limits_.chunk_tokens,
                                  last / limits_.chunk_tokens + 1, int64_t{end - begin} * (last - from + 64), -1});
        }
    }
}

// With few items and long contexts, gives each softmax chunk an item of its own; merge_items then folds them.
void Program::split_items(const LayerShape& shape, const KvLayout& layout) {
    const auto workers = static_cast<size_t>(pool_->workers());
    if (workers == 1 || items_.size() >= 4 * workers) return;
    const int64_t group = shape.heads / shape.kv_heads, each = layout.padded_dim + 2;
    int64_t floats = 0;
    for (const AttendItem& item : items_)
        floats += (item.row_end - item.row_begin) * group * each * (item.chunk_end - item.chunk_begin);
    if (floats > static_cast<int64_t>(partial_floats_)) return;
    std::vector<AttendItem> split;
    int64_t at = 0;
    for (AttendItem& item : items_) {
        const int32_t chunks = item.chunk_end - item.chunk_begin;
        for (int32_t chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
            split.push_back(item);
            split.back().chunk_begin = chunk, split.back().chunk_end = chunk + 1;
            split.back().cost = item.cost / chunks;
            if (chunks == 1) continue;
            split.back().partial = at;
            at += (item.row_end - item.row_begin) * group * each;
        }
    }
    items_ = std::move(split);
}

void Program::attend_item(const Operation& op, const StepView& step, const AttendItem& item, int worker) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    const KvLayout& layout = layouts_[static_cast<size_t>(op.layer)];
    const int group = shape.heads / shape.kv_heads;
    const int64_t row_width = width(op.a),
                  at = item.row_begin * row_width + int64_t{item.head} * group * shape.head_dim;
    AttendWork work{};
    work.q = slot(op.a) + at;
    work.out = slot(op.out) + at;
    work.q_stride = work.out_stride = static_cast<size_t>(row_width);
    work.positions = active_.positions.data() + item.row_begin;
    work.rows = item.row_end - item.row_begin;
    work.group = group;
    work.pages = step.block_table + item.slice * step.table_width;
    work.pool = pages_.data() + layer_offsets_[static_cast<size_t>(op.layer)] +
                static_cast<size_t>(item.head) * layout.block_bytes;
    work.page_bytes = pages_.page_bytes();
    work.layout = &layout;
    work.scale = shape.scale;
    work.window = shape.window;
    work.chunk_tokens = limits_.chunk_tokens;
    work.chunk_begin = item.chunk_begin, work.chunk_end = item.chunk_end;
    work.partials = item.partial < 0 ? nullptr : partials_.get() + item.partial;
    work.scratch = attend_scratch_[static_cast<size_t>(worker)].get();
    kernels_.attention.attend(work);
}

// Folds the partials of items that were split: runs of equal (slice, head, rows), chunks ascending.
void Program::merge_items(const Operation& op) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    const KvLayout& layout = layouts_[static_cast<size_t>(op.layer)];
    const int group = shape.heads / shape.kv_heads;
    const int64_t each = layout.padded_dim + 2;
    for (size_t i = 0; i < items_.size();) {
        const AttendItem& first = items_[i];
        size_t count = 1;
        while (i + count < items_.size() && items_[i + count].row_begin == first.row_begin &&
               items_[i + count].head == first.head)
            ++count;
        i += count;
        if (first.partial < 0) continue;
        const int64_t vectors = int64_t{first.row_end - first.row_begin} * group;
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t row = first.row_begin + v / group;
            const int32_t last = active_.positions[static_cast<size_t>(row)];
            const int32_t from = shape.window > 0 ? std::max(0, last - shape.window + 1) : 0;
            const int32_t chunk = from / limits_.chunk_tokens, end = last / limits_.chunk_tokens + 1;
            kernels_.attention.attend_merge(
                {partials_.get() + first.partial + (chunk - first.chunk_begin) * vectors * each + v * each,
                 static_cast<size_t>(vectors * each), end - chunk, layout.head_dim, layout.padded_dim,
                 slot(op.out) + row * width(op.out) + (int64_t{first.head} * group + v % group) * layout.head_dim,
                 attend_scratch_[0].get()});
        }
    }
}

void Program::run_attend(const Operation& op, const StepView& step) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    append_rows(op, step);
    list_items(shape);
    split_items(shape, layouts_[static_cast<size_t>(op.layer)]);
    int64_t cost = 0;
    for (const AttendItem& item : items_) cost += item.cost;
    if (pool_->workers() == 1 || cost * shape.heads / shape.kv_heads < 256 || items_.size() == 1) {
        for (const AttendItem& item : items_) attend_item(op, step, item, 0);
    } else {
        std::vector<int32_t> order(items_.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return items_[static_cast<size_t>(a)].cost > items_[static_cast<size_t>(b)].cost;
        });
        std::atomic<size_t> next{0};
        pool_->run([&](int worker, int) {
            for (size_t i = next.fetch_add(1); i < order.size(); i = next.fetch_add(1))
                attend_item(op, step, items_[static_cast<size_t>(order[i])], worker);
        });
    }
    merge_items(op);
}

}  // namespace kvern
