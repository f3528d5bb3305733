// f32, f16 and bf16: numbers as they are, [inputs][16] or, for bf16, [inputs / 2][16][2].
#include "linear.h"
#include "weight_codec.h"

namespace kvern {
namespace {

template <Format F>
constexpr int kSize = F == Format::f32 ? 4 : 2;

template <Format F>
int64_t row_bytes(const WeightShape& shape) {
    return shape.k * kSize<F>;
}

template <Format F>
int64_t tile_bytes(const WeightShape& shape) {
    return round_up(shape.k, F == Format::f32 ? 1 : F == Format::f16 ? 2 : 32) * 16 * kSize<F>;
}

template <Format F>
constexpr int64_t at(int64_t lane, int64_t i) {
    return F == Format::bf16 ? i / 2 * 32 + lane * 2 + i % 2 : i * 16 + lane;
}

template <Format F>
void pack_tile(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const uint8_t* in = file_row(data, rows, row_bytes<F>(view), tile * 16 + lane);
        for (int64_t i = 0; i < view.k; ++i)
            std::memcpy(out + at<F>(lane, i) * kSize<F>, in + i * kSize<F>, kSize<F>);
    }
}

template <Format F>
void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    for (int64_t i = 0; i < view.k; ++i) {
        const uint8_t* number = tile + at<F>(lane, i) * kSize<F>;
        if constexpr (F == Format::f32) {
            std::memcpy(out + i, number, 4);
        } else if constexpr (F == Format::f16) {
            out[i] = half_at(number);
        } else {
            uint16_t half;
            std::memcpy(&half, number, 2);
            const uint32_t bits = static_cast<uint32_t>(half) << 16;
            std::memcpy(out + i, &bits, 4);
        }
    }
}

uint16_t bf16_of(float f) {
    uint32_t b;
    std::memcpy(&b, &f, 4);
    if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((b >> 16) | 64u);
    return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

template <Format F>
void pack_float(const WeightView& view, uint8_t* out, int64_t tile, const float* data) {
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const float* in = data + (tile * 16 + lane) * view.k;
        for (int64_t i = 0; i < view.k; ++i) {
            const uint16_t half = bf16_of(in[i]);
            if constexpr (F == Format::f32)
                std::memcpy(out + at<F>(lane, i) * 4, in + i, 4);
            else
                std::memcpy(out + at<F>(lane, i) * 2, &half, 2);
        }
    }
}

template <Format F>
constexpr WeightCodec codec(const char* name) {
    return {name,
            1,
            0,
            row_bytes<F>,
            tile_bytes<F>,
            pack_tile<F>,
            row<F>,
            nullptr,
            F == Format::f16 ? nullptr : pack_float<F>};
}

const WeightCodec f32 = codec<Format::f32>("f32"), f16 = codec<Format::f16>("f16"),
                  bf16 = codec<Format::bf16>("bf16");
const RegisterCodec known[] = {{Format::f32, f32}, {Format::f16, f16}, {Format::bf16, bf16}};

}  // namespace
}  // namespace kvern
