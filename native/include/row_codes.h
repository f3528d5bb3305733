// Pieces of the encoders of activations: scales of a group, codes rounded to int8.
#pragma once
#include <cmath>

#include "lanes.h"
#include "linear.h"

namespace kvern::KVERN_ISA_NS {

inline void store_int8(int8_t* p, I16 a) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
#elif defined(__AVX2__)
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
#else
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
#endif
}

// 64 numbers of one group, in registers.
struct RowGroup {
    F16 part[4];

    // Numbers past the first `count` are zero and are not read.
    RowGroup(const float* x, int64_t count) {
        for (int i = 0; i < 4; ++i) {
            const int64_t left = count - 16 * i;
            part[i] = load_first(x + 16 * i, left > 16 ? 16 : left > 0 ? static_cast<int>(left) : 0);
        }
    }
    float largest() const { return quick_max(max(max(abs(part[0]), abs(part[1])), max(abs(part[2]), abs(part[3])))); }
    bool finite() const {
        F16 zero = splat(0.0f);
        for (const F16& p : part) zero = zero + (p - p);
        return quick_sum(zero) == 0.0f;
    }
};

// Scale of a group whose largest code is `top`; a group with an infinity or NaN gets NaN, so that every output is
// NaN.
inline float group_scale(const RowGroup& x, float top) { return x.finite() ? x.largest() / top : std::nanf(""); }

}  // namespace kvern::KVERN_ISA_NS
