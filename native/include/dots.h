// Exact integer dot products of 16 outputs x 32 inputs with ROWS rows of int8 activations, per instruction set.
//
// Codes are unsigned (layouts in packed_weight.h). AVX2 multiplies u8 by s8 and adds pairs into int16; how many steps
// may be summed there before widening follows from the largest code: 2 * 127 * 15 * 8 = 30480, 2 * 127 * 31 * 4 =
// 31496 and 2 * 127 * 63 * 2 = 32004 are all below 32768. Byte codes are multiplied as |w| by a with the sign of w: 2
// * 128 * 127 = 32512 is below 32768 too. (byte_dots splits them into two nibbles instead.)
//
// PANEL: the codes lie expanded, a byte each, [8 steps][16 outputs][4 inputs] (expand_codes), for use by many rows.
#pragma once
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace kvern::KVERN_ISA_NS {

constexpr int kPlane = 64;  // bytes of one step (or plane) of 16 outputs x 4 inputs

constexpr int plane_bytes(int bits) { return bits == 8 ? 8 * kPlane : 4 * kPlane + (bits - 4) * kPlane; }

inline int32_t four_codes(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return v;
}

#if defined(__AVX512F__)
constexpr int kMaxRows = 8;

template <int BITS>
inline __m512i codes_at(const uint8_t* planes, int step) {
    if constexpr (BITS == 8) return _mm512_loadu_si512(planes + step * kPlane);
    const __m512i low = _mm512_set1_epi8(15);
    __m512i v = _mm512_loadu_si512(planes + (BITS - 4) * kPlane + step % 4 * kPlane);
    v = step < 4 ? _mm512_and_si512(v, low) : _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    if constexpr (BITS == 5) {
        const __m512i plane = _mm512_loadu_si512(planes);
        const __m512i top = step < 4 ? _mm512_slli_epi16(plane, 4 - step) : _mm512_srli_epi16(plane, step - 4);
        v = _mm512_or_si512(v, _mm512_and_si512(top, _mm512_set1_epi8(16)));
    }
    if constexpr (BITS == 6) {
        const __m512i plane = _mm512_loadu_si512(planes + step / 4 * kPlane);
        const int i = step % 4 * 2;
        const __m512i top = i < 4 ? _mm512_slli_epi16(plane, 4 - i) : _mm512_srli_epi16(plane, i - 4);
        v = _mm512_or_si512(v, _mm512_and_si512(top, _mm512_set1_epi8(48)));
    }
    return v;
}

// The codes of a group, a byte each, as PANEL takes them; `to` 64-byte aligned.
template <int BITS>
inline void expand_codes(const uint8_t* planes, uint8_t* to) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) _mm512_store_si512(to + step * kPlane, codes_at<BITS>(planes, step));
}

// Steps [FIRST, LAST) summed into sum[r].
template <int BITS, int ROWS, int FIRST, int LAST>
inline void sum_steps(const uint8_t* planes, const int8_t* const* a, I16* sum) {
#pragma GCC unroll 8
    for (int step = FIRST; step < LAST; ++step) {
        const __m512i codes = codes_at<BITS>(planes, step);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            sum[r].v = _mm512_dpbusd_epi32(sum[r].v, codes, _mm512_set1_epi32(four_codes(a[r] + 4 * step)));
    }
}

template <int BITS, int ROWS, bool PANEL = false>
inline void dots(const uint8_t* planes, const int8_t* const* a, I16* out) {
    for (int r = 0; r < ROWS; ++r) out[r].v = _mm512_setzero_si512();
    sum_steps<PANEL ? 8 : BITS, ROWS, 0, 8>(planes, a, out);
}

constexpr int kByteOffset = 128;  // what add_byte_dots leaves in the codes of bytes

// Few rows are summed in several chains, because one multiply takes as long as ten can be begun in.
template <int ROWS>
inline void add_byte_dots(const uint8_t* planes, const int8_t* const* a, I16* total) {
    constexpr int chains = ROWS >= 8 ? 1 : ROWS >= 4 ? 2 : 4;
    I16 part[chains][ROWS];
    for (int c = 1; c < chains; ++c)
        for (int r = 0; r < ROWS; ++r) part[c][r].v = _mm512_setzero_si512();
    for (int r = 0; r < ROWS; ++r) part[0][r] = total[r];
    sum_steps<8, ROWS, 0, 8 / chains>(planes, a, part[0]);
    if constexpr (chains > 1) sum_steps<8, ROWS, 8 / chains, 16 / chains>(planes, a, part[1]);
    if constexpr (chains > 2) {
        sum_steps<8, ROWS, 4, 6>(planes, a, part[2]);
        sum_steps<8, ROWS, 6, 8>(planes, a, part[3]);
    }
    for (int r = 0; r < ROWS; ++r) {
        total[r] = part[0][r];
        for (int c = 1; c < chains; ++c) total[r] = total[r] + part[c][r];
    }
}

