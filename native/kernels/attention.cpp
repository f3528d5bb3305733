// K7, K8, K9: attention over 64-token pages. Decode and prefill run the same float operations per (row, head):
// chunks of 512 tokens from position 0, each folded over 64-token blocks with an online softmax (`fold_block`),
// chunks merged in ascending order (`merge_into`). Rows and heads are only ever tiled together, never summed over.
#include "attention.h"

#include <algorithm>
#include <limits>

#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int kTile = 6;  // vectors computed together: 6 x 2 AVX2 accumulators leave registers for the operands
#if defined(__AVX512F__)
constexpr int kChains = 12;  // independent fma chains wanted, in F16
#else
constexpr int kChains = 4;  // more would spill accumulators with three vectors
#endif

// Part [first, last) of a block's 64 tokens that a vector attends to, and its softmax state.
struct Vector {
    const float* q;  // scaled
    float *max, *sum, *out;
    int first, last;
};

struct Block {
    const KvLayout* layout;
    const uint8_t* data;
    const float* k_scales() const { return reinterpret_cast<const float*>(data + layout->k_scale_offset); }
    const float* v_scales() const { return reinterpret_cast<const float*>(data + layout->v_scale_offset); }
};

template <int R>
constexpr int groups_at_once() {
    return kChains / R >= 4 ? 4 : kChains / R >= 2 ? 2 : 1;
}

// scores[r][16 g ..] of token groups [group, group + G): one fma chain per score, ascending dimension.
template <int R, int G>
void score_bf16(const Vector* at, const Block& block, int group, float* scores) {
    const int pairs = block.layout->head_dim / 2;
    const auto* keys = reinterpret_cast<const int32_t*>(block.data) + static_cast<size_t>(group) * pairs * 16;
    F16 acc[R][G];
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < G; ++g) acc[r][g] = splat(0.0f);
    for (int i = 0; i < pairs; ++i) {
        I16 w[G];
        for (int g = 0; g < G; ++g) w[g] = load(keys + (static_cast<size_t>(g) * pairs + i) * 16);
        for (int r = 0; r < R; ++r) {
            const F16 q = splat(at[r].q[2 * i]);
            for (int g = 0; g < G; ++g) acc[r][g] = fma(as_float(low_half_as_high(w[g])), q, acc[r][g]);
        }
        for (int r = 0; r < R; ++r) {
            const F16 q = splat(at[r].q[2 * i + 1]);
            for (int g = 0; g < G; ++g) acc[r][g] = fma(as_float(high_half(w[g])), q, acc[r][g]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < G; ++g) store(scores + r * kPageTokens + 16 * (group + g), acc[r][g]);
}

template <int J, int R, int G>
inline void score_byte(const Vector* at, const I16* w, int i, F16 (*acc)[G]) {
    F16 k[G];
    for (int g = 0; g < G; ++g) k[g] = byte_to_float<J>(w[g]);
    for (int r = 0; r < R; ++r) {
        const F16 q = splat(at[r].q[4 * i + J]);
        for (int g = 0; g < G; ++g) acc[r][g] = fma(k[g], q, acc[r][g]);
    }
}

template <int R, int G>
void score_kv8(const Vector* at, const Block& block, int group, float* scores) {
    const int quads = block.layout->head_dim / 4;
    const auto* keys = reinterpret_cast<const int32_t*>(block.data) + static_cast<size_t>(group) * quads * 16;
    F16 acc[R][G];
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < G; ++g) acc[r][g] = splat(0.0f);
    for (int i = 0; i < quads; ++i) {
        I16 w[G];
        for (int g = 0; g < G; ++g) w[g] = load(keys + (static_cast<size_t>(g) * quads + i) * 16);
        score_byte<0, R, G>(at, w, i, acc);
        score_byte<1, R, G>(at, w, i, acc);
        score_byte<2, R, G>(at, w, i, acc);
        score_byte<3, R, G>(at, w, i, acc);
    }
    for (int g = 0; g < G; ++g) {
        const F16 scale = load(block.k_scales() + 16 * (group + g));
        for (int r = 0; r < R; ++r) store(scores + r * kPageTokens + 16 * (group + g), acc[r][g] * scale);
    }
}

