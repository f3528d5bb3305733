// f32, f16 and bf16 weights with float32 rows: one fma chain per output, inputs ascending.
#include "dispatch.h"
#include "lanes.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// TILES neighbouring tiles at once hide the latency of the chains when there are few rows.
template <Format F, int ROWS, int TILES>
inline void chains(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
    constexpr int deep = F == Format::bf16 ? 2 : 1;
    constexpr int64_t step = F == Format::f32 ? 64 : 32 * deep;
    const EncodedRows& x = *work.x;
    const float* a[ROWS];
    for (int r = 0; r < ROWS; ++r) a[r] = x.f32 + (row + r) * x.stride;
    for (int64_t i = 0; i < x.k; i += deep, tile += step) {
#pragma GCC unroll 4
        for (int t = 0; t < TILES; ++t) {
            const uint8_t* at = tile + t * work.weight.tile_bytes;
            if (ROWS == 1 && (step == 64 || i % 2 == 0)) prefetch_ahead<64>(at);
            F16 first, second;
            if constexpr (F == Format::bf16) {
                const I16 pair = load(reinterpret_cast<const int32_t*>(at));
                first = as_float(low_half_as_high(pair));
                second = as_float(high_half(pair));
            } else if constexpr (F == Format::f16) {
                first = from_f16(reinterpret_cast<const uint16_t*>(at));
            } else {
                first = load(reinterpret_cast<const float*>(at));
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                acc[t * ROWS + r] = fma(first, splat(a[r][i]), acc[t * ROWS + r]);
                if (deep == 2 && i + 1 < x.k) acc[t * ROWS + r] = fma(second, splat(a[r][i + 1]), acc[t * ROWS + r]);
            }
        }
    }
}

template <Format F, int ROWS, int TILES>
inline void float_block(const LinearWork& work, int64_t row, int64_t t) {
    F16 acc[ROWS * TILES];
    for (F16& lane : acc) lane = splat(0.0f);
    chains<F, ROWS, TILES>(work, work.weight.data + t * work.weight.tile_bytes, row, acc);
    for (int i = 0; i < TILES; ++i) store_rows(work, acc + i * ROWS, row, ROWS, (t + i) * 16);
}

template <Format F, int ROWS, int TILES>
inline int64_t tiles_of(const LinearWork& work, int64_t row, int64_t t, int64_t tile_end) {
    for (; tile_end - t >= TILES; t += TILES) float_block<F, ROWS, TILES>(work, row, t);
    return t;
}

template <Format F>
void float_tiles(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "rows";
    int64_t row = row_begin;
    for (int64_t t = tile_begin; t < tile_end; ++t)
        for (row = row_begin; row_end - row >= 4; row += 4) float_block<F, 4, 1>(work, row, t);
    row = row_begin + (row_end - row_begin) / 4 * 4;
    if (row_end - row >= 2) {
        tiles_of<F, 2, 1>(work, row, tiles_of<F, 2, 2>(work, row, tile_begin, tile_end), tile_end);
        row += 2;
    }
    if (row < row_end) tiles_of<F, 1, 1>(work, row, tiles_of<F, 1, 4>(work, row, tile_begin, tile_end), tile_end);
}

}  // namespace

void fill_linear_float(KernelTable& table) {
    table.linear.at(Format::f32, RowCode::f32) = float_tiles<Format::f32>;
    table.linear.at(Format::f16, RowCode::f32) = float_tiles<Format::f16>;
    table.linear.at(Format::bf16, RowCode::f32) = float_tiles<Format::bf16>;
    table.linear.bf16_rows = RowCode::f32;
}

}  // namespace kvern::KVERN_ISA_NS
