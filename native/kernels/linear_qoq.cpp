// qoq: whole numbers over all of K, then (float(acc) * s_a) * s1. Layout in qoq_tile.h.
//
// Routes to the same whole numbers. "rows" multiplies the 4-bit codes themselves: over the groups of 64,
// acc += s2 * dot(q, a) - zero * sum(a). "panel" rebuilds q * s2 - zero as bytes in the first-level cache once for
// all rows of a block, two at a time in the 16-bit lanes of one multiply (QServe's register-level parallelism; q * s2
// fits in a byte), and multiplies those; "tiles" does the same for AMX. AVX2 has no panel: a product of 4-bit codes
// costs it half that of bytes.
#include <algorithm>

#include "dispatch.h"
#include "dots.h"
#include "lanes.h"
#include "qoq_tile.h"
#include "rows_by_tile.h"
#if defined(KVERN_ISA_amx)
#include "amx_tiles.h"
#endif

namespace kvern::KVERN_ISA_NS {
namespace {

// add_group: acc += s2 * dot over the 64 inputs of a group; `a` are its activations.
// take_zeros: acc -= zero * sum over the two groups of a pair.
#if defined(__AVX512F__)
inline __m512i words_of_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

template <int ROWS>
inline void add_group(const uint8_t* codes, const uint8_t* s2, const int8_t* const* a, I16* acc) {
    const int8_t* second[ROWS];
    for (int r = 0; r < ROWS; ++r) second[r] = a[r] + 32;
    I16 low[ROWS], high[ROWS];
    dots<4, ROWS>(codes, a, low);
    dots<4, ROWS>(codes + kQoqCodeBytes / 2, second, high);
    const __m512i scale = words_of_bytes(s2);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        acc[r].v = _mm512_add_epi32(acc[r].v, _mm512_mullo_epi32(_mm512_add_epi32(low[r].v, high[r].v), scale));
}

template <int ROWS>
inline void take_zeros(const uint8_t* zeros, const int16_t* const* sums, I16* acc) {
    const __m512i zero = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(zeros)));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        int32_t pair;
        std::memcpy(&pair, sums[r], 4);
        acc[r].v = _mm512_sub_epi32(acc[r].v, _mm512_madd_epi16(zero, _mm512_set1_epi32(pair)));
    }
}

#elif defined(__AVX2__)
// The scale rides on the multiply that widens the int16 sums: 2 * 30480 * 255 is below 2^24.
template <int ROWS>
inline void add_half(const uint8_t* codes, const uint8_t* s2, int half, const int8_t* const* a, I16* acc) {
    __m256i scale = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(s2 + 8 * half)));
    scale = _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
    for (int part = 0; part < 2; ++part) {
        const int8_t* inputs[ROWS];
        for (int r = 0; r < ROWS; ++r) inputs[r] = a[r] + 32 * part;
        __m256i sum[ROWS];
        sum_steps<4, ROWS, 0, 8>(codes + part * (kQoqCodeBytes / 2), half, inputs, sum);
        for (int r = 0; r < ROWS; ++r) {
            __m256i& total = half ? acc[r].hi : acc[r].lo;
            total = _mm256_add_epi32(total, _mm256_madd_epi16(sum[r], scale));
        }
    }
}

template <int ROWS>
inline void add_group(const uint8_t* codes, const uint8_t* s2, const int8_t* const* a, I16* acc) {
    add_half<ROWS>(codes, s2, 0, a, acc);
    forget();
    add_half<ROWS>(codes, s2, 1, a, acc);
}

template <int ROWS>
inline void take_zeros(const uint8_t* zeros, const int16_t* const* sums, I16* acc) {
    const auto half = [zeros](int i) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + 16 * i)));
    };
    const __m256i low = half(0), high = half(1);
    for (int r = 0; r < ROWS; ++r) {
        int32_t pair;
        std::memcpy(&pair, sums[r], 4);
        const __m256i both = _mm256_set1_epi32(pair);
        acc[r].lo = _mm256_sub_epi32(acc[r].lo, _mm256_madd_epi16(low, both));
        acc[r].hi = _mm256_sub_epi32(acc[r].hi, _mm256_madd_epi16(high, both));
    }
}

