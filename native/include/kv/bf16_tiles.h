// bf16 keys and values through AMX tiles, for any number of rows (16 at a time; a product costs the same for fewer).
// Queries and softmax weights are rounded to bf16; products are summed in float32. Empty on other instruction sets.
#pragma once
#include "bf16.h"

#if defined(KVERN_ISA_amx)
#include <cstring>

#include "../amx_tiles.h"

namespace kvern::KVERN_ISA_NS {

constexpr int kEncodedBf16 = 2;  // Vectors::encoded_as

// The largest divisor of `n` up to `most` that is a multiple of `unit`: what one tile product takes of a row.
inline int tile_step(int n, int unit, int most) {
    for (int step = most; step > unit; step -= unit)
        if (n % step == 0) return step;
    return unit;
}

// 32 values as bf16, nearest even; denormals become zero.
inline void store_bf16(uint16_t* to, F16 a, F16 b) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}

struct Bf16TileKeys {
    static void scores(Vectors& at, const Pages& pages) {
        if (at.encoded_as != kEncodedBf16) encode(at);
        const int step = tile_step(at.head_dim, 2, 32);
        const TileShapes shapes(16, 16, step * 2);
        for (int page = pages.begin; page < pages.end; ++page) {
            for (int v = 0; v < at.count; v += 32) {
                const int rest = std::min(at.count - v, 32);
                const Vectors::Range seen = at.seen(v, rest, page);
                if (seen.begin >= seen.end) continue;
                if (rest <= 16) {
                    sixteen(at, pages, page, v, step);
                } else {
                    if (seen.begin < 32) two_by_two(at, pages, page, v, step, 0);
                    if (seen.end > 32) two_by_two(at, pages, page, v, step, 2);
                }
            }
        }
    }

  private:
    // Vectors::encoded: bf16 [count rounded up to 16][head_dim].
    static uint16_t* halves(const Vectors& at, int v) {
        return reinterpret_cast<uint16_t*>(at.encoded) + static_cast<size_t>(v) * at.head_dim;
    }
    static void encode(Vectors& at) {
        for (int v = 0; v < at.count; ++v)
            for (int d = 0; d < at.head_dim; ++d) halves(at, v)[d] = to_bf16(at.query(v)[d]);
        std::fill(halves(at, at.count), halves(at, (at.count + 15) / 16 * 16), uint16_t{0});
        at.encoded_as = kEncodedBf16;
        memory_is_written();
    }

    // Scores of 16 vectors for all 64 tokens.
    static void sixteen(const Vectors& at, const Pages& pages, int page, int v, int step) {
        const uint16_t* q = halves(at, v);
        const auto* keys = reinterpret_cast<const uint16_t*>(pages.block(page));
        const size_t group = static_cast<size_t>(at.head_dim) * 16, row = static_cast<size_t>(at.head_dim) * 2;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < at.head_dim; d += step) {
            const uint16_t* k = keys + static_cast<size_t>(d) * 16;
            _tile_loadd(4, q + d, row);
            _tile_loadd(6, k, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, k + group, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, k + 2 * group, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, k + 3 * group, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
        float* to = at.page_scores(v, pages, page);
        _tile_stored(0, to, at.score_stride * 4);
        _tile_stored(1, to + 16, at.score_stride * 4);
        _tile_stored(2, to + 32, at.score_stride * 4);
        _tile_stored(3, to + 48, at.score_stride * 4);
        memory_is_written();
    }

    // Scores of 32 vectors for two groups of 16 tokens.
    static void two_by_two(const Vectors& at, const Pages& pages, int page, int v, int step, int first_group) {
        const uint16_t *q = halves(at, v), *q_lower = halves(at, v + 16);
        const size_t group = static_cast<size_t>(at.head_dim) * 16, row = static_cast<size_t>(at.head_dim) * 2;
        const auto* keys = reinterpret_cast<const uint16_t*>(pages.block(page)) + group * first_group;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < at.head_dim; d += step) {
            const uint16_t* k = keys + static_cast<size_t>(d) * 16;
            _tile_loadd(4, q + d, row);
            _tile_loadd(6, k, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, k + group, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, q_lower + d, row);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        float *upper = at.page_scores(v, pages, page) + 16 * first_group,
              *lower = at.page_scores(v + 16, pages, page) + 16 * first_group;
        _tile_stored(0, upper, at.score_stride * 4);
        _tile_stored(1, upper + 16, at.score_stride * 4);
        _tile_stored(2, lower, at.score_stride * 4);
        _tile_stored(3, lower + 16, at.score_stride * 4);
        memory_is_written();
    }
};

struct Bf16TileValues {
    static void add(Vectors& at, const Pages& pages) {
        const TileShapes shapes(16, 16, 64);
        const uint8_t* last = last_page(at, pages);
        const int columns = at.padded_dim / 16;
        for (int v = 0; v < at.count; v += 32) {
            Run run{pages, last, v, pages.begin, pages.end};
            const int rest = std::min(at.count - v, 32);
            while (run.begin < run.end && empty(at.seen(v, rest, run.begin))) ++run.begin;
            while (run.begin < run.end && empty(at.seen(v, rest, run.end - 1))) --run.end;
            if (run.begin == run.end) continue;
            for (int i = v; i < v + rest; ++i) encode(at, run, i);
            memory_is_written();
            if (rest <= 16)
                for (int d = 0; d < columns; d += 4) four(at, run, d, std::min(4, columns - d));
            else
                for (int d = 0; d < columns; d += 2) two_by_two(at, run, d, std::min(2, columns - d));
        }
    }

