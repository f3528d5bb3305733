// w4a16: 4-bit weights read once for all rows of a block (MARLIN, Frantar et al. 2024). Float32 rows: decoded to
// panels of floats. bf16 rows: AMX tiles over the codes themselves, which bf16 holds exactly; the sums of each group
// of 64 are then folded with the group's scale, so that expanding a weight costs a shift and a table lookup.
#include "amx_tiles.h"
#include "float_panels.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr int64_t kGroup = 64, kGroupBytes = 32 + 8 * 64;  // of a tile: 16 scales, 8 vectors of codes

inline F16 halves(const uint8_t* p) { return from_f16(reinterpret_cast<const uint16_t*>(p)); }

// The nibble SHIFT bits up in every lane, less 8, times d; m = -8 d. Exact: no rounding takes place.
template <int SHIFT>
inline F16 decoded(I16 codes, F16 d, F16 m) {
#if defined(__AVX512F__)
    // The lookup takes four bits of each lane and ignores the others.
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return fma({_mm512_permutexvar_ps(_mm512_srli_epi32(codes.v, SHIFT), numbers)}, d, m);
#elif defined(__AVX2__)
    const __m256i low = _mm256_set1_epi32(15);
    return fma(to_float(I16{_mm256_and_si256(_mm256_srli_epi32(codes.lo, SHIFT), low),
                            _mm256_and_si256(_mm256_srli_epi32(codes.hi, SHIFT), low)}),
               d, m);
#else
    F16 code;
    for (int i = 0; i < 16; ++i) code.v[i] = static_cast<float>(static_cast<uint32_t>(codes.v[i]) >> SHIFT & 15);
    return fma(code, d, m);
#endif
}

class NibblePanels {
  public:
    NibblePanels(const WeightView& weight, int64_t tile, int)
        : data_(weight.data + tile * weight.tile_bytes), tile_bytes_(weight.tile_bytes) {}

    void panel(int t, int64_t begin, int64_t, float* out) const {
        const uint8_t* group = data_ + t * tile_bytes_ + begin / kGroup * kGroupBytes;
        for (int line = 0; line < kAhead; line += 64) __builtin_prefetch(group + kAhead + line);
        const F16 d = halves(group), m = splat(-8.0f) * d;
        for (int v = 0; v < 8; ++v, out += 128) {
            const I16 codes = load(reinterpret_cast<const int32_t*>(group + 32 + v * 64));
            store(out, decoded<0>(codes, d, m));
            store(out + 16, decoded<16>(codes, d, m));
            store(out + 32, decoded<4>(codes, d, m));
            store(out + 48, decoded<20>(codes, d, m));
            store(out + 64, decoded<8>(codes, d, m));
            store(out + 80, decoded<24>(codes, d, m));
            store(out + 96, decoded<12>(codes, d, m));
            store(out + 112, decoded<28>(codes, d, m));
        }
    }

  private:
    static constexpr int kAhead = 576;  // the next group
    const uint8_t* data_;
    int64_t tile_bytes_;
};
static_assert(kPanelInputs == kGroup);

constexpr int kTilesOfFew = kMaxRows == 8 ? 4 : 2;  // side by side: chains enough to hide their latency

// One or two rows: weights go from the nibbles to the chains without passing through memory, which a panel would cost
// more than it saves. The same operations in the same order, so the same bits.
template <int ROWS, int TILES>
void few_rows(const LinearWork& work, int64_t row, int64_t tile) {
    const EncodedRows& x = *work.x;
    const uint8_t* at = work.weight.data + tile * work.weight.tile_bytes;
    F16 acc[TILES][ROWS];
    for (auto& of_tile : acc)
        for (F16& lane : of_tile) lane = splat(0.0f);
    for (int64_t begin = 0; begin < x.k; begin += kGroup, at += kGroupBytes) {
        const float* from = x.f32 + row * x.stride + begin;
        F16 d[TILES], m[TILES];
        for (int t = 0; t < TILES; ++t) {
            d[t] = halves(at + t * work.weight.tile_bytes);
            m[t] = splat(-8.0f) * d[t];
        }
        for (int v = 0; v < 8; ++v, from += 8) {
#pragma GCC unroll 4
            for (int t = 0; t < TILES; ++t) {
                const uint8_t* codes_at = at + t * work.weight.tile_bytes + 32 + v * 64;
                const I16 codes = load(reinterpret_cast<const int32_t*>(codes_at));
                __builtin_prefetch(codes_at + 2 * kGroupBytes);
                const auto add = [&](F16 w, int i) {
#pragma GCC unroll 2
                    for (int r = 0; r < ROWS; ++r) acc[t][r] = fma(w, splat(from[r * x.stride + i]), acc[t][r]);
                };
                add(decoded<0>(codes, d[t], m[t]), 0);
                add(decoded<16>(codes, d[t], m[t]), 1);
                add(decoded<4>(codes, d[t], m[t]), 2);
                add(decoded<20>(codes, d[t], m[t]), 3);
                add(decoded<8>(codes, d[t], m[t]), 4);
                add(decoded<24>(codes, d[t], m[t]), 5);
                add(decoded<12>(codes, d[t], m[t]), 6);
                add(decoded<28>(codes, d[t], m[t]), 7);
            }
        }
    }
    for (int t = 0; t < TILES; ++t) store_rows(work, acc[t], row, ROWS, (tile + t) * 16);
}

