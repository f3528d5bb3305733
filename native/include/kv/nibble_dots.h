// Exact integer sums of 4-bit codes with 15-bit numbers, 16 lanes at once.
//
// A word is 16 lanes x 4 bytes, each byte two codes. The numbers stand for float32 ones, 2^-15 of the largest apart,
// far below what 4-bit codes lose; their sums are exact, so every instruction set may take them in its own form.
#pragma once
#include <cstdint>
#include <cstring>

#include "../int_pairs.h"
#include "../lanes.h"
#include "../simd.h"

namespace kvern::KVERN_ISA_NS {

constexpr float kNumberTop = 127.0f * 128.0f;  // numbers are within +- this: 128 * high + low in two signed bytes

// n numbers in 2 n bytes, in the form of the instruction set:
//   avx512   two planes of bytes, high and low (a byte dot product each)
//   avx2     of each four numbers c0 .. c3 the pairs (c0, c2), (c1, c3) of int16, as pair_words makes them
//   portable int16 one after the other
struct Numbers {
    const uint8_t* base;
    int n;
};

inline void store_numbers(I16 number, uint8_t* base, int n, int at) {
#if defined(__AVX512F__)
    const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(number.v, _mm512_set1_epi32(64)), 7);
    const __m512i l = _mm512_sub_epi32(number.v, _mm512_slli_epi32(h, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(base + at), _mm512_cvtepi32_epi8(h));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(base + n + at), _mm512_cvtepi32_epi8(l));
#elif defined(__AVX2__)
    static_cast<void>(n);
    const I16 words = pair_words(number);  // of each four lanes the first two
    for (int i = 0; i < 2; ++i) {
        const __m256i pairs = _mm256_permute4x64_epi64(i == 0 ? words.lo : words.hi, 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(base + 2 * at + 16 * i), _mm256_castsi256_si128(pairs));
    }
#else
    static_cast<void>(n);
    for (int i = 0; i < 16; ++i) {
        const auto small = static_cast<int16_t>(number.v[i]);
        std::memcpy(base + 2 * (at + i), &small, 2);
    }
#endif
}

#if defined(__AVX512F__)
// 64 numbers at once, packed to 16 and then to 8 bits; dwords of the halves of registers go back in order at the end.
inline void store_64_numbers(const I16* number, uint8_t* base, int n, int at) {
    const __m512i half = _mm512_set1_epi32(64 << 16 | 64);
    __m512i high[2], low[2];
    for (int i = 0; i < 2; ++i) {
        const __m512i both = _mm512_packs_epi32(number[2 * i].v, number[2 * i + 1].v);
        high[i] = _mm512_srai_epi16(_mm512_add_epi16(both, half), 7);
        low[i] = _mm512_sub_epi16(both, _mm512_slli_epi16(high[i], 7));
    }
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(base + at, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high[0], high[1])));
    _mm512_storeu_si512(base + n + at, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low[0], low[1])));
}
#endif

// Numbers of x[0, n), n a multiple of 16; returns their scale, NaN when x is not finite.
inline float to_nibble_numbers(const float* x, int n, uint8_t* base) {
    F16 top = splat(0.0f), check = splat(0.0f);
    for (int i = 0; i < n; i += 16) {
        const F16 v = load(x + i);
        top = max(top, abs(v));
        check = fma(v, splat(0.0f), check);  // stays zero unless something is not finite
    }
    const float largest = quick_max(top) + quick_sum(check);
    if (!(largest > 1e-30f)) {  // below, the inverse may not be a number
        std::memset(base, 0, 2 * static_cast<size_t>(n));
        return largest * 0.0f;
    }
    const F16 inverse = splat(kNumberTop / largest);
    int i = 0;
#if defined(__AVX512F__)
    for (; i + 64 <= n; i += 64) {
        I16 number[4];
        for (int j = 0; j < 4; ++j) number[j] = to_int_nearest(load(x + i + 16 * j) * inverse);
        store_64_numbers(number, base, n, i);
    }
#endif
    for (; i < n; i += 16) store_numbers(to_int_nearest(load(x + i) * inverse), base, n, i);
    return largest / kNumberTop;
}

