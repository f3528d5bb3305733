// K6: rotary embedding (neox halves), then quantise-on-write of one row's K and V into its page.
#include "attention.h"
#include "dispatch.h"
#include "kv/formats.h"
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

}  // namespace

void rope_append(const RopeAppendRow& row) {
    const KvLayout& at = *row.layout;
    const int half = row.rotary_dims / 2;
    const WriteVector write_key = kKeyReaders[static_cast<int>(at.format.keys)].write;
    const WriteVector write_value = kValueReaders[static_cast<int>(at.format.values)].write;
    for (int h = 0; h < row.heads; ++h)
        rotate(row.q + static_cast<size_t>(h) * at.head_dim, row.cosine, row.sine, half);
    for (int h = 0; h < row.kv_heads; ++h) {
        float* k = row.k + static_cast<size_t>(h) * at.head_dim;
        rotate(k, row.cosine, row.sine, half);
        uint8_t* block = row.block + static_cast<size_t>(h) * at.block_bytes;
        write_key(at, block, row.slot, k);
        write_value(at, block, row.slot, row.v + static_cast<size_t>(h) * at.head_dim);
    }
}

void fill_rope_append(KernelTable& table) { table.attention.rope_append = rope_append; }

}  // namespace kvern::KVERN_ISA_NS