  private:
    // Vectors from `vector`, over pages [begin, end).
    struct Run {
        const Pages& pages;
        const uint8_t* last;  // values of the last page of all
        int vector, begin, end;
        const uint8_t* values(int page) const {
            return page == pages.end - 1 ? last : pages.block(page) + pages.layout(page).v_offset;
        }
    };
    static bool empty(const Vectors::Range& range) { return range.begin >= range.end; }

    // Values of the last page; a copy with zeros in place of tokens that were not written, since 0 x NaN is NaN.
    static const uint8_t* last_page(const Vectors& at, const Pages& pages) {
        const int page = pages.end - 1, tokens = pages.tokens(page);
        const uint8_t* values = pages.block(page) + pages.layout(page).v_offset;
        if (tokens >= kPageTokens) return values;
        const size_t row = static_cast<size_t>(at.padded_dim) * 4, whole = row * static_cast<size_t>(tokens / 2);
        std::memset(at.spare, 0, row * kPageTokens / 2);
        std::memcpy(at.spare, values, whole);
        if (tokens % 2 != 0)
            for (size_t i = whole; i < whole + row; i += 4) std::memcpy(at.spare + i, values + i, 2);
        return at.spare;
    }

    // Weights of the run's pages to bf16, in place from the first of them.
    static void encode(const Vectors& at, const Run& run, int v) {
        float* weights = at.page_scores(v, run.pages, run.begin);
        auto* halves = reinterpret_cast<uint16_t*>(weights);
        for (int t = 0; t < (run.end - run.begin) * kPageTokens; t += 32)
            store_bf16(halves + t, load(weights + t), load(weights + t + 16));
    }

    // Columns d .. d + count (at most 4, of 16 dimensions) of 16 vectors.
    static void four(const Vectors& at, const Run& run, int d, int count) {
        const size_t row = static_cast<size_t>(at.padded_dim) * 4, weight_row = at.score_stride * 4;
        float* out = at.out + static_cast<size_t>(run.vector) * at.padded_dim + 16 * d;
        const auto* weights = reinterpret_cast<const uint8_t*>(at.page_scores(run.vector, run.pages, run.begin));
        _tile_loadd(0, out, row);
        if (count > 1) _tile_loadd(1, out + 16, row);
        if (count > 2) _tile_loadd(2, out + 32, row);
        if (count > 3) _tile_loadd(3, out + 48, row);
        for (int page = run.begin; page < run.end; ++page)
            for (int half = 0; half < 2; ++half, weights += 64) {
                const uint8_t* values = run.values(page) + 16 * row * half + 64 * d;
                _tile_loadd(4, weights, weight_row);
                _tile_loadd(6, values, row);
                _tile_dpbf16ps(0, 4, 6);
                if (count > 1) {
                    _tile_loadd(7, values + 64, row);
                    _tile_dpbf16ps(1, 4, 7);
                }
                if (count > 2) {
                    _tile_loadd(6, values + 128, row);
                    _tile_dpbf16ps(2, 4, 6);
                }
                if (count > 3) {
                    _tile_loadd(7, values + 192, row);
                    _tile_dpbf16ps(3, 4, 7);
                }
            }
        _tile_stored(0, out, row);
        if (count > 1) _tile_stored(1, out + 16, row);
        if (count > 2) _tile_stored(2, out + 32, row);
        if (count > 3) _tile_stored(3, out + 48, row);
        memory_is_written();
    }

    // One or two columns of 32 vectors.
    static void two_by_two(const Vectors& at, const Run& run, int d, int count) {
        const size_t row = static_cast<size_t>(at.padded_dim) * 4, weight_row = at.score_stride * 4;
        float *out = at.out + static_cast<size_t>(run.vector) * at.padded_dim + 16 * d,
              *lower = out + 16 * static_cast<size_t>(at.padded_dim);
        const auto* weights = reinterpret_cast<const uint8_t*>(at.page_scores(run.vector, run.pages, run.begin));
        _tile_loadd(0, out, row);
        _tile_loadd(2, lower, row);
        if (count > 1) _tile_loadd(1, out + 16, row);
        if (count > 1) _tile_loadd(3, lower + 16, row);
        for (int page = run.begin; page < run.end; ++page)
            for (int half = 0; half < 2; ++half, weights += 64) {
                const uint8_t* values = run.values(page) + 16 * row * half + 64 * d;
                _tile_loadd(4, weights, weight_row);
                _tile_loadd(6, values, row);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, weights + 16 * weight_row, weight_row);
                _tile_dpbf16ps(2, 5, 6);
                if (count > 1) {
                    _tile_loadd(7, values + 64, row);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
        _tile_stored(0, out, row);
        _tile_stored(2, lower, row);
        if (count > 1) _tile_stored(1, out + 16, row);
        if (count > 1) _tile_stored(3, lower + 16, row);
        memory_is_written();
    }
};

}  // namespace kvern::KVERN_ISA_NS
#endif
