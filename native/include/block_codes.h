// Block formats of GGUF files to packed tiles and back (src/block_codes.cpp); layouts are in packed_weight.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "packed_weight.h"

namespace kvern {

int64_t packed_blocks_bytes(Format format, int64_t k);

// Fills the tile's 16 outputs at `out` (zeroed before) from rows `rows[16 * tile + lane]` (or that index) of `data`.
void pack_blocks(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows);

// Output `lane` of a packed tile as float32[k].
void unpack_row(const WeightView& view, const uint8_t* tile, int lane, float* out);

float float_of_half(uint16_t half);

}  // namespace kvern
