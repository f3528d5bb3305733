// One anonymous mapping that holds all KV pages; memory is committed page by page as it is written.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvern {

class KvPool {
  public:
    // Throws std::invalid_argument for sizes that overflow, std::bad_alloc when the mapping is refused.
    KvPool(int64_t pages, size_t page_bytes);
    ~KvPool();
    KvPool(const KvPool&) = delete;
    KvPool& operator=(const KvPool&) = delete;

    int64_t pages() const { return pages_; }
    size_t page_bytes() const { return page_bytes_; }
    uint8_t* data() { return data_; }
    uint8_t* page(int64_t id) { return data_ + static_cast<size_t>(id) * page_bytes_; }

  private:
    int64_t pages_;
    size_t page_bytes_, mapped_ = 0;
    uint8_t *mapping_ = nullptr, *data_ = nullptr;
};

}  // namespace kvern
