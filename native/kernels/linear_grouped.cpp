// K2 and K3 for formats of symmetric codes in groups of 64 inputs (grouped_format.h), 1 to 8 bits wide.
//
// Per output and group, groups ascending: acc = fma(float(dot), s_a * d, acc), then fma(s_a * float(sum_a), m, acc).
#include "amx_groups.h"
#include "code_dots.h"
#include "dispatch.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {
namespace {

struct GroupScale {
    F16 d, m;
};

template <GroupedFormat F>
inline GroupScale scale_at(const uint8_t* group) {
    const F16 scale = from_f16(reinterpret_cast<const uint16_t*>(group));
    return {splat(F.d) * scale, splat(F.m) * scale};
}

inline F16 folded(const GroupScale& weight, float scale, float scaled_sum, I16 dot, F16 acc) {
    acc = fma(to_float(dot), splat(scale) * weight.d, acc);
    return fma(splat(scaled_sum), weight.m, acc);
}

// Activations within +-TOP.
template <GroupedFormat F, int TOP>
struct Grouped {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        const EncodedRows& x = *work.x;
        const int8_t* codes[ROWS];
        for (int r = 0; r < ROWS; ++r) codes[r] = x.codes + (row + r) * x.stride;
        const float *scales = x.scales + row * x.groups, *scaled_sums = x.scaled_sums + row * x.groups;
        for (int64_t g = 0; g < x.groups; ++g, tile += group_bytes(F.bits)) {
            I16 dot[ROWS];
            group_dots<F.bits, ROWS, TOP>(tile + kGroupScales, codes, dot);
            const GroupScale weight = scale_at<F>(tile);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const int64_t at = r * x.groups + g;
                acc[r] = folded(weight, scales[at], scaled_sums[at], dot[r], acc[r]);
                codes[r] += kCodeGroup;
            }
        }
    }
};

#if defined(KVERN_ISA_amx)
template <GroupedFormat F>
struct GroupedTiles {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr int kGroup = kCodeGroup, kParts = 1;
    static constexpr bool kIntegerSums = false;
    using Scale = GroupScale;
    static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to) {
        expand_group<F.bits>(tile + g * group_bytes(F.bits) + kGroupScales, to);
    }
    static Scale scale(const WeightView&, const uint8_t* tile, int64_t g) {
        return scale_at<F>(tile + g * group_bytes(F.bits));
    }
    static F16 fold(const Scale& weight, const GroupRow& x, const I16* sums, F16 acc) {
        return folded(weight, x.scale, x.scaled_sum, sums[0], acc);
    }
    static F16 finish(const LinearWork&, const uint8_t*, int64_t, F16 acc) { return acc; }
};
#endif

template <GroupedFormat F, RowCode CODE>
void set(KernelTable& table) {
    constexpr int top = CODE == RowCode::q6_group64 ? 31 : 127;
    table.linear.at(F.format, CODE) = rows_by_tile<Grouped<F, top>>;
#if defined(KVERN_ISA_amx)
    TileRoute<groups_pass<GroupedTiles<F>>, F.format, CODE>::set(table);
#endif
}

template <int BITS = 1>
void set_bipolar(KernelTable& table) {
    set<bipolar<BITS>(), RowCode::q8_group64>(table);
    if constexpr (BITS < 8) set_bipolar<BITS + 1>(table);
}

}  // namespace

void fill_linear_grouped(KernelTable& table) {
    set<kW6, RowCode::q8_group64>(table);
    set<kW6, RowCode::q6_group64>(table);
    set<kW4A4, RowCode::mixed_4_8>(table);
    set_bipolar(table);
}

}  // namespace kvern::KVERN_ISA_NS
