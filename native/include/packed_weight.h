// Weight matrices packed for the kernels: tiles of 16 outputs, 4 (int8) or 2 (bf16) consecutive inputs innermost.
//
// A tile holds 16 outputs over all of K and is read front to back. Within a group of 32 inputs, "step" s (0..7) is
// inputs 4s..4s+3 as 64 bytes [16 outputs][4 inputs]. Codes are unsigned:
//   nibble plane  4 x 64 bytes; vector p has step p in the low and step p + 4 in the high nibbles
//   bit plane     64 bytes; bit s of each byte is the fifth bit of step s
//   two-bit plane 2 x 64 bytes; vector q has the two top bits of step 4q + i at bits 2i, 2i + 1
//   byte codes    8 x 64 bytes, code + 128
// Group layouts (halves are f16 x 16 outputs):
//   q4_0 d nibbles | q4_1 d m nibbles | q5_0 d bits nibbles | q5_1 d m bits nibbles | q8_0 d bytes
// Super-block of 256: q4_k, q5_k  d dmin scales[8][16]u8 mins[8][16]u8, then 8 x ([bits] nibbles)
//                     q6_k        d scales[8][16][2]i8, then 8 x (two-bit plane, nibbles)
// w8a8: f32 scale x 16, then byte codes, K padded to 64 with zero weights.
// bf16: [K padded to 32, / 2][16][2]; f16 and f32: [K][16].
// w4a16: see formats/w4a16.cpp. bitstack: see formats/bitstack.cpp.
// Outputs past N are zero weights.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvern {

// Each has a codec in formats/ (weight_codec.h); numbers are positions in KVERN_WEIGHT_FORMATS.
#define KVERN_WEIGHT_FORMATS(X) \
    X(q4_0)                     \
    X(q4_1)                     \
    X(q5_0)                     \
    X(q5_1)                     \
    X(q8_0)                     \
    X(q4_k)                     \
    X(q5_k)                     \
    X(q6_k)                     \
    X(f32)                      \
    X(f16)                      \
    X(bf16)                     \
    X(w8a8)                     \
    X(qoq)                      \
    X(w4a16)                    \
    X(w6)                       \
    X(bipolar2)                 \
    X(bipolar3)                 \
    X(bipolar4)                 \
    X(w4a4_mixed)               \
    X(bitstack)                 \
    X(bipolar1)                 \
    X(bipolar5)                 \
    X(bipolar6)                 \
    X(bipolar7)                 \
    X(bipolar8)
#define KVERN_FORMAT_NAME(name) name,
enum class Format : int { KVERN_WEIGHT_FORMATS(KVERN_FORMAT_NAME) count };
#undef KVERN_FORMAT_NAME
constexpr int kFormats = static_cast<int>(Format::count);

// Sides of a matrix and what its file says of it as a whole (most formats: nothing).
struct WeightShape {
    int64_t n, k;  // outputs, inputs
    const uint8_t* header = nullptr;
    int64_t header_bytes = 0;
};

struct WeightView : WeightShape {
    Format format;
    int64_t tile_bytes;
    const uint8_t* data;  // 64-byte aligned; (n + 15) / 16 tiles
    // Formats kept in parts (bitstack): every part begins with tiles as above, `data` is the first part.
    const uint8_t* const* parts = nullptr;
    int32_t resident = 0;  // parts in memory, at least 1
};

}  // namespace kvern