template <int R, int G>
void score_groups(const Vector* at, const Block& block, int& group, int end, float* scores) {
    for (; group + G <= end; group += G) {
        if (block.layout->format == KvFormat::bf16)
            score_bf16<R, G>(at, block, group, scores);
        else
            score_kv8<R, G>(at, block, group, scores);
    }
}

// Output dimensions [16 j, 16 (j + D)) over tokens [first, last): one fma chain per value, ascending token.
template <int R, int D, bool kBytes>
inline void add_values(const Vector* at, const Block& block, const float* weights, int j, int first, int last) {
    const size_t width = static_cast<size_t>(block.layout->padded_dim);
    const uint8_t* base = block.data + block.layout->v_offset;
    F16 acc[R][D];
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < D; ++d) acc[r][d] = load(at[r].out + 16 * (j + d));
    for (int t = first; t < last; ++t) {
        const size_t row = static_cast<size_t>(t) * width + 16 * static_cast<size_t>(j);
        F16 v[D];
        for (int d = 0; d < D; ++d) {
            if constexpr (kBytes)
                v[d] = from_i8(reinterpret_cast<const int8_t*>(base) + row + 16 * d);
            else
                v[d] = from_bf16(reinterpret_cast<const uint16_t*>(base) + row + 16 * d);
        }
        for (int r = 0; r < R; ++r) {
            const F16 p = splat(weights[r * kPageTokens + t]);
            for (int d = 0; d < D; ++d) acc[r][d] = fma(v[d], p, acc[r][d]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < D; ++d) store(at[r].out + 16 * (j + d), acc[r][d]);
}

template <int R, bool kBytes>
void add_range_of(const Vector* at, const Block& block, const float* weights, int first, int last) {
    constexpr int kWide = groups_at_once<R>();
    const int groups = block.layout->padded_dim / 16;
    int j = 0;
    for (; j + kWide <= groups; j += kWide) add_values<R, kWide, kBytes>(at, block, weights, j, first, last);
    for (; j < groups; ++j) add_values<R, 1, kBytes>(at, block, weights, j, first, last);
}

template <int R>
void add_range(const Vector* at, const Block& block, const float* weights, int first, int last) {
    if (first >= last) return;
    if (block.layout->format == KvFormat::bf16)
        add_range_of<R, false>(at, block, weights, first, last);
    else
        add_range_of<R, true>(at, block, weights, first, last);
}

// Turns the scores of one vector into softmax weights; returns the rescale exponent of its earlier blocks.
float soften(const Vector& at, const Block& block, float* scores) {
    for (int t = 0; t < at.first; ++t) scores[t] = kNegativeInfinity;
    for (int t = at.last; t < kPageTokens; ++t) scores[t] = kNegativeInfinity;
    const F16 top = max(max(load(scores), load(scores + 16)), max(load(scores + 32), load(scores + 48)));
    const float before = *at.max, now = std::max(before, quick_max(top));
    *at.max = now;
    F16 weight[4];
    for (int g = 0; g < 4; ++g) store(scores + 16 * g, exp(load(scores + 16 * g) - splat(now)));
    for (int t = 0; t < at.first; ++t) scores[t] = 0.0f;  // exp() ends above zero
    for (int t = at.last; t < kPageTokens; ++t) scores[t] = 0.0f;
    for (int g = 0; g < 4; ++g) weight[g] = load(scores + 16 * g);
    *at.sum += quick_sum((weight[0] + weight[1]) + (weight[2] + weight[3]));  // the caller has rescaled *sum
    if (block.layout->format == KvFormat::kv8)
        for (int g = 0; g < 4; ++g) store(scores + 16 * g, weight[g] * load(block.v_scales() + 16 * g));
    return before - now;
}

// One block for R vectors, each with at least one token in it. On return the states hold this block too.
template <int R>
void fold_block(const Vector* at, const Block& block) {
    alignas(64) float scores[R * kPageTokens];
    float shift[16] = {}, added[R];
    int first = kPageTokens, last = 0, common_first = 0, common_last = kPageTokens;
    for (int r = 0; r < R; ++r) {
        first = std::min(first, at[r].first), last = std::max(last, at[r].last);
        common_first = std::max(common_first, at[r].first), common_last = std::min(common_last, at[r].last);
    }
    int group = first / 16;
    score_groups<R, groups_at_once<R>()>(at, block, group, (last + 15) / 16, scores);
    score_groups<R, 1>(at, block, group, (last + 15) / 16, scores);
    for (int r = 0; r < R; ++r) {
        const float sum = *at[r].sum;
        *at[r].sum = 0.0f;
        shift[r] = soften(at[r], block, scores + r * kPageTokens);
        added[r] = *at[r].sum;
        *at[r].sum = sum;
    }
    store(shift, exp(load(shift)));
    for (int r = 0; r < R; ++r) {
        *at[r].sum = std::fma(*at[r].sum, shift[r], added[r]);
        if (shift[r] != 1.0f)  // a factor of one changes no bit
            for (int d = 0; d < block.layout->padded_dim; d += 16)
                store(at[r].out + d, load(at[r].out + d) * splat(shift[r]));
    }
    // Tokens that all vectors see run together; each vector's own edge runs alone, before and after.
    if (common_first >= common_last) common_first = common_last = first;
    for (int r = 0; r < R; ++r)
        add_range<1>(at + r, block, scores + r * kPageTokens, at[r].first, std::min(common_first, at[r].last));
    add_range<R>(at, block, scores, common_first, common_last);
    for (int r = 0; r < R; ++r)
        add_range<1>(at + r, block, scores + r * kPageTokens, std::max(common_last, at[r].first), at[r].last);
}

void fold(const Vector* at, int count, const Block& block) {
    switch (count) {
        case 1:
            return fold_block<1>(at, block);
        case 2:
            return fold_block<2>(at, block);
        case 3:
            return fold_block<3>(at, block);
        case 4:
            return fold_block<4>(at, block);
        case 5:
            return fold_block<5>(at, block);
        default:
            return fold_block<kTile>(at, block);
    }
}

// (max, sum, out) of a later chunk into the running one.
void merge_into(float* state, const float* part, int padded_dim) {
    const float now = std::max(state[0], part[0]);
    float shift[16] = {state[0] - now, part[0] - now};
    store(shift, exp(load(shift)));
    state[0] = now;
    state[1] = std::fma(state[1], shift[0], part[1] * shift[1]);
    for (int d = 0; d < padded_dim; d += 16)
        store(state + 2 + d, fma(load(state + 2 + d), splat(shift[0]), load(part + 2 + d) * splat(shift[1])));
}

void finish(const float* state, int head_dim, float* out) {
    // A score that overflowed must not pass for a softmax: the row becomes NaN and is reported.
    const bool finite = std::fabs(state[0]) <= std::numeric_limits<float>::max();
    const F16 sum = splat(finite ? state[1] : std::numeric_limits<float>::quiet_NaN());
    for (int d = 0; d < head_dim; d += 16) store_first(out + d, load(state + 2 + d) / sum, head_dim - d);
}

// Lays out scratch: scaled queries, then per vector a running state and the state of the chunk at hand.
struct Scratch {
    float* base;
    size_t q_width, state_width;
    Scratch(const AttendWork& work)
        : base(work.scratch),
          q_width(static_cast<size_t>(work.layout->padded_dim)),
          state_width(static_cast<size_t>(work.layout->padded_dim) + 2) {}
    float* q(int v) const { return base + static_cast<size_t>(v) * q_width; }
    float* running(int v) const { return q(kMaxVectors) + static_cast<size_t>(v) * state_width; }
    float* part(int v) const { return running(kMaxVectors) + static_cast<size_t>(v) * state_width; }
};

int lowest_position(const AttendWork& work, int row) {
    return work.window > 0 ? std::max(0, work.positions[row] - work.window + 1) : 0;
}

// Folds one chunk for every vector that sees some of it; `part(v)[1] > 0` marks those.
void fold_chunk(const AttendWork& work, const Scratch& scratch, int chunk) {
    const int vectors = work.rows * work.group;
    for (int v = 0; v < vectors; ++v) {
        float* part = scratch.part(v);
        std::fill(part, part + scratch.state_width, 0.0f);
        part[0] = kNegativeInfinity;
    }
    const int chunk_end = std::min((chunk + 1) * work.chunk_tokens, work.positions[work.rows - 1] + 1);
    for (int base = chunk * work.chunk_tokens; base < chunk_end; base += kPageTokens) {
        Vector tile[kTile];
        int count = 0;
        const int32_t page = work.pages[base / kPageTokens];
        const Block block{work.layout, work.pool + static_cast<size_t>(page) * work.page_bytes};
        for (int v = 0; v < vectors; ++v) {
            const int row = v / work.group;
            const int first = std::max(lowest_position(work, row) - base, 0);
            const int last = std::min(work.positions[row] + 1 - base, kPageTokens);
            if (first >= last) continue;
            float* part = scratch.part(v);
            tile[count++] = {scratch.q(v), part, part + 1, part + 2, first, last};
            if (count == kTile) fold(tile, count, block), count = 0;
        }
        if (count > 0) fold(tile, count, block);
    }
}

void scale_queries(const AttendWork& work, const Scratch& scratch) {
    const int dim = work.layout->head_dim;
    for (int v = 0; v < work.rows * work.group; ++v) {
        const float* q = work.q + static_cast<size_t>(v / work.group) * work.q_stride + (v % work.group) * dim;
        for (int d = 0; d < dim; ++d) scratch.q(v)[d] = q[d] * work.scale;
    }
}

}  // namespace