#else
template <int ROWS>
inline void add_group(const uint8_t* codes, const uint8_t* s2, const int8_t* const* a, I16* acc) {
    for (int part = 0; part < 2; ++part) {
        const int8_t* inputs[ROWS];
        for (int r = 0; r < ROWS; ++r) inputs[r] = a[r] + 32 * part;
        I16 dot[ROWS];
        dots<4, ROWS>(codes + part * (kQoqCodeBytes / 2), inputs, dot);
        for (int r = 0; r < ROWS; ++r)
            for (int lane = 0; lane < 16; ++lane) acc[r].v[lane] += s2[lane] * dot[r].v[lane];
    }
}

template <int ROWS>
inline void take_zeros(const uint8_t* zeros, const int16_t* const* sums, I16* acc) {
    for (int r = 0; r < ROWS; ++r)
        for (int lane = 0; lane < 16; ++lane)
            acc[r].v[lane] -= zeros[2 * lane] * sums[r][0] + zeros[2 * lane + 1] * sums[r][1];
}
#endif

inline F16 scaled(const LinearWork& work, const QoqTile& tile, I16 total, int64_t row) {
    return (to_float(total) * splat(work.x->scales[row])) * load(tile.scales());
}

struct CodesByRows {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* data, int64_t row, F16* acc) {
        const EncodedRows& x = *work.x;
        const QoqTile tile(data, work.weight.k);
        const int8_t* a[ROWS];
        const int16_t* sums[ROWS];
        I16 total[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            a[r] = x.codes + (row + r) * x.stride;
            sums[r] = x.sums_64 + (row + r) * sums_64_stride(x.k);
            total[r] = splat(int32_t{0});
        }
        for (int64_t g = 0; g < tile.groups; ++g) {
            add_group<ROWS>(tile.codes(g), tile.s2(g), a, total);
            for (int r = 0; r < ROWS; ++r) a[r] += kQoqGroup;
        }
        for (int64_t pair = 0; pair < tile.pairs(); ++pair) {
            take_zeros<ROWS>(tile.zeros(pair), sums, total);
            for (int r = 0; r < ROWS; ++r) sums[r] += 2;
        }
        for (int r = 0; r < ROWS; ++r) acc[r] = scaled(work, tile, total[r], row + r);
    }
};

#if defined(__AVX512F__)
// The rebuilt values + 128 of a group, 16 steps of 64 bytes.
inline void rebuild_group(const QoqTile& tile, int64_t g, uint8_t* out) {
    __m512i scale = words_of_bytes(tile.s2(g));
    scale = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    const __m512i zeros =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.zeros(g / 2))));
    const __m512i byte = _mm512_set1_epi32(255);
    __m512i shift = _mm512_and_si512(g % 2 ? _mm512_srli_epi32(zeros, 8) : zeros, byte);
    shift = _mm512_and_si512(_mm512_sub_epi32(_mm512_set1_epi32(128), shift), byte);
    shift = _mm512_or_si512(shift, _mm512_slli_epi32(shift, 8));
    shift = _mm512_or_si512(shift, _mm512_slli_epi32(shift, 16));
    const uint8_t* codes = tile.codes(g);
#pragma GCC unroll 16
    for (int step = 0; step < 16; ++step) {
        const __m512i q = codes_at<4>(codes + step / 8 * (kQoqCodeBytes / 2), step % 8);
        _mm512_store_si512(out + step * kPlane, _mm512_add_epi8(_mm512_mullo_epi16(q, scale), shift));
    }
}

#endif

#if defined(KVERN_ISA_amx)
struct RebuiltTiles {
    static constexpr Product kProduct = Product::unsigned_bytes;
    static constexpr bool kInPlace = false;
    static const uint8_t* expand(const WeightView& weight, const uint8_t* tile, int64_t step, uint8_t* to) {
        rebuild_group(QoqTile(tile, weight.k), step, to);
        return to;
    }
    static F16 finish(const LinearWork& work, const uint8_t* tile, int64_t row, I16 sums) {
        return scaled(work, QoqTile(tile, work.weight.k), sums + splat(-128 * work.x->sums[row]), row);
    }
};
#elif defined(__AVX512F__)
constexpr int kPanelGroups = 12;  // of two tiles: 24 KB at a time
constexpr int kPanelRows = 64;    // whose sums wait while the panel moves along K
constexpr int kTogether = 8;      // rows; fewer, and what is left over, go by "rows"

