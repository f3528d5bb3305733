// Products with float32 rows for weights that must be decoded first: panels of 64 inputs x 16 outputs are decoded to
// float32 in the first-level cache, once for all rows of a block, and multiplied as f32 weights are: one fma chain
// per output, inputs ascending. So the bits are those of an f32 weight with the same numbers, for any number of rows.
//
// A format plugs in as a struct and one line in its fill function:
//
//     struct MyPanels {
//         MyPanels(const WeightView&, int64_t tile, int tiles);  // 1..4 neighbouring tiles, made once a call and
//         group
//         // Inputs [begin, begin + count) of output tile `tile + i` to out[count][16]; begin is a multiple of 64,
//         // count 64 or, at the end of K, what is left.
//         void panel(int i, int64_t begin, int64_t count, float* out);
//     };
//     table.linear.at(Format::mine, RowCode::f32) = float_panels<MyPanels>;
#pragma once
#include <algorithm>

#include "dispatch.h"
#include "dots.h"
#include "lanes.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {

constexpr int64_t kPanelInputs = 64;
constexpr int kPanelTiles = 4;       // decoded side by side, so that few rows have several chains under way
constexpr int64_t kPanelRows = 128;  // of a block: their sums stay in the second-level cache
constexpr int kPanelFloats = kPanelInputs * 16;

struct FloatPanels {
    alignas(64) float weights[kPanelTiles][kPanelFloats];
    alignas(64) float sums[kPanelRows][kPanelTiles][16];
};

// ROWS rows at x (stride in floats) times TILES tiles from `tile`.
template <int ROWS, int TILES>
inline void panel_chains(FloatPanels& panels, const float* x, int64_t stride, int64_t row, int tile, int64_t count) {
    F16 acc[TILES][ROWS];
    for (int t = 0; t < TILES; ++t)
        for (int r = 0; r < ROWS; ++r) acc[t][r] = load(panels.sums[row + r][tile + t]);
    const float* weights = panels.weights[tile];
    for (int64_t i = 0; i < count; ++i, weights += 16, ++x) {
#pragma GCC unroll 4
        for (int t = 0; t < TILES; ++t) {
            const F16 w = load(weights + t * kPanelFloats);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) acc[t][r] = fma(w, splat(x[r * stride]), acc[t][r]);
        }
    }
    for (int t = 0; t < TILES; ++t)
        for (int r = 0; r < ROWS; ++r) store(panels.sums[row + r][tile + t], acc[t][r]);
}

// kMaxRows is 8 where there are 32 registers.
template <int ROWS>
inline void panel_rows(FloatPanels& panels, const float* x, int64_t stride, int64_t row, int tiles, int64_t count) {
    constexpr int together = kMaxRows == 8 ? 4 : 4 / ROWS;
    int tile = 0;
    for (; tiles - tile >= together; tile += together)
        panel_chains<ROWS, together>(panels, x, stride, row, tile, count);
    for (; tile < tiles; ++tile) panel_chains<ROWS, 1>(panels, x, stride, row, tile, count);
}

// Rows [row_begin, row_begin + rows), rows <= kPanelRows, with `tiles` tiles from `tile`.
template <class PANELS>
void panel_block(const LinearWork& work, FloatPanels& panels, PANELS& decoder, int64_t row_begin, int64_t rows,
                 int64_t tile, int tiles) {
    const EncodedRows& x = *work.x;
    const F16 zero = splat(0.0f);
    for (int64_t r = 0; r < rows; ++r)
        for (int t = 0; t < tiles; ++t) store(panels.sums[r][t], zero);
    for (int64_t begin = 0; begin < x.k; begin += kPanelInputs) {
        const int64_t count = std::min(kPanelInputs, x.k - begin);
        for (int t = 0; t < tiles; ++t) decoder.panel(t, begin, count, panels.weights[t]);
        const float* from = x.f32 + row_begin * x.stride + begin;
        int64_t row = 0;
        for (; rows - row >= 4; row += 4) panel_rows<4>(panels, from + row * x.stride, x.stride, row, tiles, count);
        if (rows - row >= 2) {
            panel_rows<2>(panels, from + row * x.stride, x.stride, row, tiles, count);
            row += 2;
        }
        if (row < rows) panel_rows<1>(panels, from + row * x.stride, x.stride, row, tiles, count);
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int t = 0; t < tiles; ++t) {
            const F16 y = load(panels.sums[r][t]);
            store_rows(work, &y, row_begin + r, 1, (tile + t) * 16);
        }
}

template <class PANELS>
void float_panels(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "rows";
    FloatPanels panels;
    for (int64_t tile = tile_begin; tile < tile_end; tile += kPanelTiles) {
        const int tiles = static_cast<int>(std::min<int64_t>(kPanelTiles, tile_end - tile));
        PANELS decoder(work.weight, tile, tiles);
        for (int64_t row = row_begin; row < row_end; row += kPanelRows)
            panel_block(work, panels, decoder, row, std::min(kPanelRows, row_end - row), tile, tiles);
    }
}

}  // namespace kvern::KVERN_ISA_NS
