#include "kv_pool.h"

#include <sys/mman.h>

#include <new>
#include <stdexcept>

namespace kvern {
namespace {
constexpr size_t kGuard = size_t{1} << 16;  // never accessible, on both sides of the pages
constexpr size_t kHuge = size_t{1} << 21;
}  // namespace

KvPool::KvPool(int64_t pages, size_t page_bytes) : pages_(pages), page_bytes_(page_bytes) {
    size_t bytes = 0;
    if (pages <= 0 || page_bytes == 0 || __builtin_mul_overflow(static_cast<size_t>(pages), page_bytes, &bytes) ||
        bytes > (size_t{1} << 46))
        throw std::invalid_argument("KV pool: pages x bytes per page is out of range");
    bytes = (bytes + 4095) / 4096 * 4096;
    mapped_ = bytes + kHuge + 2 * kGuard;
    void* at = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<uint8_t*>(at);
    const auto first = reinterpret_cast<uintptr_t>(mapping_) + kGuard;
    data_ = mapping_ + ((first + kHuge - 1) / kHuge * kHuge - reinterpret_cast<uintptr_t>(mapping_));
    if (mprotect(data_, bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(mapping_, mapped_);
        throw std::bad_alloc();
    }
    madvise(data_, bytes, MADV_HUGEPAGE);  // advice only: a refusal changes nothing but speed
}

KvPool::~KvPool() { munmap(mapping_, mapped_); }

}  // namespace kvern
