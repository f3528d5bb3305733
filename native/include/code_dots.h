// Exact integer dot products of 16 outputs x 64 inputs, codes of any width from 1 to 8 bits, with ROWS rows of int8
// activations within +-TOP. Codes are unsigned and lie as code_layout.h says: two blocks of 32 inputs.
//
// AVX2 multiplies u8 by s8 and adds pairs into int16, where as many steps are summed as the largest code and TOP
// allow; codes of 8 bits do not fit in one and are taken as two nibbles.
#pragma once
#include "dots.h"
#include "grouped_format.h"

// These recur over steps: a call that is left in place would pass its sums through memory, at five times the cost.
#define KVERN_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace kvern::KVERN_ISA_NS {

#if defined(__AVX2__)
#if defined(__AVX512F__)
using CodeBytes = __m512i;  // a whole vector of 64 bytes
constexpr int kVectorParts = 1;
inline CodeBytes load_part(const uint8_t* p, int) { return _mm512_loadu_si512(p); }
inline CodeBytes masked(CodeBytes a, int mask) {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
}
inline CodeBytes either(CodeBytes a, CodeBytes b) { return _mm512_or_si512(a, b); }
template <int BY>
inline CodeBytes shifted_left(CodeBytes a) {  // of 16-bit lanes: the caller masks what crosses bytes; BY < 0: right
    if constexpr (BY > 0) return _mm512_slli_epi16(a, BY);
    if constexpr (BY < 0) return _mm512_srli_epi16(a, -BY);
    return a;
}
#else
using CodeBytes = __m256i;  // 32 of the 64 bytes of a vector: outputs 8 * part and on
constexpr int kVectorParts = 2;
inline CodeBytes load_part(const uint8_t* p, int part) { return load_bytes(p + 32 * part); }
inline CodeBytes masked(CodeBytes a, int mask) {
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
}
inline CodeBytes either(CodeBytes a, CodeBytes b) { return _mm256_or_si256(a, b); }
template <int BY>
inline CodeBytes shifted_left(CodeBytes a) {
    if constexpr (BY > 0) return _mm256_slli_epi16(a, BY);
    if constexpr (BY < 0) return _mm256_srli_epi16(a, -BY);
    return a;
}
#endif

// Step STEP of a block of 32 inputs as bytes, one code each.
template <int BITS, int STEP, int LOW = 0>
KVERN_ALWAYS_INLINE CodeBytes block_step(const uint8_t* block, int part) {
    constexpr int width = plane_width(BITS, LOW), at = STEP / width * width;
    static_assert(plane_layout(width).place(5, STEP * kStepInputs + 3).unit == STEP % width * kVector + 5 * 4 + 3);
    static_assert(plane_layout(width).place(5, STEP * kStepInputs + 3).slot * width == at);
    CodeBytes codes = load_part(block + (LOW + STEP % width) * kVector, part);
    if constexpr (width < 8) codes = masked(shifted_left<LOW - at>(codes), ((1 << width) - 1) << LOW);
    if constexpr (LOW + width < BITS) codes = either(codes, block_step<BITS, STEP, LOW + width>(block, part));
    return codes;
}

template <int BITS, int STEP>
KVERN_ALWAYS_INLINE CodeBytes group_codes(const uint8_t* group, int part) {
    return block_step<BITS, STEP % kBlockSteps>(group + STEP / kBlockSteps * block_bytes(BITS), part);
}
#endif

#if defined(__AVX512F__)
template <int BITS, int ROWS, int TOP, int STEP = 0>
KVERN_ALWAYS_INLINE void add_steps(const uint8_t* group, const int8_t* const* a, I16* sum) {
    const __m512i codes = group_codes<BITS, STEP>(group, 0);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        sum[r].v = _mm512_dpbusd_epi32(sum[r].v, codes, _mm512_set1_epi32(four_codes(a[r] + 4 * STEP)));
    if constexpr (STEP + 1 < 16) add_steps<BITS, ROWS, TOP, STEP + 1>(group, a, sum);
}

template <int BITS, int ROWS, int TOP>
inline void group_dots(const uint8_t* group, const int8_t* const* a, I16* out) {
    for (int r = 0; r < ROWS; ++r) out[r].v = _mm512_setzero_si512();
    add_steps<BITS, ROWS, TOP>(group, a, out);
}

// The group's codes as bytes [16 steps][16 outputs][4 inputs], `to` 64-byte aligned.
template <int BITS, int STEP = 0>
KVERN_ALWAYS_INLINE void expand_group(const uint8_t* group, uint8_t* to) {
    _mm512_store_si512(to + STEP * kVector, group_codes<BITS, STEP>(group, 0));
    if constexpr (STEP + 1 < 16) expand_group<BITS, STEP + 1>(group, to);
}

