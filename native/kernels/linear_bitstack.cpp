// bitstack with float32 rows: 64 inputs x 16 outputs are rebuilt from the blocks in memory (a rank-k outer product
// and a sign for each) into the first-level cache, once for all rows of a block. Rebuilding is the work: rank + 1
// multiply-adds a weight and block, whatever the number of rows.
#include "float_panels.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr int kInputsAtOnce = kMaxRows == 8 ? 8 : 4;  // chains that share each load of U

// w - x where the lane's bit is set, w + x elsewhere.
inline F16 add_signed(F16 w, F16 x, uint16_t minus) {
#if defined(__AVX512F__)
    return {_mm512_mask_sub_ps(_mm512_add_ps(w.v, x.v), minus, w.v, x.v)};
#elif defined(__AVX2__)
    const __m256i bits = _mm256_set1_epi32(minus), sign = _mm256_set1_epi32(INT32_MIN);
    const __m256i low = _mm256_sllv_epi32(bits, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
    const __m256i high = _mm256_sllv_epi32(bits, _mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16));
    return {_mm256_add_ps(w.lo, _mm256_xor_ps(x.lo, _mm256_castsi256_ps(_mm256_and_si256(low, sign)))),
            _mm256_add_ps(w.hi, _mm256_xor_ps(x.hi, _mm256_castsi256_ps(_mm256_and_si256(high, sign))))};
#else
    F16 y;
    for (int i = 0; i < 16; ++i) y.v[i] = minus >> i & 1 ? w.v[i] - x.v[i] : w.v[i] + x.v[i];
    return y;
#endif
}

// INPUTS inputs from `v` ([INPUTS][rank]) and their signs, added to w[INPUTS][16]. RANK 0: `rank`.
template <int RANK, int INPUTS>
inline void add_block(const float* u, const float* v, int rank, const uint8_t* signs, float* w) {
    const int count = RANK ? RANK : rank;
    F16 product[INPUTS];
    for (F16& p : product) p = splat(0.0f);
#pragma GCC unroll 16
    for (int r = 0; r < count; ++r) {
        const F16 of_outputs = load(u + 16 * r);
#pragma GCC unroll 8
        for (int i = 0; i < INPUTS; ++i) product[i] = fma(of_outputs, splat(v[i * count + r]), product[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < INPUTS; ++i) {
        uint16_t minus;
        std::memcpy(&minus, signs + 2 * i, 2);
        store(w + 16 * i, add_signed(load(w + 16 * i), product[i], minus));
    }
}

class StackPanels {
  public:
    StackPanels(const WeightView& weight, int64_t tile, int) : weight_(weight), tile_(tile) {
        std::memcpy(&rank_, weight.header + 4, 4);
    }

    void panel(int t, int64_t begin, int64_t count, float* out) const {
        const F16 zero = splat(0.0f);
        for (int64_t i = 0; i < count; ++i) store(out + 16 * i, zero);
        const int64_t tile = (tile_ + t) * weight_.tile_bytes;
        const int64_t v_at = (weight_.n + 15) / 16 * weight_.tile_bytes + 2 * begin * rank_;
        for (int32_t part = 0; part < weight_.resident; ++part) {
            const uint8_t* from = weight_.parts[part];
            add_part(from + tile, from + v_at, begin, count, out);
        }
    }

  private:
    static constexpr int kHighestRank = 64;

    void add_part(const uint8_t* tile, const uint8_t* v_halves, int64_t begin, int64_t count, float* out) const {
        alignas(64) float u[kHighestRank * 16], v[kPanelInputs * kHighestRank];
        to_floats(tile + 2 * weight_.k, rank_ * 16, u);
        to_floats(v_halves, count * rank_, v);
        if (rank_ == 16)
            add_inputs<16>(u, v, tile + 2 * begin, count, out);
        else
            add_inputs<0>(u, v, tile + 2 * begin, count, out);
    }

    template <int RANK>
    void add_inputs(const float* u, const float* v, const uint8_t* signs, int64_t count, float* out) const {
        int64_t i = 0;
        for (; count - i >= kInputsAtOnce; i += kInputsAtOnce)
            add_block<RANK, kInputsAtOnce>(u, v + i * rank_, rank_, signs + 2 * i, out + 16 * i);
        for (; i < count; ++i) add_block<RANK, 1>(u, v + i * rank_, rank_, signs + 2 * i, out + 16 * i);
    }

    static void to_floats(const uint8_t* from, int64_t count, float* to) {
        for (; count >= 16; count -= 16, from += 32, to += 16)
            store(to, from_f16(reinterpret_cast<const uint16_t*>(from)));
        if (count == 0) return;
        uint16_t last[16] = {};
        std::memcpy(last, from, static_cast<size_t>(count) * 2);
        store_first(to, from_f16(last), static_cast<int>(count));
    }

    const WeightView& weight_;
    int64_t tile_;
    int32_t rank_;
};

}  // namespace

void fill_linear_bitstack(KernelTable& table) {
    table.linear.at(Format::bitstack, RowCode::f32) = float_panels<StackPanels>;
}

}  // namespace kvern::KVERN_ISA_NS
