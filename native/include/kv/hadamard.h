// Orthonormal Hadamard rotation of one vector in place, block by block (src/kvern/formats/hadamard.py).
#pragma once
#include <cmath>

#include "../lanes.h"

namespace kvern::KVERN_ISA_NS {

constexpr int kLargestHadamard = 128;

inline int hadamard_order(int dim) {
    int order = 1;
    while (order < kLargestHadamard && dim % (2 * order) == 0) order *= 2;
    return order;
}

namespace detail {

// Lanes i and i ^ WIDTH change places.
template <int WIDTH>
inline F16 crossed(F16 x) {
#if defined(__AVX512F__)
    if constexpr (WIDTH == 1) return {_mm512_permute_ps(x.v, 0xb1)};
    if constexpr (WIDTH == 2) return {_mm512_permute_ps(x.v, 0x4e)};
    if constexpr (WIDTH == 4) return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
    if constexpr (WIDTH == 8) return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)};
#elif defined(__AVX2__)
    if constexpr (WIDTH == 1) return {_mm256_permute_ps(x.lo, 0xb1), _mm256_permute_ps(x.hi, 0xb1)};
    if constexpr (WIDTH == 2) return {_mm256_permute_ps(x.lo, 0x4e), _mm256_permute_ps(x.hi, 0x4e)};
    if constexpr (WIDTH == 4) return {_mm256_permute2f128_ps(x.lo, x.lo, 1), _mm256_permute2f128_ps(x.hi, x.hi, 1)};
    if constexpr (WIDTH == 8) return {x.hi, x.lo};
#else
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = x.v[i ^ WIDTH];
    return r;
#endif
}

// Sums in the lower lane of each pair, differences in the upper one; a factor of 1 or -1 rounds nothing.
template <int WIDTH>
inline F16 butterflies(F16 x) {
    alignas(64) float sign[16];
    for (int i = 0; i < 16; ++i) sign[i] = (i & WIDTH) != 0 ? -1.0f : 1.0f;
    return fma(x, load(sign), crossed<WIDTH>(x));
}

}  // namespace detail

// Every sum and difference is that of the reference, so all instruction sets agree to the bit.
inline void hadamard(float* x, int dim) {
    const int order = hadamard_order(dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(order));
    if (order < 16) {
        for (int width = 1; width < order; width *= 2)
            for (int base = 0; base < dim; base += 2 * width)
                for (int i = base; i < base + width; ++i) {
                    const float a = x[i], b = x[i + width];
                    x[i] = a + b, x[i + width] = a - b;
                }
        for (int i = 0; i < dim; ++i) x[i] *= scale;
        return;
    }
    for (int i = 0; i < dim; i += 16) {  // a multiple of 16, as the order is
        F16 v = load(x + i);
        v = detail::butterflies<2>(detail::butterflies<1>(v));
        v = detail::butterflies<8>(detail::butterflies<4>(v));
        store(x + i, order == 16 ? v * splat(scale) : v);
    }
    for (int width = 16; width < order; width *= 2) {
        const F16 factor = splat(2 * width == order ? scale : 1.0f);
        for (int base = 0; base < dim; base += 2 * width)
            for (int i = base; i < base + width; i += 16) {
                const F16 a = load(x + i), b = load(x + i + width);
                store(x + i, (a + b) * factor);
                store(x + i + width, (a - b) * factor);
            }
    }
}

}  // namespace kvern::KVERN_ISA_NS
