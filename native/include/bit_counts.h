// Single-bit planes of packed codes, and counts of the bits in which they differ from rows of activations.
//
// A plane vector is 16 lanes of 32 bits, one lane an output and one bit an input (code_layout.h). With n planes of
// weights and m of activations, sum over i, j of 2^(i + j) popcount(w_i xor x_j) is taken by classes i + j: a class
// is counted in bytes (64 bits of a byte at most), then all classes are weighted and added up.
#pragma once
#include <bit>

#include "code_dots.h"

namespace kvern::KVERN_ISA_NS {

// The bits that a plane of `width` has of each code of `width` bits, at bit 0: 0x11, 0x55 or all.
constexpr int first_bits(int width) { return 0xff / ((1 << width) - 1); }

#if defined(__AVX2__)
// Bit LOW + BIT of the codes of a block of 32 inputs, from the plane of WIDTH at LOW.
template <int WIDTH, int BIT, int VECTOR = 0>
KVERN_ALWAYS_INLINE CodeBytes single_plane(const uint8_t* plane, int part) {
    CodeBytes v = shifted_left<VECTOR - BIT>(load_part(plane + VECTOR * kVector, part));
    if constexpr (WIDTH > 1) v = masked(v, first_bits(WIDTH) << VECTOR);
    if constexpr (VECTOR + 1 < WIDTH) v = either(v, single_plane<WIDTH, BIT, VECTOR + 1>(plane, part));
    return v;
}
#endif

#if defined(__AVX512F__)
inline __m512i different(CodeBytes a, uint32_t b) {
    return _mm512_xor_si512(a, _mm512_set1_epi32(static_cast<int32_t>(b)));
}
#if defined(__AVX512VPOPCNTDQ__)
using Counts = __m512i;  // int32 lanes
inline Counts no_counts() { return _mm512_setzero_si512(); }
inline Counts counted(Counts sum, CodeBytes bits) { return _mm512_add_epi32(sum, _mm512_popcnt_epi32(bits)); }
template <int CLASS>
inline I16 weighted(I16 sum, Counts counts) {
    return {_mm512_add_epi32(sum.v, _mm512_slli_epi32(counts, CLASS))};
}
#else
using Counts = __m512i;  // bytes
inline Counts no_counts() { return _mm512_setzero_si512(); }
inline Counts counted(Counts sum, CodeBytes bits) {
    const __m512i of_nibble = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_shuffle_epi8(of_nibble, masked(bits, 15));
    const __m512i high = _mm512_shuffle_epi8(of_nibble, masked(_mm512_srli_epi16(bits, 4), 15));
    return _mm512_add_epi8(sum, _mm512_add_epi8(low, high));
}
template <int CLASS>
inline I16 weighted(I16 sum, Counts counts) {
    return {_mm512_dpbusd_epi32(sum.v, counts, _mm512_set1_epi8(1 << CLASS))};
}
#endif
#elif defined(__AVX2__)
inline __m256i different(CodeBytes a, uint32_t b) {
    return _mm256_xor_si256(a, _mm256_set1_epi32(static_cast<int32_t>(b)));
}
using Counts = __m256i;  // bytes
inline Counts no_counts() { return _mm256_setzero_si256(); }
inline Counts counted(Counts sum, CodeBytes bits) {
    const __m256i of_nibble =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_shuffle_epi8(of_nibble, masked(bits, 15));
    const __m256i high = _mm256_shuffle_epi8(of_nibble, masked(_mm256_srli_epi16(bits, 4), 15));
    return _mm256_add_epi8(sum, _mm256_add_epi8(low, high));
}
template <int CLASS>
inline __m256i weighted(__m256i sum, Counts counts) {  // 64 * 64 * 2 fits in int16
    const __m256i pairs = _mm256_maddubs_epi16(counts, _mm256_set1_epi8(1 << CLASS));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

#if defined(__AVX2__)
// Single-bit planes of a group of 64 inputs: those of the first block, then of the second.
template <int BITS>
struct BitPlanes {
    CodeBytes plane[2 * BITS];

    KVERN_ALWAYS_INLINE BitPlanes(const uint8_t* group, int part) {
        for (int half = 0; half < 2; ++half)
            each_plane<BITS>([&](auto width, auto low) {
                split<width(), 0>(group + half * block_bytes(BITS) + low() * kVector, part,
                                  plane + half * BITS + low());
            });
    }

  private:
    template <int WIDTH, int BIT>
    KVERN_ALWAYS_INLINE static void split(const uint8_t* from, int part, CodeBytes* to) {
        to[BIT] = single_plane<WIDTH, BIT>(from, part);
        if constexpr (BIT + 1 < WIDTH) split<WIDTH, BIT + 1>(from, part, to);
    }
};

// Differences of all pairs of planes (i, CLASS - i) from i = I on, added to `counts`; `x` are the row's words.
template <int N, int M, int CLASS, int I = 0>
KVERN_ALWAYS_INLINE Counts class_counts(const BitPlanes<N>& w, const uint32_t* x, Counts counts) {
    if constexpr (I <= CLASS && CLASS - I < M) {
        counts = counted(counts, different(w.plane[I], x[CLASS - I]));
        counts = counted(counts, different(w.plane[N + I], x[M + CLASS - I]));
    }
    if constexpr (I + 1 < N) counts = class_counts<N, M, CLASS, I + 1>(w, x, counts);
    return counts;
}

// Adds all classes from CLASS on.
template <int N, int M, class Sum, int CLASS = 0>
KVERN_ALWAYS_INLINE Sum weighted_counts(const BitPlanes<N>& w, const uint32_t* x, Sum sum) {
    sum = weighted<CLASS>(sum, class_counts<N, M, CLASS>(w, x, no_counts()));
    if constexpr (CLASS + 2 < N + M) sum = weighted_counts<N, M, Sum, CLASS + 1>(w, x, sum);
    return sum;
}
#endif

// sum over i, j of 2^(i + j) popcount(w_i xor x_j) of one group for ROWS rows.
template <int N, int M, int ROWS>
inline void group_differences(const uint8_t* group, const uint32_t* const* x, I16* out) {
#if defined(__AVX512F__)
    const BitPlanes<N> planes(group, 0);
#pragma GCC unroll 1
    for (int r = 0; r < ROWS; ++r) out[r] = weighted_counts<N, M>(planes, x[r], splat(int32_t{0}));
#elif defined(__AVX2__)
    const __m256i zero = _mm256_setzero_si256();
    const BitPlanes<N> low(group, 0);
#pragma GCC unroll 1
    for (int r = 0; r < ROWS; ++r) out[r].lo = weighted_counts<N, M>(low, x[r], zero);
    const BitPlanes<N> high(group, 1);
#pragma GCC unroll 1
    for (int r = 0; r < ROWS; ++r) out[r].hi = weighted_counts<N, M>(high, x[r], zero);
#else
    for (int lane = 0; lane < 16; ++lane) {
        uint32_t planes[2 * N] = {};
        for (int input = 0; input < kCodeGroup; ++input) {
            const int half = input / kBlockInputs, i = input % kBlockInputs;
            const unsigned code = code_in<N>(group + half * block_bytes(N), lane, i);
            for (int bit = 0; bit < N; ++bit) planes[half * N + bit] |= (code >> bit & 1) << (i % 4 * 8 + i / 4);
        }
        for (int r = 0; r < ROWS; ++r) {
            int32_t sum = 0;
            for (int half = 0; half < 2; ++half)
                for (int i = 0; i < N; ++i)
                    for (int j = 0; j < M; ++j)
                        sum += std::popcount(planes[half * N + i] ^ x[r][half * M + j]) << (i + j);
            out[r].v[lane] = sum;
        }
    }
#endif
}

}  // namespace kvern::KVERN_ISA_NS