struct alignas(64) Panel {
    uint8_t codes[kPanelGroups][2][16 * kPlane];  // rebuilt value + 128, of two tiles
    int32_t sums[kPanelRows][2][16];
};

// Groups of the panel times eight rows, added to `sums`: 32 outputs share each load of activations. `a` is the first
// row's first input of the panel.
inline void multiply_panel(const Panel& panel, int64_t groups, const int8_t* a, int64_t stride,
                           int32_t (*sums)[2][16]) {
    const int8_t* inputs[kTogether];
    I16 first[kTogether], second[kTogether];
    for (int r = 0; r < kTogether; ++r) {
        inputs[r] = a + r * stride;
        first[r] = load(sums[r][0]);
        second[r] = load(sums[r][1]);
    }
    for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 16
        for (int step = 0; step < 16; ++step) {
            const __m512i one = _mm512_loadu_si512(panel.codes[g][0] + step * kPlane);
            const __m512i other = _mm512_loadu_si512(panel.codes[g][1] + step * kPlane);
#pragma GCC unroll 8
            for (int r = 0; r < kTogether; ++r) {
                const __m512i x = _mm512_set1_epi32(four_codes(inputs[r] + 4 * step));
                first[r].v = _mm512_dpbusd_epi32(first[r].v, one, x);
                second[r].v = _mm512_dpbusd_epi32(second[r].v, other, x);
            }
        }
        for (int r = 0; r < kTogether; ++r) inputs[r] += kQoqGroup;
    }
    for (int r = 0; r < kTogether; ++r) {
        store(sums[r][0], first[r]);
        store(sums[r][1], second[r]);
    }
}

// Sums of up to kPanelRows rows, a multiple of eight, with two tiles (which may be the same one).
void panel_sums(const LinearWork& work, const QoqTile* tiles, int64_t row, int rows, Panel& panel) {
    const EncodedRows& x = *work.x;
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < 2; ++i) store(panel.sums[r][i], splat(-128 * x.sums[row + r]));
    for (int64_t begin = 0; begin < tiles[0].groups; begin += kPanelGroups) {
        const int64_t groups = std::min<int64_t>(kPanelGroups, tiles[0].groups - begin);
        for (int64_t g = 0; g < groups; ++g)
            for (int i = 0; i < 2; ++i) rebuild_group(tiles[i], begin + g, panel.codes[g][i]);
        const int8_t* a = x.codes + row * x.stride + begin * kQoqGroup;
        for (int r = 0; r < rows; r += kTogether)
            multiply_panel(panel, groups, a + r * x.stride, x.stride, panel.sums + r);
    }
}

void by_panel(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    Panel panel;
    if (work.route) *work.route = "panel";
    for (int64_t t = tile_begin; t < tile_end; t += 2) {
        const uint8_t* data = work.weight.data + t * work.weight.tile_bytes;
        const int count = tile_end - t >= 2 ? 2 : 1;
        const QoqTile tiles[2] = {{data, work.weight.k},
                                  {data + (count - 1) * work.weight.tile_bytes, work.weight.k}};
        for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
            const int rows = static_cast<int>(std::min<int64_t>(kPanelRows, row_end - row));
            panel_sums(work, tiles, row, rows, panel);
            for (int r = 0; r < rows; ++r)
                for (int i = 0; i < count; ++i) {
                    const F16 acc = scaled(work, tiles[i], load(panel.sums[r][i]), row + r);
                    store_rows(work, &acc, row + r, 1, (t + i) * 16);
                }
        }
    }
}

void by_row_count(const LinearWork& work, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end) {
    const int64_t full = row_begin + (row_end - row_begin) / kTogether * kTogether;
    if (full < row_end) rows_by_tile<CodesByRows>(work, full, row_end, tile_begin, tile_end);
    if (row_begin < full) by_panel(work, row_begin, full, tile_begin, tile_end);
}
#endif

}  // namespace

void fill_linear_qoq(KernelTable& table) {
    TilesKernel& entry = table.linear.at(Format::qoq, RowCode::q8_row);
    entry = rows_by_tile<CodesByRows>;
#if defined(KVERN_ISA_amx)
    TileRoute<whole_k_pass<RebuiltTiles>, Format::qoq, RowCode::q8_row>::set(table);
#elif defined(__AVX512F__)
    entry = by_row_count;
#endif
}

}  // namespace kvern::KVERN_ISA_NS
