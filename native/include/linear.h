// y = x W^T for packed weights; the float order is in docs/architecture.md, "Numerics".
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "packed_weight.h"

namespace kvern {

// How rows of x are encoded (an activation format). `name` is what Python calls it.
//   f32         as they are
//   bf16        rounded to bf16, zero padded to a multiple of 32
//   q8_group    int8 codes per group of 32, one float32 scale a group
//   q8_row      int8 codes, one scale a row, zero padded to a multiple of 64
//   q8_group64  int8 codes within +-127 per group of 64, one scale a group, zero padded to a multiple of 64
//   q6_group64  the same with codes within +-31
//   mixed_4_8   channels permuted as the weight's header says, then groups of 64 of codes within +-7 or +-127
//   bit_planes  bipolar codes of 2 bits (1, 3, 4: bit_planes1, 3, 4) as bit planes (kernels/quantize_bits.cpp)
#define KVERN_ROW_CODES(X)         \
    X(f32, "float32")              \
    X(bf16, "bf16")                \
    X(q8_group, "int8 group 32")   \
    X(q8_row, "int8 row")          \
    X(q8_group64, "int8 group 64") \
    X(q6_group64, "int6 group 64") \
    X(mixed_4_8, "mixed 4/8")      \
    X(bit_planes, "bit planes")    \
    X(bit_planes1, "bit planes 1") \
    X(bit_planes3, "bit planes 3") \
    X(bit_planes4, "bit planes 4")
#define KVERN_ROW_CODE(code, name) code,
enum class RowCode : int { KVERN_ROW_CODES(KVERN_ROW_CODE) count };
#undef KVERN_ROW_CODE
constexpr int kRowCodes = static_cast<int>(RowCode::count);

const char* row_code_name(RowCode code);
RowCode parse_row_code(const std::string& name);  // throws std::invalid_argument naming the known ones

// Encoded rows; all arrays row-major. Made by encoded_rows_view over memory of encoded_rows_bytes.
struct EncodedRows {
    RowCode code;
    int64_t rows, k;
    int64_t stride;  // elements from row to row of `codes`, `f32` or `bf16`
    int64_t groups;  // of a row; 1 where a row has one scale
    const float* f32;
    uint16_t* bf16;
    int8_t* codes;
    float* scales;                    // [rows][groups]
    float* scaled_sums;               // [rows][groups] scale * float(sum of codes)
    int32_t* sums;                    // [rows][groups] sum of codes
    int16_t* half_sums;               // [rows][2 * groups] sums of codes per 16 (q8_group)
    int16_t* sums_64;                 // [rows][sums_64_stride(k)] sums of codes per 64, then 0 (q8_row; for qoq)
    const uint8_t* header = nullptr;  // of the weight the rows are for, where their code depends on it (mixed_4_8)
};

struct LinearWork {
    WeightView weight;
    const EncodedRows* x;
    float* y;
    int64_t y_stride;              // floats
    const float* bias;             // null, or [n]; added last
    const char** route = nullptr;  // null, or told which code served the rows (for tests, one worker)
};

using EncodeKernel = void (*)(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end);
using TilesKernel = void (*)(const LinearWork&, int64_t row_begin, int64_t row_end, int64_t tile_begin,
                             int64_t tile_end);

struct LinearTable {
    // By RowCode: encodes rows [begin, end) of `x` (stride in floats) into `out`. Null for f32 and what is not there.
    EncodeKernel encode[kRowCodes];
    // By Format and RowCode: y[rows [row_begin, row_end)][outputs of tiles [tile_begin, tile_end)]; a tile is 16
    // outputs. Null: this pair of formats is not served.
    TilesKernel tiles[kFormats][kRowCodes];
    // Multiplies in registers for `loops` rounds; returns the operations done (0: not measured here).
    int64_t (*multiply_add_peak)(int64_t loops);
    int64_t (*read_memory)(const uint8_t* data, int64_t bytes);  // returns the bytes read
    RowCode bf16_rows;  // how rows are encoded for bf16 weights: f32, or bf16 where AMX multiplies them

    TilesKernel& at(Format format, RowCode code) { return tiles[static_cast<int>(format)][static_cast<int>(code)]; }
    TilesKernel at(Format format, RowCode code) const {
        return tiles[static_cast<int>(format)][static_cast<int>(code)];
    }
};

// Bytes of memory (64-byte aligned) that the arrays of `rows` encoded rows need; 0 for RowCode::f32.
size_t encoded_rows_bytes(RowCode code, int64_t rows, int64_t k);

// Sums per 64 that a row has room for: an even number.
constexpr int64_t sums_64_stride(int64_t k) { return (k + 127) / 128 * 2; }

// Lays the arrays out over `memory`; RowCode::f32 takes x itself as (x, x_stride) instead, see plain_rows.
EncodedRows encoded_rows_view(RowCode code, int64_t rows, int64_t k, void* memory);
EncodedRows plain_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k);

// The activation format that a weight format is served with unless another is asked for.
RowCode default_row_code(Format format, const LinearTable& table);

class Pool;

// Encodes all rows, shared out over the pool; nothing for RowCode::f32.
void encode_rows(Pool& pool, const LinearTable& table, const float* x, int64_t x_stride, const EncodedRows& out);

// All rows and outputs of `work`, shared out over the pool.
void run_linear(Pool& pool, const LinearTable& table, const LinearWork& work);

static inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

}  // namespace kvern
