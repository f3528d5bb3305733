// K3 and K4 on AMX tiles for GGUF blocks, w8a8 and bf16; sets nothing on other instruction sets.
//
// Integer formats give the same bits as the rows kernels, which keep calls of few rows. bf16 uses tiles for every row
// count.
#include "amx_groups.h"
#include "amx_tiles.h"
#include "dispatch.h"

#if defined(KVERN_ISA_amx)
namespace kvern::KVERN_ISA_NS {
namespace {

inline F16 halves(const uint8_t* p) { return from_f16(reinterpret_cast<const uint16_t*>(p)); }

template <int BITS>
inline void expand_planes(const uint8_t* planes, uint8_t* to) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) _mm512_store_si512(to + step * kPlane, codes_at<BITS>(planes, step));
}

struct MinimumScale {
    F16 d, m;
};

// Formats with a minimum: weight = d * code + m.
struct FoldMinimum {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr int kGroup = 32, kParts = 1;
    static constexpr bool kIntegerSums = false;
    using Scale = MinimumScale;
    static F16 fold(const Scale& scale, const GroupRow& row, const I16* sums, F16 acc) {
        acc = fma(to_float(sums[0]), splat(row.scale) * scale.d, acc);
        return fma(splat(row.scaled_sum), scale.m, acc);
    }
    static F16 finish(const LinearWork&, const uint8_t*, int64_t, F16 acc) { return acc; }
};

template <Format F>
struct SimpleGroups : FoldMinimum {
    static constexpr bool five = F == Format::q5_0 || F == Format::q5_1;
    static constexpr bool two = F == Format::q4_1 || F == Format::q5_1;
    static constexpr int bits = five ? 5 : 4, header = two ? 64 : 32;
    static const uint8_t* at(const uint8_t* tile, int64_t g) { return tile + g * (header + plane_bytes(bits)); }
    static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to) {
        expand_planes<bits>(at(tile, g) + header, to);
    }
    static Scale scale(const WeightView&, const uint8_t* tile, int64_t g) {
        const F16 d = halves(at(tile, g));
        return {d, two ? halves(at(tile, g) + 32) : splat(five ? -16.0f : -8.0f) * d};
    }
};

template <Format F>
struct SuperGroups : FoldMinimum {
    static constexpr int bits = F == Format::q5_k ? 5 : 4, header = 64 + 256;
    static const uint8_t* block(const uint8_t* tile, int64_t g) {
        return tile + g / 8 * (header + 8 * plane_bytes(bits));
    }
    static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to) {
        expand_planes<bits>(block(tile, g) + header + g % 8 * plane_bytes(bits), to);
    }
    static Scale scale(const WeightView&, const uint8_t* tile, int64_t g) {
        const uint8_t* start = block(tile, g);
        const auto* scales = reinterpret_cast<const int8_t*>(start + 64 + g % 8 * 16);  // 6-bit: never negative
        const F16 dmin = splat(0.0f) - halves(start + 32);
        return {halves(start) * from_i8(scales), dmin * from_i8(scales + 128)};
    }
};

struct SignedBytes {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr int kGroup = 32, kParts = 1;
    static constexpr bool kIntegerSums = true;
    using Scale = F16;
    static const uint8_t* at(const uint8_t* tile, int64_t g) { return tile + g * (32 + plane_bytes(8)); }
    static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to) {
        expand_planes<8>(at(tile, g) + 32, to);
    }
    static Scale scale(const WeightView&, const uint8_t* tile, int64_t g) { return halves(at(tile, g)); }
    static F16 fold(const Scale& d, const GroupRow& row, const I16* sums, F16 acc) {
        return fma(to_float(sums[0] + splat(-128 * row.sum)), splat(row.scale) * d, acc);
    }
    static F16 finish(const LinearWork&, const uint8_t*, int64_t, F16 acc) { return acc; }
};

struct SixBitGroups {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr int kGroup = 32, kParts = 2, header = 32 + 256;
    static constexpr bool kIntegerSums = true;
    struct Scale {
        F16 d;
        const uint8_t* halves;
    };
    static const uint8_t* block(const uint8_t* tile, int64_t g) {
        return tile + g / 8 * (header + 8 * plane_bytes(6));
    }
    static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to) {
        expand_planes<6>(block(tile, g) + header + g % 8 * plane_bytes(6), to);
    }
    static Scale scale(const WeightView&, const uint8_t* tile, int64_t g) {
        const uint8_t* start = block(tile, g);
        return {halves(start), start + 32 + g % 8 * 32};
    }
    static F16 fold(const Scale& scale, const GroupRow& row, const I16* sums, F16 acc) {
        int16_t half_sums[2];
        std::memcpy(half_sums, &row.half_sums, 4);
        const I16 dot = combine_halves(sums[0], sums[1], scale.halves, half_sums);
        return fma(to_float(dot), splat(row.scale) * scale.d, acc);
    }
    static F16 finish(const LinearWork&, const uint8_t*, int64_t, F16 acc) { return acc; }
};

struct ByteTiles {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr bool kInPlace = true;
    static const uint8_t* expand(const WeightView&, const uint8_t* tile, int64_t step, uint8_t*) {
        return tile + 64 + step * kOperandBytes;
    }
    static F16 finish(const LinearWork& work, const uint8_t* tile, int64_t row, I16 sums) {
        const I16 dot = sums + splat(-128 * work.x->sums[row]);
        return (to_float(dot) * splat(work.x->scales[row])) * load(reinterpret_cast<const float*>(tile));
    }
};

struct HalfTiles {
    static constexpr Product kProduct = Product::bf16;
    static constexpr bool kInPlace = true;
    static const uint8_t* expand(const WeightView&, const uint8_t* tile, int64_t step, uint8_t*) {
        return tile + step * kOperandBytes;
    }
    static F16 finish(const LinearWork&, const uint8_t*, int64_t, I16 sums) { return as_float(sums); }
};

template <class F, Format FORMAT>
void set_groups(KernelTable& table) {
    TileRoute<groups_pass<F>, FORMAT, RowCode::q8_group>::set(table);
}

}  // namespace

void fill_linear_amx(KernelTable& table) {
    set_groups<SimpleGroups<Format::q4_0>, Format::q4_0>(table);
    set_groups<SimpleGroups<Format::q4_1>, Format::q4_1>(table);
    set_groups<SimpleGroups<Format::q5_0>, Format::q5_0>(table);
    set_groups<SimpleGroups<Format::q5_1>, Format::q5_1>(table);
    set_groups<SuperGroups<Format::q4_k>, Format::q4_k>(table);
    set_groups<SuperGroups<Format::q5_k>, Format::q5_k>(table);
    set_groups<SixBitGroups, Format::q6_k>(table);
    set_groups<SignedBytes, Format::q8_0>(table);
    TileRoute<whole_k_pass<ByteTiles>, Format::w8a8, RowCode::q8_row>::set(table);
    TileRoute<whole_k_pass<HalfTiles>, Format::bf16, RowCode::bf16, 1>::set(table);
    table.linear.bf16_rows = RowCode::bf16;
}

}  // namespace kvern::KVERN_ISA_NS
#else
namespace kvern::KVERN_ISA_NS {
void fill_linear_amx(KernelTable&) {}
}  // namespace kvern::KVERN_ISA_NS
#endif
