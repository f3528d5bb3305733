// int8 keys and values through AMX int8 tiles, with the bits of kv/int8.h: a number n of a query (weight) is two rows
// of bytes, n = 256 * high + low, so eight vectors fill the 16 rows of a tile. Empty on other instruction sets.
#pragma once
#include "bf16_tiles.h"
#include "int8.h"

#if defined(KVERN_ISA_amx)
namespace kvern::KVERN_ISA_NS {

constexpr int kEncodedBytes = 3;  // Vectors::encoded_as

namespace int8_detail {

constexpr int kTileVectors = 8;  // rows 0..7 of a tile are high bytes, 8..15 low bytes

// Numbers of 16 neighbouring values of one vector: high bytes to `to`, low bytes to `to + 8 * row`.
inline void store_bytes(int8_t* to, size_t row, I16 numbers) {
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(numbers.v, _mm512_set1_epi32(128)), 8);
    const __m512i low = _mm512_sub_epi32(numbers.v, _mm512_slli_epi32(high, 8));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kTileVectors * row), _mm512_cvtepi32_epi8(low));
}

// One row of a stored tile: the sums of vector `r` of 8.
inline I16 joined(const int32_t* tile, int r) {
    const I16 high = load(tile + 16 * r), low = load(tile + 16 * (r + kTileVectors));
    return I16{_mm512_slli_epi32(high.v, 8)} + low;
}

}  // namespace int8_detail

struct Int8TileKeys {
    static void scores(Vectors& at, const Pages& pages) {
        if (at.encoded_as != kEncodedBytes) encode(at);
        const int step = tile_step(at.head_dim, 4, 64);
        const TileShapes shapes(16, 16, step);
        for (int page = pages.begin; page < pages.end; ++page)
            for (int v = 0; v < at.count; v += 2 * int8_detail::kTileVectors) {
                const int rest = std::min(at.count - v, 2 * int8_detail::kTileVectors);
                const Vectors::Range seen = at.seen(v, rest, page);
                if (seen.begin >= seen.end) continue;
                if (rest <= int8_detail::kTileVectors) {
                    eight(at, pages, page, v, step);
                } else {
                    if (seen.begin < 32) two_by_two(at, pages, page, v, step, 0);
                    if (seen.end > 32) two_by_two(at, pages, page, v, step, 2);
                }
            }
    }

  private:
    // Vectors::encoded: bytes [tiles of 8 vectors][16][padded_dim], then scales [count].
    static int8_t* bytes(const Vectors& at, int v) {
        const int tile = v / int8_detail::kTileVectors, row = v % int8_detail::kTileVectors;
        return reinterpret_cast<int8_t*>(at.encoded) + (static_cast<size_t>(tile) * 16 + row) * at.padded_dim;
    }
    static void encode(Vectors& at) {
        alignas(64) int32_t numbers[kMaxHeadDim];
        for (int v = 0; v < at.count; ++v) {
            Int8Keys::scales(at)[v] = int8_detail::query_numbers(at, v, numbers);
            for (int d = 0; d < at.padded_dim; d += 16)
                int8_detail::store_bytes(bytes(at, v) + d, static_cast<size_t>(at.padded_dim), load(numbers + d));
        }
        at.encoded_as = kEncodedBytes;
        memory_is_written();
    }

    static void eight(const Vectors& at, const Pages& pages, int page, int v, int step) {
        const int8_t* q = bytes(at, v);
        const auto row = static_cast<size_t>(at.padded_dim), group = static_cast<size_t>(at.head_dim) * 16;
        const uint8_t* keys = pages.block(page);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < at.head_dim; d += step) {
            const uint8_t* k = keys + static_cast<size_t>(d) * 16;
            _tile_loadd(4, q + d, row);
            _tile_loadd(6, k, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, k + group, 64);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(6, k + 2 * group, 64);
            _tile_dpbssd(2, 4, 6);
            _tile_loadd(7, k + 3 * group, 64);
            _tile_dpbssd(3, 4, 7);
        }
        auto* sums = reinterpret_cast<int32_t*>(at.spare);
        store_tiles(sums);
        for (int g = 0; g < 4; ++g) finish(at, pages, page, v, g, sums + 256 * g);
    }

    static void two_by_two(const Vectors& at, const Pages& pages, int page, int v, int step, int first_group) {
        const int8_t *q = bytes(at, v), *q_lower = bytes(at, v + int8_detail::kTileVectors);
        const auto row = static_cast<size_t>(at.padded_dim), group = static_cast<size_t>(at.head_dim) * 16;
        const uint8_t* keys = pages.block(page) + group * first_group;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < at.head_dim; d += step) {
            const uint8_t* k = keys + static_cast<size_t>(d) * 16;
            _tile_loadd(4, q + d, row);
            _tile_loadd(6, k, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, k + group, 64);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, q_lower + d, row);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        auto* sums = reinterpret_cast<int32_t*>(at.spare);
        store_tiles(sums);
        for (int g = 0; g < 2; ++g) {
            finish(at, pages, page, v, first_group + g, sums + 256 * g);
            finish(at, pages, page, v + int8_detail::kTileVectors, first_group + g, sums + 256 * (2 + g));
        }
    }

    static void store_tiles(int32_t* sums) {
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 256, 64);
        _tile_stored(2, sums + 512, 64);
        _tile_stored(3, sums + 768, 64);
        memory_is_written();
    }

    static void finish(const Vectors& at, const Pages& pages, int page, int v, int group, const int32_t* sums) {
        const auto* key_scales =
            reinterpret_cast<const float*>(pages.block(page) + pages.layout(page).k_scale_offset);
        const F16 scale = load(key_scales + 16 * group);
        for (int r = 0; r < std::min(at.count - v, int8_detail::kTileVectors); ++r)
            store(at.page_scores(v + r, pages, page) + 16 * group,
                  (to_float(int8_detail::joined(sums, r)) * splat(Int8Keys::scales(at)[v + r])) * scale);
    }
};

