// w6, w4a4_mixed and bipolar1..8 (grouped_format.h). A row of a file holds, for each 64 inputs, the f16 scale, then
// the codes as planes: code i at bit i * width of a plane, little-endian; planes of 4 and 2 bits, or of single bits.
#include <stdexcept>
#include <string>
#include <vector>

#include "grouped_format.h"
#include "mixed_header.h"
#include "weight_codec.h"

namespace kvern {
namespace {

constexpr int64_t file_block(int bits) { return 2 + bits * kCodeGroup / 8; }

// Code i of a block's plane of `width` bits.
unsigned in_plane(const uint8_t* plane, int width, int i) {
    return plane[i * width / 8] >> (i * width % 8) & ((1u << width) - 1);
}

template <GroupedFormat F>
unsigned file_code(const uint8_t* block, int i) {
    const uint8_t* planes = block + 2;
    unsigned code = 0;
    if constexpr (F.bit_planes) {
        for (int bit = 0; bit < F.bits; ++bit) code |= in_plane(planes + bit * kCodeGroup / 8, 1, i) << bit;
    } else {
        each_plane<F.bits>(
            [&](auto width, auto low) { code |= in_plane(planes + low() * kCodeGroup / 8, width(), i) << low(); });
    }
    return code;
}

template <GroupedFormat F>
int64_t row_bytes(const WeightShape& shape) {
    return shape.k / kCodeGroup * file_block(F.bits);
}

template <GroupedFormat F>
int64_t tile_bytes(const WeightShape& shape) {
    return shape.k / kCodeGroup * group_bytes(F.bits);
}

template <GroupedFormat F>
void pack_tile(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    for (int64_t lane = 0; lane < tile_lanes(view, tile); ++lane) {
        const uint8_t* in = file_row(data, rows, row_bytes<F>(view), tile * 16 + lane);
        uint8_t* group = out;
        for (int64_t g = 0; g < view.k / kCodeGroup; ++g, in += file_block(F.bits), group += group_bytes(F.bits)) {
            std::memcpy(group + 2 * lane, in, 2);
            for (int i = 0; i < kCodeGroup; ++i) {
                uint8_t* block = group + kGroupScales + i / kBlockInputs * block_bytes(F.bits);
                put_code<F.bits>(block, static_cast<int>(lane), i % kBlockInputs, file_code<F>(in, i));
            }
        }
    }
}

template <GroupedFormat F>
void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    for (int64_t i = 0; i < view.k; ++i) {
        const uint8_t* group = tile + i / kCodeGroup * group_bytes(F.bits);
        const uint8_t* block = group + kGroupScales + i % kCodeGroup / kBlockInputs * block_bytes(F.bits);
        const float code = static_cast<float>(code_in<F.bits>(block, lane, static_cast<int>(i % kBlockInputs)));
        const int64_t input = F.format == Format::w4a4_mixed ? mixed_input(view.header, i) : i;
        out[input] = half_at(group + 2 * lane) * (F.d * code + F.m);
    }
}

void check_mixed_header(const WeightShape& shape) {
    const std::string name = "w4a4_mixed header: ";
    if (shape.header_bytes != mixed_header_bytes(shape.k))
        throw std::invalid_argument(name + std::to_string(shape.header_bytes) + " bytes, " +
                                    std::to_string(mixed_header_bytes(shape.k)) + " are needed for " +
                                    std::to_string(shape.k) + " inputs");
    std::vector<bool> seen(static_cast<size_t>(shape.k));
    for (int64_t i = 0; i < shape.k; ++i) {
        const int32_t input = mixed_input(shape.header, i);
        if (input < 0 || input >= shape.k || seen[static_cast<size_t>(input)])
            throw std::invalid_argument(name + "the inputs named are not a permutation (position " +
                                        std::to_string(i) + " has " + std::to_string(input) + ")");
        seen[static_cast<size_t>(input)] = true;
    }
    for (int64_t g = 0; g < shape.k / kCodeGroup; ++g)
        if (shape.header[4 * shape.k + g] > 1)
            throw std::invalid_argument(name + "group " + std::to_string(g) + " is neither narrow (0) nor wide (1)");
}

template <GroupedFormat F>
const WeightCodec& codec() {
    static const std::string name = F.format == Format::w6           ? "w6"
                                    : F.format == Format::w4a4_mixed ? "w4a4_mixed"
                                                                     : "bipolar" + std::to_string(F.bits);
    static const WeightCodec made{
        name.c_str(),  kCodeGroup,   0,      row_bytes<F>,
        tile_bytes<F>, pack_tile<F>, row<F>, F.format == Format::w4a4_mixed ? check_mixed_header : nullptr};
    return made;
}

template <GroupedFormat F>
RegisterCodec registered() {
    return {F.format, codec<F>()};
}

const RegisterCodec known[] = {
    registered<kW6>(),          registered<kW4A4>(),        registered<bipolar<1>()>(), registered<bipolar<2>()>(),
    registered<bipolar<3>()>(), registered<bipolar<4>()>(), registered<bipolar<5>()>(), registered<bipolar<6>()>(),
    registered<bipolar<7>()>(), registered<bipolar<8>()>(),
};

}  // namespace
}  // namespace kvern
