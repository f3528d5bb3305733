// K1: rows of float32 to int8 codes with float32 scales (per group of 32, or per row), and to bf16.
#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// Codes of 32 numbers, and the sums of their halves.
struct HalfSums {
    int low, high;
};

HalfSums store_codes(int8_t* p, I16 a, I16 b) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256i codes = _mm256_set_m128i(_mm512_cvtepi32_epi8(b.v), _mm512_cvtepi32_epi8(a.v));
#else
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
    const __m256i codes = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), codes);
    const __m256i raised = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));  // code + 128
    const __m256i eights = _mm256_sad_epu8(raised, _mm256_setzero_si256());
    const __m256i sums = _mm256_add_epi64(eights, _mm256_srli_si256(eights, 8));
    return {_mm_cvtsi128_si32(_mm256_castsi256_si128(sums)) - 16 * 128,
            _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1)) - 16 * 128};
#else
    HalfSums sums{0, 0};
    for (int i = 0; i < 16; ++i) {
        p[i] = static_cast<int8_t>(a.v[i]);
        p[i + 16] = static_cast<int8_t>(b.v[i]);
        sums.low += p[i];
        sums.high += p[i + 16];
    }
    return sums;
#endif
}

// To the nearest integer (ties to even) within +-127.
I16 quantised(F16 x, F16 inverse) { return to_int_nearest(max(min(x * inverse, splat(127.0f)), splat(-127.0f))); }

// Bits of |x|: as integers they order as the numbers do, with infinities and NaN above all of them.
I16 size_bits(F16 x) { return as_int(abs(x)); }

struct Scale {
    float scale, inverse;
};

// A row or group with an infinity or NaN gets a NaN scale and zero codes, so that every output of it is NaN.
Scale scale_of(int32_t largest_bits) {
    if (largest_bits >= 0x7f800000) return {std::nanf(""), 0.0f};
    float top;
    std::memcpy(&top, &largest_bits, 4);
    return {top / 127.0f, 127.0f / top};
}

void encode_groups(const float* x, const EncodedRows& out, int64_t row) {
    int8_t* codes = out.codes + row * out.stride;
    int64_t at = row * out.groups;
    for (int64_t g = 0; g < out.groups; ++g, ++at, x += 32, codes += 32) {
        const F16 a = load(x), b = load(x + 16);
        const auto [scale, inverse] = scale_of(largest(larger(size_bits(a), size_bits(b))));
        HalfSums sums{0, 0};
        if (scale > 0.0f)
            sums = store_codes(codes, quantised(a, splat(inverse)), quantised(b, splat(inverse)));
        else
            std::memset(codes, 0, 32);
        out.scales[at] = scale;
        out.sums[at] = sums.low + sums.high;
        out.scaled_sums[at] = scale * static_cast<float>(sums.low + sums.high);
        out.half_sums[2 * at] = static_cast<int16_t>(sums.low);
        out.half_sums[2 * at + 1] = static_cast<int16_t>(sums.high);
    }
}

void encode_row(const float* x, const EncodedRows& out, int64_t row) {
    int8_t* codes = out.codes + row * out.stride;
    const int64_t whole = out.k / 32 * 32;
    const int rest = static_cast<int>(out.k - whole);
    const F16 tail[2] = {load_first(x + whole, rest < 16 ? rest : 16),
                         load_first(x + whole + 16, rest > 16 ? rest - 16 : 0)};
    I16 most = larger(size_bits(tail[0]), size_bits(tail[1]));
    for (int64_t i = 0; i < whole; i += 32)
        most = larger(most, larger(size_bits(load(x + i)), size_bits(load(x + i + 16))));
    const auto [scale, inverse] = scale_of(largest(most));
    const F16 times = splat(inverse);
    int32_t sum = 0;
    int16_t* sums_64 = out.sums_64 + row * sums_64_stride(out.k);
    std::memset(sums_64, 0, static_cast<size_t>(sums_64_stride(out.k)) * sizeof(int16_t));
    std::memset(codes + whole, 0, static_cast<size_t>(out.stride - whole));
    if (scale > 0.0f) {
        const auto add = [&](int64_t i, F16 a, F16 b) {
            const HalfSums sums = store_codes(codes + i, quantised(a, times), quantised(b, times));
            sum += sums.low + sums.high;
            sums_64[i / 64] = static_cast<int16_t>(sums_64[i / 64] + sums.low + sums.high);
        };
        for (int64_t i = 0; i < whole; i += 32) add(i, load(x + i), load(x + i + 16));
        if (rest > 0) add(whole, tail[0], tail[1]);
    } else {
        std::memset(codes, 0, static_cast<size_t>(whole));
    }
    out.scales[row] = scale;
    out.sums[row] = sum;
    out.scaled_sums[row] = scale * static_cast<float>(sum);
    out.half_sums[2 * row] = out.half_sums[2 * row + 1] = 0;
}

// Sixteen numbers to bf16, as to_bf16 does.
void store_bf16(uint16_t* to, const float* x) {
#if defined(__AVX2__)
    __m256i half[2];
    for (int i = 0; i < 2; ++i) {
        const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
        const __m256i high = _mm256_srli_epi32(bits, 16), odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
        const __m256i size = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
        const __m256i nan = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
        half[i] = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(64)), nan);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(half[0], half[1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
#else
    for (int i = 0; i < 16; ++i) to[i] = to_bf16(x[i]);
#endif
}

void encode_bf16(const float* x, const EncodedRows& out, int64_t row) {
    uint16_t* halves = out.bf16 + row * out.stride;
    const int64_t whole = out.k / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16) store_bf16(halves + i, x + i);
    for (int64_t i = whole; i < out.k; ++i) halves[i] = to_bf16(x[i]);
    for (int64_t i = out.k; i < out.stride; ++i) halves[i] = 0;
}

template <void (*ROW)(const float*, const EncodedRows&, int64_t)>
void each_row(const float* x, int64_t x_stride, const EncodedRows& out, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) ROW(x + row * x_stride, out, row);
}

}  // namespace

void fill_quantize_rows(KernelTable& table) {
    EncodeKernel* encode = table.linear.encode;
    encode[static_cast<int>(RowCode::q8_group)] = each_row<encode_groups>;
    encode[static_cast<int>(RowCode::q8_row)] = each_row<encode_row>;
    encode[static_cast<int>(RowCode::bf16)] = each_row<encode_bf16>;
}

}  // namespace kvern::KVERN_ISA_NS