// q6_k: integer sums of the two halves of a group, each times its int8 scale, less the codes' offset of 32.
inline I16 combine_halves(I16 low, I16 high, const uint8_t* scales, const int16_t* half_sums) {
    const __m512i pair = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(pair, 16), 16), second = _mm512_srai_epi32(pair, 16);
    int32_t halves;
    std::memcpy(&halves, half_sums, 4);
    const __m512i offset = _mm512_slli_epi32(_mm512_madd_epi16(pair, _mm512_set1_epi32(halves)), 5);
    const __m512i both = _mm512_add_epi32(_mm512_mullo_epi32(low.v, first), _mm512_mullo_epi32(high.v, second));
    return {_mm512_sub_epi32(both, offset)};
}

template <int ROWS, bool PANEL = false>
inline void scaled_dots(const uint8_t* planes, const uint8_t* scales, const int8_t* const* a,
                        const int16_t* const* sums, I16* out) {
    I16 low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; ++r) low[r].v = high[r].v = _mm512_setzero_si512();
    sum_steps<PANEL ? 8 : 6, ROWS, 0, 4>(planes, a, low);
    sum_steps<PANEL ? 8 : 6, ROWS, 4, 8>(planes, a, high);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) out[r] = combine_halves(low[r], high[r], scales, sums[r]);
}

#elif defined(__AVX2__)
constexpr int kMaxRows = 4;

// GCC would reorder the sums into a tree, which needs more registers than there are: keep the chains as written.
inline void keep(__m256i& x) { __asm__("" : "+x"(x)); }
// Nothing is carried over in registers from one half of the outputs to the other.
inline void forget() { __asm__ volatile("" ::: "memory"); }

inline __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i spread(const int8_t* p) { return _mm256_set1_epi32(four_codes(p)); }

template <int BITS>
inline __m256i codes_at(const uint8_t* planes, int step, int half) {
    if constexpr (BITS == 8) return load_bytes(planes + step * kPlane + half * 32);
    const __m256i low = _mm256_set1_epi8(15);
    __m256i v = load_bytes(planes + (BITS - 4) * kPlane + step % 4 * kPlane + half * 32);
    v = step < 4 ? _mm256_and_si256(v, low) : _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    if constexpr (BITS == 5) {
        const __m256i plane = load_bytes(planes + half * 32);
        const __m256i top = step < 4 ? _mm256_slli_epi16(plane, 4 - step) : _mm256_srli_epi16(plane, step - 4);
        v = _mm256_or_si256(v, _mm256_and_si256(top, _mm256_set1_epi8(16)));
    }
    if constexpr (BITS == 6) {
        const __m256i plane = load_bytes(planes + step / 4 * kPlane + half * 32);
        const int i = step % 4 * 2;
        const __m256i top = i < 4 ? _mm256_slli_epi16(plane, 4 - i) : _mm256_srli_epi16(plane, i - 4);
        v = _mm256_or_si256(v, _mm256_and_si256(top, _mm256_set1_epi8(48)));
    }
    return v;
}

// int16 sums of steps [FIRST, LAST) of outputs 8 * half..
template <int BITS, int ROWS, int FIRST, int LAST>
inline void sum_steps(const uint8_t* planes, int half, const int8_t* const* a, __m256i* sum) {
#pragma GCC unroll 8
    for (int step = FIRST; step < LAST; ++step) {
        const __m256i codes = codes_at<BITS>(planes, step, half);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i product = _mm256_maddubs_epi16(codes, spread(a[r] + 4 * step));
            sum[r] = step == FIRST ? product : _mm256_add_epi16(sum[r], product);
            keep(sum[r]);
        }
    }
}

template <int ROWS>
inline void byte_dots(const uint8_t* planes, int half, const int8_t* const* a, __m256i* out) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i even[ROWS], odd[ROWS];
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
        const __m256i codes = load_bytes(planes + step * kPlane + half * 32);
        const __m256i l = _mm256_and_si256(codes, low), h = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i x = spread(a[r] + 4 * step);
            const __m256i p = _mm256_maddubs_epi16(l, x), q = _mm256_maddubs_epi16(h, x);
            even[r] = step == 0 ? p : _mm256_add_epi16(even[r], p);
            odd[r] = step == 0 ? q : _mm256_add_epi16(odd[r], q);
            keep(even[r]);
            keep(odd[r]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        out[r] = _mm256_add_epi32(_mm256_madd_epi16(even[r], _mm256_set1_epi16(1)),
                                  _mm256_madd_epi16(odd[r], _mm256_set1_epi16(16)));
}

