// Where the keys and values of a 64-token page lie. Shared by all instruction sets.
//
// A page holds, for every layer and every KV head, one block: K codes, V codes, then what K and V keep beside their
// codes (scales). Key and value formats are independent of each other. Codes lie as the tile instructions read them:
//   K  16 neighbouring lanes are 16 tokens:        bf16 [4][dim/2][16][2],     int8 [4][dim/4][16][4]
//   V  16 neighbouring lanes are 16 dimensions:    bf16 [32][padded_dim][2],   int8 [16][padded_dim][4]
//   4-bit codes, two to a byte: kv/kv4_token.h
// (the last index runs over neighbouring dimensions in K and over neighbouring tokens in V; V is padded with zeros).
// A new format: an enumerator, its sizes below, a name in src/kv_format.cpp, a reader in kv/ (see kv/reader.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace kvern {

enum class KeyFormat : int32_t { bf16, int8, token4, hadamard4, channel4 };
enum class ValueFormat : int32_t { bf16, int8, token4 };
constexpr int kKeyFormats = 5, kValueFormats = 3;

struct KvFormat {
    KeyFormat keys = KeyFormat::bf16;
    ValueFormat values = ValueFormat::bf16;
    static const KvFormat bf16, kv8;
    // Pages are coded when they are full; a row reads its own page and the one before it in bf16 (kv_tails.h).
    bool tail() const { return keys == KeyFormat::channel4; }
};
inline constexpr KvFormat KvFormat::bf16{KeyFormat::bf16, ValueFormat::bf16};
inline constexpr KvFormat KvFormat::kv8{KeyFormat::int8, ValueFormat::int8};

// The format called `name`, or a pair "<keys>/<values>" of two such names; throws std::invalid_argument.
KvFormat parse_kv_format(const std::string& name);

constexpr int kPageTokens = 64;
constexpr int kMaxHeadDim = 512;
constexpr int kChunkTokens = 512;  // softmax partials are always cut at multiples of this position

// Bytes of the codes of `width` channels of 64 tokens, and of what lies beside them.
struct KvBytes {
    size_t codes, beside;
};
inline size_t four_bit_bytes(int width, int unit) {  // channels padded to a multiple of `unit`
    return static_cast<size_t>((width + unit - 1) / unit * unit) * kPageTokens / 2;
}
inline KvBytes key_bytes(KeyFormat format, int head_dim) {
    const size_t values = size_t{kPageTokens} * static_cast<size_t>(head_dim);
    switch (format) {
        case KeyFormat::bf16:
            return {values * 2, 0};
        case KeyFormat::int8:
            return {values, kPageTokens * sizeof(float)};
        case KeyFormat::token4:
        case KeyFormat::hadamard4:
            return {four_bit_bytes(head_dim, 8), size_t{kPageTokens} * 4};
        case KeyFormat::channel4:
            return {four_bit_bytes(head_dim, 8), (static_cast<size_t>(head_dim) + 15) / 16 * 64};
    }
    return {};
}
inline KvBytes value_bytes(ValueFormat format, int padded_dim) {
    const size_t values = size_t{kPageTokens} * static_cast<size_t>(padded_dim);
    switch (format) {
        case ValueFormat::bf16:
            return {values * 2, 0};
        case ValueFormat::int8:
            return {values, kPageTokens * sizeof(float)};
        case ValueFormat::token4:
            return {four_bit_bytes(padded_dim, 32), size_t{kPageTokens} * 4};
    }
    return {};
}

struct KvLayout {
    KvFormat format;
    int head_dim = 0;                                             // a multiple of 4
    int padded_dim = 0;                                           // of V, a multiple of 16
    size_t v_offset = 0, k_scale_offset = 0, v_scale_offset = 0;  // bytes from the start of a block
    size_t block_bytes = 0;                                       // of one (layer, KV head)

    KvLayout() = default;
    KvLayout(KvFormat f, int dim) : format(f), head_dim(dim), padded_dim((dim + 15) / 16 * 16) {
        const KvBytes keys = key_bytes(f.keys, head_dim), values = value_bytes(f.values, padded_dim);
        v_offset = align(keys.codes);
        k_scale_offset = v_offset + align(values.codes);
        v_scale_offset = k_scale_offset + align(keys.beside);
        block_bytes = v_scale_offset + align(values.beside);
    }
    static size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }
};

}  // namespace kvern
