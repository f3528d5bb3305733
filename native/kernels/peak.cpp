// The machine's own limits, which the linear kernels are measured against: int8 multiplies with everything in
// registers, and a plain read of memory.
#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

#if defined(__AVX512F__)
int64_t multiply_add(int64_t loops) {
    constexpr int chains = 10;  // more than latency x throughput, and they fit in the 32 registers
    __m512i sums[chains], codes = _mm512_set1_epi8(3), inputs = _mm512_set1_epi32(0x01020304);
    for (__m512i& sum : sums) sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 10
        for (int c = 0; c < chains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], codes, inputs);
    }
    __m512i total = sums[0];
    for (int c = 1; c < chains; ++c) total = _mm512_add_epi32(total, sums[c]);
    int32_t lanes[16];
    _mm512_storeu_si512(lanes, total);
    __asm__ volatile("" ::"r"(lanes) : "memory");
    return loops * chains * 128;
}
#elif defined(__AVX2__)
int64_t multiply_add(int64_t loops) {
    constexpr int chains = 8;
    const __m256i codes = _mm256_set1_epi8(3), inputs = _mm256_set1_epi8(5);
    for (int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 8
        for (int c = 0; c < chains; ++c) {
            __m256i product;  // written out: as an intrinsic GCC computes it once for all chains
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(codes), "x"(inputs));
        }
    }
    return loops * chains * 64;
}
#else
int64_t multiply_add(int64_t) { return 0; }
#endif

// 512 bytes a round; what is left at the end is not read. Returns the bytes read.
int64_t read_memory(const uint8_t* data, int64_t bytes) {
    I16 sums[8];
    for (I16& sum : sums) sum = splat(int32_t{0});
    int64_t at = 0;
    for (; bytes - at >= 512; at += 512) {
        prefetch_ahead<512>(data + at);
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) sums[c] = sums[c] + load(reinterpret_cast<const int32_t*>(data + at + 64 * c));
    }
    int32_t lanes[8][16];
    for (int c = 0; c < 8; ++c) store(lanes[c], sums[c]);
    __asm__ volatile("" ::"r"(lanes) : "memory");
    return at;
}

}  // namespace

void fill_peak(KernelTable& table) {
    table.linear.multiply_add_peak = multiply_add;
    table.linear.read_memory = read_memory;
}

}  // namespace kvern::KVERN_ISA_NS
