// The newest tokens of sequences in bf16, for KV formats whose pages are coded when they are full.
//
// A row at position p reads page j coded when j <= p / 64 - 2, and in bf16 otherwise. So between steps a sequence
// that has appended positions [0, end) keeps pages end / 64 - 1 and end / 64 in bf16, and all pages before them are
// sealed: a function of `end` alone, which chunking, batches and history cannot change. Pages that a step begins and
// that do not fit here live in scratch of the lane until its rows have attended (src/lane_tail.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kv_format.h"
#include "kv_pool.h"

namespace kvern {

constexpr int kTailPages = 2;

class KvTails {
  public:
    // Room for `slots` sequences (0: none) of layers with these head sizes and KV heads. Throws as KvPool does.
    KvTails(const std::vector<int>& head_dims, const std::vector<int>& kv_heads, int64_t slots);

    int64_t slots() const { return slots_; }
    size_t bytes() const { return pool_ == nullptr ? 0 : static_cast<size_t>(slots_) * pool_->page_bytes(); }
    const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
    // Bytes of one page of a layer, all its heads.
    size_t page_bytes(int layer) const { return page_bytes_[static_cast<size_t>(layer)]; }
    size_t widest_page() const;
    // KV head 0 of page `page` of the sequence in `slot`; pages two apart share one place.
    uint8_t* page(int64_t slot, int layer, int64_t page) {
        return pool_->page(slot) + offsets_[static_cast<size_t>(layer)] +
               static_cast<size_t>(page % kTailPages) * page_bytes(layer);
    }
    // Positions appended so far.
    int32_t& end(int64_t slot, int layer) {
        return ends_[static_cast<size_t>(slot) * layouts_.size() + static_cast<size_t>(layer)];
    }
    // Whether the sequence in `slot` can go on at `begin`: at its start, or where both its bf16 pages are still here.
    bool continues(int64_t slot, int layer, int64_t begin) {
        const int64_t now = end(slot, layer);
        return begin == 0 || (begin <= now && begin / kPageTokens == now / kPageTokens);
    }

  private:
    int64_t slots_;
    std::vector<KvLayout> layouts_;
    std::vector<size_t> page_bytes_, offsets_;
    std::vector<int32_t> ends_;  // [slots][layers]
    std::unique_ptr<KvPool> pool_;
};

}  // namespace kvern