template <int ROWS>
void few_rows_of_tiles(const LinearWork& work, int64_t row, int64_t tile, int64_t tile_end) {
    if (work.route) *work.route = "rows";
    for (; tile_end - tile >= kTilesOfFew; tile += kTilesOfFew) few_rows<ROWS, kTilesOfFew>(work, row, tile);
    for (; tile < tile_end; ++tile) few_rows<ROWS, 1>(work, row, tile);
}

void float_rows(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (row_end - row_begin == 1)
        few_rows_of_tiles<1>(work, row_begin, tile_begin, tile_end);
    else if (row_end - row_begin == 2)
        few_rows_of_tiles<2>(work, row_begin, tile_begin, tile_end);
    else
        float_panels<NibblePanels>(work, row_begin, row_end, tile_begin, tile_end);
}

#if defined(KVERN_ISA_amx)
constexpr int64_t kGroupOperands = 2 * kOperandBytes;  // a group of 16 outputs as bf16

// Codes less 8 as bf16 pairs [32][16 outputs][2 inputs].
inline void expand_group(const uint8_t* group, uint8_t* to) {
    // bf16 of -8..7, twice: the lookup takes five bits of each 16-bit lane, the fifth of the next nibble.
    alignas(64) static constexpr uint16_t kNumbers[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
        0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
        0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i numbers = _mm512_loadu_si512(kNumbers);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v, to += 256) {
        const __m512i codes = _mm512_loadu_si512(group + 32 + v * 64);
        _mm512_store_si512(to, _mm512_permutexvar_epi16(codes, numbers));
        _mm512_store_si512(to + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), numbers));
        _mm512_store_si512(to + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), numbers));
        _mm512_store_si512(to + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), numbers));
    }
}

// Blocks of up to 16 rows times one tile, its groups expanded one ahead of their first use.
class NibbleTiles {
  public:
    explicit NibbleTiles(const LinearWork& work)
        : work_(work), groups_(work.weight.k / kGroup), operands_(panel_memory(groups_ * kGroupOperands)) {}

    // `height` rows a block, 16 or all.
    void run(int64_t row_begin, int64_t row_end, int height, int64_t tile) {
        const uint8_t* packed = work_.weight.data + tile * work_.weight.tile_bytes;
        for (int64_t row = row_begin; row < row_end; row += height) {
            const bool first = row == row_begin;
            if (height == 16)
                block<16>(packed, first, row, 16, tile * 16);
            else
                block<0>(packed, first, row, height, tile * 16);
        }
    }

  private:
    template <int ROWS>
    void block(const uint8_t* packed, bool first, int64_t row, int rows, int64_t output) {
        const int count = ROWS ? ROWS : rows;
        F16 acc[16];
        for (F16& lane : acc) lane = splat(0.0f);
        if (first) expand_group(packed, operands_);
        products(row, 0);
        for (int64_t g = 0; g < groups_; ++g) {
            const uint8_t* group = packed + g * kGroupBytes;
            if (g + 1 < groups_) {
                if (first) expand_group(group + kGroupBytes, operands_ + (g + 1) * kGroupOperands);
                products(row, g + 1);
            }
            const F16 d = halves(group);
#pragma GCC unroll 16
            for (int r = 0; r < count; ++r) acc[r] = fma(as_float(load(sums_[g % 2][r])), d, acc[r]);
        }
        store_rows(work_, acc, row, count, output);
    }

    void products(int64_t row, int64_t g) {
        const EncodedRows& x = *work_.x;
        const uint16_t* a = x.bf16 + row * x.stride + g * kGroup;
        const uint8_t* b = operands_ + g * kGroupOperands;
        memory_is_written();
        _tile_zero(0);
        _tile_loadd(4, a, x.stride * 2);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + 32, x.stride * 2);
        _tile_loadd(7, b + kOperandBytes, 64);
        _tile_dpbf16ps(0, 5, 7);
        _tile_stored(0, sums_[g % 2], 64);
        memory_is_written();
    }

    const LinearWork& work_;
    int64_t groups_;
    uint8_t* operands_;
    alignas(64) int32_t sums_[2][16][16];
};

void nibble_tiles(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "tiles";
    NibbleTiles product(work);
    const int64_t full = row_begin + (row_end - row_begin) / 16 * 16;
    const int left = static_cast<int>(row_end - full);
    if (full > row_begin) {
        const TileShapes shapes(16, 16, 64);
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) product.run(row_begin, full, 16, tile);
    }
    if (left > 0) {
        const TileShapes shapes(left, left, 64);
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) product.run(full, row_end, left, tile);
    }
}
#endif

}  // namespace

void fill_linear_w4a16(KernelTable& table) {
    table.linear.at(Format::w4a16, RowCode::f32) = float_rows;
#if defined(KVERN_ISA_amx)
    table.linear.at(Format::w4a16, RowCode::bf16) = nibble_tiles;
#endif
}

}  // namespace kvern::KVERN_ISA_NS
