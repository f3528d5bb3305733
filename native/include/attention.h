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

// Where 64 tokens of one layer are, and in which format: a page of the pool, or bf16 rows of a tail.
struct KvSpan {
    const uint8_t* block;    // of KV head 0; head h is at block + h * layout->block_bytes
    const KvLayout* layout;  // all spans of a work have the same head_dim
};

// Rows of one slice and the query heads of one KV head, over the softmax chunks [chunk_begin, chunk_end).
//
// spans[j] holds positions [64 j, 64 j + 64); only spans with a token that some row attends to are read. Spans of one
// work may differ in format, but all rows see the same ones: Lane cuts its works so that the rows of each lie within
// one 64-token page, hence what a row reads may depend on position / 64 (a tail of recent tokens) and on nothing
// else. Tokens past the last row's position may hold anything.
struct AttendWork {
    const float* q;  // row i, query head g at q + i * q_stride + g * head_dim
    float* out;      // likewise with out_stride; written when `partials` is null
    size_t q_stride, out_stride;
    const int32_t* positions;  // [rows], ascending
    int rows, group;           // rows * group <= kMaxVectors
    const KvSpan* spans;
    int head;  // KV head
    int head_dim, padded_dim;
    float scale;
    int window;        // 0: none
    int chunk_tokens;  // kChunkTokens, a multiple of 64
    int chunk_begin, chunk_end;
    float* partials;  // null, or [rows * group][2 + padded_dim]: max, sum, unnormalised output of one chunk
    float* scratch;   // attend_scratch_floats(), 64-byte aligned
};

// Folds `count` partials of one (row, head), `stride` floats apart and in ascending order, into `out`.
struct MergeWork {
    const float* partials;
    size_t stride;
    int count, head_dim, padded_dim;
    float* out;
    float* scratch;  // [2 + padded_dim]
};

// Scratch of one work; kv/reader.h says what lies where.
struct AttendScratch {
    size_t scores, queries, encoded_queries, outputs, states, spare, floats;  // first float of each part, and the end
    size_t score_stride;                                                      // floats from vector to vector

    AttendScratch(int padded_dim, int chunk_tokens) {
        const auto dim = static_cast<size_t>(padded_dim), vectors = static_cast<size_t>(kMaxVectors);
        score_stride = static_cast<size_t>(chunk_tokens) + 16;  // rows 64 bytes apart modulo the cache's sets
        scores = 0;
        queries = scores + vectors * score_stride;
        encoded_queries = queries + vectors * dim;
        outputs = encoded_queries + 2 * vectors * dim + 2 * vectors;
        states = outputs + vectors * dim;
        spare = (states + vectors * (dim + 4) + 15) / 16 * 16;
        floats = spare + 40 * dim + 8192;
    }
};
inline size_t attend_scratch_floats(int padded_dim, int chunk_tokens) {
    return AttendScratch(padded_dim, chunk_tokens).floats;
}

// A full page of one KV head from bf16 to the format of `layout`.
struct SealWork {
    const uint8_t* from;  // bf16 block of the head
    const KvLayout* from_layout;
    uint8_t* block;
    const KvLayout* layout;
};

struct AttentionTable {
    void (*rope_append)(const RopeAppendRow&);
    void (*attend)(const AttendWork&);
    void (*attend_merge)(const MergeWork&);
    void (*seal)(const SealWork&);
};

}  // namespace kvern
