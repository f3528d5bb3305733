// The attention operation of a program: appends rows to their pages, cuts the work into items, merges split items.
#include <algorithm>
#include <atomic>

#include "lane.h"

namespace kvern {
namespace {

constexpr int kRowsTogether = 64;  // prefill rows of one attention item, if their heads fit one work

}  // namespace

// Active rows [begin, end).
void Lane::append_rows(const Operation& op, const StepView& step, int begin, int end) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    const bool tail = !tail_slices_.empty();
    const KvLayout& layout = tail ? tails_.layout(op.layer) : layouts_[static_cast<size_t>(op.layer)];
    const auto rope = static_cast<size_t>(shape.rope);
    const size_t half = spec_.ropes[rope].size();
    std::vector<int32_t>& slices = active_.slices;
    size_t s = 0;
    for (int i = begin; i < end; ++i) {
        while (i >= active_.begin[s + 1]) ++s;
        const int32_t position = active_.positions[static_cast<size_t>(i)];
        const int32_t page = step.block_table[slices[s] * step.table_width + position / kPageTokens];
        uint8_t* block = tail ? tail_page(s, op.layer, position / kPageTokens)
                              : pages_.page(page) + layer_offsets_[static_cast<size_t>(op.layer)];
        const size_t angle = static_cast<size_t>(active_.rows[static_cast<size_t>(i)]) * half;
        kernels_.attention.rope_append({slot(op.a) + i * width(op.a), slot(op.b) + i * width(op.b),
                                        slot(op.c) + i * width(op.c), cosines_[rope].get() + angle,
                                        sines_[rope].get() + angle, block, &layout, shape.heads, shape.kv_heads,
                                        static_cast<int>(2 * half), position % kPageTokens});
    }
}

// Where the tokens of active slice `s` up to position `last` are. What rows read may depend on position / 64 alone:
// of a format with a tail, `last` lies in the rows' own page.
int64_t Lane::list_spans(const Operation& op, const StepView& step, size_t s, int32_t last) {
    const auto layer = static_cast<size_t>(op.layer);
    const auto first = static_cast<int64_t>(spans_.size());
    const int32_t* pages = step.block_table + active_.slices[s] * step.table_width;
    const int32_t page = last / kPageTokens, recent = tail_slices_.empty() ? page + 1 : std::max(0, page - 1);
    for (int32_t j = 0; j < recent; ++j)
        spans_.push_back({pages_.page(pages[j]) + layer_offsets_[layer], &layouts_[layer]});
    for (int32_t j = recent; j <= page; ++j) spans_.push_back({tail_page(s, op.layer, j), &tails_.layout(op.layer)});
    return first;
}

// Attention items: rows of one slice within one 64-token page, and one KV head.
void Lane::list_items(const Operation& op, const StepView& step) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    items_.clear(), spans_.clear();
    const int group = shape.heads / shape.kv_heads;
    const int together = std::max(1, std::min(kRowsTogether, kMaxVectors / group));
    for (size_t s = 0; s < active_.slices.size(); ++s) {
        const int32_t slice_end = active_.begin[s + 1];
        int64_t spans = 0;
        int32_t listed = -1;  // the last page that `spans` has
        for (int32_t begin = active_.begin[s], end; begin < slice_end; begin = end) {
            const int32_t first = active_.positions[static_cast<size_t>(begin)];
            end = std::min({begin + together, begin + kPageTokens - first % kPageTokens, slice_end});
            const int32_t last = active_.positions[static_cast<size_t>(end) - 1];
            const int32_t from = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
            if (listed < last / kPageTokens) {
                const int32_t until =
                    tail_slices_.empty() ? active_.positions[static_cast<size_t>(slice_end) - 1] : last;
                spans = list_spans(op, step, s, until);
                listed = until / kPageTokens;
            }
            for (int32_t head = 0; head < shape.kv_heads; ++head)
                items_.push_back({active_.slices[s], head, begin, end, from / limits_.chunk_tokens,
                                  last / limits_.chunk_tokens + 1, int64_t{end - begin} * (last - from + 64), -1,
                                  spans});
        }
    }
}

// With few items and long contexts, gives each softmax chunk an item of its own; merge_items then folds them.
void Lane::split_items(const LayerShape& shape, const KvLayout& layout) {
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

void Lane::attend_item(const Operation& op, const AttendItem& item, int worker) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
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
    work.spans = spans_.data() + item.spans;
    work.head = item.head;
    work.head_dim = shape.head_dim;
    work.padded_dim = layouts_[static_cast<size_t>(op.layer)].padded_dim;
    work.scale = shape.scale;
    work.window = shape.window;
    work.chunk_tokens = limits_.chunk_tokens;
    work.chunk_begin = item.chunk_begin, work.chunk_end = item.chunk_end;
    work.partials = item.partial < 0 ? nullptr : partials_.get() + item.partial;
    work.scratch = attend_scratch_[static_cast<size_t>(worker)].get();
    kernels_.attention.attend(work);
}

// Folds the partials of items that were split: runs of equal (slice, head, rows), chunks ascending.
void Lane::merge_items(const Operation& op) {
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

void Lane::run_attend(const Operation& op, const StepView& step) {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    if (!appended_)
        for_rows(static_cast<int>(active_.rows.size()), width(op.a) * 4,
                 [&](int begin, int end) { append_rows(op, step, begin, end); });
    seal_pages(op, step);
    list_items(op, step);
    split_items(shape, layouts_[static_cast<size_t>(op.layer)]);
    int64_t cost = 0;
    for (const AttendItem& item : items_) cost += item.cost;
    if (pool_->workers() == 1 || cost * shape.heads / shape.kv_heads < 256 || items_.size() == 1) {
        for (const AttendItem& item : items_) attend_item(op, item, 0);
    } else {
        std::vector<int32_t> order(items_.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return items_[static_cast<size_t>(a)].cost > items_[static_cast<size_t>(b)].cost;
        });
        std::atomic<size_t> next{0};
        pool_->run([&](int worker, int) {
            for (size_t i = next.fetch_add(1); i < order.size(); i = next.fetch_add(1))
                attend_item(op, items_[static_cast<size_t>(order[i])], worker);
        });
    }
    merge_items(op);
    keep_tails(op);
}

}  // namespace kvern
