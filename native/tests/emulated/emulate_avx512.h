// Tests only: the AVX-512 and AMX intrinsics that the kernels use, on AVX2, so that those code paths run anywhere.
// Included before each kernel file (-include). Immediate operands are plain arguments here.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#if defined(KVERN_ISA_amx)  // as on all processors with AMX
#define __AVX512VPOPCNTDQ__ 1
#endif

namespace emulated {

struct Floats {
    __m256 lo, hi;
};
struct Ints {
    __m256i lo, hi;
};

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline const char* second(const void* p) { return static_cast<const char*>(p) + 32; }

inline Floats loadu_ps(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void storeu_ps(float* p, Floats a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline Ints loadu_si512(const void* p) { return {load256(p), load256(second(p))}; }
inline void storeu_si512(void* p, Ints a) {
    std::memcpy(p, &a.lo, 32);
    std::memcpy(static_cast<char*>(p) + 32, &a.hi, 32);
}

#define EMULATE_1(NAME, R, A, F) \
    inline R NAME(A a) { return {F(a.lo), F(a.hi)}; }
#define EMULATE_2(NAME, T, F) \
    inline T NAME(T a, T b) { return {F(a.lo, b.lo), F(a.hi, b.hi)}; }
#define EMULATE_SHIFT(NAME, F) \
    inline Ints NAME(Ints a, int n) { return {F(a.lo, n), F(a.hi, n)}; }
EMULATE_2(add_ps, Floats, _mm256_add_ps)
EMULATE_2(sub_ps, Floats, _mm256_sub_ps)
EMULATE_2(mul_ps, Floats, _mm256_mul_ps)
EMULATE_2(div_ps, Floats, _mm256_div_ps)
EMULATE_2(max_ps, Floats, _mm256_max_ps)
EMULATE_2(min_ps, Floats, _mm256_min_ps)
EMULATE_2(add_epi32, Ints, _mm256_add_epi32)
EMULATE_2(add_epi8, Ints, _mm256_add_epi8)
EMULATE_2(add_epi16, Ints, _mm256_add_epi16)
EMULATE_2(sub_epi16, Ints, _mm256_sub_epi16)
EMULATE_2(packs_epi16, Ints, _mm256_packs_epi16)
EMULATE_2(packs_epi32, Ints, _mm256_packs_epi32)
EMULATE_2(sub_epi32, Ints, _mm256_sub_epi32)
EMULATE_2(max_epi32, Ints, _mm256_max_epi32)
EMULATE_2(mullo_epi32, Ints, _mm256_mullo_epi32)
EMULATE_2(mullo_epi16, Ints, _mm256_mullo_epi16)
EMULATE_2(madd_epi16, Ints, _mm256_madd_epi16)
EMULATE_2(and_si512, Ints, _mm256_and_si256)
EMULATE_2(shuffle_epi8, Ints, _mm256_shuffle_epi8)
EMULATE_2(xor_si512, Ints, _mm256_xor_si256)
EMULATE_2(or_si512, Ints, _mm256_or_si256)
EMULATE_1(cvtepi32_ps, Floats, Ints, _mm256_cvtepi32_ps)
EMULATE_1(cvtps_epi32, Ints, Floats, _mm256_cvtps_epi32)
EMULATE_1(castsi512_ps, Floats, Ints, _mm256_castsi256_ps)
EMULATE_1(castps_si512, Ints, Floats, _mm256_castps_si256)
EMULATE_SHIFT(slli_epi16, _mm256_slli_epi16)
EMULATE_SHIFT(srli_epi16, _mm256_srli_epi16)
EMULATE_SHIFT(slli_epi32, _mm256_slli_epi32)
EMULATE_SHIFT(srli_epi32, _mm256_srli_epi32)
EMULATE_SHIFT(srai_epi32, _mm256_srai_epi32)
EMULATE_SHIFT(srai_epi16, _mm256_srai_epi16)
#undef EMULATE_1
#undef EMULATE_2
#undef EMULATE_SHIFT

inline Floats fmadd_ps(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Floats abs_ps(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline Floats set1_ps(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Ints set1_epi32(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints set1_epi8(char x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
inline Ints setzero_si512() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints broadcast_i32x4(__m128i a) { return {_mm256_broadcastsi128_si256(a), _mm256_broadcastsi128_si256(a)}; }
inline __m128i low128(__m256i a) { return _mm256_castsi256_si128(a); }
inline __m128i high128(__m256i a) { return _mm256_extracti128_si256(a, 1); }
inline Ints cvtepu16_epi32(__m256i a) {
    return {_mm256_cvtepu16_epi32(low128(a)), _mm256_cvtepu16_epi32(high128(a))};
}
inline Ints cvtepi8_epi16(__m256i a) { return {_mm256_cvtepi8_epi16(low128(a)), _mm256_cvtepi8_epi16(high128(a))}; }
inline Ints cvtepu8_epi16(__m256i a) { return {_mm256_cvtepu8_epi16(low128(a)), _mm256_cvtepu8_epi16(high128(a))}; }
inline Floats cvtph_ps(__m256i a) { return {_mm256_cvtph_ps(low128(a)), _mm256_cvtph_ps(high128(a))}; }
inline Ints cvtepi8_epi32(__m128i a) {
    return {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a))};
}
inline Ints cvtepu8_epi32(__m128i a) {
    return {_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(a, a))};
}
inline __m256 castps512_ps256(Floats a) { return a.lo; }
inline __m256 extractf32x8_ps(Floats a, int part) { return part ? a.hi : a.lo; }
inline __m128i cvtepi32_epi8(Ints a) {
    int32_t words[16];
    int8_t bytes[16];
    storeu_si512(words, a);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(words[i]);
    __m128i r;
    std::memcpy(&r, bytes, 16);
    return r;
}
inline Floats setr_ps(float a, float b, float c, float d, float e, float f, float g, float h, float i, float j,
                      float k, float l, float m, float n, float o, float p) {
    return {_mm256_setr_ps(a, b, c, d, e, f, g, h), _mm256_setr_ps(i, j, k, l, m, n, o, p)};
}
inline Ints permutexvar_epi32(Ints index, Ints a) {
    int32_t from[16], in[16], out[16];
    storeu_si512(from, index);
    storeu_si512(in, a);
    for (int i = 0; i < 16; ++i) out[i] = in[from[i] & 15];
    return loadu_si512(out);
}
inline Floats permute_ps(Floats a, int order) {
    float in[16], out[16];
    storeu_ps(in, a);
    for (int i = 0; i < 16; ++i) out[i] = in[i / 4 * 4 + ((order >> (i % 4 * 2)) & 3)];
    return loadu_ps(out);
}
inline Floats shuffle_f32x4(Floats a, Floats b, int order) {
    float first[16], last[16], out[16];
    storeu_ps(first, a);
    storeu_ps(last, b);
    for (int i = 0; i < 16; ++i) out[i] = (i < 8 ? first : last)[((order >> (i / 4 * 2)) & 3) * 4 + i % 4];
    return loadu_ps(out);
}
template <class... T>
inline Ints setr_epi32(T... lanes) {
    const int32_t v[16] = {lanes...};
    return loadu_si512(v);
}
inline Floats permutexvar_ps(Ints index, Floats a) {
    int32_t from[16];
    float in[16], out[16];
    storeu_si512(from, index);
    storeu_ps(in, a);
    for (int i = 0; i < 16; ++i) out[i] = in[from[i] & 15];
    return loadu_ps(out);
}
inline Ints permutexvar_epi16(Ints index, Ints a) {
    uint16_t from[32], in[32], out[32];
    storeu_si512(from, index);
    storeu_si512(in, a);
    for (int i = 0; i < 32; ++i) out[i] = in[from[i] & 31];
    return loadu_si512(out);
}
inline Floats mask_sub_ps(Floats from, uint16_t mask, Floats a, Floats b) {
    float kept[16], difference[16];
    storeu_ps(kept, from);
    storeu_ps(difference, sub_ps(a, b));
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) kept[i] = difference[i];
    return loadu_ps(kept);
}
inline __m256i cvtepi32_epi16(Ints a) {
    int32_t words[16];
    int16_t halves[16];
    storeu_si512(words, a);
    for (int i = 0; i < 16; ++i) halves[i] = static_cast<int16_t>(words[i]);
    return load256(halves);
}
inline Ints shuffle_epi32(Ints a, int order) {
    int32_t in[16], out[16];
    storeu_si512(in, a);
    for (int i = 0; i < 16; ++i) out[i] = in[(i & ~3) | ((order >> (2 * (i & 3))) & 3)];
    return loadu_si512(out);
}
inline Ints dpwssd_epi32(Ints sum, Ints a, Ints b) { return add_epi32(sum, madd_epi16(a, b)); }
inline Ints dpbusd_epi32(Ints sum, Ints u, Ints s) {
    int32_t words[16];
    uint8_t left[64];
    int8_t right[64];
    storeu_si512(words, sum);
    storeu_si512(left, u);
    storeu_si512(right, s);
    for (int i = 0; i < 64; ++i) words[i / 4] += left[i] * right[i];
    return loadu_si512(words);
}

inline Ints popcnt_epi32(Ints a) {
    uint32_t words[16];
    storeu_si512(words, a);
    for (uint32_t& word : words) word = static_cast<uint32_t>(__builtin_popcount(word));
    return loadu_si512(words);
}

// bf16 of `low`, then of `high`; denormals become zero.
inline Ints cvtne2ps_pbh(Floats high, Floats low) {
    uint32_t bits[32];
    uint16_t halves[32];
    storeu_ps(reinterpret_cast<float*>(bits), low);
    storeu_ps(reinterpret_cast<float*>(bits + 16), high);
    for (int i = 0; i < 32; ++i) {
        const uint32_t b = bits[i], exponent = b & 0x7f800000u;
        const bool nan = (b & 0x7fffffffu) > 0x7f800000u;
        halves[i] = static_cast<uint16_t>(exponent == 0 ? (b & 0x80000000u) >> 16
                                          : nan         ? (b >> 16) | 64u
                                                        : (b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
    }
    return loadu_si512(halves);
}

// Eight tiles of 16 rows x 64 bytes, shaped by the configuration.
struct TileFile {
    uint8_t rows[8] = {};
    uint16_t bytes[8] = {};
    bool configured = false;
    uint8_t data[8][16][64] = {};
};
inline thread_local TileFile tiles;

inline void fail() { __builtin_trap(); }  // what the hardware answers with a fault
inline void tile_loadconfig(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    tiles = TileFile{};
    if (bytes[0] != 1) fail();
    for (int t = 0; t < 8; ++t) {
        std::memcpy(&tiles.bytes[t], bytes + 16 + 2 * t, 2);
        tiles.rows[t] = bytes[48 + t];
        if (tiles.rows[t] > 16 || tiles.bytes[t] > 64) fail();
    }
    tiles.configured = true;
}
inline void tile_release() { tiles.configured = false; }
inline void tile_zero(int t) { std::memset(tiles.data[t], 0, sizeof tiles.data[t]); }
inline void tile_loadd(int t, const void* base, long stride) {
    if (!tiles.configured) fail();
    tile_zero(t);
    for (int r = 0; r < tiles.rows[t]; ++r)
        std::memcpy(tiles.data[t][r], static_cast<const uint8_t*>(base) + r * stride, tiles.bytes[t]);
}
inline void tile_stored(int t, void* base, long stride) {
    if (!tiles.configured) fail();
    for (int r = 0; r < tiles.rows[t]; ++r)
        std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles.data[t][r], tiles.bytes[t]);
}
inline void check_product(int c, int a, int b) {
    const bool fits =
        tiles.rows[c] == tiles.rows[a] && tiles.bytes[c] == tiles.bytes[b] && tiles.bytes[a] == 4 * tiles.rows[b];
    if (!tiles.configured || !fits) fail();
}
template <class T>
inline T at(int t, int row, int i) {
    T value;
    std::memcpy(&value, tiles.data[t][row] + i * sizeof(T), sizeof(T));
    return value;
}
template <class B>
inline void int8_product(int c, int a, int b) {
    check_product(c, a, b);
    for (int m = 0; m < tiles.rows[c]; ++m)
        for (int n = 0; n < tiles.bytes[c] / 4; ++n) {
            auto sum = at<int32_t>(c, m, n);
            for (int k = 0; k < tiles.bytes[a]; ++k) sum += at<int8_t>(a, m, k) * at<B>(b, k / 4, n * 4 + k % 4);
            std::memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
        }
}
inline void tile_dpbsud(int c, int a, int b) { int8_product<uint8_t>(c, a, b); }
inline void tile_dpbssd(int c, int a, int b) { int8_product<int8_t>(c, a, b); }
inline float float_of(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline void tile_dpbf16ps(int c, int a, int b) {
    check_product(c, a, b);
    for (int m = 0; m < tiles.rows[c]; ++m)
        for (int n = 0; n < tiles.bytes[c] / 4; ++n) {
            float even = 0.0f, odd = 0.0f;
            for (int k = 0; k < tiles.bytes[a] / 4; ++k) {
                even = std::fmaf(float_of(at<uint16_t>(a, m, 2 * k)), float_of(at<uint16_t>(b, k, 2 * n)), even);
                odd =
                    std::fmaf(float_of(at<uint16_t>(a, m, 2 * k + 1)), float_of(at<uint16_t>(b, k, 2 * n + 1)), odd);
            }
            const float sum = at<float>(c, m, n) + (even + odd);
            std::memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
        }
}

}  // namespace emulated

#define __m512 emulated::Floats
#define __m512i emulated::Ints
#define _mm512_abs_ps emulated::abs_ps
#define _mm512_add_epi16 emulated::add_epi16
#define _mm512_packs_epi16 emulated::packs_epi16
#define _mm512_packs_epi32 emulated::packs_epi32
#undef _mm512_permute_ps
#define _mm512_permute_ps emulated::permute_ps
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm512_permutexvar_epi32 emulated::permutexvar_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 emulated::setr_epi32
#define _mm512_sub_epi16 emulated::sub_epi16
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_epi8 emulated::add_epi8
#define _mm512_add_ps emulated::add_ps
#define _mm512_and_si512 emulated::and_si512
#define _mm512_broadcast_i32x4 emulated::broadcast_i32x4
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi8_epi16 emulated::cvtepi8_epi16
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi16 emulated::cvtepu8_epi16
#define _mm512_cvtepu8_epi32 emulated::cvtepu8_epi32
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_div_ps emulated::div_ps
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_dpwssd_epi32 emulated::dpwssd_epi32
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_mask_sub_ps emulated::mask_sub_ps
#define _mm512_max_epi32 emulated::max_epi32
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_mullo_epi16 emulated::mullo_epi16
#define _mm512_mullo_epi32 emulated::mullo_epi32
#define _mm512_or_si512 emulated::or_si512
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_permutexvar_ps emulated::permutexvar_ps
#define _mm512_popcnt_epi32 emulated::popcnt_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_epi8 emulated::set1_epi8
#define _mm512_set1_ps emulated::set1_ps
#undef _mm512_setr_ps
#define _mm512_setr_ps emulated::setr_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_shuffle_epi32 emulated::shuffle_epi32
#define _mm512_shuffle_epi8 emulated::shuffle_epi8
#define _mm512_slli_epi16 emulated::slli_epi16
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srai_epi16 emulated::srai_epi16
#define _mm512_srai_epi32 emulated::srai_epi32
#define _mm512_srli_epi16 emulated::srli_epi16
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_store_si512 emulated::storeu_si512
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_xor_si512 emulated::xor_si512
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_release
#undef _tile_stored
#undef _tile_zero
#define _tile_dpbf16ps emulated::tile_dpbf16ps
#define _tile_dpbssd emulated::tile_dpbssd
#define _tile_dpbsud emulated::tile_dpbsud
#define _tile_loadconfig emulated::tile_loadconfig
#define _tile_loadd emulated::tile_loadd
#define _tile_release emulated::tile_release
#define _tile_stored emulated::tile_stored
#define _tile_zero emulated::tile_zero
