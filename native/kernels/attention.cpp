// K7, K8, K9: attention over spans of 64 tokens. Decode and prefill run the same float operations per (row, head):
// chunks of 512 tokens from position 0, each in three passes (scores, softmax weights, weighted values; kv/reader.h),
// chunks merged in ascending order (`merge_into`). Rows and heads are only ever tiled together, never summed over.
// One pass over K and V with the division left to the end (FlashAttention-2, FuseMax); works and merges are planned
// by the caller (FlashInfer), see src/program_attend.cpp.
#include "attention.h"

#include <algorithm>
#include <limits>

#include "dispatch.h"
#include "kv/formats.h"
#include "kv/reader.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0 within 2e-7, 2^-125 below that; exactly 1 at 0. Rounds by the float grid at 1.5 * 2^23.
inline F16 exp2_below(F16 x) {
    const F16 grid = splat(12582912.0f), c = max(x, splat(-125.0f)), shifted = c + grid;
    const F16 r = c - (shifted - grid);
    F16 p = fma(splat(1.3264727313e-3f), r, splat(9.6715129912e-3f));
    p = fma(p, r, splat(5.5507335812e-2f));
    p = fma(p, r, splat(2.4022242427e-1f));
    p = fma(p, r, splat(6.9314700365e-1f));
    p = fma(p, r, splat(1.0f));
    return as_float(as_int(p) + shift_left_23(as_int(shifted)));
}

// The work's scratch: what readers see, and per vector the state of the chunk at hand and the running one.
struct State {
    Vectors vectors;
    float *max, *sum;  // of the chunk
    float* running;    // [2 + padded_dim] a vector: max, sum, output
    int32_t first[kMaxVectors], last[kMaxVectors];
    size_t width;

    explicit State(const AttendWork& work) {
        const AttendScratch at(work.padded_dim, work.chunk_tokens);
        float* base = work.scratch;
        width = static_cast<size_t>(work.padded_dim) + 2;
        max = base + at.states, sum = max + kMaxVectors, running = sum + kMaxVectors;
        vectors = {work.rows * work.group,
                   work.head_dim,
                   work.padded_dim,
                   first,
                   last,
                   base + at.queries,
                   base + at.scores,
                   at.score_stride,
                   base + at.outputs,
                   reinterpret_cast<uint8_t*>(base + at.spare),
                   base + at.encoded_queries,
                   0};
    }
    float* state(int v) const { return running + static_cast<size_t>(v) * width; }
};

int lowest_position(const AttendWork& work, int row) {
    return work.window > 0 ? std::max(0, work.positions[row] - work.window + 1) : 0;
}

// What each vector sees of the chunk; the pages that hold it.
Pages pages_of(const AttendWork& work, State& at, int chunk) {
    const int begin = chunk * work.chunk_tokens, end = begin + work.chunk_tokens;
    int from = end, to = begin;
    for (int v = 0; v < at.vectors.count; ++v) {
        const int row = v / work.group;
        at.first[v] = std::max(lowest_position(work, row), begin);
        at.last[v] = std::min(work.positions[row] + 1, end);
        if (at.first[v] >= at.last[v]) continue;
        from = std::min(from, at.first[v]), to = std::max(to, at.last[v]);
    }
    return {work.spans,
            work.head,
            from / kPageTokens,
            (to + kPageTokens - 1) / kPageTokens,
            begin,
            work.positions[work.rows - 1] + 1};
}

// Scores into weights; `from` and `to` bound the pages at hand, tokens that are not seen get weight 0.
void soften(State& at, int v, const Pages& pages) {
    float* scores = at.vectors.scores + static_cast<size_t>(v) * at.vectors.score_stride;
    const int from = pages.begin * kPageTokens - pages.chunk_first, to = pages.end * kPageTokens - pages.chunk_first;
    at.max[v] = kNegativeInfinity, at.sum[v] = 0.0f;
    if (at.first[v] >= at.last[v]) return std::fill(scores + from, scores + to, 0.0f);
    const int first = at.first[v] - pages.chunk_first, last = at.last[v] - pages.chunk_first;
    const int begin = first / 16 * 16, end = (last + 15) / 16 * 16;
    std::fill(scores + begin, scores + first, kNegativeInfinity);
    std::fill(scores + last, scores + end, kNegativeInfinity);
    F16 top[4], sums[4];
    for (int i = 0; i < 4; ++i) top[i] = splat(kNegativeInfinity), sums[i] = splat(0.0f);
    int t = begin;
    for (; t + 64 <= end; t += 64)
        for (int i = 0; i < 4; ++i) top[i] = max(load(scores + t + 16 * i), top[i]);
    for (; t < end; t += 16) top[0] = max(load(scores + t), top[0]);
    at.max[v] = quick_max(max(max(top[0], top[1]), max(top[2], top[3])));
    const F16 most = splat(at.max[v]);
    const auto weigh = [&](int token, F16& sum) {
        const F16 weight = exp2_below(load(scores + token) - most);
        store(scores + token, weight);
        sum = sum + weight;
    };
    for (t = begin; t + 64 <= end; t += 64)
        for (int i = 0; i < 4; ++i) weigh(t + 16 * i, sums[i]);
    for (; t < end; t += 16) weigh(t, sums[0]);
    at.sum[v] = quick_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    std::fill(scores + from, scores + first, 0.0f);
    std::fill(scores + last, scores + to, 0.0f);
}

