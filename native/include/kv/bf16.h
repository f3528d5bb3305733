// bf16 keys and values, read by float32 fma: sums over even and over odd dimensions (tokens), added at the end.
// On AMX the tile instructions read the same bytes (kv/bf16_tiles.h).
#pragma once
#include "../lanes.h"
#include "reader.h"

namespace kvern::KVERN_ISA_NS {

#if defined(__AVX512F__)
constexpr int kVectorsAtOnce = 6, kBf16Sums = 24;  // accumulators, F16 each, of the 32 registers
#elif defined(__AVX2__)
constexpr int kVectorsAtOnce = 3, kBf16Sums = 6;  // an F16 is two of the 16 registers
#else
constexpr int kVectorsAtOnce = 3, kBf16Sums = 6;
#endif
// How many groups of 16 lanes R vectors take together.
template <int R>
constexpr int groups_at_once() {
    return kBf16Sums / (2 * R) >= 4 ? 4 : kBf16Sums / (2 * R) >= 2 ? 2 : 1;
}

// `p`, as if computed from `sum`: keeps GCC from starting on the odd half of a step before the even half is done,
// whose operands would on AVX2 push a sum out of the 16 registers.
inline const int32_t* after(const int32_t* p, F16 sum) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __asm__("" : "+r"(p) : "x"(sum.lo), "x"(sum.hi));
#else
    static_cast<void>(sum);
#endif
    return p;
}

struct Bf16Keys {
    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        auto* keys = reinterpret_cast<uint16_t*>(block) + static_cast<size_t>(slot / 16) * at.head_dim * 16;
        for (int d = 0; d < at.head_dim; d += 2) {
            keys[d * 16 + (slot % 16) * 2] = to_bf16(x[d]);
            keys[d * 16 + (slot % 16) * 2 + 1] = to_bf16(x[d + 1]);
        }
    }

    static void scores(Vectors& at, const Pages& pages) {
        for (int page = pages.begin; page < pages.end; ++page)
            in_runs<kVectorsAtOnce>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value, G = groups_at_once<R>();
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
        const int pairs = at.head_dim / 2;
        const auto* keys =
            reinterpret_cast<const int32_t*>(pages.block(page)) + static_cast<size_t>(group) * pairs * 16;
        const float* q[R];
        for (int r = 0; r < R; ++r) q[r] = at.query(v + r);
        F16 even[R][G], odd[R][G];
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < G; ++g) even[r][g] = odd[r][g] = splat(0.0f);
        for (int i = 0; i < pairs; ++i) {
            const int32_t* words = keys + static_cast<size_t>(i) * 16;
            F16 key[G];
            for (int g = 0; g < G; ++g)
                key[g] = as_float(low_half_as_high(load(words + static_cast<size_t>(g) * pairs * 16)));
            for (int r = 0; r < R; ++r) {
                const F16 x = splat(q[r][2 * i]);
                for (int g = 0; g < G; ++g) even[r][g] = fma(key[g], x, even[r][g]);
            }
            words = after(words, even[R - 1][G - 1]);
            for (int g = 0; g < G; ++g)
                key[g] = as_float(high_half(load(words + static_cast<size_t>(g) * pairs * 16)));
            for (int r = 0; r < R; ++r) {
                const F16 x = splat(q[r][2 * i + 1]);
                for (int g = 0; g < G; ++g) odd[r][g] = fma(key[g], x, odd[r][g]);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < G; ++g)
                store(at.page_scores(v + r, pages, page) + 16 * (group + g), even[r][g] + odd[r][g]);
    }
};

struct Bf16Values {
    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        auto* values = reinterpret_cast<uint16_t*>(block + at.v_offset) +
                       static_cast<size_t>(slot / 2) * at.padded_dim * 2 + slot % 2;
        for (int d = 0; d < at.head_dim; ++d) values[2 * d] = to_bf16(x[d]);
        for (int d = at.head_dim; d < at.padded_dim; ++d) values[2 * d] = 0;
    }

    static void add(Vectors& at, const Pages& pages) {
        for (int page = pages.begin; page < pages.end; ++page)
            in_runs<kVectorsAtOnce>(at.count, [&](auto run, int v) {
                constexpr int R = decltype(run)::value, D = groups_at_once<R>();
                const Vectors::Range seen = at.seen(v, R, page);
                if (seen.begin >= seen.end) return;
                const int dims = at.padded_dim / 16;
                int d = 0;
                for (; d + D <= dims; d += D) columns<R, D>(at, pages, page, v, d, seen);
                for (; d < dims; ++d) columns<R, 1>(at, pages, page, v, d, seen);
            });
    }

  private:
    // Dimensions [16 d, 16 (d + D)). An odd last token stands alone: its neighbour may hold anything.
    template <int R, int D>
    static void columns(const Vectors& at, const Pages& pages, int page, int v, int d, Vectors::Range seen) {
        const auto* words =
            reinterpret_cast<const int32_t*>(pages.block(page) + pages.layout(page).v_offset) + 16 * d;
        const float* weight[R];
        for (int r = 0; r < R; ++r) weight[r] = at.page_scores(v + r, pages, page);
        F16 even[R][D], odd[R][D];
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < D; ++g) even[r][g] = odd[r][g] = splat(0.0f);
        for (int pair = seen.begin / 2; pair < seen.end / 2; ++pair) {
            const int32_t* row = words + static_cast<size_t>(pair) * at.padded_dim;
            F16 value[D];
            for (int g = 0; g < D; ++g) value[g] = as_float(low_half_as_high(load(row + 16 * g)));
            for (int r = 0; r < R; ++r) {
                const F16 w = splat(weight[r][2 * pair]);
                for (int g = 0; g < D; ++g) even[r][g] = fma(value[g], w, even[r][g]);
            }
            row = after(row, even[R - 1][D - 1]);
            for (int g = 0; g < D; ++g) value[g] = as_float(high_half(load(row + 16 * g)));
            for (int r = 0; r < R; ++r) {
                const F16 w = splat(weight[r][2 * pair + 1]);
                for (int g = 0; g < D; ++g) odd[r][g] = fma(value[g], w, odd[r][g]);
            }
        }
        if (seen.end % 2 != 0) {
            const int32_t* row = words + static_cast<size_t>(seen.end / 2) * at.padded_dim;
            for (int g = 0; g < D; ++g) {
                const F16 low = as_float(low_half_as_high(load(row + 16 * g)));
                for (int r = 0; r < R; ++r) even[r][g] = fma(low, splat(weight[r][seen.end - 1]), even[r][g]);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < D; ++g) {
                float* out = at.output(v + r) + 16 * (d + g);
                store(out, load(out) + (even[r][g] + odd[r][g]));
            }
    }
};

}  // namespace kvern::KVERN_ISA_NS
