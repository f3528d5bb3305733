// Sampling of a batch of logit rows, shared out over a pool; see src/kvern/kernels/sampling.py for the fields.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "array_arguments.h"
#include "dispatch.h"
#include "threads.h"

namespace nb = nanobind;

namespace kvern {
namespace {

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

// Lists of ids, one per row: the ids of row r are ids[begin[r]:begin[r + 1]].
struct IdLists {
    Array<const int32_t, 1> ids, begin;
    IdLists(nb::handle batch, const char* ids_name, const char* begin_name, size_t rows, int vocab)
        : ids(array<const int32_t, 1>(batch, ids_name)), begin(array<const int32_t, 1>(batch, begin_name)) {
        expect_length(begin_name, begin.shape(0), static_cast<int64_t>(rows) + 1);
        const int32_t* at = begin.data();
        require(at[0] == 0 && at[rows] == static_cast<int64_t>(ids.shape(0)),
                std::string(begin_name) + " must span the ids");
        for (size_t r = 0; r < rows; ++r) require(at[r] <= at[r + 1], std::string(begin_name) + " must ascend");
        for (size_t i = 0; i < ids.shape(0); ++i)
            require(ids.data()[i] >= 0 && ids.data()[i] < vocab,
                    std::string(ids_name) + ": token " + std::to_string(ids.data()[i]) + " is not in the vocabulary");
    }
    Ids row(size_t r) const { return {ids.data() + begin.data()[r], begin.data()[r + 1] - begin.data()[r]}; }
};

template <class T>
Array<const T, 1> column(nb::handle batch, const char* name, size_t rows) {
    auto values = array<const T, 1>(batch, name);
    expect_length(name, values.shape(0), static_cast<int64_t>(rows));
    return values;
}

struct SampleArguments {
    Array<const float, 1> temperature, top_p, min_p, repetition, presence, frequency;
    Array<const int32_t, 1> top_k, prompt_tokens, position;
    Array<const uint32_t, 1> choice;
    Array<const uint64_t, 1> seed;
    IdLists history, bias, allowed, banned;
    Array<const float, 1> bias_values;

    SampleArguments(nb::handle batch, size_t rows, int vocab)
        : temperature(column<float>(batch, "temperature", rows)),
          top_p(column<float>(batch, "top_p", rows)),
          min_p(column<float>(batch, "min_p", rows)),
          repetition(column<float>(batch, "repetition_penalty", rows)),
          presence(column<float>(batch, "presence_penalty", rows)),
          frequency(column<float>(batch, "frequency_penalty", rows)),
          top_k(column<int32_t>(batch, "top_k", rows)),
          prompt_tokens(column<int32_t>(batch, "prompt_tokens", rows)),
          position(column<int32_t>(batch, "position", rows)),
          choice(column<uint32_t>(batch, "choice", rows)),
          seed(column<uint64_t>(batch, "seed", rows)),
          history(batch, "history_ids", "history_begin", rows, vocab),
          bias(batch, "bias_ids", "bias_begin", rows, vocab),
          allowed(batch, "allowed_ids", "allowed_begin", rows, vocab),
          banned(batch, "banned_ids", "banned_begin", rows, vocab),
          bias_values(column<float>(batch, "bias_values", bias.ids.shape(0))) {
        for (size_t r = 0; r < rows; ++r) check(r);
        for (size_t i = 0; i < bias_values.shape(0); ++i)
            require(std::isfinite(bias_values.data()[i]), "bias_values must be finite");
    }

    void check(size_t r) const {
        const std::string at = " of row " + std::to_string(r) + " is out of range";
        require(std::isfinite(temperature.data()[r]) && temperature.data()[r] >= 0.0f, "temperature" + at);
        require(top_p.data()[r] > 0.0f && top_p.data()[r] <= 1.0f, "top_p" + at);
        require(min_p.data()[r] >= 0.0f && min_p.data()[r] <= 1.0f, "min_p" + at);
        require(std::isfinite(repetition.data()[r]) && repetition.data()[r] > 0.0f, "repetition_penalty" + at);
        require(std::isfinite(presence.data()[r]), "presence_penalty" + at);
        require(std::isfinite(frequency.data()[r]), "frequency_penalty" + at);
        require(prompt_tokens.data()[r] >= 0, "prompt_tokens" + at);
    }

