// Any weight format with float32 rows, where a format has no kernel of its own for them: tiles are decoded to floats,
// quickly for GGUF blocks and w8a8, through the codec for all others. Decoded numbers are the codec's to the bit.
#include <vector>

#include "float_panels.h"
#include "weight_codec.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// Any format: whole rows as the codec gives them, turned over panel by panel.
class CodecPanels {
  public:
    CodecPanels(const WeightView& weight, int64_t tile, int tiles) : k_(weight.k) {
        thread_local std::vector<float> memory;
        memory.resize(static_cast<size_t>(tiles * 16 * k_));
        rows_ = memory.data();
        const WeightCodec& codec = codec_of(weight.format);
        for (int t = 0; t < tiles; ++t) {
            const uint8_t* at = weight.data + (tile + t) * weight.tile_bytes;
            lanes_[t] = static_cast<int>(tile_lanes(weight, tile + t));
            for (int lane = 0; lane < lanes_[t]; ++lane) codec.row(weight, at, lane, rows_ + (t * 16 + lane) * k_);
        }
    }
    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const float* from = rows_ + t * 16 * k_ + begin;
        for (int64_t i = 0; i < count; ++i, out += 16)
            for (int lane = 0; lane < 16; ++lane) out[lane] = lane < lanes_[t] ? from[lane * k_ + i] : 0.0f;
    }

  private:
    int64_t k_;
    float* rows_;
    int lanes_[kPanelTiles];
};

// Codes of one step: four neighbouring inputs of 16 outputs, as bytes of 16 lanes.
template <int BITS>
inline I16 step_codes(const uint8_t* planes, int step) {
#if defined(__AVX512F__)
    return {codes_at<BITS>(planes, step)};
#elif defined(__AVX2__)
    if constexpr (BITS == 8) {
        return load(reinterpret_cast<const int32_t*>(planes + step * kPlane));
    } else {
        return {codes_at<BITS>(planes, step, 0), codes_at<BITS>(planes, step, 1)};
    }
#else
    uint8_t bytes[kPlane];
    for (int b = 0; b < kPlane; ++b) bytes[b] = static_cast<uint8_t>(code_at<BITS>(planes, step, b));
    I16 codes;
    std::memcpy(codes.v, bytes, kPlane);
    return codes;
#endif
}

// Byte J of every lane; byte codes are stored with 128 added, which comes off again here.
template <int BITS, int J>
inline F16 code_to_float(I16 codes) {
    if constexpr (BITS == 8) codes = codes + splat(static_cast<int32_t>(uint32_t{0x80} << (8 * J)));
    return byte_to_float<J>(codes);
}

// f(code) of four inputs to out[4][16].
template <int BITS, class F>
inline void decode_step(const uint8_t* planes, int step, float* out, F f) {
    const I16 codes = step_codes<BITS>(planes, step);
    store(out, f(code_to_float<BITS, 0>(codes)));
    store(out + 16, f(code_to_float<BITS, 1>(codes)));
    store(out + 32, f(code_to_float<BITS, 2>(codes)));
    store(out + 48, f(code_to_float<BITS, 3>(codes)));
}

template <int BITS>
inline void decode_group(const uint8_t* planes, F16 d, F16 m, float* out) {
    for (int step = 0; step < 8; ++step)
        decode_step<BITS>(planes, step, out + step * 64, [&](F16 code) { return code * d + m; });
}

inline F16 halves(const uint8_t* p) { return from_f16(reinterpret_cast<const uint16_t*>(p)); }

// Where the tiles of a group of tiles are.
struct Tiles {
    const uint8_t* data;
    int64_t tile_bytes;
    Tiles(const WeightView& weight, int64_t tile, int)
        : data(weight.data + tile * weight.tile_bytes), tile_bytes(weight.tile_bytes) {}
    const uint8_t* at(int t) const { return data + t * tile_bytes; }
};

