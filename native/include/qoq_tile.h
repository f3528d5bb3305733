// The packed form of qoq weights: where the parts of a tile of 16 outputs lie.
//
// weight = s1 * (q * s2 - zero), s2 and zero for each group of 64 inputs (src/kvern/formats/weights/qoq.py).
//   64 bytes            s1, f32 x 16 outputs
//   64 bytes a pair of groups: s2 [2 groups][16 outputs] u8, zero [16 outputs][2 groups] u8
//   512 bytes a group   codes of inputs 0..31, then of 32..63, each a nibble plane as in packed_weight.h
// The second half of the last pair is zero where groups are odd in number.
#pragma once
#include <cstdint>

namespace kvern {

constexpr int64_t kQoqGroup = 64;         // inputs
constexpr int64_t kQoqPairBytes = 64;     // of the scales of two groups
constexpr int64_t kQoqCodeBytes = 512;    // of one group
constexpr int64_t kQoqMaxInputs = 65536;  // 255 * 127 * k stays below 2^31

struct QoqTile {
    const uint8_t* data;
    int64_t groups;

    QoqTile(const uint8_t* tile, int64_t k) : data(tile), groups(k / kQoqGroup) {}
    int64_t pairs() const { return (groups + 1) / 2; }
    int64_t bytes() const { return 64 + pairs() * kQoqPairBytes + groups * kQoqCodeBytes; }
    const float* scales() const { return reinterpret_cast<const float*>(data); }
    const uint8_t* s2(int64_t group) const { return data + 64 + group / 2 * kQoqPairBytes + group % 2 * 16; }
    const uint8_t* zeros(int64_t pair) const { return data + 64 + pair * kQoqPairBytes + 32; }
    const uint8_t* codes(int64_t group) const { return data + 64 + pairs() * kQoqPairBytes + group * kQoqCodeBytes; }
};

}  // namespace kvern
