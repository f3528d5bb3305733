// int8 keys and values with a float32 scale for each token, in exact integer sums. Keys and queries of heads wider
// than kWidestPlain are rotated first: one scale over so many channels would be that of an outlier
// (docs/kv-formats.md).
//
// Queries (once a work) and weights times value scales (once a chunk) become 16-bit numbers with one scale a vector:
// 2^-15 of the largest, far below the 2^-7 of the codes. The sums are then exact on every instruction set:
// vpmaddwd, vpdpwssd, or int8 tiles with the high and the low byte of a number in rows of their own
// (kv/int8_tiles.h).
//   score = (float(sum) * query scale) * key scale          out = fma(float(sum), weight scale, out)
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "../int_pairs.h"
#include "hadamard.h"
#include "reader.h"

namespace kvern::KVERN_ISA_NS {

constexpr int kEncodedInt8 = 1;  // Vectors::encoded_as

#if defined(__AVX512F__)
constexpr int kInt8AtOnce = 6, kInt8Sums = 12;
#else
constexpr int kInt8AtOnce = 3, kInt8Sums = 3;
#endif
template <int R>
constexpr int int8_groups() {
    return kInt8Sums / R >= 4 ? 4 : kInt8Sums / R >= 2 ? 2 : 1;
}

namespace int8_detail {

// The largest |x|; NaN when something is not finite.
inline float largest(const float* x, int n) {
    F16 top = splat(0.0f), check = splat(0.0f);
    for (int i = 0; i < n; i += 16) {
        const F16 v = load_first(x + i, n - i);
        top = max(top, abs(v));
        check = fma(v, splat(0.0f), check);  // zero unless something is not finite; a vector max may drop a NaN
    }
    return quick_max(top) + quick_sum(check);
}

// Codes of x and their scale: max|x| / 127, nearest even. A row that is not finite gets a NaN scale and zero codes,
// so that whatever attends to it becomes NaN and its sequence is reported.
inline float quantise(const float* x, int dim, int8_t* codes) {
    const float top = largest(x, dim);
    if (!(top > 0.0f)) {
        std::memset(codes, 0, static_cast<size_t>(dim));
        return top;  // 0 or NaN
    }
    const F16 inverse = splat(127.0f / top), limit = splat(127.0f), low = splat(-127.0f);
    for (int i = 0; i < dim; i += 16) {
        const int n = dim - i < 16 ? dim - i : 16;
        int32_t code[16];
        store(code, to_int_nearest(max(min(load_first(x + i, n) * inverse, limit), low)));
        for (int j = 0; j < n; ++j) codes[i + j] = static_cast<int8_t>(code[j]);
    }
    return top / 127.0f;
}

// 16-bit numbers of x[0, n), n a multiple of 16, and their scale (NaN when x is not finite).
inline float to_numbers(const float* x, int n, int32_t* numbers) {
    const float top = largest(x, n);
    const bool usable = top > 1e-30f;
    const F16 inverse = splat(usable ? kPairTop / top : 0.0f), limit = splat(kPairTop), low = splat(-kPairTop);
    for (int i = 0; i < n; i += 16)
        store(numbers + i, usable ? to_int_nearest(max(min(load(x + i) * inverse, limit), low)) : splat(int32_t{0}));
    return usable ? top / kPairTop : top * 0.0f;
}

constexpr int kWidestPlain = 128;

// Numbers of the query of vector v.
inline float query_numbers(const Vectors& at, int v, int32_t* numbers) {
    if (at.head_dim <= kWidestPlain) return to_numbers(at.query(v), at.padded_dim, numbers);
    alignas(64) float q[kMaxHeadDim];
    std::memcpy(q, at.query(v), static_cast<size_t>(at.padded_dim) * sizeof(float));
    hadamard(q, at.head_dim);
    return to_numbers(q, at.padded_dim, numbers);
}

// Value scales of the tokens of a run of pages, zeros for those that were not written.
struct Scales {
    alignas(64) float of[kChunkTokens];
    bool finite = true;
    explicit Scales(const Pages& pages) {
        F16 check = splat(0.0f);
        for (int page = pages.begin; page < pages.end; ++page) {
            float* to = of + (page - pages.begin) * kPageTokens;
            const int tokens = std::max(0, std::min(kPageTokens, pages.tokens(page)));
            std::memcpy(to, pages.block(page) + pages.layout(page).v_scale_offset,
                        static_cast<size_t>(tokens) * sizeof(float));
            std::fill(to + tokens, to + kPageTokens, 0.0f);
            for (int t = 0; t < kPageTokens; t += 16) check = fma(load(to + t), splat(0.0f), check);
        }
        finite = quick_sum(check) == 0.0f;
    }
};

// Weights of n tokens (a multiple of 64) times their value scales, as numbers: calls put(token, I16) for 16 tokens at
// a time and returns the numbers' scale. 64 x 8 tokens x 127 x 2^15 stay within 32 bits.
template <class Put>
inline float weight_numbers(const float* weights, const float* scales, int n, bool finite, Put&& put) {
    F16 top[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    for (int t = 0; t < n; t += 64)
        for (int i = 0; i < 4; ++i) top[i] = max(load(weights + t + 16 * i) * load(scales + t + 16 * i), top[i]);
    const float most = quick_max(max(max(top[0], top[1]), max(top[2], top[3])));
    const bool usable = finite && most > 1e-30f;
    const F16 inverse = splat(usable ? kPairTop / most : 0.0f), limit = splat(kPairTop);
    for (int t = 0; t < n; t += 16) {
        const F16 number = min(load(weights + t) * load(scales + t) * inverse, limit);
        put(t, usable ? to_int_nearest(number) : splat(int32_t{0}));
    }
    if (!finite) return std::numeric_limits<float>::quiet_NaN();
    return usable ? most / kPairTop : 0.0f;
}

}  // namespace int8_detail

struct Int8Keys {
    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        int8_t codes[kMaxHeadDim];
        alignas(64) float rotated[kMaxHeadDim];
        if (at.head_dim > int8_detail::kWidestPlain) {
            std::memcpy(rotated, x, static_cast<size_t>(at.head_dim) * sizeof(float));
            hadamard(rotated, at.head_dim);
            x = rotated;
        }
        reinterpret_cast<float*>(block + at.k_scale_offset)[slot] = int8_detail::quantise(x, at.head_dim, codes);
        uint8_t* keys = block + static_cast<size_t>(slot / 16) * at.head_dim * 16 + (slot % 16) * 4;
        for (int d = 0; d < at.head_dim; d += 4) std::memcpy(keys + d * 16, codes + d, 4);
    }