// Calls f(format, pages) for runs of pages of one format.
template <class FormatOf, class F>
void by_format(const Pages& pages, FormatOf format_of, F f) {
    Pages run = pages;
    for (run.begin = pages.begin; run.begin < pages.end; run.begin = run.end) {
        const auto format = format_of(pages.layout(run.begin).format);
        for (run.end = run.begin + 1; run.end < pages.end; ++run.end)
            if (format_of(pages.layout(run.end).format) != format) break;
        f(static_cast<int>(format), run);
    }
}

// (max, sum, out) of a later chunk into the running one; `max` in units of log2.
void merge_into(float* state, float part_max, float part_sum, const float* part, int padded_dim) {
    const float now = std::max(state[0], part_max);
    float shift[16] = {state[0] - now, part_max - now};
    store(shift, exp2_below(load(shift)));
    state[0] = now;
    state[1] = std::fma(state[1], shift[0], part_sum * shift[1]);
    for (int d = 0; d < padded_dim; d += 16)
        store(state + 2 + d, fma(load(state + 2 + d), splat(shift[0]), load(part + d) * splat(shift[1])));
}

void finish(const float* state, int head_dim, float* out) {
    // A score that overflowed must not pass for a softmax: the row becomes NaN and is reported.
    const bool finite = std::fabs(state[0]) <= std::numeric_limits<float>::max();
    const F16 sum = splat(finite ? state[1] : std::numeric_limits<float>::quiet_NaN());
    for (int d = 0; d < head_dim; d += 16) store_first(out + d, load(state + 2 + d) / sum, head_dim - d);
}

void fold_chunk(const AttendWork& work, State& at, int chunk) {
    const Pages pages = pages_of(work, at, chunk);
    by_format(
        pages, [](const KvFormat& format) { return format.keys; },
        [&](int format, const Pages& run) { kKeyReaders[format].scores(at.vectors, run); });
    for (int v = 0; v < at.vectors.count; ++v) soften(at, v, pages);
    std::fill(at.vectors.out, at.vectors.out + static_cast<size_t>(at.vectors.count) * work.padded_dim, 0.0f);
    by_format(
        pages, [](const KvFormat& format) { return format.values; },
        [&](int format, const Pages& run) { kValueReaders[format].add(at.vectors, run); });
    for (int v = 0; v < at.vectors.count; ++v) {
        if (at.first[v] >= at.last[v]) continue;
        float* state = at.state(v);
        const float* out = at.vectors.output(v);
        if (chunk == work.chunk_begin || at.first[v] == lowest_position(work, v / work.group)) {
            state[0] = at.max[v], state[1] = at.sum[v];
            std::copy(out, out + work.padded_dim, state + 2);
        } else {
            merge_into(state, at.max[v], at.sum[v], out, work.padded_dim);
        }
    }
}

void scale_queries(const AttendWork& work, const State& at) {
    const float scale = work.scale * kLog2E;
    for (int v = 0; v < at.vectors.count; ++v) {
        const float* q =
            work.q + static_cast<size_t>(v / work.group) * work.q_stride + (v % work.group) * work.head_dim;
        float* to = at.vectors.q + static_cast<size_t>(v) * work.padded_dim;
        for (int d = 0; d < work.head_dim; ++d) to[d] = q[d] * scale;
        for (int d = work.head_dim; d < work.padded_dim; ++d) to[d] = 0.0f;
    }
}

}  // namespace

void attend(const AttendWork& work) {
    State at(work);
    scale_queries(work, at);
    for (int v = 0; v < at.vectors.count; ++v) at.state(v)[1] = 0.0f;
    for (int chunk = work.chunk_begin; chunk < work.chunk_end; ++chunk) fold_chunk(work, at, chunk);
    for (int v = 0; v < at.vectors.count; ++v) {
        if (work.partials != nullptr) {
            std::copy(at.state(v), at.state(v) + at.width, work.partials + static_cast<size_t>(v) * at.width);
        } else {
            const size_t row = static_cast<size_t>(v / work.group), head = static_cast<size_t>(v % work.group);
            finish(at.state(v), work.head_dim,
                   work.out + row * work.out_stride + head * static_cast<size_t>(work.head_dim));
        }
    }
}

void attend_merge(const MergeWork& work) {
    const size_t width = static_cast<size_t>(work.padded_dim) + 2;
    std::copy(work.partials, work.partials + width, work.scratch);
    for (int i = 1; i < work.count; ++i) {
        const float* part = work.partials + static_cast<size_t>(i) * work.stride;
        merge_into(work.scratch, part[0], part[1], part + 2, work.padded_dim);
    }
    finish(work.scratch, work.head_dim, work.out);
}

void fill_attention(KernelTable& table) {
    table.attention.attend = attend;
    table.attention.attend_merge = attend_merge;
}

}  // namespace kvern::KVERN_ISA_NS
