// The AMX tile product for formats whose sums are folded in float group by group. Empty on other instruction sets.
//
// A format plugs in as a struct and one line in its fill function, after the rows kernels have been set:
//
//     struct MyGroups {
//         static constexpr Product kProduct = Product::unsigned_bytes;  // or signed_bytes
//         static constexpr int kGroup = 64;  // inputs folded together: as the rows kernel does; 32 or 64
//         static constexpr int kParts = 1;   // integer sums of a group: 2 where its halves have scales of their own
//         static constexpr bool kIntegerSums = false;  // fold reads sum and half_sums
//         // Codes of group g of the tile's 16 outputs as bytes [kGroup / 4][16 outputs][4 inputs] at `to` (64-byte
//         // aligned).
//         static void expand(const WeightView&, const uint8_t* tile, int64_t g, uint8_t* to);
//         struct Scale { F16 d, m; };  // what `fold` needs of the weight
//         static Scale scale(const WeightView&, const uint8_t* tile, int64_t g);
//         // acc and the group's addends for one row, in the rows kernel's float order.
//         static F16 fold(const Scale&, const GroupRow&, const I16* sums /* [kParts] */, F16 acc);
//         // The row's outputs from its folded groups (return acc where nothing is left to do).
//         static F16 finish(const LinearWork&, const uint8_t* tile, int64_t row, F16 acc);
//     };
//     TileRoute<groups_pass<MyGroups>, Format::mine, RowCode::q8_group64>::set(table);
//
// Loops: a weight tile is expanded once for all rows of the call; blocks of 16 rows keep their 16 vectors of float
// sums in registers over K. The products of group g + 1 are issued before the fold of group g: a fold is 4 vector
// operations a row, and it, not the product, is the limit.
#pragma once
#include "amx_tiles.h"

