#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "threads.h"
#include "weight_codec.h"

namespace kvern {
namespace {

constexpr int64_t MAX_SIDE = int64_t{1} << 31;
const WeightCodec* CODECS[kFormats];

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

std::string named(const WeightCodec& codec, const WeightShape& shape) {
    return std::string(codec.name) + " weight [" + std::to_string(shape.n) + ", " + std::to_string(shape.k) + "]";
}

void check_shape(const WeightCodec& codec, const WeightShape& shape) {
    const std::string name = named(codec, shape);
    require(shape.n >= 1 && shape.k >= 1 && shape.n < MAX_SIDE && shape.k < MAX_SIDE,
            name + ": both sides must be at least 1");
    require(shape.k % codec.block == 0, name + ": inputs must be a multiple of " + std::to_string(codec.block));
    require(codec.max_inputs == 0 || shape.k <= codec.max_inputs,
            name + ": at most " + std::to_string(codec.max_inputs) + " inputs");
    require(codec.check_header || shape.header_bytes == 0, name + ": this format has no header");
    if (codec.check_header) codec.check_header(shape);
    require(codec.tile_bytes(shape) <= (int64_t{1} << 46) / ((shape.n + 15) / 16), name + ": too large");
}

void check_rows(const WeightCodec& codec, const WeightShape& shape, const FileRows& rows) {
    const auto row_bytes = static_cast<size_t>(codec.row_bytes(shape));
    const auto file_rows = static_cast<int64_t>(rows.bytes / row_bytes);
    require(rows.bytes % row_bytes == 0 && (rows.order ? file_rows >= 1 : file_rows == shape.n),
            named(codec, shape) + ": " + std::to_string(rows.bytes) + " bytes do not hold whole rows of " +
                std::to_string(row_bytes) + " bytes");
    for (int64_t i = 0; rows.order && i < shape.n; ++i)
        require(rows.order[i] >= 0 && rows.order[i] < file_rows, "row " + std::to_string(rows.order[i]) +
                                                                     " of the permutation is not one of the " +
                                                                     std::to_string(file_rows) + " rows given");
}

void check_finite(const WeightCodec& codec, const float* data, int64_t n, int64_t k) {
    for (int64_t i = 0; i < n * k; ++i)
        require(std::isfinite(data[i]), std::string(codec.name) + ": weight [" + std::to_string(i / k) + ", " +
                                            std::to_string(i % k) + "] is not a finite number");
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

}  // namespace

RegisterCodec::RegisterCodec(Format format, const WeightCodec& codec) { CODECS[static_cast<int>(format)] = &codec; }

const WeightCodec& codec_of(Format format) {
    const WeightCodec* codec = CODECS[static_cast<int>(format)];
    require(codec != nullptr, "this weight format has no codec");
    return *codec;
}

Format parse_format(const std::string& name) {
    std::string lower = name, known;
    for (char& c : lower) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
        if (c == '-') c = '_';
    }
    for (int i = 0; i < kFormats; ++i) {
        if (CODECS[i] == nullptr) continue;
        if (lower == CODECS[i]->name) return static_cast<Format>(i);
        known += std::string(" ") + CODECS[i]->name;
    }
    throw std::invalid_argument("unknown weight format '" + name + "'; known:" + known);
}

void PackedWeight::Free::operator()(uint8_t* p) const { std::free(p); }

PackedWeight::PackedWeight(Format format, const WeightShape& shape) {
    const WeightCodec& codec = codec_of(format);
    check_shape(codec, shape);
    const int64_t kept = codec.parts ? codec.parts->kept_header(shape) : shape.header_bytes;
    if (kept > 0) header_.assign(shape.header, shape.header + kept);
    view_.n = shape.n;
    view_.k = shape.k;
    view_.header = header_.data();
    view_.header_bytes = kept;
    view_.format = format;
    view_.tile_bytes = codec.tile_bytes(shape);
    if (codec.parts) {
        parts_.resize(static_cast<size_t>(codec.parts->count(shape)));
        part_data_.resize(parts_.size());
        view_.parts = part_data_.data();
        return;
    }
    bytes_ = static_cast<size_t>(view_.tile_bytes * ((shape.n + 15) / 16));
    memory_ = allocate(bytes_);
    view_.data = memory_.get();
}

PackedWeight::Memory PackedWeight::allocate(size_t bytes) {
    constexpr size_t HUGE_PAGE = size_t{2} << 20;
    const size_t align = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
    Memory memory(static_cast<uint8_t*>(std::aligned_alloc(align, (bytes + align - 1) / align * align)));
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (align == HUGE_PAGE) madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

void PackedWeight::keep_parts(int32_t count) {
    require(!parts_.empty(), "this weight format is not kept in parts");
    require(count >= 1 && count <= parts(),
            std::to_string(count) + " parts: there are 1 to " + std::to_string(parts()));
    for (; view_.resident > count; --view_.resident) {
        bytes_ -= part_bytes();
        parts_[static_cast<size_t>(view_.resident - 1)].reset();
    }
#if defined(__GLIBC__)
    malloc_trim(0);  // parts lie between others: whole pages of theirs go back now, not at some later time
#endif
}

void PackedWeight::add_parts(int32_t count, const WeightShape& shape, const FileRows& rows, Pool* pool) {
    const WeightCodec& codec = codec_of(view_.format);
    require(codec.parts != nullptr, "this weight format is not kept in parts");
    require(count >= 1 && count <= parts(),
            std::to_string(count) + " parts: there are 1 to " + std::to_string(parts()));
    check_shape(codec, shape);
    require(shape.n == view_.n && shape.k == view_.k && codec.parts->kept_header(shape) == view_.header_bytes &&
                std::memcmp(shape.header, view_.header, header_.size()) == 0,
            named(codec, shape) + ": not the matrix that this weight was made from");
    check_rows(codec, shape, rows);
    const auto bytes = static_cast<size_t>(codec.parts->bytes(shape));
    const int32_t first = view_.resident;
    for (int32_t part = first; part < count; ++part) parts_[static_cast<size_t>(part)] = allocate(bytes);
    for_each_tile(pool, std::max(0, count - first), [&](int64_t i) {
        uint8_t* out = parts_[static_cast<size_t>(first + i)].get();
        std::memset(out, 0, bytes);
        codec.parts->pack(shape, static_cast<int32_t>(first + i), out, rows.data, rows.order);
    });
    for (int32_t part = first; part < count; ++part) {
        part_data_[static_cast<size_t>(part)] = parts_[static_cast<size_t>(part)].get();
        bytes_ += bytes;
        ++view_.resident;
    }
    view_.data = part_data_[0];
}

PackedWeight PackedWeight::from_blocks(Format format, const WeightShape& shape, const FileRows& rows, Pool* pool) {
    const WeightCodec& codec = codec_of(format);
    check_shape(codec, shape);
    check_rows(codec, shape, rows);
    PackedWeight packed(format, shape);
    if (codec.parts) {
        packed.add_parts(rows.parts ? rows.parts : packed.parts(), shape, rows, pool);
        return packed;
    }
    const WeightView& view = packed.view_;
    for_each_tile(pool, (shape.n + 15) / 16, [&](int64_t tile) {
        uint8_t* out = packed.memory_.get() + tile * view.tile_bytes;
        std::memset(out, 0, static_cast<size_t>(view.tile_bytes));
        codec.pack_tile(view, out, tile, rows.data, rows.order);
    });
    return packed;
}

PackedWeight PackedWeight::from_float(Format format, const float* data, int64_t n, int64_t k, Pool* pool) {
    const WeightCodec& codec = codec_of(format);
    require(codec.pack_float != nullptr,
            std::string(codec.name) + " cannot be made from float32 rows; f32, bf16 and w8a8 can");
    if (format == Format::w8a8) check_finite(codec, data, n, k);
    PackedWeight packed(format, {n, k});
    const WeightView& view = packed.view_;
    for_each_tile(pool, (n + 15) / 16, [&](int64_t tile) {
        uint8_t* out = packed.memory_.get() + tile * view.tile_bytes;
        std::memset(out, 0, static_cast<size_t>(view.tile_bytes));
        codec.pack_float(view, out, tile, data);
    });
    return packed;
}

void PackedWeight::row(int64_t row, float* out) const {
    codec_of(view_.format).row(view_, view_.data + row / 16 * view_.tile_bytes, static_cast<int>(row % 16), out);
}

float float_of_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | fraction << 13;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace kvern
