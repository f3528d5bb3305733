// Block formats of GGUF files to packed tiles and back; layouts are in packed_weight.h.
#include "weight_codec.h"

namespace kvern {
namespace {

// What a block looks like in a file.
struct BlockInfo {
    int block, block_bytes, bits;
    int halves;  // f16 numbers before each group's planes: 1 d, 2 d and m (super-blocks: before each of these)
    bool super;  // super-blocks of 256
};
constexpr BlockInfo BLOCKS[] = {
    {32, 18, 4, 1, false}, {32, 20, 4, 2, false},  {32, 22, 5, 1, false},  {32, 24, 5, 2, false},
    {32, 34, 8, 1, false}, {256, 144, 4, 2, true}, {256, 176, 5, 2, true}, {256, 210, 6, 1, true},
};

constexpr const BlockInfo& block_info(Format format) { return BLOCKS[static_cast<int>(format)]; }

constexpr int HALVES = 32;    // bytes of 16 f16 numbers
constexpr int PLANE = 64;     // bytes of one step's 16 x 4 codes
constexpr int NIBBLES = 256;  // bytes of a group's nibble plane
constexpr int GROUPS = 8;     // of 32 in a super-block of 256

int plane_bytes(int bits) {
    if (bits == 8) return 8 * PLANE;
    return NIBBLES + (bits - 4) * PLANE;
}

// Bytes before the eight groups of a super-block.
int super_header(Format format) { return format == Format::q6_k ? HALVES + 256 : 2 * HALVES + 256; }

// The 32 unsigned codes of a group of a simple block.
void simple_codes(Format format, const uint8_t* block, uint8_t* codes) {
    if (format == Format::q8_0) {
        for (int i = 0; i < 32; ++i) codes[i] = block[2 + i] ^ 0x80;
        return;
    }
    const bool min = format == Format::q4_1 || format == Format::q5_1;
    const bool five = format == Format::q5_0 || format == Format::q5_1;
    const uint8_t* at = block + (min ? 4 : 2);
    uint32_t high = 0;
    if (five) {
        std::memcpy(&high, at, 4);
        at += 4;
    }
    for (int i = 0; i < 16; ++i) {
        codes[i] = static_cast<uint8_t>((at[i] & 15) | ((high >> i & 1) << 4));
        codes[i + 16] = static_cast<uint8_t>((at[i] >> 4) | ((high >> (i + 16) & 1) << 4));
    }
}

void q6_codes(const uint8_t* block, int group, uint8_t* codes) {
    const int half = group / 4, quarter = group % 4;
    const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
    const uint8_t* high = block + 128 + 32 * half;
    for (int i = 0; i < 32; ++i)
        codes[i] = static_cast<uint8_t>((low[i] >> (quarter / 2 * 4) & 15) | ((high[i] >> (2 * quarter) & 3) << 4));
}

void k_codes(Format format, const uint8_t* block, int group, uint8_t* codes) {
    const bool five = format == Format::q5_k;
    const uint8_t* low = block + (five ? 48 : 16) + 32 * (group / 2);
    const uint8_t* high = block + 16;
    for (int i = 0; i < 32; ++i) {
        const int top = five ? high[i] >> group & 1 : 0;
        codes[i] = static_cast<uint8_t>((low[i] >> (group % 2 * 4) & 15) | (top << 4));
    }
}

void group_codes(Format format, const uint8_t* block, int group, uint8_t* codes) {
    if (format == Format::q6_k)
        q6_codes(block, group, codes);
    else if (format == Format::q4_k || format == Format::q5_k)
        k_codes(format, block, group, codes);
    else
        simple_codes(format, block, codes);
}

// The 6-bit scale and minimum of a group, out of the 12 packed bytes.
void six_bit_pair(const uint8_t* packed, int group, uint8_t* scale, uint8_t* min) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *min = packed[group + 4] & 63;
    } else {
        *scale = static_cast<uint8_t>((packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4));
        *min = static_cast<uint8_t>((packed[group + 4] >> 4) | (packed[group] >> 6 << 4));
    }
}

// Steps of a group (codes of 16 outputs, 4 inputs each) into its planes.
void write_planes(int bits, const uint8_t steps[8][PLANE], uint8_t* out) {
    if (bits == 8) {
        std::memcpy(out, steps, 8 * PLANE);
        return;
    }
    for (int b = 0; bits == 5 && b < PLANE; ++b) {
        int byte = 0;
        for (int s = 0; s < 8; ++s) byte |= (steps[s][b] >> 4 & 1) << s;
        out[b] = static_cast<uint8_t>(byte);
    }
    for (int b = 0; bits == 6 && b < 2 * PLANE; ++b) {
        int byte = 0;
        for (int i = 0; i < 4; ++i) byte |= (steps[b / PLANE * 4 + i][b % PLANE] >> 4 & 3) << (2 * i);
        out[b] = static_cast<uint8_t>(byte);
    }
    out += (bits - 4) * PLANE;
    for (int p = 0; p < 4; ++p)
        for (int b = 0; b < PLANE; ++b)
            out[p * PLANE + b] = static_cast<uint8_t>((steps[p][b] & 15) | (steps[p + 4][b] << 4));
}

int read_code(int bits, const uint8_t* planes, int lane, int i) {
    const int step = i / 4, b = lane * 4 + i % 4;
    if (bits == 8) return planes[step * PLANE + b];
    const int nibble = planes[(bits - 4) * PLANE + step % 4 * PLANE + b] >> (step / 4 * 4) & 15;
    if (bits == 5) return nibble | (planes[b] >> step & 1) << 4;
    if (bits == 6) return nibble | (planes[step / 4 * PLANE + b] >> (step % 4 * 2) & 3) << 4;
    return nibble;
}

