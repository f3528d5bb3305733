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

// From here on taking a tile apart once pays: two or three blocks of rows, the more the more work a code is.
template <Format F>
constexpr int64_t kPanelRows = kMaxRows == 8                            ? 16
                               : F == Format::q4_0 || F == Format::q4_1 ? 12
                                                                        : 8;

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

// A group of a tile of 16 outputs: its scales, and its codes packed or (PANEL) expanded.
struct Group {
    F16 d, m;
    const uint8_t* halves;  // q6_k: int8 scales [16][2]
    const uint8_t* codes;
};

template <Format F, int ROWS, bool PANEL>
inline void fold_group(const Group& group, Rows<ROWS>& x, F16* acc) {
    I16 dot[ROWS];
    if constexpr (F == Format::q6_k) {
        scaled_dots<ROWS, PANEL>(group.codes, group.halves, x.codes, x.half_sums, dot);
    } else if constexpr (F == Format::q8_0) {
        for (int r = 0; r < ROWS; ++r) dot[r] = splat(-kByteOffset * *x.sums[r]);
        add_byte_dots<ROWS>(group.codes, x.codes, dot);
    } else {
        dots<Layout<F>::bits, ROWS, PANEL>(group.codes, x.codes, dot);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        acc[r] = fma(to_float(dot[r]), splat(*x.scales[r]) * group.d, acc[r]);
        if constexpr (Layout<F>::has_min) acc[r] = fma(splat(*x.scaled_sums[r]), group.m, acc[r]);
    }
    x.next_group();
}

// use(group) for every group of a packed tile, in order; AHEAD asks for the bytes of later ones.
template <Format F, bool AHEAD, class Use>
inline void each_group(const uint8_t* tile, int64_t groups, Use&& use) {
    constexpr int planes = plane_bytes(Layout<F>::bits);
    if constexpr (!Layout<F>::super) {
        constexpr int header = Layout<F>::has_d_only ? 32 : 64;
        for (int64_t g = 0; g < groups; ++g, tile += header + planes) {
            if constexpr (AHEAD) prefetch_ahead<header + planes>(tile);
            const GroupScale scale = simple_scale<F>(tile);
            use(Group{scale.d, scale.m, nullptr, tile + header});
        }
        return;
    }
    for (int64_t g = 0; g < groups; g += 8) {
        const F16 d = from_f16(reinterpret_cast<const uint16_t*>(tile));
        F16 dmin = d;
        const uint8_t* scales = tile + 32;
        if constexpr (F != Format::q6_k) {
            dmin = splat(0.0f) - from_f16(reinterpret_cast<const uint16_t*>(scales));
            scales += 32;
        }
        const uint8_t* codes = scales + 256;
        for (int i = 0; i < 8; ++i, codes += planes) {
            if constexpr (AHEAD) prefetch_ahead<planes + 32>(codes);
            if constexpr (F == Format::q6_k) {
                use(Group{d, d, scales + 32 * i, codes});
            } else {
                const auto* pair = reinterpret_cast<const int8_t*>(scales) + 16 * i;  // 6-bit: never negative
                use(Group{d * from_i8(pair), dmin * from_i8(pair + 128), nullptr, codes});
            }
        }
        tile = codes;
    }
}

template <Format F>
struct Blocks {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        Rows<ROWS> x(*work.x, row);
        F16 sums[ROWS];  // of this function alone, so that they stay in registers
        for (int r = 0; r < ROWS; ++r) sums[r] = acc[r];
        each_group<F, true>(tile, work.x->groups,
                            [&](const Group& group) { fold_group<F, ROWS, false>(group, x, sums); });
        for (int r = 0; r < ROWS; ++r) acc[r] = sums[r];
    }
};

// A group expanded for many rows.
struct alignas(64) PanelGroup {
    float d[16];
    uint8_t m[64];  // float m[16], or the scales of q6_k
    uint8_t codes[8 * kPlane];
};

template <Format F>
struct Panel {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        Rows<ROWS> x(*work.x, row);
        const auto* groups = reinterpret_cast<const PanelGroup*>(tile);
        for (const PanelGroup* group = groups; group < groups + work.x->groups; ++group) {
            const F16 m = load(reinterpret_cast<const float*>(group->m));
            fold_group<F, ROWS, true>({load(group->d), m, group->m, group->codes}, x, acc);
        }
    }
    static void expand(const uint8_t* tile, int64_t groups, PanelGroup* to) {
        each_group<F, true>(tile, groups, [&](const Group& group) {
            store(to->d, group.d);
            if constexpr (F == Format::q6_k)
                std::memcpy(to->m, group.halves, 32);
            else
                store(reinterpret_cast<float*>(to->m), group.m);
            expand_codes<Layout<F>::bits>(group.codes, to->codes);
            ++to;
        });
    }
};

// The codes of q8_0 are bytes already.
template <Format F>
void block_tiles(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (F == Format::q8_0 || row_end - row_begin < kPanelRows<F>) {
        rows_by_tile<Blocks<F>>(work, row_begin, row_end, tile_begin, tile_end);
        return;
    }
    if (work.route) *work.route = "rows";
    const int64_t groups = work.x->groups;
    uint8_t* panel = panel_memory(groups * static_cast<int64_t>(sizeof(PanelGroup)));
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        Panel<F>::expand(work.weight.data + t * work.weight.tile_bytes, groups, reinterpret_cast<PanelGroup*>(panel));
        rows_of_tile<Panel<F>>(work, panel, row_begin, row_end, t * 16);
    }
}

template <Format F>
void set(KernelTable& table) {
    table.linear.at(F, RowCode::q8_group) = block_tiles<F>;
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
