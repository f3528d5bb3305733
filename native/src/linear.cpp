#include "linear.h"

#include <algorithm>
#include <stdexcept>

#include "threads.h"

namespace kvern {
namespace {

constexpr int64_t ROWS_BYTES = 192 << 10;  // encoded rows that stay in the second-level cache while tiles pass by

int64_t array_bytes(int64_t count, size_t item) { return round_up(count * static_cast<int64_t>(item), 64); }

struct RowCodeInfo {
    const char* name;
    int group;    // inputs that share a scale; 0: the whole row
    int padding;  // a row is padded with zeros to a multiple of it
};

const RowCodeInfo& info_of(RowCode code) {
#define KVERN_NAME(code, name) name,
    static constexpr const char* NAMES[] = {KVERN_ROW_CODES(KVERN_NAME)};
#undef KVERN_NAME
    static constexpr RowCodeInfo INFOS[kRowCodes] = {
        {NAMES[0], 0, 1},   {NAMES[1], 0, 32},  {NAMES[2], 32, 32},  {NAMES[3], 0, 64},
        {NAMES[4], 64, 64}, {NAMES[5], 64, 64}, {NAMES[6], 64, 64},  {NAMES[7], 64, 64},
        {NAMES[8], 64, 64}, {NAMES[9], 64, 64}, {NAMES[10], 64, 64},
    };
    return INFOS[static_cast<int>(code)];
}

int64_t code_stride(RowCode code, int64_t k) { return round_up(k, info_of(code).padding); }

int64_t group_count(RowCode code, int64_t k) {
    const int group = info_of(code).group;
    return group == 0 ? 1 : (k + group - 1) / group;
}

}  // namespace

size_t encoded_rows_bytes(RowCode code, int64_t rows, int64_t k) {
    if (code == RowCode::f32) return 0;
    const int64_t stride = code_stride(code, k), groups = group_count(code, k);
    if (code == RowCode::bf16) return static_cast<size_t>(array_bytes(rows * stride, 2));
    const int64_t sums_64 = code == RowCode::q8_row ? array_bytes(rows * sums_64_stride(k), 2) : 0;
    return static_cast<size_t>(array_bytes(rows * stride, 1) + 3 * array_bytes(rows * groups, 4) +
                               array_bytes(rows * groups * 2, 2) + sums_64);
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
    at += array_bytes(count * 2, 2);
    view.sums_64 = code == RowCode::q8_row ? reinterpret_cast<int16_t*>(at) : nullptr;
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

const char* row_code_name(RowCode code) { return info_of(code).name; }

RowCode parse_row_code(const std::string& name) {
    std::string known;
    for (int i = 0; i < kRowCodes; ++i) {
        const auto code = static_cast<RowCode>(i);
        if (name == row_code_name(code)) return code;
        known += (i ? ", " : " ") + std::string(row_code_name(code));
    }
    throw std::invalid_argument("unknown activation format '" + name + "'; known:" + known);
}

RowCode default_row_code(Format format, const LinearTable& table) {
    switch (format) {
        case Format::f32:
        case Format::f16:
        case Format::bitstack:
            return RowCode::f32;
        case Format::bf16:
        case Format::w4a16:
            return table.bf16_rows;
        case Format::w8a8:
        case Format::qoq:
            return RowCode::q8_row;
        case Format::w6:
        case Format::bipolar1:
        case Format::bipolar2:
        case Format::bipolar3:
        case Format::bipolar4:
        case Format::bipolar5:
        case Format::bipolar6:
        case Format::bipolar7:
        case Format::bipolar8:
            return RowCode::q8_group64;
        case Format::w4a4_mixed:
            return RowCode::mixed_4_8;
        default:
            return RowCode::q8_group;
    }
}

void encode_rows(Pool& pool, const LinearTable& table, const float* x, int64_t x_stride, const EncodedRows& out) {
    if (out.code == RowCode::f32) return;
    const EncodeKernel encode = table.encode[static_cast<int>(out.code)];
    pool.parallel_for(out.rows, 1, [&](int64_t begin, int64_t end, int) { encode(x, x_stride, out, begin, end); });
}

void run_linear(Pool& pool, const LinearTable& table, const LinearWork& work) {
    const EncodedRows& x = *work.x;
    const int64_t row_bytes = x.stride * (x.code == RowCode::f32 ? 4 : x.code == RowCode::bf16 ? 2 : 1);
    const int64_t chunk = std::max<int64_t>(16, ROWS_BYTES / row_bytes / 16 * 16);
    const int64_t tiles = (work.weight.n + 15) / 16, chunks = (x.rows + chunk - 1) / chunk;
    const TilesKernel kernel = table.at(work.weight.format, x.code);
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
