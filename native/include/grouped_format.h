// Weight formats of symmetric codes in groups of 64 inputs: weight = d * code + m, d and m of an (output, group).
//
// The file and the tile hold one f16 scale s a group; d and m are s times the constants here. A tile is, for each
// group, 16 f16 scales and two blocks of 32 inputs of codes (code_layout.h). K is a multiple of 64.
#pragma once
#include "code_layout.h"
#include "packed_weight.h"

namespace kvern {

struct GroupedFormat {
    Format format;
    int bits;
    float d, m;       // times the scale
    bool bit_planes;  // in the file: codes as single bits, not as planes of 4 and 2
};

constexpr int kCodeGroup = 64;                                                            // inputs
constexpr int64_t kGroupScales = 2 * kTileOutputs;                                        // bytes
constexpr int64_t group_bytes(int bits) { return kGroupScales + 2 * block_bytes(bits); }  // of 16 outputs

// value = s * (code - 31)
inline constexpr GroupedFormat kW6{Format::w6, 6, 1.0f, -31.0f, false};
// value = s * (code - 8)
inline constexpr GroupedFormat kW4A4{Format::w4a4_mixed, 4, 1.0f, -8.0f, false};
// value = s * (2 code - (2^bits - 1)): every bit counts + or - its place
template <int BITS>
constexpr GroupedFormat bipolar() {
    constexpr Format formats[] = {Format::bipolar1, Format::bipolar2, Format::bipolar3, Format::bipolar4,
                                  Format::bipolar5, Format::bipolar6, Format::bipolar7, Format::bipolar8};
    return {formats[BITS - 1], BITS, 2.0f, -static_cast<float>((1 << BITS) - 1), true};
}

}  // namespace kvern
