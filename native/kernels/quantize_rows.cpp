// K1: rows of float32 to int8 codes with float32 scales (per group of 32, or per row), and to bf16.
#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

void store_codes(int8_t* p, I16 a) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
#elif defined(__AVX2__)
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
#else
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
#endif
}

int sum_of_16(const int8_t* p) {
    int sum = 0;
    for (int i = 0; i < 16; ++i) sum += p[i];
    return sum;
}

// To the nearest integer (ties to even) within +-127.
void store_quantised(int8_t* codes, F16 x, F16 inverse) {
    const F16 code = max(min(x * inverse, splat(127.0f)), splat(-127.0f));
    store_codes(codes, to_int_nearest(code));
}

struct Scale {
    float scale, inverse;
};

// A row or group with an infinity or NaN gets a NaN scale and zero codes, so that every output of it is NaN.
Scale scale_of(F16 largest, F16 finite) {
    if (!(quick_sum(finite) == 0.0f)) return {std::nanf(""), 0.0f};
    const float top = quick_max(largest);
    return {top / 127.0f, 127.0f / top};
}

void encode_groups(const float* x, const EncodedRows& out, int64_t row) {
    int8_t* codes = out.codes + row * out.stride;
    for (int64_t g = 0; g < out.groups; ++g, x += 32, codes += 32) {
        const F16 a = load(x), b = load(x + 16);
        const auto [scale, inverse] = scale_of(max(abs(a), abs(b)), (a - a) + (b - b));
        if (scale > 0.0f) {
            store_quantised(codes, a, splat(inverse));
            store_quantised(codes + 16, b, splat(inverse));
        } else {
            std::memset(codes, 0, 32);
        }
        const int low = sum_of_16(codes), high = sum_of_16(codes + 16);
        const int64_t at = row * out.groups + g;
        out.scales[at] = scale;
        out.sums[at] = low + high;
        out.scaled_sums[at] = scale * static_cast<float>(low + high);
        out.half_sums[2 * at] = static_cast<int16_t>(low);
        out.half_sums[2 * at + 1] = static_cast<int16_t>(high);
    }
}

void encode_row(const float* x, const EncodedRows& out, int64_t row) {
    int8_t* codes = out.codes + row * out.stride;
    F16 largest = splat(0.0f), finite = splat(0.0f);
    const auto part = [&](int64_t i) { return load_first(x + i, out.k - i < 16 ? static_cast<int>(out.k - i) : 16); };
    for (int64_t i = 0; i < out.k; i += 16) {
        const F16 a = part(i);
        largest = max(largest, abs(a));
        finite = finite + (a - a);
    }
    const auto [scale, inverse] = scale_of(largest, finite);
    std::memset(codes, 0, static_cast<size_t>(out.stride));
    int32_t sum = 0;
    for (int64_t i = 0; scale > 0.0f && i < out.k; i += 16) {
        store_quantised(codes + i, part(i), splat(inverse));
        sum += sum_of_16(codes + i);
    }
    out.scales[row] = scale;
    out.sums[row] = sum;
    out.scaled_sums[row] = scale * static_cast<float>(sum);
    out.half_sums[2 * row] = out.half_sums[2 * row + 1] = 0;
}

void encode_bf16(const float* x, const EncodedRows& out, int64_t row) {
    uint16_t* halves = out.bf16 + row * out.stride;
    for (int64_t i = 0; i < out.k; ++i) halves[i] = to_bf16(x[i]);
    for (int64_t i = out.k; i < out.stride; ++i) halves[i] = 0;
}

void encode(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        if (out.code == RowCode::q8_group)
            encode_groups(x + row * x_stride, out, row);
        else if (out.code == RowCode::q8_row)
            encode_row(x + row * x_stride, out, row);
        else
            encode_bf16(x + row * x_stride, out, row);
    }
}

}  // namespace

void fill_quantize_rows(KernelTable& table) { table.linear.encode = encode; }

}  // namespace kvern::KVERN_ISA_NS
