// K1 for groups of 64: rows of float32 to int8 codes within +-127, +-31 or, by group, +-7 (w4a4_mixed), one float32
// scale a group.
#include "dispatch.h"
#include "mixed_header.h"
#include "row_codes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// To the nearest integer (ties to even) within +-top.
void encode_group(const RowGroup& x, float top, const EncodedRows& out, int64_t row, int64_t group) {
    int8_t* codes = out.codes + row * out.stride + group * 64;
    const float scale = group_scale(x, top);
    int32_t sum = 0;
    if (scale > 0.0f) {
        const F16 inverse = splat(top / x.largest());
        for (int i = 0; i < 4; ++i)
            store_int8(codes + 16 * i, to_int_nearest(max(min(x.part[i] * inverse, splat(top)), splat(-top))));
        for (int i = 0; i < 64; ++i) sum += codes[i];
    } else {
        std::memset(codes, 0, 64);
    }
    const int64_t at = row * out.groups + group;
    out.scales[at] = scale;
    out.sums[at] = sum;
    out.scaled_sums[at] = scale * static_cast<float>(sum);
    out.half_sums[2 * at] = out.half_sums[2 * at + 1] = 0;
}

template <int TOP>
void encode_even(const float* x, const EncodedRows& out, int64_t row) {
    for (int64_t g = 0; g < out.groups; ++g)
        encode_group(RowGroup(x + g * 64, out.k - g * 64), static_cast<float>(TOP), out, row, g);
}

void encode_mixed(const float* x, const EncodedRows& out, int64_t row) {
    for (int64_t g = 0; g < out.groups; ++g) {
        float permuted[64];
        for (int i = 0; i < 64; ++i) permuted[i] = x[mixed_input(out.header, g * 64 + i)];
        encode_group(RowGroup(permuted, 64), mixed_is_wide(out.header, out.k, g) ? 127.0f : 7.0f, out, row, g);
    }
}

template <void (*ROW)(const float*, const EncodedRows&, int64_t)>
void each_row(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) ROW(x + row * x_stride, out, row);
}

}  // namespace

void fill_quantize_groups(KernelTable& table) {
    EncodeKernel* encode = table.linear.encode;
    encode[static_cast<int>(RowCode::q8_group64)] = each_row<encode_even<127>>;
    encode[static_cast<int>(RowCode::q6_group64)] = each_row<encode_even<31>>;
    encode[static_cast<int>(RowCode::mixed_4_8)] = each_row<encode_mixed>;
}

}  // namespace kvern::KVERN_ISA_NS
