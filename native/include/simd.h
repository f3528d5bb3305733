// Sixteen float or int lanes on every instruction set, with identical rounding on all of them.
//
// Kernels written on F16 / I16 give the same bits on portable, AVX2 and AVX-512: every fma is explicit, every
// horizontal reduction is the same fixed tree. Only integer dot products (exact in any order) are specialised.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kvern::KVERN_ISA_NS {

#if defined(__AVX512F__)
struct F16 {
    __m512 v;
};
struct I16 {
    __m512i v;
};
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 splat(float x) { return {_mm512_set1_ps(x)}; }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
inline F16 from_bf16(const uint16_t* p) {
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
}
inline F16 from_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F16 from_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline I16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I16 to_int_nearest(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // ties to even
inline F16 as_float(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I16 as_int(F16 a) { return {_mm512_castps_si512(a.v)}; }
inline I16 splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I16 shift_left_23(I16 a) { return {_mm512_slli_epi32(a.v, 23)}; }
inline I16 low_half_as_high(I16 a) { return {_mm512_slli_epi32(a.v, 16)}; }  // bf16 in the low half -> float bits
inline I16 high_half(I16 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)))}; }
#elif defined(__AVX2__)
struct F16 {
    __m256 lo, hi;
};
struct I16 {
    __m256i lo, hi;
};
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 abs(F16 a) {
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
inline F16 from_bf16(const uint16_t* p) {
    __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
inline F16 from_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline F16 from_i8(const int8_t* p) {
    const __m128i lo = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i hi = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(lo)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(hi))};
}
inline I16 load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline void store(int32_t* p, I16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
inline F16 to_float(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I16 to_int_nearest(F16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F16 as_float(I16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I16 as_int(F16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline I16 splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 operator+(I16 a, I16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I16 shift_left_23(I16 a) { return {_mm256_slli_epi32(a.lo, 23), _mm256_slli_epi32(a.hi, 23)}; }
inline I16 low_half_as_high(I16 a) { return {_mm256_slli_epi32(a.lo, 16), _mm256_slli_epi32(a.hi, 16)}; }
inline I16 high_half(I16 a) {
    __m256i m = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
#else
struct F16 {
    float v[16];
};
struct I16 {
    int32_t v[16];
};
#define KVERN_LANES(T, EXPR)                    \
    T r;                                        \
    for (int i = 0; i < 16; ++i) r.v[i] = EXPR; \
    return r;
inline float half_to_float(uint16_t h) {
    uint32_t sign = (h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 1023u, bits;
    if (e == 0) {
        float f = static_cast<float>(m) * 0x1p-24f;
        std::memcpy(&bits, &f, 4);
        bits |= sign;
    } else {
        bits = sign | (e == 31 ? 0x7f800000u : (e + 112u) << 23) | (m << 13);
    }
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float float_of_bits(uint32_t b) {
    float f;
    std::memcpy(&f, &b, 4);
    return f;
}
inline F16 load(const float* p) { KVERN_LANES(F16, p[i]) }
inline void store(float* p, F16 a) { std::memcpy(p, a.v, 64); }
inline F16 splat(float x) { KVERN_LANES(F16, x) }
inline F16 operator+(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] + b.v[i]) }
inline F16 operator-(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] - b.v[i]) }
inline F16 operator*(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] * b.v[i]) }
inline F16 operator/(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] / b.v[i]) }
inline F16 fma(F16 a, F16 b, F16 c) { KVERN_LANES(F16, std::fmaf(a.v[i], b.v[i], c.v[i])) }
inline F16 max(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]) }
inline F16 min(F16 a, F16 b) { KVERN_LANES(F16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]) }
inline F16 abs(F16 a) { KVERN_LANES(F16, std::fabs(a.v[i])) }
inline F16 from_bf16(const uint16_t* p) { KVERN_LANES(F16, float_of_bits(static_cast<uint32_t>(p[i]) << 16)) }
inline F16 from_f16(const uint16_t* p) { KVERN_LANES(F16, half_to_float(p[i])) }
inline F16 from_i8(const int8_t* p) { KVERN_LANES(F16, static_cast<float>(p[i])) }
inline I16 load(const int32_t* p) { KVERN_LANES(I16, p[i]) }
inline void store(int32_t* p, I16 a) { std::memcpy(p, a.v, 64); }
inline F16 to_float(I16 a) { KVERN_LANES(F16, static_cast<float>(a.v[i])) }
inline I16 to_int_nearest(F16 a) { KVERN_LANES(I16, static_cast<int32_t>(std::nearbyintf(a.v[i]))) }
inline F16 as_float(I16 a) { KVERN_LANES(F16, float_of_bits(static_cast<uint32_t>(a.v[i]))) }
inline I16 as_int(F16 a) {
    I16 r;
    std::memcpy(r.v, a.v, 64);
    return r;
}
inline I16 splat(int32_t x) { KVERN_LANES(I16, x) }
inline I16 operator+(I16 a, I16 b) { KVERN_LANES(I16, a.v[i] + b.v[i]) }
inline I16 shift_left_23(I16 a) { KVERN_LANES(I16, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << 23)) }
inline I16 low_half_as_high(I16 a) { KVERN_LANES(I16, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << 16)) }
inline I16 high_half(I16 a) { KVERN_LANES(I16, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) & 0xffff0000u)) }
#undef KVERN_LANES
#endif

// Fixed tree: lanes i and i+8, then i and i+4, i+2, i+1. The same on every instruction set.
template <class Op>
inline float reduce(F16 a, Op op) {
    float v[16];
    store(v, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) v[i] = op(v[i], v[i + half]);
    return v[0];
}
inline float sum(F16 a) {
    return reduce(a, [](float x, float y) { return x + y; });
}
inline float max_of(F16 a) {
    return reduce(a, [](float x, float y) { return x > y ? x : y; });
}

// e^x for x <= 0 (or moderately positive); 0 below -87. Cody-Waite reduction, degree-6 polynomial, about 1 ulp.
inline F16 exp(F16 x) {
    const F16 low = splat(-87.0f);
    F16 c = max(min(x, splat(88.0f)), low);
    I16 n = to_int_nearest(c * splat(1.44269504088896341f));
    F16 nf = to_float(n);
    F16 r = fma(nf, splat(-0.693359375f), c);
    r = fma(nf, splat(2.12194440e-4f), r);
    F16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f));
    return p * as_float(shift_left_23(n + splat(int32_t{127})));
}

// Nearest-even rounding to bf16 (finite inputs; an infinity stays one).
inline uint16_t to_bf16(float f) {
    uint32_t b;
    std::memcpy(&b, &f, 4);
    if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((b >> 16) | 64u);  // keep a NaN a NaN
    return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
inline float bf16_to_float(uint16_t h) {
    uint32_t b = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &b, 4);
    return f;
}

}  // namespace kvern::KVERN_ISA_NS
