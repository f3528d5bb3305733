#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "block_codes.h"
#include "linear.h"
#include "threads.h"

namespace kvern {
namespace {

constexpr FormatInfo FORMATS[] = {
    {"q4_0", 32, 18, 4, 1, false},  {"q4_1", 32, 20, 4, 2, false},  {"q5_0", 32, 22, 5, 1, false},
    {"q5_1", 32, 24, 5, 2, false},  {"q8_0", 32, 34, 8, 1, false},  {"q4_k", 256, 144, 4, 2, true},
    {"q5_k", 256, 176, 5, 2, true}, {"q6_k", 256, 210, 6, 1, true}, {"f32", 1, 4, 0, 0, false},
    {"f16", 1, 2, 0, 0, false},     {"bf16", 1, 2, 0, 0, false},    {"w8a8", 1, 0, 8, 0, false},
};
constexpr int64_t MAX_SIDE = int64_t{1} << 31;
constexpr int64_t MAX_W8A8_INPUTS = 65536;  // 255 * 127 * k stays below 2^31

using Rows = const int32_t*;

uint16_t bf16_of(float f) {
    uint32_t b;
    std::memcpy(&b, &f, 4);
    if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((b >> 16) | 64u);
    return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

void check_shape(Format format, int64_t n, int64_t k) {
    const FormatInfo& info = format_info(format);
    const std::string shape =
        std::string(info.name) + " weight [" + std::to_string(n) + ", " + std::to_string(k) + "]";
    require(n >= 1 && k >= 1 && n < MAX_SIDE && k < MAX_SIDE, shape + ": both sides must be at least 1");
    require(k % info.block == 0, shape + ": inputs must be a multiple of " + std::to_string(info.block));
    require(format != Format::w8a8 || k <= MAX_W8A8_INPUTS, shape + ": at most 65536 inputs");
    require(packed_tile_bytes(format, k) <= (int64_t{1} << 46) / ((n + 15) / 16), shape + ": too large");
}

// f(tile) for every tile, on the pool if there is one.
template <class F>
void for_each_tile(Pool* pool, int64_t tiles, F f) {
    const auto range = [&](int64_t begin, int64_t end, int) {
        for (int64_t tile = begin; tile < end; ++tile) f(tile);
    };
    if (pool)
        pool->parallel_for(tiles, 1, range);
    else
        range(0, tiles, 0);
}

// Plain numbers of `size` bytes into [inputs][16] or, for bf16, [inputs / 2][16][2].
void pack_plain(const WeightView& view, uint8_t* out, int64_t tile, const uint8_t* data, Rows rows) {
    const int size = format_info(view.format).block_bytes;
    const int deep = view.format == Format::bf16 ? 2 : 1;
    for (int64_t lane = 0; lane < 16 && tile * 16 + lane < view.n; ++lane) {
        const int64_t row = rows ? rows[tile * 16 + lane] : tile * 16 + lane;
        const uint8_t* in = data + row * view.k * size;
        for (int64_t i = 0; i < view.k; ++i) {
            const int64_t at = i / deep * 16 * deep + lane * deep + i % deep;
            std::memcpy(out + at * size, in + i * size, static_cast<size_t>(size));
        }
    }
}

void pack_w8a8(const WeightView& view, uint8_t* out, int64_t tile, const float* data) {
    const int64_t lanes = std::min<int64_t>(16, view.n - tile * 16);
    uint8_t* codes = out + 64;
    std::memset(codes, 128, static_cast<size_t>(view.tile_bytes - 64));
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const float* in = data + (tile * 16 + lane) * view.k;
        float largest = 0.0f;
        for (int64_t i = 0; i < view.k; ++i) largest = std::max(largest, std::fabs(in[i]));
        const bool usable = largest / 127.0f >= 0x1p-126f;  // the kernels take smaller numbers for zero
        const float scale = usable ? largest / 127.0f : 0.0f, inverse = usable ? 127.0f / largest : 0.0f;
        std::memcpy(out + 4 * lane, &scale, 4);
        for (int64_t i = 0; i < view.k; ++i) {
            const float code = std::nearbyint(in[i] * inverse);
            codes[i / 4 * 64 + lane * 4 + i % 4] =
                static_cast<uint8_t>(static_cast<int>(std::min(127.0f, std::max(-127.0f, code))) + 128);
        }
    }
}

void check_rows(const float* data, int64_t n, int64_t k) {
    for (int64_t i = 0; i < n * k; ++i)
        require(std::isfinite(data[i]),
                "w8a8: weight [" + std::to_string(i / k) + ", " + std::to_string(i % k) + "] is not a finite number");
}

// Inputs of one row that lie `deep` apart in lanes of plain numbers.
void plain_row(const WeightView& view, const uint8_t* tile, int64_t lane, float* out) {
    for (int64_t i = 0; i < view.k; ++i) {
        if (view.format == Format::f32) {
            std::memcpy(out + i, tile + (i * 16 + lane) * 4, 4);
            continue;
        }
        uint16_t half;
        const int64_t at = view.format == Format::bf16 ? i / 2 * 32 + lane * 2 + i % 2 : i * 16 + lane;
        std::memcpy(&half, tile + at * 2, 2);
        if (view.format == Format::f16) {
            out[i] = float_of_half(half);
        } else {
            const uint32_t bits = static_cast<uint32_t>(half) << 16;
            std::memcpy(out + i, &bits, 4);
        }
    }
}

void w8a8_row(const WeightView& view, const uint8_t* tile, int64_t lane, float* out) {
    float scale;
    std::memcpy(&scale, tile + 4 * lane, 4);
    for (int64_t i = 0; i < view.k; ++i)
        out[i] = scale * static_cast<float>(tile[64 + i / 4 * 64 + lane * 4 + i % 4] - 128);
}

}  // namespace

const FormatInfo& format_info(Format format) { return FORMATS[static_cast<int>(format)]; }

Format parse_format(const std::string& name) {
    std::string lower = name, known;
    for (char& c : lower)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    for (int i = 0; i < 12; ++i) {
        if (lower == FORMATS[i].name) return static_cast<Format>(i);
        known += std::string(" ") + FORMATS[i].name;
    }
    throw std::invalid_argument("unknown weight format '" + name + "'; known:" + known);
}

int64_t packed_tile_bytes(Format format, int64_t k) {
    switch (format) {
        case Format::f32:
            return k * 64;
        case Format::f16:
            return round_up(k, 2) * 32;
        case Format::bf16:
            return round_up(k, 32) * 32;
        case Format::w8a8:
            return 64 + round_up(k, 64) * 16;
        default:
            return packed_blocks_bytes(format, k);
    }
}

void PackedWeight::Free::operator()(uint8_t* p) const { std::free(p); }

PackedWeight::PackedWeight(Format format, int64_t n, int64_t k) {
    check_shape(format, n, k);
    view_.format = format;
    view_.n = n;
    view_.k = k;
    view_.tile_bytes = packed_tile_bytes(format, k);
    bytes_ = static_cast<size_t>(view_.tile_bytes * ((n + 15) / 16));
    constexpr size_t HUGE_PAGE = size_t{2} << 20;
    const size_t align = bytes_ >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(align, (bytes_ + align - 1) / align * align)));
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
    if (align == HUGE_PAGE) madvise(memory_.get(), bytes_, MADV_HUGEPAGE);