    SampleRow row(size_t r, const float* logits, int vocab) const {
        SampleRow row{};
        row.logits = logits + r * static_cast<size_t>(vocab);
        row.vocab = vocab;
        row.temperature = temperature.data()[r];
        row.top_p = top_p.data()[r], row.min_p = min_p.data()[r], row.top_k = top_k.data()[r];
        row.repetition = repetition.data()[r], row.presence = presence.data()[r], row.frequency = frequency.data()[r];
        row.history = history.row(r);
        row.prompt_tokens = prompt_tokens.data()[r];
        row.bias = bias.row(r);
        row.bias_values = bias_values.data() + bias.begin.data()[r];
        row.allowed = allowed.row(r);
        row.banned = banned.row(r);
        row.seed = seed.data()[r];
        row.choice = choice.data()[r];
        row.position = static_cast<uint32_t>(position.data()[r]);
        return row;
    }
};

int vocab_of(const Array<const float, 2>& logits) {
    require(logits.shape(1) > 0 && logits.shape(1) < (size_t{1} << 30), "logits have no vocabulary");
    return static_cast<int>(logits.shape(1));
}

// Room for each worker of the calling thread, kept between calls and large enough that no task allocates.
std::vector<SampleScratch>& scratch_for(const Pool& pool, int vocab) {
    thread_local std::vector<SampleScratch> scratch;
    const auto size = static_cast<size_t>(vocab);
    if (scratch.size() < static_cast<size_t>(pool.workers())) scratch.resize(static_cast<size_t>(pool.workers()));
    for (SampleScratch& room : scratch) {
        if (room.work.size() < size) room.work.resize(size);
        if (room.counts.size() < size) room.counts.resize(size, 0);
        room.candidates.reserve(size);
        room.spare.reserve(size);
        room.weights.reserve(size + 16);
    }
    return scratch;
}

nb::object choose_tokens(std::shared_ptr<Pool> pool, Array<const float, 2> logits, nb::handle batch) {
    const size_t rows = logits.shape(0);
    const int vocab = vocab_of(logits);
    const SampleArguments arguments(batch, rows, vocab);
    auto tokens = new_array<int32_t, 1>({rows});
    auto faults = new_array<uint8_t, 1>({rows});
    {
        nb::gil_scoped_release release;
        std::vector<SampleScratch>& scratch = scratch_for(*pool, vocab);
        const SampleTable& table = kernels().sample;
        pool->parallel_for(static_cast<int64_t>(rows), 1, [&](int64_t begin, int64_t end, int worker) {
            for (auto r = static_cast<size_t>(begin); r < static_cast<size_t>(end); ++r) {
                SampleFault fault = SampleFault::none;
                tokens.data()[r] = table.choose(arguments.row(r, logits.data(), vocab),
                                                scratch[static_cast<size_t>(worker)], &fault);
                faults.data()[r] = static_cast<uint8_t>(fault);
            }
        });
    }
    return nb::make_tuple(tokens, faults);
}

nb::object score_tokens(std::shared_ptr<Pool> pool, Array<const float, 2> logits, Array<const int32_t, 1> tokens,
                        int top) {
    const size_t rows = logits.shape(0);
    const int vocab = vocab_of(logits);
    expect_length("tokens", tokens.shape(0), static_cast<int64_t>(rows));
    require(top >= 0 && top <= vocab, "top is outside 0..vocabulary");
    for (size_t r = 0; r < rows; ++r)
        require(tokens.data()[r] >= 0 && tokens.data()[r] < vocab, "token is not in the vocabulary");
    const auto width = static_cast<size_t>(top);
    auto logprobs = new_array<float, 1>({rows});
    auto ranks = new_array<int32_t, 1>({rows});
    auto top_ids = new_array<int32_t, 2>({rows, width});
    auto top_logprobs = new_array<float, 2>({rows, width});
    {
        nb::gil_scoped_release release;
        std::vector<SampleScratch>& scratch = scratch_for(*pool, vocab);
        const SampleTable& table = kernels().sample;
        pool->parallel_for(static_cast<int64_t>(rows), 1, [&](int64_t begin, int64_t end, int worker) {
            for (auto r = static_cast<size_t>(begin); r < static_cast<size_t>(end); ++r) {
                const TokenScore score =
                    table.score(logits.data() + r * static_cast<size_t>(vocab), vocab, tokens.data()[r], top,
                                top_ids.data() + r * width, top_logprobs.data() + r * width,
                                scratch[static_cast<size_t>(worker)]);
                logprobs.data()[r] = score.logprob;
                ranks.data()[r] = score.rank;
            }
        });
    }
    return nb::make_tuple(logprobs, ranks, top_ids, top_logprobs);
}

}  // namespace

void register_sample(nb::module_& m) {
    m.def("choose_tokens", &choose_tokens, nb::arg("pool"), nb::arg("logits").noconvert(), nb::arg("batch"),
          "(tokens int32[E], faults uint8[E]) for logits float32 [E, V] and a SampleBatch; releases the GIL.");
    m.def("score_tokens", &score_tokens, nb::arg("pool"), nb::arg("logits").noconvert(),
          nb::arg("tokens").noconvert(), nb::arg("top"),
          "(logprob [E], rank [E], top ids [E, top], top logprobs [E, top]) under softmax(logits).");
}

}  // namespace kvern
