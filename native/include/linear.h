// y = x W^T for packed weights; the float order is in docs/architecture.md, "Numerics".
#pragma once
#include <cstddef>
#include <cstdint>

#include "packed_weight.h"

namespace kvern {

// How rows of x are encoded for a weight format.
enum class RowCode : int {
    f32,       // as they are
    bf16,      // rounded to bf16, zero padded to a multiple of 32 (bf16 weights on AMX)
    q8_group,  // int8 codes per group of 32, one float32 scale a group
    q8_row,    // int8 codes, one scale a row, zero padded to a multiple of 64
};

// Encoded rows; all arrays row-major. Made by encoded_rows_view over memory of encoded_rows_bytes.
struct EncodedRows {
    RowCode code;
    int64_t rows, k;
    int64_t stride;  // elements from row to row of `codes`, `f32` or `bf16`
    int64_t groups;  // q8_group: k / 32; q8_row: 1
    const float* f32;
    uint16_t* bf16;
    int8_t* codes;
    float* scales;       // [rows][groups]
    float* scaled_sums;  // [rows][groups] scale * float(sum of codes)
    int32_t* sums;       // [rows][groups] sum of codes
    int16_t* half_sums;  // [rows][2 * groups] sums of codes per 16 (q8_group)
};

struct LinearWork {
    WeightView weight;
    const EncodedRows* x;
    float* y;
    int64_t y_stride;              // floats
    const float* bias;             // null, or [n]; added last
    const char** route = nullptr;  // null, or told which code served the rows (for tests, one worker)
};

struct LinearTable {
    // Encodes rows [begin, end) of `x` (stride in floats) into `out`; not for RowCode::f32.
    void (*encode)(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end);
    // y[rows [row_begin, row_end)][outputs of tiles [tile_begin, tile_end)]; a tile is 16 outputs. One per format.
    void (*tiles[12])(const LinearWork&, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end);
    // Multiplies in registers for `loops` rounds; returns the operations done (0: not measured here).
    int64_t (*multiply_add_peak)(int64_t loops);
    int64_t (*read_memory)(const uint8_t* data, int64_t bytes);  // returns the bytes read
    RowCode bf16_rows;  // how rows are encoded for bf16 weights: f32, or bf16 where AMX multiplies them
};

// Bytes of memory (64-byte aligned) that the arrays of `rows` encoded rows need; 0 for RowCode::f32.
size_t encoded_rows_bytes(RowCode code, int64_t rows, int64_t k);

// Lays the arrays out over `memory`; RowCode::f32 takes x itself as (x, x_stride) instead, see plain_rows.
EncodedRows encoded_rows_view(RowCode code, int64_t rows, int64_t k, void* memory);
EncodedRows plain_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k);

RowCode row_code(Format format, const LinearTable& table);

class Pool;

// Encodes all rows, shared out over the pool; nothing for RowCode::f32.
void encode_rows(Pool& pool, const LinearTable& table, const float* x, int64_t x_stride, const EncodedRows& out);

// All rows and outputs of `work`, shared out over the pool.
void run_linear(Pool& pool, const LinearTable& table, const LinearWork& work);

static inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

}  // namespace kvern
