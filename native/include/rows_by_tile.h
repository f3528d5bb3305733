// The loop shared by the linear kernels: tiles outside, blocks of rows inside, one store with bias per block.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

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

// Rows [row_begin, row_end) in blocks as large as the registers allow.
template <class Kernel>
inline void rows_of_tile(const LinearWork& work, const uint8_t* tile, int64_t row_begin, int64_t row_end,
                         int64_t output) {
    int64_t row = row_begin;
    if constexpr (kMaxRows == 8)
        for (; row_end - row >= 8; row += 8) block_of_rows<Kernel, 8>(work, tile, row, output);
    for (; row_end - row >= 4; row += 4) block_of_rows<Kernel, 4>(work, tile, row, output);
    if (row_end - row >= 2) {
        block_of_rows<Kernel, 2>(work, tile, row, output);
        row += 2;
    }
    if (row < row_end) block_of_rows<Kernel, 1>(work, tile, row, output);
}

template <class Kernel>
void rows_by_tile(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    if (work.route) *work.route = "rows";
    for (int64_t t = tile_begin; t < tile_end; ++t)
        rows_of_tile<Kernel>(work, work.weight.data + t * work.weight.tile_bytes, row_begin, row_end, t * 16);
}

// This thread's memory for expanded weights, at least `bytes`, 64-byte aligned; valid until the next call.
inline uint8_t* panel_memory(int64_t bytes) {
    struct Free {
        void operator()(uint8_t* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<uint8_t, Free> memory;
    thread_local int64_t size = 0;
    if (size < bytes) {
        memory.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(round_up(bytes, 4096)))));
        if (!memory) throw std::bad_alloc();
        size = bytes;
    }
    return memory.get();
}

}  // namespace kvern::KVERN_ISA_NS
