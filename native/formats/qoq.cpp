// qoq (QServe's W4A8): 4-bit codes under two levels of scales. The file's rows are described in
// src/kvern/formats/weights/qoq.py, the packed form in qoq_tile.h.
#include <cmath>

#include "qoq_tile.h"
#include "weight_codec.h"

namespace kvern {
namespace {

constexpr int64_t BLOCK_BYTES = 34;  // s2, zero, 32 bytes of codes
constexpr int LARGEST = 127;         // of a rebuilt value

int64_t row_bytes(const WeightShape& shape) { return shape.k / kQoqGroup * BLOCK_BYTES + 4; }

int64_t tile_bytes(const WeightShape& shape) { return QoqTile(nullptr, shape.k).bytes(); }

// Codes of a block of 64 inputs: input i in the low, input i + 32 in the high half of byte i.
int code_of(const uint8_t* block, int64_t i) { return block[2 + i % 32] >> (i / 32 * 4) & 15; }

// Whether rebuilt values fit where the kernels put them: q * s2 in a byte, q * s2 - zero in +-127.
bool sound(const uint8_t* block) {
    int least = 15, most = 0;
    for (int64_t i = 0; i < kQoqGroup; ++i) {
        const int code = code_of(block, i);
        least = code < least ? code : least;
        most = code > most ? code : most;
    }
    return most * block[0] <= 255 && most * block[0] - block[1] <= LARGEST && least * block[0] - block[1] >= -LARGEST;
}

bool sound_row(const uint8_t* row, int64_t groups) {
    for (int64_t g = 0; g < groups; ++g)
        if (!sound(row + g * BLOCK_BYTES)) return false;
    return true;
}

void pack_group(const uint8_t* block, uint8_t* codes, int lane) {
    for (int64_t half = 0; half < 2; ++half)
        for (int64_t i = 0; i < 16; ++i)
            codes[half * 256 + i / 4 * 64 + lane * 4 + i % 4] =
                static_cast<uint8_t>(code_of(block, half * 32 + i) | code_of(block, half * 32 + i + 16) << 4);
}

// A row that is not sound gets a NaN scale and zero codes.
void pack_tile(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    const QoqTile at(out, view.k);
    const auto place = [out](const uint8_t* p) { return out + (p - out); };
    for (int lane = 0; lane < static_cast<int>(tile_lanes(view, tile)); ++lane) {
        const uint8_t* row = file_row(data, rows, row_bytes(view), tile * 16 + lane);
        if (!sound_row(row, at.groups)) {
            const float nan = std::nanf("");
            std::memcpy(out + 4 * lane, &nan, 4);
            continue;
        }
        std::memcpy(out + 4 * lane, row + at.groups * BLOCK_BYTES, 4);
        for (int64_t g = 0; g < at.groups; ++g) {
            const uint8_t* block = row + g * BLOCK_BYTES;
            place(at.s2(g))[lane] = block[0];
            place(at.zeros(g / 2))[2 * lane + g % 2] = block[1];
            pack_group(block, place(at.codes(g)), lane);
        }
    }
}

void row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    const QoqTile at(tile, view.k);
    for (int64_t g = 0; g < at.groups; ++g) {
        const int s2 = at.s2(g)[lane], zero = at.zeros(g / 2)[2 * lane + g % 2];
        for (int64_t i = 0; i < kQoqGroup; ++i) {
            const uint8_t both = at.codes(g)[i / 32 * 256 + i % 16 / 4 * 64 + lane * 4 + i % 4];
            const int code = both >> (i % 32 / 16 * 4) & 15;
            *out++ = at.scales()[lane] * static_cast<float>(code * s2 - zero);
        }
    }
}

const WeightCodec codec{"qoq", static_cast<int>(kQoqGroup), kQoqMaxInputs, row_bytes, tile_bytes, pack_tile, row};
const RegisterCodec known(Format::qoq, codec);

}  // namespace
}  // namespace kvern
