// Choosing tokens: one row of logits at a time, the same result in any batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvern {

struct Candidate {
    float value;
    int32_t id;
};

// A run of ids; never owned.
struct Ids {
    const int32_t* data = nullptr;
    int count = 0;
};

struct TokenScore {
    float logprob;
    int32_t rank;  // 1 is the most likely; equal logits rank by id
};

enum class SampleFault : uint8_t { none = 0, not_finite = 1, nothing_allowed = 2 };

struct SampleRow {
    const float* logits;  // [vocab]
    int vocab;
    float temperature, top_p, min_p;
    int top_k;
    float repetition, presence, frequency;
    Ids history;  // prompt, then generated tokens
    int prompt_tokens;
    Ids bias;
    const float* bias_values;
    Ids allowed;  // none: all
    Ids banned;
    uint64_t seed;
    uint32_t choice, position;
};

// Per-thread room, made by the caller: `work` and `counts` hold vocab values, the others have that capacity (weights
// 16 more). `counts` is all zero between calls.
struct SampleScratch {
    std::vector<float> work;
    std::vector<int32_t> counts;
    std::vector<Candidate> candidates, spare;
    std::vector<float> weights;
};

// The likeliest token among those seen so far.
struct RunningTop {
    float value = -std::numeric_limits<float>::infinity();
    int32_t id = -1;
    bool sound = true;  // no NaN and no +infinity was seen

    // With what was seen of higher or lower ids.
    void merge(const RunningTop& other) {
        sound = sound && other.sound;
        if (other.value > value || (other.value == value && other.id >= 0 && (id < 0 || other.id < id)))
            value = other.value, id = other.id;
    }
    // -1 when a logit was not finite, or all were -infinity.
    int32_t token() const { return sound ? id : -1; }
};

// Logits of `rows` rows and of the ids [first, first + count).
struct LogitPanel {
    const float* values;
    size_t stride;
    int rows;
    int32_t first;
    int count;
};

struct SampleTable {
    // Takes the panel into tops[rows]; panels may come in any order.
    void (*running_top)(const LogitPanel&, RunningTop* tops);
    // The token of a row, or -1 with `fault` set.
    int32_t (*choose)(const SampleRow&, SampleScratch&, SampleFault* fault);
    // Log-probability and rank of `token` under softmax(logits), and the `top` most likely tokens.
    TokenScore (*score)(const float* logits, int vocab, int32_t token, int top, int32_t* top_ids, float* top_logprobs,
                        SampleScratch&);
    bool (*usable)(const float* logits, int vocab);  // no NaN, no +infinity, something finite
};

}  // namespace kvern
