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
// Outputs past N are zero weights.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvern {

enum class Format : int { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, f32, f16, bf16, w8a8 };

struct WeightView {
    Format format;
    int64_t n, k;  // outputs, inputs
    int64_t tile_bytes;
    const uint8_t* data;  // 64-byte aligned; (n + 15) / 16 tiles
};

}  // namespace kvern