// dot_both: out[G r + g] = sum over `words` w of the low codes . numbers a[r][8 w ..] + the high codes . a[r][8 w + 4
// ..], lane by lane, of groups g of 16 lanes, which lie one after the other.
// dot_each: first[r] += sum over words w (`stride` bytes apart) of the low codes . a[r][at + 4 w ..], second[r] the
// same of the high codes.
#if defined(__AVX512F__)
namespace detail {
struct NibbleWord {
    __m512i low, high;
};
inline NibbleWord nibble_word(const uint8_t* p) {
    const __m512i mask = _mm512_set1_epi8(15), w = _mm512_loadu_si512(p);
    return {_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16(w, 4), mask)};
}
inline __m512i four_numbers(const uint8_t* plane) {
    int32_t v;
    std::memcpy(&v, plane, 4);
    return _mm512_set1_epi32(v);
}
inline I16 joined(__m512i high, __m512i low) { return {_mm512_add_epi32(_mm512_slli_epi32(high, 7), low)}; }
}  // namespace detail

template <int R, int G>
inline void dot_both(const uint8_t* codes, int words, const Numbers* a, I16* out) {
    __m512i high[R][G], low[R][G];
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < G; ++g) high[r][g] = low[r][g] = _mm512_setzero_si512();
    for (int w = 0; w < words; ++w) {
        detail::NibbleWord c[G];
        for (int g = 0; g < G; ++g) c[g] = detail::nibble_word(codes + 64 * (g * words + w));
        for (int part = 0; part < 2; ++part)
            for (int r = 0; r < R; ++r) {
                const uint8_t* at = a[r].base + 8 * w + 4 * part;
                const __m512i h = detail::four_numbers(at), l = detail::four_numbers(at + a[r].n);
                for (int g = 0; g < G; ++g) {
                    const __m512i x = part == 0 ? c[g].low : c[g].high;
                    high[r][g] = _mm512_dpbusd_epi32(high[r][g], x, h);
                    low[r][g] = _mm512_dpbusd_epi32(low[r][g], x, l);
                }
            }
    }
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < G; ++g) out[r * G + g] = detail::joined(high[r][g], low[r][g]);
}

template <int R>
inline void dot_each(const uint8_t* codes, size_t stride, int words, const Numbers* a, int at, I16* first,
                     I16* second) {
    __m512i high[R][2], low[R][2];
    for (int r = 0; r < R; ++r) high[r][0] = high[r][1] = low[r][0] = low[r][1] = _mm512_setzero_si512();
    for (int w = 0; w < words; ++w) {
        const detail::NibbleWord c = detail::nibble_word(codes + stride * static_cast<size_t>(w));
        for (int r = 0; r < R; ++r) {
            const uint8_t* from = a[r].base + at + 4 * w;
            const __m512i h = detail::four_numbers(from), l = detail::four_numbers(from + a[r].n);
            high[r][0] = _mm512_dpbusd_epi32(high[r][0], c.low, h);
            high[r][1] = _mm512_dpbusd_epi32(high[r][1], c.high, h);
            low[r][0] = _mm512_dpbusd_epi32(low[r][0], c.low, l);
            low[r][1] = _mm512_dpbusd_epi32(low[r][1], c.high, l);
        }
    }
    for (int r = 0; r < R; ++r) {
        first[r] = first[r] + detail::joined(high[r][0], low[r][0]);
        second[r] = second[r] + detail::joined(high[r][1], low[r][1]);
    }
}
#elif defined(__AVX2__)
namespace detail {
inline __m256i bytes_at(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i two_numbers(const uint8_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}
// Codes 0 and 2 of each lane's four (SHIFT 0: low, 4: high ones), or 1 and 3 (8, 12), as int16.
template <int SHIFT>
inline __m256i code_pairs(__m256i word) {
    return _mm256_and_si256(_mm256_srli_epi32(word, SHIFT), _mm256_set1_epi32(0x000f000f));
}
inline __m256i added(__m256i sum, __m256i pairs, __m256i numbers) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, numbers));
}
template <int R, int SHIFT>
inline void add_pairs(__m256i low, __m256i high, const Numbers* a, int word, I16* sum) {
    const __m256i x = code_pairs<SHIFT>(low), y = code_pairs<SHIFT>(high);
    for (int r = 0; r < R; ++r) {
        const __m256i numbers = two_numbers(a[r].base + 4 * word);
        sum[r].lo = added(sum[r].lo, x, numbers);
        sum[r].hi = added(sum[r].hi, y, numbers);
    }
}
}  // namespace detail