#elif defined(__AVX2__)
// Steps whose products may be summed in int16: a power of two, at most 16.
constexpr int steps_in_int16(int largest_code, int top) {
    int steps = 16;
    while (steps * 2 * top * largest_code > 32767) steps /= 2;
    return steps;
}

// int16 sums of steps [STEP, LAST) added to sum (begun at FIRST).
template <int BITS, int ROWS, int FIRST, int STEP, int LAST>
KVERN_ALWAYS_INLINE void chain(const uint8_t* group, int part, const int8_t* const* a, __m256i* sum) {
    const __m256i codes = group_codes<BITS, STEP>(group, part);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const __m256i product = _mm256_maddubs_epi16(codes, spread(a[r] + 4 * STEP));
        sum[r] = STEP == FIRST ? product : _mm256_add_epi16(sum[r], product);
        keep(sum[r]);
    }
    if constexpr (STEP + 1 < LAST) chain<BITS, ROWS, FIRST, STEP + 1, LAST>(group, part, a, sum);
}

template <int BITS, int ROWS, int TOP, int FIRST = 0>
KVERN_ALWAYS_INLINE void add_chains(const uint8_t* group, int part, const int8_t* const* a, __m256i* out) {
    constexpr int last = FIRST + steps_in_int16((1 << BITS) - 1, TOP);
    __m256i sum[ROWS];
    chain<BITS, ROWS, FIRST, FIRST, last>(group, part, a, sum);
    for (int r = 0; r < ROWS; ++r) {
        const __m256i wide = _mm256_madd_epi16(sum[r], _mm256_set1_epi16(1));
        out[r] = FIRST == 0 ? wide : _mm256_add_epi32(out[r], wide);
    }
    if constexpr (last < 16) add_chains<BITS, ROWS, TOP, last>(group, part, a, out);
}

// Codes of 8 bits: low and high nibbles summed apart; 8 steps of either fit in int16.
template <int ROWS, int FIRST = 0>
KVERN_ALWAYS_INLINE void add_bytes(const uint8_t* group, int part, const int8_t* const* a, __m256i* out) {
    __m256i low[ROWS], high[ROWS];
#pragma GCC unroll 8
    for (int step = 0; step < kBlockSteps; ++step) {
        const __m256i codes = load_bytes(group + (FIRST + step) * kVector + 32 * part);
        const __m256i l = masked(codes, 15), h = masked(_mm256_srli_epi16(codes, 4), 15);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i x = spread(a[r] + 4 * (FIRST + step));
            const __m256i p = _mm256_maddubs_epi16(l, x), q = _mm256_maddubs_epi16(h, x);
            low[r] = step == 0 ? p : _mm256_add_epi16(low[r], p);
            high[r] = step == 0 ? q : _mm256_add_epi16(high[r], q);
            keep(low[r]);
            keep(high[r]);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        const __m256i wide = _mm256_add_epi32(_mm256_madd_epi16(low[r], _mm256_set1_epi16(1)),
                                              _mm256_madd_epi16(high[r], _mm256_set1_epi16(16)));
        out[r] = FIRST == 0 ? wide : _mm256_add_epi32(out[r], wide);
    }
    if constexpr (FIRST == 0) add_bytes<ROWS, kBlockSteps>(group, part, a, out);
}

template <int BITS, int ROWS, int TOP>
KVERN_ALWAYS_INLINE void part_dots(const uint8_t* group, int part, const int8_t* const* a, __m256i* out) {
    if constexpr (BITS == 8)
        add_bytes<ROWS>(group, part, a, out);
    else
        add_chains<BITS, ROWS, TOP>(group, part, a, out);
}

template <int BITS, int ROWS, int TOP>
inline void group_dots(const uint8_t* group, const int8_t* const* a, I16* out) {
    __m256i low[ROWS], high[ROWS];
    part_dots<BITS, ROWS, TOP>(group, 0, a, low);
    forget();
    part_dots<BITS, ROWS, TOP>(group, 1, a, high);
    for (int r = 0; r < ROWS; ++r) out[r] = {low[r], high[r]};
}

#else
template <int BITS, int ROWS, int TOP>
inline void group_dots(const uint8_t* group, const int8_t* const* a, I16* out) {
    int16_t codes[16 * kVector];
    for (int i = 0; i < 16 * kVector; ++i) {
        const int step = i / kVector, output = i % kVector / 4, input = step % kBlockSteps * 4 + i % 4;
        codes[i] = static_cast<int16_t>(code_in<BITS>(group + step / kBlockSteps * block_bytes(BITS), output, input));
    }
    for (int r = 0; r < ROWS; ++r) {
        int32_t sum[16] = {};
        for (int i = 0; i < 16 * kVector; ++i) sum[i % kVector / 4] += codes[i] * a[r][i / kVector * 4 + i % 4];
        out[r] = load(sum);
    }
}
#endif

}  // namespace kvern::KVERN_ISA_NS
