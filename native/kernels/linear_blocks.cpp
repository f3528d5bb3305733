// K2 and K3 for GGUF block formats: int8 activations in groups of 32, one float fold per group, groups ascending.
#include "dispatch.h"
#include "dots.h"
#include "lanes.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {
namespace {

template <Format F>
struct Layout {
    static constexpr bool super = F == Format::q4_k || F == Format::q5_k || F == Format::q6_k;
    static constexpr int bits = F == Format::q8_0                                             ? 8
                                : F == Format::q6_k                                           ? 6
                                : F == Format::q5_0 || F == Format::q5_1 || F == Format::q5_k ? 5
                                                                                              : 4;
    static constexpr bool has_d_only = F == Format::q4_0 || F == Format::q5_0 || F == Format::q8_0;
    static constexpr bool has_min = F != Format::q8_0 && F != Format::q6_k;
};

// What the fold of one group needs: weight = d * code + m.
struct GroupScale {
    F16 d, m;
};

template <Format F>
GroupScale simple_scale(const uint8_t* header) {
    const F16 d = from_f16(reinterpret_cast<const uint16_t*>(header));
    if constexpr (F == Format::q4_0) return {d, splat(-8.0f) * d};
    if constexpr (F == Format::q5_0) return {d, splat(-16.0f) * d};
    if constexpr (F == Format::q8_0) return {d, d};
    return {d, from_f16(reinterpret_cast<const uint16_t*>(header + 32))};
}

template <int ROWS>
struct Rows {
    const int8_t* codes[ROWS];
    const float *scales[ROWS], *scaled_sums[ROWS];
    const int32_t* sums[ROWS];
    const int16_t* half_sums[ROWS];

    Rows(const EncodedRows& x, int64_t row) {
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = (row + r) * x.groups;
            codes[r] = x.codes + (row + r) * x.stride;
            scales[r] = x.scales + at;
            scaled_sums[r] = x.scaled_sums + at;
            sums[r] = x.sums + at;
            half_sums[r] = x.half_sums + 2 * at;
        }
    }
    void next_group() {
        for (int r = 0; r < ROWS; ++r) {
            codes[r] += 32;
            ++scales[r];
            ++scaled_sums[r];
            ++sums[r];
            half_sums[r] += 2;
        }
    }
};

template <Format F, int ROWS>
inline void fold_group(const uint8_t* planes, const GroupScale& scale, Rows<ROWS>& x, F16* acc) {
    I16 dot[ROWS];
    dots<Layout<F>::bits, ROWS>(planes, x.codes, dot);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        if constexpr (F == Format::q8_0) dot[r] = dot[r] + splat(-128 * *x.sums[r]);
        acc[r] = fma(to_float(dot[r]), splat(*x.scales[r]) * scale.d, acc[r]);
        if constexpr (Layout<F>::has_min) acc[r] = fma(splat(*x.scaled_sums[r]), scale.m, acc[r]);
    }
    x.next_group();
}

template <Format F, int ROWS>
void simple_tile(const uint8_t* tile, Rows<ROWS> x, int64_t groups, F16* acc) {
    constexpr int header = Layout<F>::has_d_only ? 32 : 64;
    for (int64_t g = 0; g < groups; ++g) {
        fold_group<F, ROWS>(tile + header, simple_scale<F>(tile), x, acc);
        tile += header + plane_bytes(Layout<F>::bits);
    }
}

template <Format F, int ROWS>
void super_tile(const uint8_t* tile, Rows<ROWS> x, int64_t groups, F16* acc) {
    constexpr int header = 64 + 256;
    for (int64_t g = 0; g < groups; g += 8) {
        const F16 d = from_f16(reinterpret_cast<const uint16_t*>(tile));
        const F16 dmin = splat(0.0f) - from_f16(reinterpret_cast<const uint16_t*>(tile + 32));
        const auto* scales = reinterpret_cast<const int8_t*>(tile + 64);  // 6-bit: never negative
        const uint8_t* planes = tile + header;
        for (int i = 0; i < 8; ++i, scales += 16, planes += plane_bytes(Layout<F>::bits))
            fold_group<F, ROWS>(planes, {d * from_i8(scales), dmin * from_i8(scales + 128)}, x, acc);
        tile = planes;
    }
}

// q6_k: the two int8 scales of a group are applied to the integer sums, so one float fold per group remains.
template <int ROWS>
void q6_tile(const uint8_t* tile, Rows<ROWS> x, int64_t groups, F16* acc) {
    constexpr int header = 32 + 256;
    for (int64_t g = 0; g < groups; g += 8) {
        const F16 d = from_f16(reinterpret_cast<const uint16_t*>(tile));
        const uint8_t *scales = tile + 32, *planes = tile + header;
        for (int i = 0; i < 8; ++i, scales += 32, planes += plane_bytes(6)) {
            I16 dot[ROWS];
            scaled_dots<ROWS>(planes, scales, x.codes, x.half_sums, dot);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) acc[r] = fma(to_float(dot[r]), splat(*x.scales[r]) * d, acc[r]);
            x.next_group();
        }
        tile = planes;
    }
}

template <Format F>
struct Blocks {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        const EncodedRows& x = *work.x;
        if constexpr (F == Format::q6_k)
            q6_tile<ROWS>(tile, Rows<ROWS>(x, row), x.groups, acc);
        else if constexpr (Layout<F>::super)
            super_tile<F, ROWS>(tile, Rows<ROWS>(x, row), x.groups, acc);
        else
            simple_tile<F, ROWS>(tile, Rows<ROWS>(x, row), x.groups, acc);
    }
};

template <Format F>
void set(KernelTable& table) {
    table.linear.tiles[static_cast<int>(F)] = rows_by_tile<Blocks<F>>;
}

}  // namespace

void fill_linear_blocks(KernelTable& table) {
    set<Format::q4_0>(table);
    set<Format::q4_1>(table);
    set<Format::q5_0>(table);
    set<Format::q5_1>(table);
    set<Format::q8_0>(table);
    set<Format::q4_k>(table);
    set<Format::q5_k>(table);
    set<Format::q6_k>(table);
}

}  // namespace kvern::KVERN_ISA_NS