// Codes of a panel as they are, else out of their planes.
template <int BITS, bool PANEL>
inline __m256i step_codes(const uint8_t* planes, int step, int half) {
    if constexpr (PANEL) return load_bytes(planes + step * kPlane + half * 32);
    return codes_at<BITS>(planes, step, half);
}

template <int BITS>
inline void expand_codes(const uint8_t* planes, uint8_t* to) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + i * 32), codes_at<BITS>(planes, i / 2, i % 2));
}

inline __m256i& half_of(I16& x, int half) { return half ? x.hi : x.lo; }

// int16 sums of steps LOW[i] = i / 2 + i % 2 * 4, i in [FIRST, LAST), of all 16 outputs: an input is spread once, and
// both nibbles of a byte are used while it is in a register.
template <int BITS, int ROWS, bool PANEL, int FIRST, int LAST>
inline void sum_pairs(const uint8_t* planes, const int8_t* const* a, I16* sum) {
#pragma GCC unroll 8
    for (int i = FIRST; i < LAST; ++i) {
        const int step = i / 2 + i % 2 * 4;
        const __m256i codes[2] = {step_codes<BITS, PANEL>(planes, step, 0), step_codes<BITS, PANEL>(planes, step, 1)};
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i x = spread(a[r] + 4 * step);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m256i product = _mm256_maddubs_epi16(codes[half], x);
                __m256i& to = half_of(sum[r], half);
                to = i == FIRST ? product : _mm256_add_epi16(to, product);
                keep(to);
            }
        }
    }
}

template <int BITS, int ROWS, bool PANEL = false>
inline void dots(const uint8_t* planes, const int8_t* const* a, I16* out) {
    static_assert(BITS == 4 || BITS == 5);
    const __m256i one = _mm256_set1_epi16(1);
    I16 sum[ROWS];
    sum_pairs<BITS, ROWS, PANEL, 0, BITS == 4 ? 8 : 4>(planes, a, sum);
    for (int r = 0; r < ROWS; ++r) out[r] = {_mm256_madd_epi16(sum[r].lo, one), _mm256_madd_epi16(sum[r].hi, one)};
    if constexpr (BITS == 5) {
        sum_pairs<BITS, ROWS, PANEL, 4, 8>(planes, a, sum);
        for (int r = 0; r < ROWS; ++r) {
            out[r].lo = _mm256_add_epi32(out[r].lo, _mm256_madd_epi16(sum[r].lo, one));
            out[r].hi = _mm256_add_epi32(out[r].hi, _mm256_madd_epi16(sum[r].hi, one));
        }
    }
}

constexpr int kByteOffset = 0;  // what add_byte_dots leaves in the codes of bytes

template <int ROWS>
inline void add_byte_dots(const uint8_t* planes, const int8_t* const* a, I16* total) {
    const __m256i one = _mm256_set1_epi16(1), offset = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m256i w = _mm256_xor_si256(load_bytes(planes + step * kPlane + half * 32), offset);
            const __m256i size = _mm256_abs_epi8(w);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const __m256i x = _mm256_sign_epi8(spread(a[r] + 4 * step), w);
                __m256i& to = half_of(total[r], half);
                to = _mm256_add_epi32(to, _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), one));
                keep(to);
            }
        }
    }
}

