// A model as a recorded program: operations per unit over scratch slots, run for any rows and any range of units.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "kv_pool.h"
#include "kv_tails.h"
#include "packing.h"
#include "profile.h"
#include "threads.h"

namespace kvern {

enum class OpCode : int32_t { embed, norm, encode, linear, attend, gate, add };

constexpr int kResidual = 0;  // slot of the rows that cross unit boundaries
constexpr int kLogits = 1;    // slot of the caller's logits

// Unused fields are -1 or 0.
//   embed   weight -> residual, times value        norm    a -> out, vector (weights), parts, value (eps)
//   encode  encoding a                             linear  encoding a -> out, weight, vector (bias or -1)
//   attend  a, b, c (q, k, v) -> out, layer        gate    a, b -> out, parts (Activation)
//   add     residual += a
struct Operation {
    OpCode code;
    int32_t a, b, c, out, weight, vector, layer, parts;
    float value;
};

// Rows of `slot` in the row code that `weight` (and others like it) is multiplied with; made by an `encode`
// operation, or the slot itself for f32.
struct Encoding {
    int32_t slot;
    RowCode code;
    int32_t weight;  // its header says how rows are encoded, where the code asks for one
};

struct LayerShape {
    int32_t heads, kv_heads, head_dim;
    float scale;
    int32_t window;  // 0: none
    int32_t rope;    // index of `ropes`
};

struct ProgramSpec {
    int32_t hidden = 0, vocab = 0;
    std::vector<int32_t> slots;  // widths; [0] residual, [1] logits
    std::vector<Encoding> encodings;
    std::vector<std::shared_ptr<const PackedWeight>> weights;
    std::vector<std::vector<float>> vectors, ropes;  // ropes: frequencies, radians per token
    std::vector<LayerShape> layers;
    std::vector<Operation> embed, head;
    std::vector<std::vector<Operation>> units;
};

struct ProgramLimits {
    int64_t pages = 0;
    int32_t max_rows = 0;
    KvFormat kv_format = KvFormat::bf16;
    int32_t chunk_tokens = kChunkTokens;
    int64_t tail_slots = 0;  // sequences on the device at once, of KV formats with a tail
    int32_t lanes = 1;       // steps that may run side by side; each has scratch of its own
    bool apart = false;      // run every operation on its own, as tests compare with
};

// The arrays of runtime/device.py's StepBatch and StepResult.
struct StepView {
    const int32_t *tokens, *positions, *row_begin, *unit_begin, *unit_end, *block_table, *logit_rows;
    float* hidden;
    const uint8_t* stop;
    int64_t rows, slices, table_width, logit_count;
    float* logits;                          // [logit_count][vocab]
    int32_t* reached;                       // [slices]
    int32_t first_worker = 0, workers = 0;  // the workers of the pool that run it; 0 workers: all
    const int32_t* greedy_rows = nullptr;
    int64_t greedy_count = 0;
    int32_t* greedy =
        nullptr;  // [greedy_count] the likeliest token, ties to the lowest; -1: logits that are not finite
    const int32_t* tail_slots = nullptr;  // [slices], of KV formats with a tail: one for each sequence
};

class Lane;

class Program {
  public:
    // Throws std::invalid_argument when any operation refers to something that is not there or does not fit.
    Program(std::shared_ptr<Pool> pool, const KernelTable& kernels, ProgramSpec spec, ProgramLimits limits);
    ~Program();

    // Throws std::invalid_argument, before touching anything, when the batch is not well formed. Thread safe: as many
    // steps run side by side as there are lanes, and others wait. Such steps may read the same pages, but none may
    // write to a page or tail that another uses; steps that share a worker run by turns.
    void step(const StepView& step);
    // The caller sees to it that no step uses `target` meanwhile.
    void copy_page(int64_t source, int64_t target);

    KvPool& pages() { return pages_; }
    KvTails& tails() { return tails_; }
    const KernelTable& kernels() const { return kernels_; }
    const ProgramSpec& spec() const { return spec_; }
    const ProgramLimits& limits() const { return limits_; }
    const std::vector<KvLayout>& layouts() const { return layouts_; }
    const std::vector<size_t>& layer_offsets() const { return layer_offsets_; }
    const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
    size_t layer_offset(int layer) const { return layer_offsets_[static_cast<size_t>(layer)]; }
    int units() const { return static_cast<int>(spec_.units.size()); }
    int workers() const { return pool_->workers(); }
    size_t scratch_bytes() const;
    Profile& profile() { return profile_; }
    // While it is held, no step runs: weights may change.
    std::unique_lock<std::shared_mutex> between_steps() { return std::unique_lock(stepping_); }

  private:
    void check_spec() const;
    void check_operation(const Operation& op, bool in_unit) const;
    void check_step(const StepView& step) const;
    void check_wanted(const StepView& step, const int32_t* rows, int64_t count, const char* name) const;
    void check_tails(const StepView& step);
    void lay_out_pages();
    Lane* take_lane();  // waits for one
    Pool& pool_of(int first, int count);
    void give_back(Lane* lane);
    int64_t width(int index) const { return spec_.slots[static_cast<size_t>(index)]; }

    std::shared_ptr<Pool> pool_;
    const KernelTable& kernels_;
    ProgramSpec spec_;
    ProgramLimits limits_;
    std::vector<KvLayout> layouts_;
    std::vector<size_t> layer_offsets_;
    KvPool pages_;
    KvTails tails_;
    Profile profile_;
    std::vector<std::unique_ptr<Lane>> lanes_;
    std::vector<Lane*> idle_;
    std::map<std::pair<int, int>, std::unique_ptr<Pool>> shares_;  // by first worker and number of workers
    std::mutex choosing_;                                          // of idle_ and shares_
    std::condition_variable lane_idle_;
    std::shared_mutex stepping_;
};

}  // namespace kvern
