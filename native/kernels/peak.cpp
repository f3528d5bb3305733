// The rate of int8 multiply-adds with everything in registers: what the linear kernels are measured against.
#include "dispatch.h"
#include "simd.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr int kChains = 10;

#if defined(__AVX512F__)
int64_t multiply_add(int64_t loops) {
    __m512i sums[kChains], codes = _mm512_set1_epi8(3), inputs = _mm512_set1_epi32(0x01020304);
    for (__m512i& sum : sums) sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 10
        for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], codes, inputs);
        __asm__ volatile("" ::: "memory");
    }
    int32_t lanes[16], total = 0;
    for (const __m512i& sum : sums) {
        _mm512_storeu_si512(lanes, sum);
        total ^= lanes[0];
    }
    return total == 1 ? 0 : loops * kChains * 128;
}
#elif defined(__AVX2__)
int64_t multiply_add(int64_t loops) {
    __m256i sums[kChains], codes = _mm256_set1_epi8(3), inputs = _mm256_set1_epi8(5);
    for (__m256i& sum : sums) sum = _mm256_setzero_si256();
    for (int64_t i = 0; i < loops; ++i) {
        __asm__ volatile("" : "+x"(codes), "+x"(inputs));
#pragma GCC unroll 10
        for (int c = 0; c < kChains; ++c) {
            __m256i product = _mm256_maddubs_epi16(codes, inputs);
            __asm__ volatile("" : "+x"(product));  // every chain multiplies for itself
            sums[c] = _mm256_add_epi16(sums[c], product);
        }
    }
    int32_t total = 0;
    for (const __m256i& sum : sums) total ^= _mm256_extract_epi32(sum, 0);
    return total == 1 ? 0 : loops * kChains * 64;
}
#else
int64_t multiply_add(int64_t) { return 0; }
#endif

}  // namespace

void fill_peak(KernelTable& table) { table.linear.multiply_add_peak = multiply_add; }

}  // namespace kvern::KVERN_ISA_NS