// int16 sums of steps [FIRST, FIRST + 2) of outputs 8 * half.., widened and scaled into out.
template <int ROWS, bool PANEL, int FIRST>
inline void scaled_steps(const uint8_t* planes, int half, __m256i scale, const int8_t* const* a, I16* out) {
    __m256i sum[ROWS];
#pragma GCC unroll 2
    for (int step = FIRST; step < FIRST + 2; ++step) {
        const __m256i codes = step_codes<6, PANEL>(planes, step, half);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i product = _mm256_maddubs_epi16(codes, spread(a[r] + 4 * step));
            sum[r] = step == FIRST ? product : _mm256_add_epi16(sum[r], product);
            keep(sum[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        __m256i& to = half_of(out[r], half);
        const __m256i wide = _mm256_madd_epi16(sum[r], scale);
        to = FIRST == 0 ? wide : _mm256_add_epi32(to, wide);
        keep(to);
    }
}

// The int8 scale multiplies the int16 sums in the widening multiply: 2 * 32004 * 128 is below 2^23.
template <int ROWS, bool PANEL = false>
inline void scaled_dots(const uint8_t* planes, const uint8_t* scales, const int8_t* const* a,
                        const int16_t* const* sums, I16* out) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const __m256i pair =
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 16 * half)));
        const __m256i first = _mm256_blend_epi16(pair, _mm256_slli_epi32(pair, 16), 0xaa);
        const __m256i second = _mm256_blend_epi16(_mm256_srli_epi32(pair, 16), pair, 0xaa);
        scaled_steps<ROWS, PANEL, 0>(planes, half, first, a, out);
        scaled_steps<ROWS, PANEL, 2>(planes, half, first, a, out);
        scaled_steps<ROWS, PANEL, 4>(planes, half, second, a, out);
        scaled_steps<ROWS, PANEL, 6>(planes, half, second, a, out);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t halves;
            std::memcpy(&halves, sums[r], 4);
            const __m256i offset = _mm256_madd_epi16(pair, _mm256_set1_epi32(halves));
            __m256i& to = half_of(out[r], half);
            to = _mm256_sub_epi32(to, _mm256_slli_epi32(offset, 5));
        }
        if constexpr (ROWS > 1) forget();
    }
}

#else
constexpr int kMaxRows = 4;

template <int BITS>
inline int code_at(const uint8_t* planes, int step, int b) {
    if constexpr (BITS == 8) return planes[step * kPlane + b];
    const int nibble = planes[(BITS - 4) * kPlane + step % 4 * kPlane + b] >> (step / 4 * 4) & 15;
    if constexpr (BITS == 5) return nibble | (planes[b] >> step & 1) << 4;
    if constexpr (BITS == 6) return nibble | (planes[step / 4 * kPlane + b] >> (step % 4 * 2) & 3) << 4;
    return nibble;
}

// Steps [first, last) of the 16 outputs with one row.
inline void sum_steps(const int16_t* codes, const int8_t* a, int first, int last, int32_t* sum) {
    for (int lane = 0; lane < 16; ++lane) sum[lane] = 0;
    for (int step = first; step < last; ++step)
        for (int lane = 0; lane < 16; ++lane)
            for (int j = 0; j < 4; ++j) sum[lane] += codes[step * kPlane + lane * 4 + j] * a[step * 4 + j];
}

template <int BITS>
inline void unpack_codes(const uint8_t* planes, int16_t* codes) {
    for (int step = 0; step < 8; ++step)
        for (int b = 0; b < kPlane; ++b)
            codes[step * kPlane + b] = static_cast<int16_t>(code_at<BITS>(planes, step, b));
}

template <int BITS>
inline void expand_codes(const uint8_t* planes, uint8_t* to) {
    for (int i = 0; i < 8 * kPlane; ++i) to[i] = static_cast<uint8_t>(code_at<BITS>(planes, i / kPlane, i % kPlane));
}

template <int BITS, int ROWS, bool PANEL = false>
inline void dots(const uint8_t* planes, const int8_t* const* a, I16* out) {
    int16_t codes[8 * kPlane];
    unpack_codes<PANEL ? 8 : BITS>(planes, codes);
    for (int r = 0; r < ROWS; ++r) sum_steps(codes, a[r], 0, 8, out[r].v);
}

constexpr int kByteOffset = 128;  // what add_byte_dots leaves in the codes of bytes

template <int ROWS>
inline void add_byte_dots(const uint8_t* planes, const int8_t* const* a, I16* total) {
    I16 part[ROWS];
    dots<8, ROWS>(planes, a, part);
    for (int r = 0; r < ROWS; ++r) total[r] = total[r] + part[r];
}

template <int ROWS, bool PANEL = false>
inline void scaled_dots(const uint8_t* planes, const uint8_t* scales, const int8_t* const* a,
                        const int16_t* const* sums, I16* out) {
    int16_t codes[8 * kPlane];
    unpack_codes<PANEL ? 8 : 6>(planes, codes);
    for (int r = 0; r < ROWS; ++r) {
        int32_t low[16], high[16];
        sum_steps(codes, a[r], 0, 4, low);
        sum_steps(codes, a[r], 4, 8, high);
        for (int lane = 0; lane < 16; ++lane) {
            const int first = static_cast<int8_t>(scales[2 * lane]),
                      second = static_cast<int8_t>(scales[2 * lane + 1]);
            out[r].v[lane] = first * (low[lane] - 32 * sums[r][0]) + second * (high[lane] - 32 * sums[r][1]);
        }
    }
}
#endif

}  // namespace kvern::KVERN_ISA_NS
