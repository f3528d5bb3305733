// Where one token's key and value lie inside a 64-token page. Shared by all instruction sets.
//
// A page holds, for every layer and every KV head, one block: K, V, then (kv8) the scales of K and of V.
// K is stored so that 16 neighbouring lanes are 16 tokens: bf16 [4][dim/2][16][2], int8 [4][dim/4][16][4].
// V is stored row by row, each row padded with zeros to a multiple of 16 values.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvern {

enum class KvFormat : int32_t { bf16 = 0, kv8 = 1 };

constexpr int kPageTokens = 64;
constexpr int kMaxHeadDim = 512;
constexpr int kChunkTokens = 512;  // softmax partials are always cut at multiples of this position

struct KvLayout {
    KvFormat format = KvFormat::bf16;
    int head_dim = 0;                                             // a multiple of 4
    int padded_dim = 0;                                           // of a V row, a multiple of 16
    size_t v_offset = 0, k_scale_offset = 0, v_scale_offset = 0;  // bytes from the start of a block
    size_t block_bytes = 0;                                       // of one (layer, KV head)

    KvLayout() = default;
    KvLayout(KvFormat f, int dim) : format(f), head_dim(dim), padded_dim((dim + 15) / 16 * 16) {
        const size_t item = f == KvFormat::bf16 ? 2 : 1;
        v_offset = align(size_t{kPageTokens} * dim * item);
        k_scale_offset = v_offset + align(size_t{kPageTokens} * padded_dim * item);
        const size_t scales = f == KvFormat::bf16 ? 0 : size_t{kPageTokens} * sizeof(float);
        v_scale_offset = k_scale_offset + scales;
        block_bytes = v_scale_offset + scales;
    }
    static size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

    // Index (in values) of dimension `d` of token `t` within the K part.
    size_t k_index(int t, int d) const {
        const int pack = format == KvFormat::bf16 ? 2 : 4;
        return (static_cast<size_t>(t / 16) * (head_dim / pack) + d / pack) * 16 * pack + (t % 16) * pack + d % pack;
    }
};

}  // namespace kvern
