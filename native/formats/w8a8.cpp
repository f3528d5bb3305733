// w8a8: f32 scale x 16, then byte codes (code + 128), K padded to 64 with zero weights. Rows of a file: int8 codes,
// then the float32 scale.
#include <algorithm>
#include <cmath>

#include "linear.h"
#include "weight_codec.h"

namespace kvern {
namespace {

constexpr int64_t MAX_INPUTS = 65536;  // 255 * 127 * k stays below 2^31

int64_t row_bytes(const WeightShape& shape) { return shape.k + 4; }

int64_t tile_bytes(const WeightShape& shape) { return 64 + round_up(shape.k, 64) * 16; }

void pack_tile(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    uint8_t* codes = out + 64;
    std::memset(codes, 128, static_cast<size_t>(view.tile_bytes - 64));
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const uint8_t* in = file_row(data, rows, row_bytes(view), tile * 16 + lane);
        std::memcpy(out + 4 * lane, in + view.k, 4);
        for (int64_t i = 0; i < view.k; ++i) codes[i / 4 * 64 + lane * 4 + i % 4] = in[i] ^ 0x80;
    }
}

void pack_float(const WeightView& view, uint8_t* out, int64_t tile, const float* data) {
    uint8_t* codes = out + 64;
    std::memset(codes, 128, static_cast<size_t>(view.tile_bytes - 64));
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const float* in = data + (tile * 16 + lane) * view.k;
        float largest = 0.0f;
        for (int64_t i = 0; i < view.k; ++i) largest = std::max(largest, std::fabs(in[i]));
        const bool usable = largest / 127.0f >= 0x1p-126f;  // the kernels take smaller numbers for zero
        const float scale = usable ? largest / 127.0f : 0.0f, inverse = usable ? 127.0f / largest : 0.0f;
        std::memcpy(out + 4 * lane, &scale, 4);
        for (int64_t i = 0; i < view.k; ++i) {
            const float code = std::nearbyint(in[i] * inverse);
            codes[i / 4 * 64 + lane * 4 + i % 4] =
                static_cast<uint8_t>(static_cast<int>(std::min(127.0f, std::max(-127.0f, code))) + 128);
        }
    }
}

void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    float scale;
    std::memcpy(&scale, tile + 4 * lane, 4);
    for (int64_t i = 0; i < view.k; ++i)
        out[i] = scale * static_cast<float>(tile[64 + i / 4 * 64 + lane * 4 + i % 4] - 128);
}

const WeightCodec codec{"w8a8", 1, MAX_INPUTS, row_bytes, tile_bytes, pack_tile, row, nullptr, pack_float};
const RegisterCodec known(Format::w8a8, codec);

}  // namespace
}  // namespace kvern
