// How a weight format is packed: one codec a format, defined and registered in formats/<file>.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "packed_weight.h"

namespace kvern {

// A format whose weights are a sum of parts, any first few of which may be in memory.
struct PartsCodec {
    int32_t (*count)(const WeightShape&);        // parts of a matrix
    int64_t (*bytes)(const WeightShape&);        // of one part in memory
    int64_t (*kept_header)(const WeightShape&);  // bytes of the header that stay in memory; parts hold the rest
    // Fills zeroed memory with part `part`; `shape` has the whole header.
    void (*pack)(const WeightShape& shape, int32_t part, uint8_t* out, const uint8_t* data, const int32_t* rows);
};

struct WeightCodec {
    const char* name;                           // lower case
    int block;                                  // inputs of one block: K must be a multiple of it
    int64_t max_inputs;                         // 0: no limit of its own
    int64_t (*row_bytes)(const WeightShape&);   // of one row in the file's order
    int64_t (*tile_bytes)(const WeightShape&);  // of 16 packed outputs
    // Fills the tile's 16 outputs at `out` (zeroed before) from rows `file_row` of `data`; outputs past n stay 0.
    void (*pack_tile)(const WeightView&, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows);
    // Output `lane` of a packed tile as float32[k].
    void (*row)(const WeightView&, const uint8_t* tile, int lane, float* out);
    // Throws std::invalid_argument naming what is wrong with the header; null: the format has none.
    void (*check_header)(const WeightShape&) = nullptr;
    // Fills a zeroed tile from float32 [n][k]; null: the format is made from rows in the file's order only.
    void (*pack_float)(const WeightView&, uint8_t* out, int64_t tile, const float* data) = nullptr;
    const PartsCodec* parts = nullptr;  // in place of pack_tile
};

// Makes a format known; one at namespace scope beside each codec.
struct RegisterCodec {
    RegisterCodec(Format format, const WeightCodec& codec);
};

// Throws std::invalid_argument for a format that has no codec.
const WeightCodec& codec_of(Format format);

float float_of_half(uint16_t half);
inline float half_at(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    return float_of_half(half);
}

// The row of `data` that `output` is made from.
inline const uint8_t* file_row(const uint8_t* data, const int32_t* rows, int64_t row_bytes, int64_t output) {
    return data + (rows ? rows[output] : output) * row_bytes;
}

// Outputs of the tile that exist: 16, or fewer in the last.
inline int64_t tile_lanes(const WeightShape& shape, int64_t tile) {
    const int64_t left = shape.n - tile * 16;
    return left < 16 ? left : 16;
}

}  // namespace kvern