void attend(const AttendWork& work) {
    const Scratch scratch(work);
    const int vectors = work.rows * work.group, padded = work.layout->padded_dim;
    scale_queries(work, scratch);
    for (int v = 0; v < vectors; ++v) scratch.running(v)[1] = 0.0f;
    for (int chunk = work.chunk_begin; chunk < work.chunk_end; ++chunk) {
        fold_chunk(work, scratch, chunk);
        for (int v = 0; v < vectors; ++v) {
            float *part = scratch.part(v), *running = scratch.running(v);
            const int row = v / work.group;
            if (work.positions[row] < chunk * work.chunk_tokens ||
                lowest_position(work, row) >= (chunk + 1) * work.chunk_tokens)
                continue;
            const bool is_first =
                chunk == work.chunk_begin || chunk == lowest_position(work, row) / work.chunk_tokens;
            if (is_first)
                std::copy(part, part + scratch.state_width, running);
            else
                merge_into(running, part, padded);
        }
    }
    for (int v = 0; v < vectors; ++v) {
        if (work.partials != nullptr) {
            std::copy(scratch.running(v), scratch.running(v) + scratch.state_width,
                      work.partials + static_cast<size_t>(v) * scratch.state_width);
        } else {
            const size_t row = static_cast<size_t>(v / work.group), head = static_cast<size_t>(v % work.group);
            finish(scratch.running(v), work.layout->head_dim,
                   work.out + row * work.out_stride + head * work.layout->head_dim);
        }
    }
}

void attend_merge(const MergeWork& work) {
    const size_t width = static_cast<size_t>(work.padded_dim) + 2;
    std::copy(work.partials, work.partials + width, work.scratch);
    for (int i = 1; i < work.count; ++i)
        merge_into(work.scratch, work.partials + static_cast<size_t>(i) * work.stride, work.padded_dim);
    finish(work.scratch, work.head_dim, work.out);
}

void fill_attention(KernelTable& table) {
    table.attention.attend = attend;
    table.attention.attend_merge = attend_merge;
}

}  // namespace kvern::KVERN_ISA_NS
