// K6: rotary embedding (neox halves), then quantise-on-write of one row's K and V into its page.
#include <limits>

#include "attention.h"
#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

void rotate(float* x, const float* cosine, const float* sine, int half) {
    for (int i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const F16 c = load_first(cosine + i, n), s = load_first(sine + i, n);
        const F16 a = load_first(x + i, n), b = load_first(x + half + i, n);
        store_first(x + i, fma(a, c, splat(0.0f) - b * s), n);
        store_first(x + half + i, fma(b, c, a * s), n);
    }
}

float largest(const float* x, int dim) {
    F16 top = splat(0.0f);
    bool finite = true;
    for (int i = 0; i < dim; i += 16) top = max(top, abs(load_first(x + i, dim - i)));
    // A vector max may drop a NaN, so that is looked for apart.
    for (int i = 0; i < dim; ++i) finite = finite && std::fabs(x[i]) <= std::numeric_limits<float>::max();
    return finite ? quick_max(top) : std::numeric_limits<float>::quiet_NaN();
}

// Codes of x and their scale: max|x| / 127, nearest even. A row that is not finite gets a NaN scale and zero codes,
// so that whatever attends to it becomes NaN and its sequence is reported.
float quantise(const float* x, int dim, int8_t* codes) {
    const float top = largest(x, dim);
    if (!(top > 0.0f)) {
        std::memset(codes, 0, static_cast<size_t>(dim));
        return top;  // 0 or NaN
    }
    const F16 inverse = splat(127.0f / top), limit = splat(127.0f), low = splat(-127.0f);
    for (int i = 0; i < dim; i += 16) {
        const int n = dim - i < 16 ? dim - i : 16;
        int32_t code[16];
        store(code, to_int_nearest(max(min(load_first(x + i, n) * inverse, limit), low)));
        for (int j = 0; j < n; ++j) codes[i + j] = static_cast<int8_t>(code[j]);
    }
    return top / 127.0f;
}

void write_bf16(const KvLayout& at, uint8_t* block, int slot, const float* k, const float* v) {
    auto* keys = reinterpret_cast<uint16_t*>(block);
    auto* values = reinterpret_cast<uint16_t*>(block + at.v_offset) + static_cast<size_t>(slot) * at.padded_dim;
    for (int d = 0; d < at.head_dim; ++d) {
        keys[at.k_index(slot, d)] = to_bf16(k[d]);
        values[d] = to_bf16(v[d]);
    }
    for (int d = at.head_dim; d < at.padded_dim; ++d) values[d] = 0;
}

void write_kv8(const KvLayout& at, uint8_t* block, int slot, const float* k, const float* v) {
    int8_t codes[kMaxHeadDim];
    auto* keys = reinterpret_cast<int8_t*>(block);
    auto* values = reinterpret_cast<int8_t*>(block + at.v_offset) + static_cast<size_t>(slot) * at.padded_dim;
    reinterpret_cast<float*>(block + at.k_scale_offset)[slot] = quantise(k, at.head_dim, codes);
    for (int d = 0; d < at.head_dim; d += 4) std::memcpy(keys + at.k_index(slot, d), codes + d, 4);
    reinterpret_cast<float*>(block + at.v_scale_offset)[slot] = quantise(v, at.head_dim, codes);
    std::memcpy(values, codes, static_cast<size_t>(at.head_dim));
    std::memset(values + at.head_dim, 0, static_cast<size_t>(at.padded_dim - at.head_dim));
}

}  // namespace

void rope_append(const RopeAppendRow& row) {
    const KvLayout& at = *row.layout;
    const int half = row.rotary_dims / 2;
    for (int h = 0; h < row.heads; ++h)
        rotate(row.q + static_cast<size_t>(h) * at.head_dim, row.cosine, row.sine, half);
    for (int h = 0; h < row.kv_heads; ++h) {
        float* k = row.k + static_cast<size_t>(h) * at.head_dim;
        const float* v = row.v + static_cast<size_t>(h) * at.head_dim;
        rotate(k, row.cosine, row.sine, half);
        uint8_t* block = row.block + static_cast<size_t>(h) * at.block_bytes;
        if (at.format == KvFormat::bf16)
            write_bf16(at, block, row.slot, k, v);
        else
            write_kv8(at, block, row.slot, k, v);
    }
}

void fill_rope_append(KernelTable& table) { table.attention.rope_append = rope_append; }

}  // namespace kvern::KVERN_ISA_NS
