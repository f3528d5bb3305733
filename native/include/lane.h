// One step of a program at a time: the rows under way, their scratch, and the operations on them.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "profile.h"
#include "program.h"
#include "sample.h"
#include "stages.h"
#include "threads.h"

namespace kvern {

// Float32 scratch, 64-byte aligned.
struct FreeFloats {
    void operator()(float* p) const;
};
using Buffer = std::unique_ptr<float[], FreeFloats>;

constexpr int kBlockRows = 128;  // rows that a worker runs through a chain at once, at most

class Lane {
  public:
    Lane(Program& program, Profile& profile);

    // `step` must have passed Program::check_step. `pool` runs the work; its workers may differ from step to step.
    void step(const StepView& step, Pool& pool);
    size_t scratch_bytes() const { return scratch_bytes_; }

  private:
    struct Active {
        std::vector<int32_t> rows, positions;  // rows of the batch; compact order
        std::vector<int32_t> slices, begin;    // active slices and their first compact row (one more at the end)
    };
    struct AttendItem {
        int32_t slice, head, row_begin, row_end, chunk_begin, chunk_end;
        int64_t cost, partial;  // partial < 0: the item writes its output itself
        int64_t spans;          // index of the slice's first span
    };

    // Active slice of a KV format with a tail: positions [begin, end), and its first page of scratch.
    struct TailSlice {
        int64_t slot;
        int32_t begin, end;
        int64_t scratch;
    };
    struct Seal {
        size_t slice;  // active
        int64_t page;
    };

    // Active rows [begin, begin + count). `alone`: this worker runs all stages of a chain over them.
    struct Rows {
        int begin, count, worker;
        bool alone;
    };
    struct Encoded {
        EncodedRows rows;
        int64_t first;  // which of `rows` is the first one meant
    };
    // Rows [row, row + rows) of some Rows and tiles [tile, tile + tiles): what goes through a panel at once.
    struct Piece {
        int64_t row, rows, tile, tiles;
    };
    class Watch;

    Buffer buffer(size_t floats);
    void allocate_rows();
    void activate(const StepView& step, int unit);
    void fill_angles(const StepView& step);
    int run_units(const StepView& step);
    void run_head(const StepView& step);

    // lane_stages.cpp
    void run(const Chain& chain, const int32_t* index, int rows);
    void run_blocks(size_t first, size_t last, const Operation* attend);
    void run_stage(const Stage& stage);
    void share_linears(const Stage& stage);
    int64_t work_of(const Operation& op) const;
    void note(const Stage& stage, const Rows& rows, int64_t nanoseconds);
    int32_t chain_kind() const;
    void count_attend(const Operation& op, Note& note) const;

    // lane_rows.cpp
    void run_rows(const Stage& stage, const Rows& rows);
    void row_operation(const Operation& op, const Rows& rows, int begin, int end);
    void embed(const Operation& op, const int32_t* index, int begin, int end);
    Encoded encoded(int32_t index, const Rows& rows);
    float* at(int32_t slot, const Rows& rows);

    // lane_tiles.cpp
    void run_tiles(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end);
    void run_linear(const Operation& op, const Rows& rows, int64_t tile_begin, int64_t tile_end);
    void run_add(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end);
    void run_gated(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end);
    void run_logits(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end);
    void fill_panel(const Operation& op, const Encoded& x, const Piece& piece, float* panel) const;
    void encode_panel(const Encoded& out, const Piece& piece, const float* values, int64_t outputs) const;
    LinearWork work_for(const Operation& op, const EncodedRows& x) const;

    // lane_tail.cpp
    int64_t tail_scratch_pages() const;
    void plan_tails(const StepView& step);
    uint8_t* tail_page(size_t s, int layer, int64_t page);
    void seal_pages(const Operation& op, const StepView& step);
    void keep_tails(const Operation& op);

    // program_attend.cpp
    void run_attend(const Operation& op, const StepView& step);
    void append_rows(const Operation& op, const StepView& step, int begin, int end);
    int64_t list_spans(const Operation& op, const StepView& step, size_t s, int32_t last);
    void list_items(const Operation& op, const StepView& step);
    void split_items(const LayerShape& shape, const KvLayout& layout);
    void attend_item(const Operation& op, const AttendItem& item, int worker);
    void merge_items(const Operation& op);

    const WeightView& weight(const Operation& op) const {
        return spec_.weights[static_cast<size_t>(op.weight)]->view();
    }
    // Rows of every slot that each of so many workers has memory of its own for.
    int room_of(int workers) const { return std::min(kBlockRows, limits_.max_rows / workers); }
    int64_t tiles_of(const Operation& op) const { return (weight(op).n + 15) / 16; }
    float* slot(int index) { return slots_[static_cast<size_t>(index)].get(); }
    int64_t width(int index) const { return spec_.slots[static_cast<size_t>(index)]; }
    template <class F>
    void for_rows(int rows, int64_t work_per_row, F&& f);

    const KernelTable& kernels_;
    const ProgramSpec& spec_;
    const ProgramLimits& limits_;
    const std::vector<KvLayout>& layouts_;
    const std::vector<size_t>& layer_offsets_;
    KvPool& pages_;
    KvTails& tails_;
    Profile& profile_;
    std::vector<Chain> chains_;  // embed, the units, head
    int room_ = 0;               // rows that a worker has memory for when it runs a chain alone

    // Of the step under way.
    Pool* pool_ = nullptr;
    const StepView* step_ = nullptr;
    const Chain* chain_ = nullptr;
    const int32_t* index_ = nullptr;  // row of the batch of each active row
    int rows_ = 0;
    bool appended_ = false;  // the rows of the coming attend are in their pages
    std::vector<int32_t> head_rows_;
    std::vector<RunningTop> tops_;          // [workers][greedy rows]
    std::vector<std::vector<Note>> notes_;  // by worker

    size_t scratch_bytes_ = 0;
    std::vector<Buffer> slots_, encodings_, cosines_, sines_, attend_scratch_;
    Buffer partials_;
    size_t partial_floats_ = 0;
    Active active_;
    std::vector<AttendItem> items_;
    std::vector<KvSpan> spans_;
    std::vector<TailSlice> tail_slices_;  // one for each active slice, or none
    std::vector<Seal> seals_;
    Buffer tail_scratch_;
};

constexpr int64_t kWorthSharing = 16384;  // values of work below which one thread is quicker than a pool

template <class F>
void Lane::for_rows(int rows, int64_t work_per_row, F&& f) {
    if (rows * work_per_row < kWorthSharing || pool_->workers() == 1) return f(0, rows);
    pool_->parallel_for(rows, 1,
                        [&](int64_t begin, int64_t end, int) { f(static_cast<int>(begin), static_cast<int>(end)); });
}

}  // namespace kvern
