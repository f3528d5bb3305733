// The loop shared by the linear kernels: tiles outside, blocks of rows inside, one store with bias per block.
#pragma once
#include "dots.h"
#include "lanes.h"
#include "linear.h"

namespace kvern::KVERN_ISA_NS {

// acc[r] (+ bias) to row `row + r`, outputs from `output`; lanes past the last output are dropped.
inline void store_rows(const LinearWork& work, const F16* acc, int64_t row, int rows, int64_t output) {
    const int64_t left = work.weight.n - output;
    const int lanes = left < 16 ? static_cast<int>(left) : 16;
    const F16 bias = work.bias ? load_first(work.bias + output, lanes) : splat(0.0f);
    for (int r = 0; r < rows; ++r)
        store_first(work.y + (row + r) * work.y_stride + output, work.bias ? acc[r] + bias : acc[r], lanes);
}

// Kernel::run<ROWS>(work, tile, row, acc): adds rows [row, row + ROWS) times the tile's 16 outputs to acc.
template <class Kernel, int ROWS>
inline void block_of_rows(const LinearWork& work, const uint8_t* tile, int64_t row, int64_t output) {
    F16 acc[ROWS];
    for (int r = 0; r < ROWS; ++r) acc[r] = splat(0.0f);
    Kernel::template run<ROWS>(work, tile, row, acc);
    store_rows(work, acc, row, ROWS, output);
}

template <class Kernel>
void rows_by_tile(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "rows";
    for (int64_t t = tile_begin; t < tile_end; ++t) {
        const uint8_t* tile = work.weight.data + t * work.weight.tile_bytes;
        int64_t row = row_begin;
        if constexpr (kMaxRows == 8)
            for (; row_end - row >= 8; row += 8) block_of_rows<Kernel, 8>(work, tile, row, t * 16);
        for (; row_end - row >= 4; row += 4) block_of_rows<Kernel, 4>(work, tile, row, t * 16);
        if (row_end - row >= 2) {
            block_of_rows<Kernel, 2>(work, tile, row, t * 16);
            row += 2;
        }
        if (row < row_end) block_of_rows<Kernel, 1>(work, tile, row, t * 16);
    }
}

}  // namespace kvern::KVERN_ISA_NS
