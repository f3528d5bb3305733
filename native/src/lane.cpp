// Scratch of a lane, and walking the units of a step; lane_stages.cpp runs the stages of each.
#include "lane.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace kvern {
namespace {

constexpr size_t kPartialFloats = size_t{1} << 20;

}  // namespace

void FreeFloats::operator()(float* p) const { std::free(p); }

Buffer Lane::buffer(size_t floats) {
    const size_t bytes = (std::max<size_t>(floats, 16) * sizeof(float) + 63) / 64 * 64;
    auto* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (memory == nullptr) throw std::bad_alloc();
    scratch_bytes_ += bytes;
    return Buffer(memory);
}

Lane::Lane(Program& program, Profile& profile)
    : kernels_(program.kernels()),
      spec_(program.spec()),
      limits_(program.limits()),
      layouts_(program.layouts()),
      layer_offsets_(program.layer_offsets()),
      pages_(program.pages()),
      tails_(program.tails()),
      profile_(profile) {
    const int workers = program.workers();
    const auto rows = static_cast<size_t>(limits_.max_rows);
    notes_.resize(static_cast<size_t>(workers));
    chains_.push_back(fuse(spec_, spec_.embed, limits_.apart));
    for (const auto& unit : spec_.units) chains_.push_back(fuse(spec_, unit, limits_.apart));
    chains_.push_back(fuse(spec_, spec_.head, limits_.apart));
    for (const auto& rope : spec_.ropes) {
        cosines_.push_back(buffer(rows * rope.size()));
        sines_.push_back(buffer(rows * rope.size()));
    }
    int widest = 0;
    for (const KvLayout& layout : layouts_) widest = std::max(widest, layout.padded_dim);
    for (int i = 0; i < workers; ++i)
        attend_scratch_.push_back(buffer(attend_scratch_floats(widest, limits_.chunk_tokens)));
    allocate_rows();
    if (tails_.slots() > 0)
        tail_scratch_ = buffer(static_cast<size_t>(tail_scratch_pages()) * tails_.widest_page() / sizeof(float));
    partial_floats_ = workers > 1 ? kPartialFloats : 0;
    if (partial_floats_ > 0) partials_ = buffer(partial_floats_);
}

// Rows of the slots and encodings that any stage keeps in memory.
void Lane::allocate_rows() {
    const auto rows = static_cast<size_t>(limits_.max_rows);
    const auto workers = static_cast<int>(attend_scratch_.size());
    for (size_t i = 0; i < spec_.slots.size(); ++i) {
        const bool used = i == kResidual || std::any_of(chains_.begin(), chains_.end(),
                                                        [&](const Chain& chain) { return chain.used_slot[i] != 0; });
        slots_.push_back(i != kLogits && used ? buffer(rows * static_cast<size_t>(spec_.slots[i])) : Buffer());
    }
    for (const Encoding& e : spec_.encodings) {
        size_t bytes = encoded_rows_bytes(e.code, limits_.max_rows, width(e.slot));
        for (int count = 1; count <= workers; ++count)
            bytes = std::max(bytes,
                             static_cast<size_t>(count) * encoded_rows_bytes(e.code, room_of(count), width(e.slot)));
        encodings_.push_back(bytes == 0 ? Buffer() : buffer((bytes + 3) / 4));
    }
}

// The rows whose slices cover `unit`, in order.
void Lane::activate(const StepView& step, int unit) {
    active_.rows.clear(), active_.positions.clear(), active_.slices.clear(), active_.begin.clear();
    for (int64_t s = 0; s < step.slices; ++s) {
        if (unit < step.unit_begin[s] || unit >= step.unit_end[s]) continue;
        active_.slices.push_back(static_cast<int32_t>(s));
        active_.begin.push_back(static_cast<int32_t>(active_.rows.size()));
        for (int32_t r = step.row_begin[s]; r < step.row_begin[s + 1]; ++r) {
            active_.rows.push_back(r);
            active_.positions.push_back(step.positions[r]);
        }
    }
    active_.begin.push_back(static_cast<int32_t>(active_.rows.size()));
    plan_tails(step);
}

// Runs units in order; returns the unit before which it was stopped (the number of units: not stopped).
int Lane::run_units(const StepView& step) {
    const int first = *std::min_element(step.unit_begin, step.unit_begin + step.slices);
    const int last = *std::max_element(step.unit_end, step.unit_end + step.slices);
    for (int unit = first; unit < last; ++unit) {
        if (__atomic_load_n(step.stop, __ATOMIC_RELAXED) != 0) return unit;
        bool changed = unit == first;
        for (int64_t s = 0; s < step.slices && !changed; ++s)
            changed = step.unit_begin[s] == unit || step.unit_end[s] == unit;
        if (changed) activate(step, unit);
        const int rows = static_cast<int>(active_.rows.size());
        if (rows == 0) continue;
        if (unit == 0) run(chains_.front(), active_.rows.data(), rows);
        run(chains_[static_cast<size_t>(unit) + 1], active_.rows.data(), rows);
    }
    return static_cast<int>(spec_.units.size());
}

void Lane::step(const StepView& step, Pool& pool) {
    pool_ = &pool, step_ = &step;
    room_ = room_of(pool.workers());
    const int units = static_cast<int>(spec_.units.size());
    const FlushDenormals flush;
    const size_t width_bytes = static_cast<size_t>(spec_.hidden) * sizeof(float);
    for (int64_t s = 0; s < step.slices; ++s)
        if (step.unit_begin[s] > 0)
            std::memcpy(slot(kResidual) + int64_t{step.row_begin[s]} * spec_.hidden,
                        step.hidden + int64_t{step.row_begin[s]} * spec_.hidden,
                        static_cast<size_t>(step.row_begin[s + 1] - step.row_begin[s]) * width_bytes);
    fill_angles(step);
    const int stopped = run_units(step);
    bool whole = true;
    for (int64_t s = 0; s < step.slices; ++s) {
        const int32_t reached = std::max(step.unit_begin[s], std::min(step.unit_end[s], stopped));
        step.reached[s] = reached;
        whole = whole && (reached == step.unit_end[s]);
        if (reached < units && reached > step.unit_begin[s])
            std::memcpy(step.hidden + int64_t{step.row_begin[s]} * spec_.hidden,
                        slot(kResidual) + int64_t{step.row_begin[s]} * spec_.hidden,
                        static_cast<size_t>(step.row_begin[s + 1] - step.row_begin[s]) * width_bytes);
    }
    // A stop leaves no slice at the last unit, so there is nothing to read logits from.
    if (whole) run_head(step);
    for (std::vector<Note>& notes : notes_) profile_.add(notes);
}

// Rows that want logits come first, then those that want the likeliest token only.
void Lane::run_head(const StepView& step) {
    head_rows_.assign(step.logit_rows, step.logit_rows + step.logit_count);
    head_rows_.insert(head_rows_.end(), step.greedy_rows, step.greedy_rows + step.greedy_count);
    if (head_rows_.empty()) return;
    const auto count = static_cast<size_t>(step.greedy_count), workers = static_cast<size_t>(pool_->workers());
    tops_.assign(workers * count, RunningTop{});
    run(chains_.back(), head_rows_.data(), static_cast<int>(head_rows_.size()));
    for (size_t r = 0; r < count; ++r) {
        RunningTop best = tops_[r];
        for (size_t worker = 1; worker < workers; ++worker) best.merge(tops_[worker * count + r]);
        step.greedy[r] = best.token();
    }
}

}  // namespace kvern
