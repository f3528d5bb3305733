// What a lane does for KV formats with a tail (kv_tails.h): where rows append and what they read, sealing, keeping.
#include <algorithm>
#include <cstring>

#include "lane.h"

namespace kvern {

// Pages that may need scratch in one step: each slice has its rows' pages but for the first.
int64_t Lane::tail_scratch_pages() const {
    const int64_t rows = limits_.max_rows;
    return tails_.slots() == 0 ? 0 : rows / kPageTokens + std::min(rows / 2, tails_.slots()) + 1;
}

// Called when the active slices change.
void Lane::plan_tails(const StepView& step) {
    tail_slices_.clear();
    if (tails_.slots() == 0) return;
    int64_t scratch = 0;
    for (size_t s = 0; s < active_.slices.size(); ++s) {
        const int32_t begin = active_.positions[static_cast<size_t>(active_.begin[s])];
        const int32_t end = active_.positions[static_cast<size_t>(active_.begin[s + 1]) - 1] + 1;
        tail_slices_.push_back({step.tail_slots[active_.slices[s]], begin, end, scratch});
        scratch += (end - 1) / kPageTokens - begin / kPageTokens;
    }
}

// KV head 0 of a bf16 page of active slice `s`: kept from step to step, or in scratch where that place is taken by a
// page that rows of this step still read.
uint8_t* Lane::tail_page(size_t s, int layer, int64_t page) {
    const TailSlice& slice = tail_slices_[s];
    const int64_t first = slice.begin / kPageTokens;
    if (page <= first) return tails_.page(slice.slot, layer, page);
    return reinterpret_cast<uint8_t*>(tail_scratch_.get()) +
           static_cast<size_t>(slice.scratch + page - first - 1) * tails_.page_bytes(layer);
}

// Codes the pages that these slices leave behind: all that lie two pages or more before the next row.
void Lane::seal_pages(const Operation& op, const StepView& step) {
    const auto layer = static_cast<size_t>(op.layer);
    seals_.clear();
    for (size_t s = 0; s < tail_slices_.size(); ++s)
        for (int64_t page = std::max(0, tail_slices_[s].begin / kPageTokens - 1);
             page + 1 < tail_slices_[s].end / kPageTokens; ++page)
            seals_.push_back({s, page});
    if (seals_.empty()) return;
    const KvLayout &layout = layouts_[layer], &from = tails_.layout(op.layer);
    const int64_t heads = spec_.layers[layer].kv_heads;
    pool_->parallel_for(static_cast<int64_t>(seals_.size()) * heads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const auto [s, page] = seals_[static_cast<size_t>(i / heads)];
            const auto head = static_cast<size_t>(i % heads);
            const int32_t target = step.block_table[active_.slices[s] * step.table_width + page];
            kernels_.attention.seal({tail_page(s, op.layer, page) + head * from.block_bytes, &from,
                                     pages_.page(target) + layer_offsets_[layer] + head * layout.block_bytes,
                                     &layout});
        }
    });
}

// After the rows have attended: the last two pages of each slice go where the next step finds them.
void Lane::keep_tails(const Operation& op) {
    for (size_t s = 0; s < tail_slices_.size(); ++s) {
        const TailSlice& slice = tail_slices_[s];
        const int64_t first = slice.begin / kPageTokens, last = (slice.end - 1) / kPageTokens;
        for (int64_t page = std::max(first + 1, last - 1); page <= last; ++page)
            std::memcpy(tails_.page(slice.slot, op.layer, page), tail_page(s, op.layer, page),
                        tails_.page_bytes(op.layer));
        tails_.end(slice.slot, op.layer) = slice.end;
    }
}

}  // namespace kvern
