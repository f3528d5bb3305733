// K12 (plain) and the sampler. Order: allowed ids, bans and bias; penalties; temperature; min-p; top-k; top-p; one
// uniform by counter. Candidates are ordered by (logit descending, id ascending). Totals over the vocabulary are
// summed in 16 lanes over blocks of 1024 ids and the blocks in double; running sums over sorted candidates in double.
#include "sample.h"

#include <algorithm>
#include <limits>

#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kGreedyBelow = 1e-5f;  // temperatures below this are greedy

float top_of(const float* x, int count) {
    F16 top = splat(-kInfinity);
    for (int i = 0; i < count; i += 16) top = max(load_first(x + i, count - i, -kInfinity), top);
    return quick_max(top);
}

int32_t first_at(const float* x, int count, float value) {
    for (int i = 0; i < count; ++i)
        if (x[i] == value) return i;
    return -1;
}

// Sum of e^(x - top) over values whose e^(x - top) is at least `floor`.
double total_of(const float* x, int count, float top, float floor) {
    double total = 0.0;
    for (int block = 0; block < count; block += 1024) {
        F16 lanes = splat(0.0f);
        const int end = std::min(block + 1024, count);
        for (int i = block; i < end; i += 16) {
            float e[16];
            const int n = std::min(16, end - i);
            store(e, exp(load_first(x + i, n, top) - splat(top)));
            for (int j = 0; j < 16; ++j) e[j] = j < n && e[j] >= floor && x[i + j] > -kInfinity ? e[j] : 0.0f;
            lanes = lanes + load(e);
        }
        total += static_cast<double>(quick_sum(lanes));
    }
    return total;
}

// A type of this namespace, so that each instruction set gets its own instance of the standard library's sort.
struct Better {
    bool operator()(const Candidate& a, const Candidate& b) const {
        return a.value > b.value || (a.value == b.value && a.id < b.id);
    }
};

// The candidates with value >= floor (never -infinity), best first, at most `limit` of them.
void best_above(const float* x, int count, float floor, size_t limit, std::vector<Candidate>& found) {
    found.clear();
    for (int i = 0; i < count; ++i)
        if (x[i] >= floor && x[i] > -kInfinity) found.push_back({x[i], i});
    if (found.size() > limit) {
        std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(limit), found.end(), Better{});
        found.resize(limit);
    }
    std::sort(found.begin(), found.end(), Better{});
}

// The `limit` best values, without sorting the whole vocabulary.
void best_of(const float* x, int count, float top, size_t limit, std::vector<Candidate>& found) {
    for (float reach : {3.0f, 9.0f, kInfinity}) {
        best_above(x, count, reach < kInfinity ? top - reach : -kInfinity, limit, found);
        if (found.size() >= limit) return;
    }
}

