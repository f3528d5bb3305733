#include "kv_tails.h"

#include <algorithm>
#include <stdexcept>

namespace kvern {

KvTails::KvTails(const std::vector<int>& head_dims, const std::vector<int>& kv_heads, int64_t slots) : slots_(slots) {
    if (slots < 0 || slots > (int64_t{1} << 20)) throw std::invalid_argument("tail_slots is outside 0..1048576");
    if (slots == 0) return;
    size_t offset = 0;
    for (size_t i = 0; i < head_dims.size(); ++i) {
        layouts_.emplace_back(KvFormat::bf16, head_dims[i]);
        page_bytes_.push_back(layouts_.back().block_bytes * static_cast<size_t>(kv_heads[i]));
        offsets_.push_back(offset);
        offset += kTailPages * page_bytes_.back();
    }
    ends_.assign(static_cast<size_t>(slots) * layouts_.size(), 0);
    pool_ = std::make_unique<KvPool>(slots, offset);
}

size_t KvTails::widest_page() const {
    return page_bytes_.empty() ? 0 : *std::max_element(page_bytes_.begin(), page_bytes_.end());
}

}  // namespace kvern
