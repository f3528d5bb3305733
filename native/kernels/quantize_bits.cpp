// Activations as bit planes: rows of float32 to bipolar codes of 1 to 4 bits, value = scale * (2 code - (2^bits -
// 1)), one float32 scale a group of 64.
//
// A group takes 64 bytes of `codes`: for its two blocks of 32 inputs, for each bit of the codes, 32 bits as uint32;
// bit 8 j + s belongs to input 4 s + j, which is how the planes of a packed weight tile lie (code_layout.h).
#include "code_layout.h"
#include "dispatch.h"
#include "row_codes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

template <int BITS>
void store_planes(const int8_t* codes, uint32_t* planes) {
    for (int bit = 0; bit < BITS; ++bit) {
        uint32_t word = 0;
        for (int input = 0; input < kBlockInputs; ++input)
            word |= static_cast<uint32_t>(codes[input] >> bit & 1) << (input % 4 * 8 + input / 4);
        planes[bit] = word;
    }
}

template <int BITS>
void encode_group(const RowGroup& x, const EncodedRows& out, int64_t row, int64_t group) {
    constexpr float top = static_cast<float>((1 << BITS) - 1);
    int8_t codes[64] = {};
    const float scale = group_scale(x, top);
    if (scale > 0.0f) {
        const F16 inverse = splat(top / x.largest());
        for (int i = 0; i < 4; ++i) {
            const F16 code = (x.part[i] * inverse + splat(top)) * splat(0.5f);
            store_int8(codes + 16 * i, to_int_nearest(max(min(code, splat(top)), splat(0.0f))));
        }
    }
    auto* planes = reinterpret_cast<uint32_t*>(out.codes + row * out.stride + group * 64);
    store_planes<BITS>(codes, planes);
    store_planes<BITS>(codes + kBlockInputs, planes + BITS);
    const int64_t at = row * out.groups + group;
    out.scales[at] = scale;
    out.sums[at] = 0;
    out.scaled_sums[at] = 0.0f;
    out.half_sums[2 * at] = out.half_sums[2 * at + 1] = 0;
}

template <int BITS>
void encode_planes(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
        for (int64_t g = 0; g < out.groups; ++g)
            encode_group<BITS>(RowGroup(x + row * x_stride + g * 64, out.k - g * 64), out, row, g);
}

}  // namespace

void fill_quantize_bits(KernelTable& table) {
    EncodeKernel* encode = table.linear.encode;
    encode[static_cast<int>(RowCode::bit_planes)] = encode_planes<2>;
    encode[static_cast<int>(RowCode::bit_planes1)] = encode_planes<1>;
    encode[static_cast<int>(RowCode::bit_planes3)] = encode_planes<3>;
    encode[static_cast<int>(RowCode::bit_planes4)] = encode_planes<4>;
}

}  // namespace kvern::KVERN_ISA_NS
