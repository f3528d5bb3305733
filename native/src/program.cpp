// Setting up a program and checking batches; lane.cpp runs them.
#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>

#include "lane.h"

namespace kvern {
namespace {

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

std::string in_range(const char* what, int64_t value, int64_t limit) {
    return std::string(what) + " " + std::to_string(value) + " is outside 0.." + std::to_string(limit - 1);
}

}  // namespace

namespace {

size_t page_bytes_of(const ProgramSpec& spec, KvFormat format) {
    size_t bytes = 0;
    for (const LayerShape& layer : spec.layers) {
        require(layer.head_dim >= 4 && layer.head_dim <= kMaxHeadDim && layer.head_dim % 4 == 0,
                "head size " + std::to_string(layer.head_dim) + " is not a multiple of 4 up to 512");
        require(layer.kv_heads > 0 && layer.heads > 0 && layer.heads % layer.kv_heads == 0 &&
                    layer.heads / layer.kv_heads <= kMaxVectors && layer.heads <= 65536,
                "query heads must be a multiple of the KV heads, at most 96 to one");
        bytes += KvLayout(format, layer.head_dim).block_bytes * static_cast<size_t>(layer.kv_heads);
    }
    return bytes;
}

KvTails tails_of(const ProgramSpec& spec, const ProgramLimits& limits) {
    std::vector<int> head_dims, kv_heads;
    for (const LayerShape& layer : spec.layers)
        head_dims.push_back(layer.head_dim), kv_heads.push_back(layer.kv_heads);
    return {head_dims, kv_heads, limits.kv_format.tail() ? limits.tail_slots : 0};
}

}  // namespace

Program::Program(std::shared_ptr<Pool> pool, const KernelTable& kernels, ProgramSpec spec, ProgramLimits limits)
    : pool_(std::move(pool)),
      kernels_(kernels),
      spec_(std::move(spec)),
      limits_(limits),
      pages_(limits.pages, page_bytes_of(spec_, limits.kv_format)),
      tails_(tails_of(spec_, limits)) {
    check_spec();
    lay_out_pages();
    for (int i = 0; i < limits_.lanes; ++i) {
        lanes_.push_back(std::make_unique<Lane>(*this, profile_));
        idle_.push_back(lanes_.back().get());
    }
}

Program::~Program() = default;

size_t Program::scratch_bytes() const {
    size_t bytes = 0;
    for (const auto& lane : lanes_) bytes += lane->scratch_bytes();
    return bytes;
}

void Program::check_spec() const {
    require(pool_ != nullptr, "a pool is needed");
    require(limits_.lanes > 0 && limits_.lanes <= 64, "lanes is outside 1..64");
    require(limits_.max_rows > 0 && limits_.max_rows <= (1 << 20), "max_rows is outside 1..1048576");
    require(
        limits_.chunk_tokens > 0 && limits_.chunk_tokens % kPageTokens == 0 && limits_.chunk_tokens <= kChunkTokens,
        "chunk_tokens is not a positive multiple of 64 up to 512");
    require(spec_.slots.size() >= 2 && spec_.slots[kResidual] == spec_.hidden && spec_.slots[kLogits] == spec_.vocab,
            "slot 0 must have the hidden size and slot 1 the vocabulary size");
    for (int32_t w : spec_.slots) require(w > 0 && w <= (1 << 24), "slot width " + std::to_string(w));
    for (const auto& weight : spec_.weights) require(weight != nullptr, "a weight is missing");
    require(spec_.layers.size() * 2 == spec_.units.size() && !spec_.layers.empty(), "two units to a layer");
    for (const LayerShape& layer : spec_.layers) {
        require(layer.rope >= 0 && static_cast<size_t>(layer.rope) < spec_.ropes.size() && layer.window >= 0 &&
                    spec_.ropes[static_cast<size_t>(layer.rope)].size() * 2 <= static_cast<size_t>(layer.head_dim),
                "rotary frequencies or window of a layer do not fit");
    }
    for (const Encoding& e : spec_.encodings) {
        require(e.slot >= 0 && e.slot != kLogits && static_cast<size_t>(e.slot) < spec_.slots.size(),
                "encoding of an unknown slot");
        require(e.code != RowCode::q8_group || spec_.slots[static_cast<size_t>(e.slot)] % 32 == 0,
                "rows of block formats must be a multiple of 32 wide");
    }
    for (const Operation& op : spec_.embed) check_operation(op, false);
    for (const Operation& op : spec_.head) check_operation(op, false);
    for (const auto& unit : spec_.units)
        for (const Operation& op : unit) check_operation(op, true);
}

void Program::check_operation(const Operation& op, bool in_unit) const {
    const auto slot_of = [&](int32_t index) -> int64_t {
        require(index >= 0 && index != kLogits && static_cast<size_t>(index) < spec_.slots.size(),
                "operation on an unknown slot");
        return spec_.slots[static_cast<size_t>(index)];
    };
    const auto vector_of = [&](int32_t index, int64_t size) {
        require(index >= 0 && static_cast<size_t>(index) < spec_.vectors.size() &&
                    static_cast<int64_t>(spec_.vectors[static_cast<size_t>(index)].size()) == size,
                "operation on a vector that is not there or has another size");
    };
    const auto weight_of = [&](int32_t index) -> const WeightView& {
        require(index >= 0 && static_cast<size_t>(index) < spec_.weights.size(), "operation on an unknown weight");
        return spec_.weights[static_cast<size_t>(index)]->view();
    };
    const auto fresh = [&](int32_t index) {
        require(index > kLogits && static_cast<size_t>(index) < spec_.slots.size(),
                "output slot is not a scratch slot");
        return static_cast<int64_t>(spec_.slots[static_cast<size_t>(index)]);
    };
    switch (op.code) {
        case OpCode::embed: {
            const WeightView& table = weight_of(op.weight);
            require(!in_unit && table.n == spec_.vocab && table.k == spec_.hidden,
                    "embedding table has another shape");
            return;
        }
        case OpCode::norm:
            require(op.parts > 0 && slot_of(op.a) == fresh(op.out) && slot_of(op.a) % op.parts == 0, "norm widths");
            return vector_of(op.vector, slot_of(op.a) / op.parts);
        case OpCode::encode:
            require(op.a >= 0 && static_cast<size_t>(op.a) < spec_.encodings.size(), "unknown encoding");
            return;
        case OpCode::linear: {
            require(op.a >= 0 && static_cast<size_t>(op.a) < spec_.encodings.size(), "unknown encoding");
            const Encoding& in = spec_.encodings[static_cast<size_t>(op.a)];
            const WeightView& weight = weight_of(op.weight);
            require(op.out == kLogits ? !in_unit : fresh(op.out) > 0, "linear output");
            require(in.slot > kLogits && width(in.slot) == weight.k && width(op.out) == weight.n,
                    "linear weight has another shape than its rows");
            require(kernels_.linear.at(weight.format, in.code) != nullptr, "linear rows have the wrong encoding");
            if (op.vector != -1) vector_of(op.vector, weight.n);
            return;
        }
        case OpCode::attend: {
            require(in_unit && op.layer >= 0 && static_cast<size_t>(op.layer) < spec_.layers.size(), "attend layer");
            const LayerShape& layer = spec_.layers[static_cast<size_t>(op.layer)];
            const int64_t q = int64_t{layer.heads} * layer.head_dim, kv = int64_t{layer.kv_heads} * layer.head_dim;
            require(fresh(op.a) == q && fresh(op.b) == kv && fresh(op.c) == kv && fresh(op.out) == q &&
                        op.a != op.b && op.a != op.out && op.b != op.c && op.a != op.c && op.out != op.b &&
                        op.out != op.c,
                    "attend slots");
            return;
        }
        case OpCode::gate:
            require(fresh(op.a) == fresh(op.b) && fresh(op.a) == fresh(op.out), "gate widths");
            require(op.parts == 0 || op.parts == 1, "unknown activation");
            return;
        case OpCode::add:
            require(in_unit && fresh(op.a) == spec_.hidden, "add width");
            return;
    }
    throw std::invalid_argument("unknown operation");
}

void Program::lay_out_pages() {
    size_t offset = 0;
    for (const LayerShape& layer : spec_.layers) {
        layouts_.emplace_back(limits_.kv_format, layer.head_dim);
        layer_offsets_.push_back(offset);
        offset += layouts_.back().block_bytes * static_cast<size_t>(layer.kv_heads);
    }
}

void Program::copy_page(int64_t source, int64_t target) {
    const int64_t count = pages_.pages();
    require(source >= 0 && source < count, in_range("page", source, count));
    require(target >= 0 && target < count, in_range("page", target, count));
    if (source != target) std::memcpy(pages_.page(target), pages_.page(source), pages_.page_bytes());
}

void Program::check_step(const StepView& step) const {
    require(step.rows > 0 && step.rows <= limits_.max_rows,
            std::to_string(step.rows) + " rows; this model was made for 1.." + std::to_string(limits_.max_rows));
    require(step.slices > 0 && step.slices <= step.rows, "slices must be 1..rows");
    require(step.table_width > 0 && step.table_width < (int64_t{1} << 24), "block table has no columns");
    require(step.row_begin[0] == 0 && step.row_begin[step.slices] == step.rows, "row_begin must span all rows");
    const int64_t page_count = pages_.pages();
    for (int64_t s = 0; s < step.slices; ++s) {
        const int32_t begin = step.row_begin[s], end = step.row_begin[s + 1];
        require(begin < end && begin >= 0 && end <= step.rows, "row_begin must ascend");
        require(step.unit_begin[s] >= 0 && step.unit_begin[s] <= step.unit_end[s] && step.unit_end[s] <= units(),
                "units of slice " + std::to_string(s) + " are not within 0.." + std::to_string(units()));
        const int64_t first = step.positions[begin];
        require(first >= 0, "position " + std::to_string(first) + " is negative");
        for (int32_t r = begin; r < end; ++r) {
            require(step.positions[r] == first + (r - begin), "positions of a slice must follow each other");
            require(step.unit_begin[s] > 0 || (step.tokens[r] >= 0 && step.tokens[r] < spec_.vocab),
                    in_range("token", step.tokens[r], spec_.vocab));
        }
        const int64_t last_page = step.positions[end - 1] / kPageTokens;
        require(last_page < step.table_width,
                "block table of slice " + std::to_string(s) + " ends before its last row");
        for (int64_t j = 0; j <= last_page; ++j) {
            const int32_t page = step.block_table[s * step.table_width + j];
            require(page >= 0 && page < page_count, in_range("page", page, page_count));
        }
    }
    check_wanted(step, step.logit_rows, step.logit_count, "logit_rows");
    check_wanted(step, step.greedy_rows, step.greedy_count, "greedy_rows");
    require(step.logit_count + step.greedy_count <= step.rows, "more logit_rows and greedy_rows than rows");
}

// Every slice goes on where its sequence stands in each layer it runs, as kv_tails.h wants it.
void Program::check_tails(const StepView& step) {
    if (!limits_.kv_format.tail()) return;
    require(step.tail_slots != nullptr, "this KV format needs the tail slot of each slice");
    std::vector<int32_t> taken(step.tail_slots, step.tail_slots + step.slices);
    std::sort(taken.begin(), taken.end());
    require(std::adjacent_find(taken.begin(), taken.end()) == taken.end(), "two slices have one tail slot");
    for (int64_t s = 0; s < step.slices; ++s) {
        const int64_t slot = step.tail_slots[s], begin = step.positions[step.row_begin[s]];
        require(slot >= 0 && slot < tails_.slots(), in_range("tail slot", slot, tails_.slots()));
        for (int layer = (step.unit_begin[s] + 1) / 2; 2 * layer < step.unit_end[s]; ++layer)
            require(tails_.continues(slot, layer, begin),
                    "slice " + std::to_string(s) + " begins at position " + std::to_string(begin) + "; in layer " +
                        std::to_string(layer) + " its tail is at " + std::to_string(tails_.end(slot, layer)));
    }
}

void Program::check_wanted(const StepView& step, const int32_t* rows, int64_t count, const char* name) const {
    int64_t slice = 0, before = -1;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = rows[i];
        require(row > before && row < step.rows, std::string(name) + " must ascend within the rows");
        while (row >= step.row_begin[slice + 1]) ++slice;
        require(step.unit_end[slice] == units(), "logits wanted of a slice that ends before the last unit");
        before = row;
    }
}

void Program::step(const StepView& step) {
    check_step(step);
    Pool& pool = pool_of(step.first_worker, step.workers);
    const std::shared_lock lock(stepping_);
    const std::unique_ptr<Lane, std::function<void(Lane*)>> lane(take_lane(),
                                                                 [this](Lane* done) { give_back(done); });
    check_tails(step);
    lane->step(step, pool);
}

// Shares are made when first asked for, and kept.
Pool& Program::pool_of(int first, int count) {
    if (count == 0 || (first == 0 && count == pool_->workers())) return *pool_;
    const std::lock_guard choosing(choosing_);
    std::unique_ptr<Pool>& share = shares_[{first, count}];
    if (share == nullptr) share = pool_->share(first, count);
    return *share;
}

Lane* Program::take_lane() {
    std::unique_lock choosing(choosing_);
    lane_idle_.wait(choosing, [&] { return !idle_.empty(); });
    Lane* lane = idle_.back();
    idle_.pop_back();
    return lane;
}

void Program::give_back(Lane* lane) {
    const std::lock_guard choosing(choosing_);
    idle_.push_back(lane);
    lane_idle_.notify_one();
}

}  // namespace kvern