struct Int8TileValues {
    static void add(Vectors& at, const Pages& pages) {
        const int8_detail::Scales scales(pages);
        const TileShapes shapes(16, 16, 64);
        const int columns = at.padded_dim / 16;
        for (int v = 0; v < at.count; v += 2 * int8_detail::kTileVectors) {
            Run run{pages, v, std::min(at.count - v, 2 * int8_detail::kTileVectors), {}};
            for (int i = 0; i < run.count; ++i) run.scales[i] = encode(at, run, i, scales);
            memory_is_written();
            if (run.count <= int8_detail::kTileVectors)
                for (int d = 0; d < columns; d += 4) eight(at, run, d, std::min(4, columns - d));
            else
                for (int d = 0; d < columns; d += 2) two_by_two(at, run, d, std::min(2, columns - d));
        }
    }

  private:
    static constexpr size_t kRow = kChunkTokens;  // bytes of a row of weights

    struct Run {
        const Pages& pages;
        int vector, count;
        float scales[2 * int8_detail::kTileVectors];
        const uint8_t* values(int page, int d) const {
            return pages.block(page) + pages.layout(page).v_offset + 64 * static_cast<size_t>(d);
        }
    };

    // Vectors::spare: bytes of two tiles of 8 vectors [2][16][kRow], then sums [4][16][16].
    static int8_t* bytes(const Vectors& at, int i) {
        const int tile = i / int8_detail::kTileVectors, row = i % int8_detail::kTileVectors;
        return reinterpret_cast<int8_t*>(at.spare) + (static_cast<size_t>(tile) * 16 + row) * kRow;
    }
    static int32_t* sums(const Vectors& at) { return reinterpret_cast<int32_t*>(at.spare + 32 * kRow); }

    static float encode(const Vectors& at, const Run& run, int i, const int8_detail::Scales& scales) {
        const float* weights = at.page_scores(run.vector + i, run.pages, run.pages.begin);
        int8_t* to = bytes(at, i);
        return int8_detail::weight_numbers(
            weights, scales.of, (run.pages.end - run.pages.begin) * kPageTokens, scales.finite,
            [&](int t, I16 numbers) { int8_detail::store_bytes(to + t, kRow, numbers); });
    }

    // Columns d .. d + count (at most 4, of 16 dimensions) of 8 vectors.
    static void eight(const Vectors& at, const Run& run, int d, int count) {
        const size_t row = static_cast<size_t>(at.padded_dim) * 4;
        const int8_t* weights = bytes(at, 0);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int page = run.pages.begin; page < run.pages.end; ++page, weights += kPageTokens) {
            const uint8_t* values = run.values(page, d);
            _tile_loadd(4, weights, kRow);
            _tile_loadd(6, values, row);
            _tile_dpbssd(0, 4, 6);
            if (count > 1) {
                _tile_loadd(7, values + 64, row);
                _tile_dpbssd(1, 4, 7);
            }
            if (count > 2) {
                _tile_loadd(6, values + 128, row);
                _tile_dpbssd(2, 4, 6);
            }
            if (count > 3) {
                _tile_loadd(7, values + 192, row);
                _tile_dpbssd(3, 4, 7);
            }
        }
        store_tiles(at);
        for (int c = 0; c < count; ++c) fold(at, run, 0, d + c, sums(at) + 256 * c);
    }

    // One or two columns of 16 vectors.
    static void two_by_two(const Vectors& at, const Run& run, int d, int count) {
        const size_t row = static_cast<size_t>(at.padded_dim) * 4;
        const int8_t *weights = bytes(at, 0), *lower = bytes(at, int8_detail::kTileVectors);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int page = run.pages.begin; page < run.pages.end; ++page, weights += kPageTokens, lower += kPageTokens) {
            const uint8_t* values = run.values(page, d);
            _tile_loadd(4, weights, kRow);
            _tile_loadd(6, values, row);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(5, lower, kRow);
            _tile_dpbssd(2, 5, 6);
            if (count > 1) {
                _tile_loadd(7, values + 64, row);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(3, 5, 7);
            }
        }
        store_tiles(at);
        for (int c = 0; c < count; ++c) {
            fold(at, run, 0, d + c, sums(at) + 256 * c);
            fold(at, run, int8_detail::kTileVectors, d + c, sums(at) + 256 * (2 + c));
        }
    }

    static void store_tiles(const Vectors& at) {
        _tile_stored(0, sums(at), 64);
        _tile_stored(1, sums(at) + 256, 64);
        _tile_stored(2, sums(at) + 512, 64);
        _tile_stored(3, sums(at) + 768, 64);
        memory_is_written();
    }

    // Column d of the vectors from `i` of the run.
    static void fold(const Vectors& at, const Run& run, int i, int d, const int32_t* tile) {
        for (int r = 0; r < std::min(run.count - i, int8_detail::kTileVectors); ++r) {
            float* out = at.output(run.vector + i + r) + 16 * d;
            store(out, fma(to_float(int8_detail::joined(tile, r)), splat(run.scales[i + r]), load(out)));
        }
    }
};

}  // namespace kvern::KVERN_ISA_NS
#endif