template <Format F>
struct SimplePanels : Tiles {
    using Tiles::Tiles;
    static constexpr bool two = F == Format::q4_1 || F == Format::q5_1;
    static constexpr int bits = F == Format::q8_0 ? 8 : F == Format::q5_0 || F == Format::q5_1 ? 5 : 4;
    static constexpr int header = two ? 64 : 32, group = header + plane_bytes(bits);

    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const uint8_t* from = at(t) + begin / 32 * group;
        for (int64_t i = 0; i < count; i += 32, from += group, out += 512) {
            const F16 d = halves(from);
            const F16 m = two                 ? halves(from + 32)
                          : F == Format::q8_0 ? splat(0.0f)
                                              : splat(F == Format::q5_0 ? -16.0f : -8.0f) * d;
            decode_group<bits>(from + header, d, m, out);
        }
    }
};

template <Format F>
struct SuperPanels : Tiles {
    using Tiles::Tiles;
    static constexpr int bits = F == Format::q5_k ? 5 : 4, header = 64 + 256, group = plane_bytes(bits);

    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const uint8_t* block = at(t) + begin / 256 * (header + 8 * group);
        const F16 d = halves(block), dmin = halves(block + 32);
        for (int64_t g = begin / 32 % 8; count > 0; count -= 32, ++g, out += 512) {
            const auto* scales = reinterpret_cast<const int8_t*>(block + 64 + g * 16);  // 6-bit: never negative
            const F16 m = splat(0.0f) - dmin * from_i8(scales + 128);
            decode_group<bits>(block + header + g * group, d * from_i8(scales), m, out);
        }
    }
};

// q6_k: the halves of a group have scales of their own.
struct SixBitPanels : Tiles {
    using Tiles::Tiles;
    static constexpr int header = 32 + 256, group = plane_bytes(6);

    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const uint8_t* block = at(t) + begin / 256 * (header + 8 * group);
        const F16 d = halves(block);
        for (int64_t g = begin / 32 % 8; count > 0; count -= 32, ++g, out += 512) {
            for (int half = 0; half < 2; ++half) {
                int8_t codes[16];
                for (int lane = 0; lane < 16; ++lane)
                    codes[lane] = static_cast<int8_t>(block[32 + g * 32 + lane * 2 + half]);
                const F16 scale = d * from_i8(codes), m = splat(-32.0f) * scale;
                for (int step = half * 4; step < half * 4 + 4; ++step)
                    decode_step<6>(block + header + g * group, step, out + step * 64,
                                   [&](F16 code) { return code * scale + m; });
            }
        }
    }
};

struct BytePanels : Tiles {
    using Tiles::Tiles;
    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const F16 scale = load(reinterpret_cast<const float*>(at(t)));
        const uint8_t* from = at(t) + 64 + begin * 16;
        const auto scaled = [&](F16 code) { return scale * code; };
        for (; count >= 4; count -= 4, from += 64, out += 64) decode_step<8>(from, 0, out, scaled);
        if (count == 0) return;
        float last[64];
        decode_step<8>(from, 0, last, scaled);
        std::memcpy(out, last, static_cast<size_t>(count) * 64);
    }
};

template <class PANELS>
void set(KernelTable& table, Format format) {
    table.linear.at(format, RowCode::f32) = float_panels<PANELS>;
}

}  // namespace

void fill_linear_decoded(KernelTable& table) {
    for (int f = 0; f < kFormats; ++f) set<CodecPanels>(table, static_cast<Format>(f));
    set<SimplePanels<Format::q4_0>>(table, Format::q4_0);
    set<SimplePanels<Format::q4_1>>(table, Format::q4_1);
    set<SimplePanels<Format::q5_0>>(table, Format::q5_0);
    set<SimplePanels<Format::q5_1>>(table, Format::q5_1);
    set<SimplePanels<Format::q8_0>>(table, Format::q8_0);
    set<SuperPanels<Format::q4_k>>(table, Format::q4_k);
    set<SuperPanels<Format::q5_k>>(table, Format::q5_k);
    set<SixBitPanels>(table, Format::q6_k);
    set<BytePanels>(table, Format::w8a8);
}

}  // namespace kvern::KVERN_ISA_NS