// Philox4x32-10 with key `seed` and counter (position, choice, 0, 0); 53 bits of its first two words in [0, 1).
double uniform(uint64_t seed, uint32_t position, uint32_t choice) {
    uint32_t c[4] = {position, choice, 0, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
        const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                                  static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
        std::copy(next, next + 4, c);
        key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

void penalise(const SampleRow& row, SampleScratch& scratch) {
    float* x = scratch.work.data();
    int32_t* counts = scratch.counts.data();
    constexpr int32_t kSeen = 1 << 30;  // apart from the count of generated uses
    for (int i = 0; i < row.history.count; ++i) {
        int32_t& count = counts[row.history.data[i]];
        count = (count | kSeen) + (i >= row.prompt_tokens ? 1 : 0);
    }
    for (int i = 0; i < row.history.count; ++i) {
        const int32_t id = row.history.data[i];
        if (counts[id] == 0) continue;  // done
        const int32_t uses = counts[id] & ~kSeen;
        counts[id] = 0;
        x[id] = x[id] > 0.0f ? x[id] / row.repetition : x[id] * row.repetition;
        if (uses > 0) x[id] = (x[id] - row.frequency * static_cast<float>(uses)) - row.presence;
    }
}

// Logits after masks, bias, penalties and temperature; the row itself when nothing changes it.
const float* adjusted(const SampleRow& row, SampleScratch& scratch, bool greedy) {
    const bool penalties = row.repetition != 1.0f || row.presence != 0.0f || row.frequency != 0.0f;
    const bool masks = row.allowed.count > 0 || row.banned.count > 0 || row.bias.count > 0;
    const bool cools = !greedy && row.temperature != 1.0f;
    if (!penalties && !masks && !cools) return row.logits;
    const auto vocab = static_cast<size_t>(row.vocab);
    float* x = scratch.work.data();
    if (row.allowed.count > 0) {
        std::fill(x, x + vocab, -kInfinity);
        for (int i = 0; i < row.allowed.count; ++i) x[row.allowed.data[i]] = row.logits[row.allowed.data[i]];
    } else {
        std::copy(row.logits, row.logits + vocab, x);
    }
    for (int i = 0; i < row.banned.count; ++i) x[row.banned.data[i]] = -kInfinity;
    for (int i = 0; i < row.bias.count; ++i) x[row.bias.data[i]] += row.bias_values[i];
    if (penalties) penalise(row, scratch);
    if (cools)
        for (size_t i = 0; i < vocab; ++i) x[i] /= row.temperature;
    return x;
}

void weigh(const std::vector<Candidate>& found, float top, std::vector<float>& weights) {
    weights.resize((found.size() + 15) / 16 * 16);
    for (size_t i = 0; i < found.size(); ++i) weights[i] = found[i].value - top;
    for (size_t i = found.size(); i < weights.size(); ++i) weights[i] = 0.0f;
    for (size_t i = 0; i < weights.size(); i += 16) store(weights.data() + i, exp(load(weights.data() + i)));
}

// Picks among sorted candidates; -1 when they do not reach far enough down and `all` says that more exist.
int32_t pick(const SampleRow& row, const SampleScratch& scratch, double total, double u, bool all) {
    const std::vector<Candidate>& found = scratch.candidates;
    size_t kept = found.size();
    double mass = row.top_p < 1.0f ? 0.0 : total;
    if (row.top_p < 1.0f) {
        const double wanted = static_cast<double>(row.top_p) * total;
        for (kept = 0; kept < found.size() && (kept == 0 || mass < wanted); ++kept) mass += scratch.weights[kept];
        if (mass < wanted && !all) return -1;
    }
    const double target = u * mass;
    double below = 0.0;
    for (size_t i = 0; i < kept; ++i) {
        below += scratch.weights[i];
        if (below > target) return found[i].id;
    }
    return all || row.top_p < 1.0f ? found[kept - 1].id : -1;
}

int32_t draw(const SampleRow& row, const float* x, float top, SampleScratch& scratch) {
    const double u = uniform(row.seed, row.position, row.choice);
    const bool limited = row.top_k > 0 && row.top_k < row.vocab;
    const size_t limit = static_cast<size_t>(limited ? row.top_k : row.vocab);
    double total = limited ? 0.0 : total_of(x, row.vocab, top, row.min_p);
    for (float reach : {2.0f, 6.0f, 12.0f, kInfinity}) {
        std::vector<Candidate>& found = scratch.candidates;
        best_above(x, row.vocab, reach < kInfinity ? top - reach : -kInfinity, limit, found);
        weigh(found, top, scratch.weights);
        size_t passing = found.size();  // weights descend with the order, so min-p cuts a tail
        while (passing > 1 && scratch.weights[passing - 1] < row.min_p) --passing;
        const bool all = passing < found.size() || found.size() >= limit || reach == kInfinity;
        found.resize(passing);
        if (limited && !all) continue;
        if (limited) {
            total = 0.0;
            for (size_t i = 0; i < passing; ++i) total += scratch.weights[i];
        }
        const int32_t id = pick(row, scratch, total, u, all);
        if (id >= 0) return id;
    }
    return scratch.candidates.front().id;  // not reached: the last round holds all candidates
}

}  // namespace

bool usable_logits(const float* logits, int vocab) {
    bool bad = false;
    for (int i = 0; i < vocab; ++i) bad |= !(logits[i] <= kLargest);
    return !bad && top_of(logits, vocab) > -kInfinity;
}

int32_t choose_token(const SampleRow& row, SampleScratch& scratch, SampleFault* fault) {
    *fault = SampleFault::not_finite;
    if (!usable_logits(row.logits, row.vocab)) return -1;
    const bool greedy = row.temperature < kGreedyBelow;
    const float* x = adjusted(row, scratch, greedy);
    const float top = top_of(x, row.vocab);
    if (!(top <= kLargest)) return -1;
    *fault = SampleFault::nothing_allowed;
    if (!(top > -kInfinity)) return -1;
    *fault = SampleFault::none;
    return greedy ? first_at(x, row.vocab, top) : draw(row, x, top, scratch);
}

TokenScore score_token(const float* logits, int vocab, int32_t token, int top, int32_t* top_ids, float* top_logprobs,
                       SampleScratch& scratch) {
    const float highest = top_of(logits, vocab);
    const double log_total = std::log(total_of(logits, vocab, highest, 0.0f));
    const auto logprob = [&](float value) {
        return static_cast<float>(static_cast<double>(value) - static_cast<double>(highest) - log_total);
    };
    const float own = logits[token];
    int32_t rank = 1;
    for (int i = 0; i < vocab; ++i) rank += logits[i] > own || (logits[i] == own && i < token) ? 1 : 0;
    if (top > 0) best_of(logits, vocab, highest, static_cast<size_t>(top), scratch.candidates);
    for (int i = 0; i < top; ++i) {
        const bool exists = static_cast<size_t>(i) < scratch.candidates.size();
        top_ids[i] = exists ? scratch.candidates[i].id : -1;
        top_logprobs[i] = exists ? logprob(scratch.candidates[i].value) : -kInfinity;
    }
    return {logprob(own), rank};
}

void fill_sample(KernelTable& table) { table.sample = {choose_token, score_token, usable_logits}; }

}  // namespace kvern::KVERN_ISA_NS
