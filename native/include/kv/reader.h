// What a key or value format gives to the attention kernel, and what it is given. One header per format in kv/.
//
//   struct Int8Keys {                                               // one side of one format
//       static void write(const KvLayout&, uint8_t* block, int slot, const float* x);    // one token, head_dim
//       values static void scores(Vectors&, const Pages&);                 // keys: see below static void
//       add(Vectors&, const Pages&);                    // values: see below
//   };
//
// A softmax chunk is run in three passes over all vectors, so key and value formats never meet:
//   1. scores(): for every vector v and every token it sees in the pages, scores[v][token - chunk_first] =
//      (q . k) * scale * log2(e). Other tokens of those pages may be written too, with anything.
//   2. the kernel turns scores into weights 2^(score - max); tokens that a vector does not see get weight 0.
//   3. add(): out[v] += sum over the tokens of the pages of weight * value. The weights of these pages may be
//      overwritten (each is read once).
// A vector's result must depend on that vector, its pages and its positions only, never on the vectors beside it.
// Tokens at `written` and after may hold anything, NaN included, and must not reach a result.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../attention.h"

namespace kvern::KVERN_ISA_NS {

// Pages [begin, end) of one chunk, all of one key (or value) format: spans[j] holds positions [64 j, 64 j + 64).
struct Pages {
    const KvSpan* spans;
    int head, begin, end;
    int chunk_first;  // position of scores[v][0]
    int written;      // the first position that no row of this work attends to
    const KvLayout& layout(int page) const { return *spans[page].layout; }
    const uint8_t* block(int page) const {
        return spans[page].block + static_cast<size_t>(head) * layout(page).block_bytes;
    }
    int tokens(int page) const { return std::min(kPageTokens, written - page * kPageTokens); }
};

struct Vectors {
    int count;  // scratch rows are there for `count` rounded up to 16
    int head_dim, padded_dim;
    const int32_t *first, *last;  // [count] positions [first[v], last[v]) of this chunk are seen; first >= last: none
    float* q;                     // [count][padded_dim], times scale * log2(e), zeros after head_dim
    float* scores;                // [count][score_stride]; weights in pass 3
    size_t score_stride;
    float* out;      // [count][padded_dim]
    uint8_t* spare;  // (160 * padded_dim + 32768) bytes, 64-byte aligned, for the call under way
    // Queries in another form, made by the first reader that needs it: 2 * padded_dim floats and two more a vector.
    float* encoded;
    int encoded_as;  // 0: not yet; each form has its own number (a work has at most one: others encode in `spare`)

    const float* query(int v) const { return q + static_cast<size_t>(v) * static_cast<size_t>(padded_dim); }
    float* output(int v) const { return out + static_cast<size_t>(v) * static_cast<size_t>(padded_dim); }
    // The scores (weights) of vector v from the first token of `page`.
    float* page_scores(int v, const Pages& pages, int page) const {
        return scores + static_cast<size_t>(v) * score_stride +
               static_cast<size_t>(page * kPageTokens - pages.chunk_first);
    }
    // Tokens [begin, end) of `page` that one of the vectors [v, v + n) sees; empty when begin >= end.
    struct Range {
        int begin, end;
    };
    Range seen(int v, int n, int page) const {
        int from = kPageTokens, to = 0;
        for (int i = v; i < v + n; ++i) {
            if (first[i] >= last[i]) continue;
            from = std::min(from, std::max(first[i] - page * kPageTokens, 0));
            to = std::max(to, std::min(last[i] - page * kPageTokens, kPageTokens));
        }
        return {from, to};
    }
};

// Calls f(std::integral_constant<int, n>, v) for runs of n <= R vectors that cover [0, count).
template <int R, class F>
inline void in_runs(int count, F&& f, int v = 0) {
    for (; count - v >= R && (R != 3 || count - v != 4); v += R) f(std::integral_constant<int, R>{}, v);
    if constexpr (R > 1)
        if (v < count) in_runs<R - 1>(count, f, v);
}

}  // namespace kvern::KVERN_ISA_NS
