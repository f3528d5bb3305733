// bitstack (Wang et al. 2025): W = sum over blocks t of S_t o (U_t V_t); S signs, U [N][rank], V [rank][K] half
// floats. Blocks are parts of the weight: any first few of them may be in memory.
//
// Header: u32 blocks, u32 rank, u32 position of each block in the load order of the whole model, then V of every
// block as [K][rank] halves. Rows of a file: for each block K / 8 bytes of signs (bit i of byte j: input 8 j + i;
// 1 is minus), then rank halves of U. A part in memory: tiles of 16 outputs, each the signs as [K] x 16 bits (bit i:
// output i) and U as [rank][16] halves; then V as in the header.
#include <cmath>
#include <stdexcept>
#include <string>

#include "weight_codec.h"

namespace kvern {
namespace {

constexpr uint32_t MOST_BLOCKS = 64, HIGHEST_RANK = 64;

uint32_t number(const uint8_t* at) {
    uint32_t value;
    std::memcpy(&value, at, 4);
    return value;
}

int64_t blocks_of(const WeightShape& shape) { return number(shape.header); }
int64_t rank_of(const WeightShape& shape) { return number(shape.header + 4); }
int64_t kept_header(const WeightShape& shape) { return 8 + 4 * blocks_of(shape); }

void check_header(const WeightShape& shape) {
    const auto require = [](bool ok, const std::string& message) {
        if (!ok) throw std::invalid_argument("bitstack header: " + message);
    };
    require(shape.header_bytes >= 8, "it has " + std::to_string(shape.header_bytes) + " bytes");
    const uint32_t blocks = number(shape.header), rank = number(shape.header + 4);
    require(blocks >= 1 && blocks <= MOST_BLOCKS, std::to_string(blocks) + " blocks; 1 to 64 are possible");
    require(rank >= 1 && rank <= HIGHEST_RANK, "rank " + std::to_string(rank) + "; 1 to 64 are possible");
    const int64_t wanted = kept_header(shape) + int64_t{2} * blocks * rank * shape.k;
    require(shape.header_bytes == wanted,
            "it has " + std::to_string(shape.header_bytes) + " bytes, not " + std::to_string(wanted));
}

int64_t block_row_bytes(const WeightShape& shape) { return shape.k / 8 + 2 * rank_of(shape); }
int64_t row_bytes(const WeightShape& shape) { return blocks_of(shape) * block_row_bytes(shape); }
int64_t tile_bytes(const WeightShape& shape) { return 2 * shape.k + 32 * rank_of(shape); }
int64_t tiles_of(const WeightShape& shape) { return (shape.n + 15) / 16; }

int32_t part_count(const WeightShape& shape) { return static_cast<int32_t>(blocks_of(shape)); }
int64_t part_bytes(const WeightShape& shape) {
    return tiles_of(shape) * tile_bytes(shape) + 2 * rank_of(shape) * shape.k;
}

void pack_part(const WeightShape& shape, int32_t part, uint8_t* out, const uint8_t* data, const int32_t* rows) {
    const int64_t rank = rank_of(shape), v_bytes = 2 * rank * shape.k;
    for (int64_t output = 0; output < shape.n; ++output) {
        const uint8_t* in = file_row(data, rows, row_bytes(shape), output) + part * block_row_bytes(shape);
        uint8_t* tile = out + output / 16 * tile_bytes(shape);
        const int64_t lane = output % 16;
        for (int64_t i = 0; i < shape.k; ++i) {
            uint8_t& byte = tile[2 * i + lane / 8];
            byte = static_cast<uint8_t>(byte | (in[i / 8] >> (i % 8) & 1) << (lane % 8));
        }
        for (int64_t r = 0; r < rank; ++r)
            std::memcpy(tile + 2 * shape.k + 32 * r + 2 * lane, in + shape.k / 8 + 2 * r, 2);
    }
    std::memcpy(out + tiles_of(shape) * tile_bytes(shape), shape.header + kept_header(shape) + part * v_bytes,
                static_cast<size_t>(v_bytes));
}

// The kernel's float order: rank ascending, then blocks ascending.
void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    const int64_t offset = tile - view.data, rank = rank_of(view);
    for (int64_t i = 0; i < view.k; ++i) out[i] = 0.0f;
    for (int32_t part = 0; part < view.resident; ++part) {
        const uint8_t* at = view.parts[part] + offset;
        const uint8_t* v = view.parts[part] + tiles_of(view) * tile_bytes(view);
        float u[HIGHEST_RANK];
        for (int64_t r = 0; r < rank; ++r) u[r] = half_at(at + 2 * view.k + 32 * r + 2 * lane);
        for (int64_t i = 0; i < view.k; ++i) {
            float product = 0.0f;
            for (int64_t r = 0; r < rank; ++r) product = std::fmaf(u[r], half_at(v + 2 * (i * rank + r)), product);
            const bool minus = at[2 * i + lane / 8] >> (lane % 8) & 1;
            out[i] = minus ? out[i] - product : out[i] + product;
        }
    }
}

const PartsCodec parts{part_count, part_bytes, kept_header, pack_part};
const WeightCodec codec{"bitstack", 8, 0, row_bytes, tile_bytes, nullptr, row, check_header, nullptr, &parts};
const RegisterCodec known(Format::bitstack, codec);

}  // namespace
}  // namespace kvern
