// K12 (plain) and the sampler. Order: allowed ids, bans and bias; penalties; temperature; min-p; top-k; top-p; one
// uniform by counter. Candidates are ordered by (logit descending, id ascending). Totals over the vocabulary are
// summed in 16 lanes over blocks of 1024 ids and the blocks in double; running sums over sorted candidates in double.
#include "sample.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

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

// No NaN and no +infinity.
bool all_at_most_largest(const float* x, int count) {
    bool bad = false;
    for (int i = 0; i < count; ++i) bad |= !(x[i] <= kLargest);
    return !bad;
}

// Bit i is set where lane i of x is at least that of `limit`; never for a NaN.
unsigned at_least(F16 x, F16 limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ))) |
           static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ))) << 8;
#else
    unsigned bits = 0;
    for (int i = 0; i < 16; ++i) bits |= (x.v[i] >= limit.v[i] ? 1u : 0u) << i;
    return bits;
#endif
}

// The first of the highest value, which is `top`.
int32_t first_at(const float* x, int count, float top) {
    for (int i = 0; i < count; i += 16) {
        const unsigned bits = at_least(load_first(x + i, count - i, -kInfinity), splat(top));
        if (bits != 0) return i + std::countr_zero(bits);
    }
    return -1;
}

// `value` in the lanes where x is at least `limit`, 0 in the others.
F16 where_at_least(F16 x, F16 limit, F16 value) {
#if defined(__AVX512F__)
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), value.v)};
#elif defined(__AVX2__)
    return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ), value.lo),
            _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ), value.hi)};
#else
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = x.v[i] >= limit.v[i] ? value.v[i] : 0.0f;
    return r;
#endif
}

// Sum of e^(x - top) over values whose e^(x - top) is at least `floor`.
double total_of(const float* x, int count, float top, float floor) {
    double total = 0.0;
    for (int block = 0; block < count; block += 1024) {
        F16 lanes = splat(0.0f);
        const int end = std::min(block + 1024, count);
        for (int i = block; i < end; i += 16) {
            const F16 v = load_first(x + i, end - i, -kInfinity), e = exp(v - splat(top));
            lanes = lanes + where_at_least(v, splat(-kLargest), where_at_least(e, splat(floor), e));
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

constexpr size_t kWorthCounting = 256;  // candidates from which sorting by digits is quicker

// Ascending where values descend; values that compare equal have equal keys.
uint32_t descending_key(float value) {
    const float plain = value + 0.0f;  // no negative zero
    uint32_t bits;
    std::memcpy(&bits, &plain, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

// Sorts found[first..], whose ids ascend, best first: by three digits of the key, each pass keeping the order of
// equals.
void sort_band(std::vector<Candidate>& found, size_t first, std::vector<Candidate>& spare) {
    const size_t count = found.size() - first;
    if (count < kWorthCounting) {
        std::sort(found.begin() + static_cast<std::ptrdiff_t>(first), found.end(), Better{});
        return;
    }
    constexpr int bits = 11, digits = 1 << bits;
    uint32_t starts[3][digits] = {};
    for (size_t i = first; i < found.size(); ++i) {
        const uint32_t key = descending_key(found[i].value);
        for (int pass = 0; pass < 3; ++pass) ++starts[pass][key >> (bits * pass) & (digits - 1)];
    }
    spare.resize(count);
    Candidate *from = found.data() + first, *to = spare.data();
    for (int pass = 0; pass < 3; ++pass) {
        uint32_t at = 0;
        for (uint32_t& start : starts[pass]) at += std::exchange(start, at);
        for (size_t i = 0; i < count; ++i)
            to[starts[pass][descending_key(from[i].value) >> (bits * pass) & (digits - 1)]++] = from[i];
        std::swap(from, to);
    }
    std::copy(spare.begin(), spare.end(), found.begin() + static_cast<std::ptrdiff_t>(first));
}

// Appends the candidates with floor <= value < ceiling (never -infinity), best first.
void add_band(const float* x, int count, float floor, float ceiling, SampleScratch& scratch) {
    std::vector<Candidate>& found = scratch.candidates;
    const size_t first = found.size();
    const F16 lowest = splat(std::max(floor, -kLargest)), above = splat(ceiling);
    for (int i = 0; i < count; i += 16) {
        const F16 v = load_first(x + i, count - i, -kInfinity);
        for (unsigned bits = at_least(v, lowest) & ~at_least(v, above); bits != 0; bits &= bits - 1) {
            const int id = i + std::countr_zero(bits);
            found.push_back({x[id], id});
        }
    }
    sort_band(found, first, scratch.spare);
}

// The `limit` best values (fewer where the others are -infinity), best first, without sorting the whole vocabulary.
void best_of(const float* x, int count, float top, size_t limit, SampleScratch& scratch) {
    std::vector<Candidate>& found = scratch.candidates;
    found.clear();
    float ceiling = kInfinity;
    for (float reach : {3.0f, 6.0f, 9.0f, kInfinity}) {
        const float floor = top - reach;
        add_band(x, count, floor, ceiling, scratch);
        ceiling = floor;
        if (found.size() >= limit) return found.resize(limit);
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

// e^(value - top) of the candidates from `first` on; those before are there.
void weigh(const std::vector<Candidate>& found, size_t first, float top, std::vector<float>& weights) {
    weights.resize((found.size() + 15) / 16 * 16);
    for (size_t i = first; i < weights.size(); ++i) weights[i] = i < found.size() ? found[i].value - top : 0.0f;
    for (size_t i = first; i < found.size(); i += 16) {
        const int count = static_cast<int>(std::min<size_t>(16, found.size() - i));
        store_first(weights.data() + i, exp(load_first(weights.data() + i, count)), count);
    }
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
    std::vector<Candidate>& found = scratch.candidates;
    found.clear();
    float ceiling = kInfinity;
    for (float reach : {2.0f, 4.0f, 6.0f, 8.0f, 12.0f, kInfinity}) {
        const size_t before = found.size();
        add_band(x, row.vocab, top - reach, ceiling, scratch);
        ceiling = top - reach;
        found.resize(std::min(found.size(), limit));
        weigh(found, before, top, scratch.weights);
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

void running_top(const LogitPanel& panel, RunningTop* tops) {
    for (int r = 0; r < panel.rows; ++r) {
        const float* x = panel.values + static_cast<size_t>(r) * panel.stride;
        const bool bad = !all_at_most_largest(x, panel.count);
        const float top = top_of(x, panel.count);
        if (bad || top > tops[r].value || (top == tops[r].value && top > -kInfinity && panel.first < tops[r].id))
            tops[r].merge({top, first_at(x, panel.count, top) + panel.first, !bad});
    }
}

bool usable_logits(const float* logits, int vocab) {
    return all_at_most_largest(logits, vocab) && top_of(logits, vocab) > -kInfinity;
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
    if (top > 0) best_of(logits, vocab, highest, static_cast<size_t>(top), scratch);
    for (int i = 0; i < top; ++i) {
        const bool exists = static_cast<size_t>(i) < scratch.candidates.size();
        top_ids[i] = exists ? scratch.candidates[i].id : -1;
        top_logprobs[i] = exists ? logprob(scratch.candidates[i].value) : -kInfinity;
    }
    return {logprob(own), rank};
}

void fill_sample(KernelTable& table) { table.sample = {running_top, choose_token, score_token, usable_logits}; }

}  // namespace kvern::KVERN_ISA_NS
