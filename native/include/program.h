// A model as a recorded program: operations per unit over scratch slots, run for any rows and any range of units.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dispatch.h"
#include "kv_pool.h"
#include "packing.h"
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

// Rows of `slot` in the row code of a weight format; made by an `encode` operation, or the slot itself for f32.
struct Encoding {
    int32_t slot;
    RowCode code;
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
};

// The arrays of runtime/device.py's StepBatch and StepResult.
struct StepView {
    const int32_t *tokens, *positions, *row_begin, *unit_begin, *unit_end, *block_table, *logit_rows;
    float* hidden;
    const uint8_t* stop;
    int64_t rows, slices, table_width, logit_count;
    float* logits;     // [logit_count][vocab]
    int32_t* reached;  // [slices]
};

class Program {
  public:
    // Throws std::invalid_argument when any operation refers to something that is not there or does not fit.
    Program(std::shared_ptr<Pool> pool, const KernelTable& kernels, ProgramSpec spec, ProgramLimits limits);

    // Throws std::invalid_argument, before touching anything, when the batch is not well formed. Thread safe:
    // steps run one at a time.
    void step(const StepView& step);
    void copy_page(int64_t source, int64_t target);

    KvPool& pages() { return pages_; }
    const ProgramSpec& spec() const { return spec_; }
    const ProgramLimits& limits() const { return limits_; }
    const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
    size_t layer_offset(int layer) const { return layer_offsets_[static_cast<size_t>(layer)]; }
    int units() const { return static_cast<int>(spec_.units.size()); }
    size_t scratch_bytes() const { return scratch_bytes_; }

  private:
    struct Active {
        std::vector<int32_t> rows, positions;  // rows of the batch; compact order
        std::vector<int32_t> slices, begin;    // active slices and their first compact row (one more at the end)
    };
    struct AttendItem {
        int32_t slice, head, row_begin, row_end, chunk_begin, chunk_end;
        int64_t cost, partial;  // partial < 0: the item writes its output itself
    };

    void check_spec() const;
    void check_operation(const Operation& op, bool in_unit) const;
    void check_step(const StepView& step) const;
    void lay_out_pages();
    void allocate();
    void activate(const StepView& step, int unit);
    void fill_angles(const StepView& step);
    int run_units(const StepView& step);
    void run(const std::vector<Operation>& ops, const StepView& step, const int32_t* index, int rows);
    void run_linears(const Operation* ops, size_t count, const StepView& step, int rows);
    void run_embed(const Operation& op, const StepView& step, const int32_t* index, int rows);
    void run_encode(const Operation& op, int rows);
    void run_attend(const Operation& op, const StepView& step);
    void append_rows(const Operation& op, const StepView& step);
    void list_items(const LayerShape& shape);
    void split_items(const LayerShape& shape, const KvLayout& layout);
    void attend_item(const Operation& op, const StepView& step, const AttendItem& item, int worker);
    void merge_items(const Operation& op);
    EncodedRows encoded(int index, int rows);
    float* slot(int index) { return slots_[static_cast<size_t>(index)].get(); }
    int64_t width(int index) const { return spec_.slots[static_cast<size_t>(index)]; }
    template <class F>
    void for_rows(int rows, int64_t work_per_row, F&& f);

    struct Free {
        void operator()(float* p) const;
    };
    using Buffer = std::unique_ptr<float[], Free>;
    Buffer buffer(size_t floats);

    std::shared_ptr<Pool> pool_;
    const KernelTable& kernels_;
    ProgramSpec spec_;
    ProgramLimits limits_;
    std::vector<KvLayout> layouts_;
    std::vector<size_t> layer_offsets_;
    size_t scratch_bytes_ = 0;
    KvPool pages_;
    std::vector<Buffer> slots_, encodings_, cosines_, sines_, attend_scratch_;
    Buffer partials_;
    size_t partial_floats_ = 0;
    Active active_;
    std::vector<AttendItem> items_;
    std::mutex stepping_;
};

}  // namespace kvern
