// Rotary embedding with quantise-on-write, and paged attention: one definition per (row, head).
#pragma once
#include <cstddef>
#include <cstdint>

#include "kv_format.h"

namespace kvern {

constexpr int kMaxVectors = 96;  // (row, query head) pairs that one AttendWork may hold

// One row of one layer: rotates its queries and keys in place (neox halves) and writes K and V into the page.
struct RopeAppendRow {
    float* q;             // [heads][head_dim]
    float* k;             // [kv_heads][head_dim]
    const float* v;       // [kv_heads][head_dim]
    const float* cosine;  // [rotary_dims / 2], of this row's position
    const float* sine;
    uint8_t* block;  // the page's block of this layer's KV head 0; the next heads follow
    const KvLayout* layout;
    int heads, kv_heads, rotary_dims;
    int slot;  // position % 64
};

// Rows of one slice and the query heads of one KV head, over the softmax chunks [chunk_begin, chunk_end).
struct AttendWork {
    const float* q;  // row i, query head g at q + i * q_stride + g * head_dim
    float* out;      // likewise with out_stride; written when `partials` is null
    size_t q_stride, out_stride;
    const int32_t* positions;  // [rows], ascending
    int rows, group;           // rows * group <= kMaxVectors
    const int32_t* pages;      // block table row of the slice
    const uint8_t* pool;       // block of (page 0, this layer, this KV head)
    size_t page_bytes;
    const KvLayout* layout;
    float scale;
    int window;        // 0: none
    int chunk_tokens;  // kChunkTokens, a multiple of 64
    int chunk_begin, chunk_end;
    float* partials;  // null, or [rows * group][2 + padded_dim]: max, sum, unnormalised output of one chunk
    float* scratch;   // attend_scratch_floats()
};

inline size_t attend_scratch_floats(int padded_dim) {
    return static_cast<size_t>(kMaxVectors) * (3 * static_cast<size_t>(padded_dim) + 4) + 64;
}

// Folds `count` partials of one (row, head), `stride` floats apart and in ascending order, into `out`.
struct MergeWork {
    const float* partials;
    size_t stride;
    int count, head_dim, padded_dim;
    float* out;
    float* scratch;  // [2 + padded_dim]
};

struct AttentionTable {
    void (*rope_append)(const RopeAppendRow&);
    void (*attend)(const AttendWork&);
    void (*attend_merge)(const MergeWork&);
};

}  // namespace kvern
