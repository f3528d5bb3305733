// w4a16: int4 codes (offset 8) in groups of 64 inputs that share a half-float scale; weight = scale * (code - 8).
//
// Rows of a file: per group the scale, then 32 bytes; byte i holds input i in its low and input i + 32 in its high
// nibble. Tiles: per group 16 scales, then eight vectors of 16 outputs x 32 bits; vector v has inputs 8 v.. 8 v + 7,
// the even ones as the nibbles of the low 16 bits, the odd ones of the high 16 bits: two neighbouring inputs of one
// output lie side by side as AMX wants bf16 pairs.
#include "weight_codec.h"

namespace kvern {
namespace {

constexpr int GROUP = 64, FILE_BYTES = 34, TILE_BYTES = 32 + 8 * 64;

int64_t row_bytes(const WeightShape& shape) { return shape.k / GROUP * FILE_BYTES; }

int64_t tile_bytes(const WeightShape& shape) { return shape.k / GROUP * TILE_BYTES; }

// Where input i of a group lies for one output: a byte of the tile's group, and how far up its nibble is.
struct Place {
    int64_t byte;
    int shift;
};

Place place(int64_t lane, int i) { return {32 + i / 8 * 64 + lane * 4 + i % 2 * 2 + i % 8 / 4, i % 4 / 2 * 4}; }

void pack_tile(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const uint8_t* in = file_row(data, rows, row_bytes(view), tile * 16 + lane);
        for (int64_t g = 0; g < view.k / GROUP; ++g, in += FILE_BYTES) {
            uint8_t* to = out + g * TILE_BYTES;
            std::memcpy(to + 2 * lane, in, 2);
            for (int i = 0; i < GROUP; ++i) {
                const int code = in[2 + i % 32] >> (i / 32 * 4) & 15;
                const Place at = place(lane, i);
                to[at.byte] = static_cast<uint8_t>(to[at.byte] | code << at.shift);
            }
        }
    }
}

void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    for (int64_t g = 0; g < view.k / GROUP; ++g, tile += TILE_BYTES) {
        const float scale = half_at(tile + 2 * lane);
        for (int i = 0; i < GROUP; ++i) {
            const Place at = place(lane, i);
            *out++ = scale * static_cast<float>((tile[at.byte] >> at.shift & 15) - 8);
        }
    }
}

const WeightCodec codec{"w4a16", GROUP, 0, row_bytes, tile_bytes, pack_tile, row};
const RegisterCodec known(Format::w4a16, codec);

}  // namespace
}  // namespace kvern