#endif
    view_.data = memory_.get();
}

PackedWeight PackedWeight::from_blocks(Format format, const uint8_t* data, size_t bytes, int64_t n, int64_t k,
                                       const int32_t* rows, Pool* pool) {
    const FormatInfo& info = format_info(format);
    require(info.block_bytes > 0, std::string(info.name) + " is made from float32 rows, not from file blocks");
    check_shape(format, n, k);
    const auto row_bytes = static_cast<size_t>(k / info.block * info.block_bytes);
    const auto file_rows = static_cast<int64_t>(bytes / row_bytes);
    require(bytes % row_bytes == 0 && (rows ? file_rows >= 1 : file_rows == n),
            std::string(info.name) + " weight [" + std::to_string(n) + ", " + std::to_string(k) + "]: " +
                std::to_string(bytes) + " bytes do not hold whole rows of " + std::to_string(row_bytes) + " bytes");
    for (int64_t i = 0; rows && i < n; ++i)
        require(rows[i] >= 0 && rows[i] < file_rows, "row " + std::to_string(rows[i]) +
                                                         " of the permutation is not " + "one of the " +
                                                         std::to_string(file_rows) + " rows given");
    PackedWeight packed(format, n, k);
    const WeightView& view = packed.view_;
    for_each_tile(pool, (n + 15) / 16, [&](int64_t tile) {
        uint8_t* out = packed.memory_.get() + tile * view.tile_bytes;
        std::memset(out, 0, static_cast<size_t>(view.tile_bytes));
        if (info.bits == 0)
            pack_plain(view, out, tile, data, rows);
        else
            pack_blocks(view, out, tile, data, rows);
    });
    return packed;
}

PackedWeight PackedWeight::from_float(Format format, const float* data, int64_t n, int64_t k, Pool* pool) {
    if (format == Format::f32)
        return from_blocks(format, reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(n * k) * 4, n, k,
                           nullptr, pool);
    require(format == Format::bf16 || format == Format::w8a8,
            std::string(format_info(format).name) + " cannot be made from float32 rows; f32, bf16 and w8a8 can");
    check_shape(format, n, k);
    if (format == Format::bf16) {
        std::vector<uint16_t> halves(static_cast<size_t>(n * k));
        std::transform(data, data + n * k, halves.begin(), bf16_of);
        return from_blocks(format, reinterpret_cast<const uint8_t*>(halves.data()), halves.size() * 2, n, k, nullptr,
                           pool);
    }
    check_rows(data, n, k);
    PackedWeight packed(format, n, k);
    const WeightView& view = packed.view_;
    for_each_tile(pool, (n + 15) / 16, [&](int64_t tile) {
        uint8_t* out = packed.memory_.get() + tile * view.tile_bytes;
        std::memset(out, 0, 64);
        pack_w8a8(view, out, tile, data);
    });
    return packed;
}

void PackedWeight::row(int64_t row, float* out) const {
    const uint8_t* tile = view_.data + row / 16 * view_.tile_bytes;
    const FormatInfo& info = format_info(view_.format);
    if (view_.format == Format::w8a8)
        w8a8_row(view_, tile, row % 16, out);
    else if (info.bits == 0)
        plain_row(view_, tile, row % 16, out);
    else
        unpack_row(view_, tile, static_cast<int>(row % 16), out);
}

}  // namespace kvern