template <int R, int G>
inline void dot_both(const uint8_t* codes, int words, const Numbers* a, I16* out) {
    for (int g = 0; g < G; ++g) {
        I16 sum[R];
        for (int r = 0; r < R; ++r) sum[r] = splat(int32_t{0});
        for (int w = 0; w < words; ++w) {
            const uint8_t* at = codes + 64 * (g * words + w);
            const __m256i low = detail::bytes_at(at), high = detail::bytes_at(at + 32);
            detail::add_pairs<R, 0>(low, high, a, 4 * w, sum);
            detail::add_pairs<R, 8>(low, high, a, 4 * w + 1, sum);
            detail::add_pairs<R, 4>(low, high, a, 4 * w + 2, sum);
            detail::add_pairs<R, 12>(low, high, a, 4 * w + 3, sum);
        }
        for (int r = 0; r < R; ++r) out[r * G + g] = sum[r];
    }
}

template <int R>
inline void dot_each(const uint8_t* codes, size_t stride, int words, const Numbers* a, int at, I16* first,
                     I16* second) {
    for (int half = 0; half < 2; ++half) {
        __m256i low[R], high[R];
        for (int r = 0; r < R; ++r)
            low[r] = half == 0 ? first[r].lo : first[r].hi, high[r] = half == 0 ? second[r].lo : second[r].hi;
        for (int w = 0; w < words; ++w) {
            const __m256i c = detail::bytes_at(codes + stride * static_cast<size_t>(w) + 32 * half);
            const __m256i low_even = detail::code_pairs<0>(c), low_odd = detail::code_pairs<8>(c);
            const __m256i high_even = detail::code_pairs<4>(c), high_odd = detail::code_pairs<12>(c);
            for (int r = 0; r < R; ++r) {
                const uint8_t* from = a[r].base + 2 * (at + 4 * w);
                const __m256i even = detail::two_numbers(from), odd = detail::two_numbers(from + 4);
                low[r] = detail::added(detail::added(low[r], low_even, even), low_odd, odd);
                high[r] = detail::added(detail::added(high[r], high_even, even), high_odd, odd);
            }
        }
        for (int r = 0; r < R; ++r) {
            (half == 0 ? first[r].lo : first[r].hi) = low[r];
            (half == 0 ? second[r].lo : second[r].hi) = high[r];
        }
    }
}
#else
namespace detail {
inline int32_t number(const Numbers& a, int i) {
    int16_t v;
    std::memcpy(&v, a.base + 2 * i, 2);
    return v;
}
}  // namespace detail

template <int R, int G>
inline void dot_both(const uint8_t* codes, int words, const Numbers* a, I16* out) {
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 16 * G; ++i) {
            const uint8_t* lane = codes + 64 * (i / 16) * words + 4 * (i % 16);
            int32_t sum = 0;
            for (int w = 0; w < words; ++w)
                for (int b = 0; b < 4; ++b) {
                    const int c = lane[64 * w + b];
                    sum +=
                        (c & 15) * detail::number(a[r], 8 * w + b) + (c >> 4) * detail::number(a[r], 8 * w + 4 + b);
                }
            out[r * G + i / 16].v[i % 16] = sum;
        }
}

template <int R>
inline void dot_each(const uint8_t* codes, size_t stride, int words, const Numbers* a, int at, I16* first,
                     I16* second) {
    for (int r = 0; r < R; ++r)
        for (int lane = 0; lane < 16; ++lane) {
            int32_t low = 0, high = 0;
            for (int w = 0; w < words; ++w)
                for (int b = 0; b < 4; ++b) {
                    const int c = codes[stride * static_cast<size_t>(w) + static_cast<size_t>(4 * lane + b)];
                    low += (c & 15) * detail::number(a[r], at + 4 * w + b);
                    high += (c >> 4) * detail::number(a[r], at + 4 * w + b);
                }
            first[r].v[lane] += low, second[r].v[lane] += high;
        }
}
#endif

}  // namespace kvern::KVERN_ISA_NS