    static void scores(Vectors& at, const Pages& pages) {
        if (at.encoded_as != kEncodedInt8) encode(at);
        for (int page = pages.begin; page < pages.end; ++page)
            in_runs<kInt8AtOnce>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value, G = int8_groups<R>();
                const Vectors::Range seen = at.seen(v, R, page);
                int group = seen.begin / 16;
                const int end = seen.begin < seen.end ? (seen.end + 15) / 16 : group;
                for (; group + G <= end; group += G) groups<R, G>(at, pages, page, v, group);
                for (; group < end; ++group) groups<R, 1>(at, pages, page, v, group);
            });
    }

    // Vectors::encoded: pairs int32 [count][dim / 2] that match even_bytes and odd_bytes, then scales [count].
    static int32_t* pairs(const Vectors& at, int v) {
        return reinterpret_cast<int32_t*>(at.encoded) + static_cast<size_t>(v) * at.padded_dim;
    }
    static float* scales(const Vectors& at) { return at.encoded + 2 * size_t{kMaxVectors} * at.padded_dim; }

  private:
    static void encode(Vectors& at) {
        alignas(64) int32_t numbers[kMaxHeadDim];
        for (int v = 0; v < at.count; ++v) {
            scales(at)[v] = int8_detail::query_numbers(at, v, numbers);
            for (int d = 0; d < at.padded_dim; d += 16) {
                alignas(64) int32_t words[16];
                store(words, pair_words(load(numbers + d)));
                for (int quad = 0; quad < 4; ++quad)
                    std::memcpy(pairs(at, v) + d / 2 + 2 * quad, words + 4 * quad, 8);
            }
        }
        at.encoded_as = kEncodedInt8;
    }

    template <int R, int G>
    static void groups(const Vectors& at, const Pages& pages, int page, int v, int group) {
        const int quads = at.head_dim / 4;
        const uint8_t* block = pages.block(page);
        const auto* keys = reinterpret_cast<const int32_t*>(block) + static_cast<size_t>(group) * quads * 16;
        const int32_t* q[R];
        for (int r = 0; r < R; ++r) q[r] = pairs(at, v + r);
        I16 sum[R][G];
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < G; ++g) sum[r][g] = splat(int32_t{0});
        for (int i = 0; i < quads; ++i) {
            for (int g = 0; g < G; ++g) {
                const I16 word = load(keys + (static_cast<size_t>(g) * quads + i) * 16);
                const I16 even = even_bytes(word), odd = odd_bytes(word);
                for (int r = 0; r < R; ++r) {
                    sum[r][g] = dot_pairs(sum[r][g], even, splat(q[r][2 * i]));
                    sum[r][g] = dot_pairs(sum[r][g], odd, splat(q[r][2 * i + 1]));
                }
            }
        }
        const auto* key_scales = reinterpret_cast<const float*>(block + pages.layout(page).k_scale_offset);
        for (int g = 0; g < G; ++g) {
            const F16 scale = load(key_scales + 16 * (group + g));
            for (int r = 0; r < R; ++r)
                store(at.page_scores(v + r, pages, page) + 16 * (group + g),
                      (to_float(sum[r][g]) * splat(scales(at)[v + r])) * scale);
        }
    }
};