// Numbers before a block's codes, for one output: d (and m or dmin), and the scales of a super-block.
void write_header(Format format, const uint8_t* block, int lane, uint8_t* out) {
    const bool q6 = format == Format::q6_k;
    std::memcpy(out + 2 * lane, block + (q6 ? 208 : 0), 2);
    if (block_info(format).halves == 2) std::memcpy(out + HALVES + 2 * lane, block + 2, 2);
    if (q6) {
        for (int i = 0; i < 16; ++i) out[HALVES + i / 2 * 32 + lane * 2 + i % 2] = block[192 + i];
    } else if (block_info(format).super) {
        for (int g = 0; g < GROUPS; ++g) {
            uint8_t* scales = out + 2 * HALVES + g * 16 + lane;
            six_bit_pair(block + 4, g, scales, scales + GROUPS * 16);
        }
    }
}

// d and m of one output and group: weight = d * code + m.
struct Scale {
    float d, m;
};

Scale simple_scale(Format format, const uint8_t* header, int lane) {
    const float d = half_at(header + 2 * lane);
    switch (format) {
        case Format::q4_0:
            return {d, -8.0f * d};
        case Format::q5_0:
            return {d, -16.0f * d};
        case Format::q8_0:
            return {d, -128.0f * d};
        default:
            return {d, half_at(header + HALVES + 2 * lane)};
    }
}

Scale super_scale(Format format, const uint8_t* header, int lane, int i) {
    const float d = half_at(header + 2 * lane);
    const int group = i / 32;
    if (format == Format::q6_k) {
        const auto code = static_cast<int8_t>(header[HALVES + group * 32 + lane * 2 + i / 16 % 2]);
        const float scale = d * static_cast<float>(code);
        return {scale, -32.0f * scale};
    }
    const uint8_t* codes = header + 2 * HALVES + group * 16 + lane;
    return {d * static_cast<float>(codes[0]),
            -(half_at(header + HALVES + 2 * lane) * static_cast<float>(codes[128]))};
}

template <Format F>
int64_t row_bytes(const WeightShape& shape) {
    return shape.k / block_info(F).block * block_info(F).block_bytes;
}

template <Format F>
int64_t tile_bytes(const WeightShape& shape) {
    const BlockInfo& info = block_info(F);
    if (info.super) return shape.k / 256 * (super_header(F) + GROUPS * plane_bytes(info.bits));
    return shape.k / 32 * (info.halves * HALVES + plane_bytes(info.bits));
}

void pack_blocks(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, const int32_t* rows) {
    const BlockInfo& info = block_info(view.format);
    const int groups = info.super ? GROUPS : 1;
    const int header = info.super ? super_header(view.format) : info.halves * HALVES;
    const int64_t blocks = view.k / info.block;
    const int lanes = static_cast<int>(tile_lanes(view, tile));
    const uint8_t* start[16];
    for (int lane = 0; lane < lanes; ++lane)
        start[lane] = file_row(data, rows, blocks * info.block_bytes, tile * 16 + lane);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int lane = 0; lane < lanes; ++lane)
            write_header(view.format, start[lane] + block * info.block_bytes, lane, out);
        out += header;
        for (int group = 0; group < groups; ++group) {
            uint8_t steps[8][PLANE] = {}, codes[32];
            for (int lane = 0; lane < lanes; ++lane) {
                group_codes(view.format, start[lane] + block * info.block_bytes, group, codes);
                for (int s = 0; s < 8; ++s) std::memcpy(&steps[s][4 * lane], codes + 4 * s, 4);
            }
            write_planes(info.bits, steps, out);
            out += plane_bytes(info.bits);
        }
    }
}

void unpack_row(const WeightView& view, const uint8_t* tile, int lane, float* out) {
    const BlockInfo& info = block_info(view.format);
    const int header = info.super ? super_header(view.format) : info.halves * HALVES;
    const int planes = plane_bytes(info.bits);
    const int64_t step = header + (info.super ? GROUPS : 1) * planes;
    for (int64_t block = 0; block < view.k / info.block; ++block, tile += step) {
        for (int i = 0; i < info.block; i += 16) {
            const Scale scale =
                info.super ? super_scale(view.format, tile, lane, i) : simple_scale(view.format, tile, lane);
            for (int j = i; j < i + 16; ++j) {
                const int code = read_code(info.bits, tile + header + j / 32 * planes, lane, j % 32);
                *out++ = scale.d * static_cast<float>(code) + scale.m;
            }
        }
    }
}

template <Format F>
struct Block {
    WeightCodec codec;
    RegisterCodec known;
    explicit Block(const char* name)
        : codec{name, block_info(F).block, 0, row_bytes<F>, tile_bytes<F>, pack_blocks, unpack_row},
          known(F, codec) {}
};

const Block<Format::q4_0> q4_0("q4_0");
const Block<Format::q4_1> q4_1("q4_1");
const Block<Format::q5_0> q5_0("q5_0");
const Block<Format::q5_1> q5_1("q5_1");
const Block<Format::q8_0> q8_0("q8_0");
const Block<Format::q4_k> q4_k("q4_k");
const Block<Format::q5_k> q5_k("q5_k");
const Block<Format::q6_k> q6_k("q6_k");

}  // namespace

}  // namespace kvern
