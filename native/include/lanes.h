// Small additions to simd.h: partial loads, quick reductions in simd.h's fixed tree, bytes of packed lanes.
#pragma once
#include <cstring>

#include "simd.h"

namespace kvern::KVERN_ISA_NS {

#if defined(__AVX2__)
namespace detail {
template <class Op>
inline float tree(__m256 a, Op op) {  // lanes i and i + 4, then i + 2, then i + 1
    __m128 h = op(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = op(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(op(h, _mm_shuffle_ps(h, h, 1)));
}
inline __m256 low(F16 a) {
#if defined(__AVX512F__)
    return _mm512_castps512_ps256(a.v);
#else
    return a.lo;
#endif
}
inline __m256 high(F16 a) {
#if defined(__AVX512F__)
    return _mm512_extractf32x8_ps(a.v, 1);
#else
    return a.hi;
#endif
}
}  // namespace detail
inline float quick_sum(F16 a) {
    return detail::tree(_mm256_add_ps(detail::low(a), detail::high(a)),
                        [](__m128 x, __m128 y) { return _mm_add_ps(x, y); });
}
inline float quick_max(F16 a) {
    return detail::tree(_mm256_max_ps(detail::low(a), detail::high(a)),
                        [](__m128 x, __m128 y) { return _mm_max_ps(x, y); });
}
#else
inline float quick_sum(F16 a) { return sum(a); }
inline float quick_max(F16 a) { return max_of(a); }
#endif

// The larger of each pair of integers.
inline I16 larger(I16 a, I16 b) {
#if defined(__AVX512F__)
    return {_mm512_max_epi32(a.v, b.v)};
#elif defined(__AVX2__)
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
#else
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return r;
#endif
}
inline int32_t largest(I16 a) {
#if defined(__AVX2__)
    const F16 lanes = as_float(a);
    const __m256i pair =
        _mm256_max_epi32(_mm256_castps_si256(detail::low(lanes)), _mm256_castps_si256(detail::high(lanes)));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
#else
    int32_t most = a.v[0];
    for (int i = 1; i < 16; ++i) most = a.v[i] > most ? a.v[i] : most;
    return most;
#endif
}

constexpr int kAhead = 2048;

// Asks for the next BYTES of a stream that is read front to back, kAhead bytes before they are needed: without it one
// row reads at half the rate of the second and third level caches.
template <int BYTES>
inline void prefetch_ahead(const uint8_t* p) {
#if defined(__AVX2__)
#pragma GCC unroll 16
    for (int at = 0; at < BYTES; at += 64) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead + at), _MM_HINT_T0);
#else
    (void)p;
#endif
}

// Signed byte J (0 is the lowest) of each 32-bit lane.
template <int J>
inline F16 byte_to_float(I16 w) {
#if defined(__AVX512F__)
    __m512i x = J == 3 ? w.v : _mm512_slli_epi32(w.v, 24 - 8 * J);
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(x, 24))};
#elif defined(__AVX2__)
    __m256i lo = J == 3 ? w.lo : _mm256_slli_epi32(w.lo, 24 - 8 * J);
    __m256i hi = J == 3 ? w.hi : _mm256_slli_epi32(w.hi, 24 - 8 * J);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(lo, 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(hi, 24))};
#else
    F16 r;
    for (int i = 0; i < 16; ++i)
        r.v[i] = static_cast<float>(static_cast<int8_t>(static_cast<uint32_t>(w.v[i]) >> (8 * J)));
    return r;
#endif
}

// The first n (0..16) of 16 lanes; the others are `fill` and are neither read nor written in memory.
inline F16 load_first(const float* p, int n, float fill = 0.0f) {
    if (n >= 16) return load(p);
    float v[16];
    for (int i = 0; i < 16; ++i) v[i] = fill;
    std::memcpy(v, p, static_cast<size_t>(n) * sizeof(float));
    return load(v);
}
inline void store_first(float* p, F16 a, int n) {
    if (n >= 16) return store(p, a);
    float v[16];
    store(v, a);
    std::memcpy(p, v, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace kvern::KVERN_ISA_NS