struct Int8Values {
    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        int8_t codes[kMaxHeadDim];
        reinterpret_cast<float*>(block + at.v_scale_offset)[slot] = int8_detail::quantise(x, at.head_dim, codes);
        uint8_t* values = block + at.v_offset + static_cast<size_t>(slot / 4) * at.padded_dim * 4 + slot % 4;
        for (int d = 0; d < at.head_dim; ++d) values[4 * d] = static_cast<uint8_t>(codes[d]);
        for (int d = at.head_dim; d < at.padded_dim; ++d) values[4 * d] = 0;
    }

    static void add(Vectors& at, const Pages& pages) {
        const int8_detail::Scales scales(pages);
        in_runs<kInt8AtOnce>(at.count, [&](auto run, int v) {
            constexpr int R = decltype(run)::value, D = int8_groups<R>();
            const int dims = at.padded_dim / 16;
            auto* sums = reinterpret_cast<int32_t*>(at.spare);  // [R][padded_dim]
            std::fill(sums, sums + R * at.padded_dim, 0);
            float weight_scales[R];
            for (int r = 0; r < R; ++r) weight_scales[r] = encode(at, pages, v + r, scales);
            for (int page = pages.begin; page < pages.end; ++page) {
                const Vectors::Range seen = at.seen(v, R, page);
                if (seen.begin >= seen.end) continue;
                int d = 0;
                for (; d + D <= dims; d += D) columns<R, D>(at, pages, page, v, d, seen, sums);
                for (; d < dims; ++d) columns<R, 1>(at, pages, page, v, d, seen, sums);
            }
            for (int r = 0; r < R; ++r)
                for (int d = 0; d < at.padded_dim; d += 16) {
                    float* out = at.output(v + r) + d;
                    const F16 sum = to_float(load(sums + r * at.padded_dim + d));
                    store(out, fma(sum, splat(weight_scales[r]), load(out)));
                }
        });
    }

  private:
    // Pairs that match even_bytes and odd_bytes, in place: lanes 0 and 1 of every four.
    static float encode(const Vectors& at, const Pages& pages, int v, const int8_detail::Scales& scales) {
        float* weights = at.page_scores(v, pages, pages.begin);
        auto* pairs = reinterpret_cast<int32_t*>(weights);
        return int8_detail::weight_numbers(weights, scales.of, (pages.end - pages.begin) * kPageTokens, scales.finite,
                                           [&](int t, I16 numbers) { store(pairs + t, pair_words(numbers)); });
    }

    // Dimensions [16 d, 16 (d + D)) of one page.
    template <int R, int D>
    static void columns(const Vectors& at, const Pages& pages, int page, int v, int d, Vectors::Range seen,
                        int32_t* sums) {
        const auto* words =
            reinterpret_cast<const int32_t*>(pages.block(page) + pages.layout(page).v_offset) + 16 * d;
        const int32_t* weight[R];
        for (int r = 0; r < R; ++r) weight[r] = reinterpret_cast<const int32_t*>(at.page_scores(v + r, pages, page));
        I16 sum[R][D];
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < D; ++g) sum[r][g] = load(sums + r * at.padded_dim + 16 * (d + g));
        for (int quad = seen.begin / 4; quad < (seen.end + 3) / 4; ++quad) {
            const int32_t* row = words + static_cast<size_t>(quad) * at.padded_dim;
            for (int g = 0; g < D; ++g) {
                const I16 word = load(row + 16 * g);
                const I16 even = even_bytes(word), odd = odd_bytes(word);
                for (int r = 0; r < R; ++r) {
                    sum[r][g] = dot_pairs(sum[r][g], even, splat(weight[r][4 * quad]));
                    sum[r][g] = dot_pairs(sum[r][g], odd, splat(weight[r][4 * quad + 1]));
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < D; ++g) store(sums + r * at.padded_dim + 16 * (d + g), sum[r][g]);
    }
};

}  // namespace kvern::KVERN_ISA_NS
