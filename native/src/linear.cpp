#include "linear.h"

#include <algorithm>

#include "threads.h"

namespace kvern {
namespace {

constexpr int64_t ROWS_BYTES = 192 << 10;  // encoded rows that stay in the second-level cache while tiles pass by

int64_t array_bytes(int64_t count, size_t item) { return round_up(count * static_cast<int64_t>(item), 64); }

int64_t code_stride(RowCode code, int64_t k) {
    if (code == RowCode::q8_row) return round_up(k, 64);
    return code == RowCode::bf16 ? round_up(k, 32) : k;
}

int64_t group_count(RowCode code, int64_t k) { return code == RowCode::q8_group ? k / 32 : 1; }

}  // namespace

size_t encoded_rows_bytes(RowCode code, int64_t rows, int64_t k) {
    if (code == RowCode::f32) return 0;
    const int64_t stride = code_stride(code, k), groups = group_count(code, k);
    if (code == RowCode::bf16) return static_cast<size_t>(array_bytes(rows * stride, 2));
    return static_cast<size_t>(array_bytes(rows * stride, 1) + 3 * array_bytes(rows * groups, 4) +
                               array_bytes(rows * groups * 2, 2));
}

EncodedRows encoded_rows_view(RowCode code, int64_t rows, int64_t k, void* memory) {
    EncodedRows view{};
    view.code = code;
    view.rows = rows;
    view.k = k;
    view.stride = code_stride(code, k);
    view.groups = group_count(code, k);
    if (code == RowCode::bf16) {
        view.bf16 = static_cast<uint16_t*>(memory);
        return view;
    }
    auto* at = static_cast<uint8_t*>(memory);
    const int64_t count = rows * view.groups;
    view.codes = reinterpret_cast<int8_t*>(at);
    at += array_bytes(rows * view.stride, 1);
    view.scales = reinterpret_cast<float*>(at);
    at += array_bytes(count, 4);
    view.scaled_sums = reinterpret_cast<float*>(at);
    at += array_bytes(count, 4);
    view.sums = reinterpret_cast<int32_t*>(at);
    at += array_bytes(count, 4);
    view.half_sums = reinterpret_cast<int16_t*>(at);
    return view;
}

EncodedRows plain_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k) {
    EncodedRows view{};
    view.code = RowCode::f32;
    view.rows = rows;
    view.k = k;
    view.stride = x_stride;
    view.f32 = x;
    return view;
}

RowCode row_code(Format format, const LinearTable& table) {
    switch (format) {
        case Format::f32:
        case Format::f16:
            return RowCode::f32;
        case Format::bf16:
            return table.bf16_rows;
        case Format::w8a8:
            return RowCode::q8_row;
        default:
            return RowCode::q8_group;
    }
}

void encode_rows(Pool& pool, const LinearTable& table, const float* x, int64_t x_stride, const EncodedRows& out) {
    if (out.code == RowCode::f32) return;
    pool.parallel_for(out.rows, 1,
                      [&](int64_t begin, int64_t end, int) { table.encode(x, x_stride, out, begin, end); });
}

void run_linear(Pool& pool, const LinearTable& table, const LinearWork& work) {
    const EncodedRows& x = *work.x;
    const int64_t row_bytes = x.stride * (x.code == RowCode::f32 ? 4 : x.code == RowCode::bf16 ? 2 : 1);
    const int64_t chunk = std::max<int64_t>(16, ROWS_BYTES / row_bytes / 16 * 16);
    const int64_t tiles = (work.weight.n + 15) / 16, chunks = (x.rows + chunk - 1) / chunk;
    const auto kernel = table.tiles[static_cast<int>(work.weight.format)];
    // Items are (chunk of rows, tile), chunk by chunk; each worker runs its contiguous share.
    pool.parallel_for(chunks * tiles, 1, [&](int64_t begin, int64_t end, int) {
        while (begin < end) {
            const int64_t c = begin / tiles, tile = begin % tiles;
            const int64_t last = std::min(tiles, tile + end - begin);
            kernel(work, c * chunk, std::min(x.rows, (c + 1) * chunk), tile, last);
            begin += last - tile;
        }
    });
}

}  // namespace kvern