#if defined(KVERN_ISA_amx)
namespace kvern::KVERN_ISA_NS {

// What a fold needs of one row and group.
struct GroupRow {
    float scale, scaled_sum;
    int32_t sum;
    int32_t half_sums;  // two int16, first half in the low one
};

// The same of 16 rows, by array so that a fold reads them at fixed distances.
struct GroupRows {
    float scale[16], scaled_sum[16];
    int32_t sum[16], half_sums[16];
};

// GroupRows of every group and block of 16 rows of a call: [blocks][groups].
template <bool INTEGER_SUMS>
inline const GroupRows* gathered_rows(const EncodedRows& x, int64_t row_begin, int64_t row_end) {
    const int64_t blocks = (row_end - row_begin + 15) / 16;
    const int64_t bytes = blocks * x.groups * static_cast<int64_t>(sizeof(GroupRows));
    struct Free {
        void operator()(GroupRows* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<GroupRows, Free> memory;
    thread_local int64_t size = 0;
    if (size < bytes) {
        memory.reset(static_cast<GroupRows*>(std::aligned_alloc(64, static_cast<size_t>(round_up(bytes, 4096)))));
        if (!memory) throw std::bad_alloc();
        size = bytes;
    }
    for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t i = row - row_begin;
        GroupRows* to = memory.get() + i / 16 * x.groups;
        for (int64_t g = 0; g < x.groups; ++g) {
            const int64_t at = row * x.groups + g;
            to[g].scale[i % 16] = x.scales[at];
            to[g].scaled_sum[i % 16] = x.scaled_sums[at];
            if constexpr (INTEGER_SUMS) {
                to[g].sum[i % 16] = x.sums[at];
                std::memcpy(&to[g].half_sums[i % 16], x.half_sums + 2 * at, 4);
            }
        }
    }
    return memory.get();
}

template <class F>
class Groups {
  public:
    Groups(const LinearWork& work, const GroupRows* gathered) : work_(work), gathered_(gathered) {}

    // ROWS is 16, or 0 for `rows` rows.
    template <int ROWS>
    void block(const uint8_t* tile, const uint8_t* codes, int64_t block_number, int64_t row, int rows, int64_t output,
               Prefetch& next) {
        const int count = ROWS ? ROWS : rows;
        const int64_t groups = work_.x->groups;
        const GroupRows* of_groups = gathered_ + block_number * groups;
        F16 acc[16];
        for (F16& lane : acc) lane = splat(0.0f);
        products(codes, row, 0);
        for (int64_t g = 0; g < groups; ++g) {
            if (g + 1 < groups) products(codes, row, g + 1);
            next.some();
            const auto scale = F::scale(work_.weight, tile, g);
#pragma GCC unroll 16
            for (int r = 0; r < count; ++r) acc[r] = folded(scale, of_groups[g], g, r, acc[r]);
        }
        for (int r = 0; r < count; ++r) acc[r] = F::finish(work_, tile, row + r, acc[r]);
        store_rows(work_, acc, row, count, output);
    }

  private:
    static constexpr int kPart = F::kGroup / F::kParts;

    void products(const uint8_t* codes, int64_t row, int64_t g) {
        const int8_t* a = work_.x->codes + row * work_.x->stride + g * F::kGroup;
        const uint8_t* b = codes + g * F::kGroup * 16;
        int32_t(*to)[16][16] = sums_[g % 2];
        _tile_zero(0);
        _tile_loadd(4, a, work_.x->stride);
        _tile_loadd(6, b, 64);
        KVERN_TILE_PRODUCT(F::kProduct, 0, 4, 6);
        _tile_stored(0, to[0], 64);
        if constexpr (F::kParts == 2) {
            _tile_zero(2);
            _tile_loadd(5, a + kPart, work_.x->stride);
            _tile_loadd(7, b + kPart * 16, 64);
            KVERN_TILE_PRODUCT(F::kProduct, 2, 5, 7);
            _tile_stored(2, to[1], 64);
        }
        memory_is_written();
    }

    template <class Scale>
    F16 folded(const Scale& scale, const GroupRows& rows, int64_t g, int r, F16 acc) const {
        I16 sums[F::kParts];
        for (int p = 0; p < F::kParts; ++p) sums[p] = load(sums_[g % 2][p][r]);
        GroupRow one{rows.scale[r], rows.scaled_sum[r], 0, 0};
        if constexpr (F::kIntegerSums) one.sum = rows.sum[r], one.half_sums = rows.half_sums[r];
        return F::fold(scale, one, sums, acc);
    }

    const LinearWork& work_;
    const GroupRows* gathered_;
    alignas(64) int32_t sums_[2][F::kParts][16][16];
};

// A TilesKernel for any number of rows.
template <class F>
void groups_pass(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "tiles";
    const WeightView& weight = work.weight;
    const int64_t groups = work.x->groups;
    uint8_t* codes = panel_memory(groups * F::kGroup * 16);
    Groups<F> products(work, gathered_rows<F::kIntegerSums>(*work.x, row_begin, row_end));
    const int64_t full = row_begin + (row_end - row_begin) / 16 * 16;
    for (int part = 0; part < 2; ++part) {
        const int64_t begin = part ? full : row_begin, end = part ? row_end : full;
        if (begin == end) continue;
        const int height = part ? static_cast<int>(end - begin) : 16;
        const TileShapes shapes(height, height, F::kGroup / F::kParts);
        for (int64_t t = tile_begin; t < tile_end; ++t) {
            const uint8_t* tile = weight.data + t * weight.tile_bytes;
            for (int64_t g = 0; g < groups; ++g) F::expand(weight, tile, g, codes + g * F::kGroup * 16);
            memory_is_written();
            Prefetch next(tile + weight.tile_bytes, t + 1 < tile_end ? weight.tile_bytes : 0,
                          (end - begin) / height * groups);
            for (int64_t row = begin; row < end; row += height) {
                const int64_t number = (row - row_begin) / 16;
                if (height == 16)
                    products.template block<16>(tile, codes, number, row, 16, t * 16, next);
                else
                    products.template block<0>(tile, codes, number, row, height, t * 16, next);
            }
        }
    }
}

}  // namespace kvern::KVERN_ISA_NS
#endif
