// token4: 4-bit codes with a step and a low for each token (src/kvern/formats/kv/kv4_token.py).
//
//   K  16 neighbouring lanes are 16 tokens      [4][words][16][4], words = dim / 8 rounded up: the low codes of word
//   w
//                                               are dimensions 8 w .. 8 w + 3, the high ones the four after them
//   V  16 neighbouring lanes are 16 dimensions  [16][pairs][16][4], pairs = dim / 32 rounded up: bytes are 4 tokens,
//                                               the high codes are 16 dimensions above the low ones
// Beside the codes: steps [64], then lows [64], float16. No byte belongs to two tokens, so rows append in parallel.
//
// Scores and outputs are exact integer sums over 15-bit forms of the query and of the weights (nibble_dots.h).
#pragma once
#include "nibble_dots.h"
#include "reader.h"
#include "uint4.h"

namespace kvern::KVERN_ISA_NS {

#if defined(__AVX512F__)
constexpr int kNibbleVectors = 3, kNibbleGroups = 2;
#else
constexpr int kNibbleVectors = 3, kNibbleGroups = 1;
#endif

// A query as numbers, in the place that Vectors::encoded has for it.
struct EncodedQuery {
    float* base;
    int padded_dim;
    EncodedQuery(const Vectors& at, int v)
        : base(at.encoded + static_cast<size_t>(v) * (2 * static_cast<size_t>(at.padded_dim) + 2)),
          padded_dim(at.padded_dim) {}
    uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(base); }
    Numbers numbers() const { return {bytes(), padded_dim}; }
    float& scale() const { return base[2 * padded_dim]; }
    float& sum() const { return base[2 * padded_dim + 1]; }  // of all elements
};

template <class F>
inline void encode_queries(Vectors& at, int form, F&& change) {
    if (at.encoded_as == form) return;
    at.encoded_as = form;
    alignas(64) float q[kMaxHeadDim];
    for (int v = 0; v < at.count; ++v) {
        std::memcpy(q, at.query(v), static_cast<size_t>(at.padded_dim) * sizeof(float));
        change(q, at.head_dim);
        const EncodedQuery to(at, v);
        to.scale() = to_nibble_numbers(q, at.padded_dim, to.bytes());
        F16 sum = splat(0.0f);
        for (int d = 0; d < at.padded_dim; d += 16) sum = sum + load(q + d);
        to.sum() = quick_sum(sum);
    }
}

struct Token4Keys {
    static constexpr int kForm = 41;
    static int words(int head_dim) { return (head_dim + 7) / 8; }

    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        alignas(64) uint8_t codes[kMaxHeadDim + 16] = {};
        const Line line = encode_uint4(x, at.head_dim, codes);
        std::fill(codes + at.head_dim, codes + (at.head_dim + 15) / 16 * 16, uint8_t{0});
        const int count = words(at.head_dim);
        uint8_t* lane = block + static_cast<size_t>(slot / 16 * count) * 64 + static_cast<size_t>(slot % 16) * 4;
        for (int w = 0; w < count; ++w)
            for (int b = 0; b < 4; ++b)
                lane[64 * w + b] = static_cast<uint8_t>(codes[8 * w + b] | codes[8 * w + 4 + b] << 4);
        auto* lines = reinterpret_cast<uint16_t*>(block + at.k_scale_offset);
        lines[slot] = line.step, lines[kPageTokens + slot] = line.low;
    }

    static void scores(Vectors& at, const Pages& pages) {
        encode_queries(at, kForm, [](float*, int) {});
        scores_of_encoded(at, pages);
    }

    static void scores_of_encoded(const Vectors& at, const Pages& pages) {
        for (int page = pages.begin; page < pages.end; ++page)
            in_runs<kNibbleVectors>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value, G = kNibbleGroups;
                const Vectors::Range seen = at.seen(v, R, page);
                int group = seen.begin / 16;
                const int end = seen.begin < seen.end ? (seen.end + 15) / 16 : group;
                for (; group + G <= end; group += G) groups<R, G>(at, pages, page, v, group);
                for (; group < end; ++group) groups<R, 1>(at, pages, page, v, group);
            });
    }

  private:
    template <int R, int G>
    static void groups(const Vectors& at, const Pages& pages, int page, int v, int group) {
        const int count = words(at.head_dim);
        const uint8_t* block = pages.block(page);
        Numbers q[R];
        for (int r = 0; r < R; ++r) q[r] = EncodedQuery(at, v + r).numbers();
        I16 sums[R * G];
        dot_both<R, G>(block + static_cast<size_t>(group * count) * 64, count, q, sums);
        const auto* lines = reinterpret_cast<const uint16_t*>(block + pages.layout(page).k_scale_offset);
        for (int g = 0; g < G; ++g) {
            const F16 step = from_f16(lines + 16 * (group + g)),
                      low = from_f16(lines + kPageTokens + 16 * (group + g));
            for (int r = 0; r < R; ++r) {
                const EncodedQuery query(at, v + r);
                const F16 dot = to_float(sums[r * G + g]) * splat(query.scale());
                store(at.page_scores(v + r, pages, page) + 16 * (group + g),
                      fma(dot, step, low * splat(query.sum())));
            }
        }
    }
};

struct Token4Values {
    static int pairs(int head_dim) { return (head_dim + 31) / 32; }

    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        alignas(64) uint8_t codes[kMaxHeadDim + 32] = {};
        const Line line = encode_uint4(x, at.head_dim, codes);
        std::fill(codes + at.head_dim, codes + (at.head_dim + 15) / 16 * 16, uint8_t{0});
        const int count = pairs(at.head_dim);
        uint8_t* column = block + at.v_offset + static_cast<size_t>(slot / 4 * count) * 64 + slot % 4;
        for (int p = 0; p < count; ++p)
            for (int i = 0; i < 16; ++i)
                column[64 * p + 4 * i] = static_cast<uint8_t>(codes[32 * p + i] | codes[32 * p + 16 + i] << 4);
        auto* lines = reinterpret_cast<uint16_t*>(block + at.v_scale_offset);
        lines[slot] = line.step, lines[kPageTokens + slot] = line.low;
    }

    static void add(Vectors& at, const Pages& pages) {
        Pages some = pages;  // up to 512 tokens at a time: 512 * 15 * 2^14 is within 32 bits
        for (; some.begin < pages.end; some.begin = some.end) {
            some.end = std::min(some.begin + kTogether, pages.end);
            const Lines lines(some);
            in_runs<kNibbleVectors>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value;
                bool any[R],
                    one = false;  // what sees nothing here stays as it is: adding a zero could turn -0 into 0
                for (int r = 0; r < R; ++r) one |= any[r] = sees(at, some, v + r);
                if (one) add_pages<R>(at, some, v, lines, any);
            });
        }
    }

  private:
    static constexpr int kTogether = 8, kTokens = kTogether * kPageTokens;

    // Steps and lows of a run of pages, zeros for tokens that were not written.
    struct Lines {
        alignas(64) float step[kTokens], low[kTokens];
        bool finite;
        explicit Lines(const Pages& pages) {
            F16 check = splat(0.0f);
            for (int page = pages.begin; page < pages.end; ++page) {
                const auto* lines =
                    reinterpret_cast<const uint16_t*>(pages.block(page) + pages.layout(page).v_scale_offset);
                const int first = (page - pages.begin) * kPageTokens, tokens = std::max(0, pages.tokens(page));
                for (int t = 0; t < kPageTokens; t += 16) {
                    store(step + first + t, from_f16(lines + t));
                    store(low + first + t, from_f16(lines + kPageTokens + t));
                }
                if (tokens < kPageTokens) {
                    std::fill(step + first + tokens, step + first + kPageTokens, 0.0f);
                    std::fill(low + first + tokens, low + first + kPageTokens, 0.0f);
                }
                for (int t = 0; t < kPageTokens; t += 16) check = fma(load(step + first + t), splat(0.0f), check);
            }
            finite = quick_sum(check) == 0.0f;
        }
    };

    // One vector's weights of a run of pages: times the steps as numbers, times the lows summed.
    struct Weights {
        alignas(64) uint8_t bytes[2 * kTokens];
        float scale, offset;
        void set(const float* weights, const Lines& lines, int tokens) {
            alignas(64) float product[kTokens];
            F16 sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
            for (int t = 0; t < tokens; t += 64)
                for (int i = 0; i < 64; i += 16) {
                    const F16 w = load(weights + t + i);
                    store(product + t + i, w * load(lines.step + t + i));
                    sums[i / 16] = fma(w, load(lines.low + t + i), sums[i / 16]);
                }
            offset = quick_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
            scale = to_nibble_numbers(product, tokens, bytes);
            if (!lines.finite) scale = std::numeric_limits<float>::quiet_NaN();
        }
    };

    static bool sees(const Vectors& at, const Pages& pages, int v) {
        return std::max(at.first[v], pages.begin * kPageTokens) < std::min(at.last[v], pages.end * kPageTokens);
    }

    template <int R>
    static void add_pages(const Vectors& at, const Pages& pages, int v, const Lines& lines, const bool* any) {
        const int count = pairs(at.head_dim), tokens = (pages.end - pages.begin) * kPageTokens;
        Weights weights[R];
        Numbers numbers[R];
        for (int r = 0; r < R; ++r) {
            weights[r].set(at.page_scores(v + r, pages, pages.begin), lines, tokens);
            numbers[r] = {weights[r].bytes, tokens};
        }
        const size_t stride = static_cast<size_t>(count) * 64;
        for (int p = 0; p < count; ++p) {
            I16 even[R], odd[R];
            for (int r = 0; r < R; ++r) even[r] = odd[r] = splat(int32_t{0});
            for (int page = pages.begin; page < pages.end; ++page) {
                const Vectors::Range seen = at.seen(v, R, page);
                if (seen.begin >= seen.end) continue;
                const int first = seen.begin / 4, words = (seen.end + 3) / 4 - first;
                const uint8_t* codes = pages.block(page) + pages.layout(page).v_offset + 64 * p;
                dot_each<R>(codes + stride * static_cast<size_t>(first), stride, words, numbers,
                            (page - pages.begin) * kPageTokens + 4 * first, even, odd);
            }
            for (int r = 0; r < R; ++r) {
                if (!any[r]) continue;
                float* out = at.output(v + r) + 32 * p;
                add_sums(out, even[r], weights[r]);
                if (32 * p + 16 < at.padded_dim) add_sums(out + 16, odd[r], weights[r]);
            }
        }
    }

    static void add_sums(float* out, I16 sums, const Weights& weights) {
        store(out, load(out) + fma(to_float(sums), splat(weights.scale), splat(weights.offset)));
    }
};

}  // namespace kvern::KVERN_ISA_NS
