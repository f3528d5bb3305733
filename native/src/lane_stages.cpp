// How the stages of a chain are shared out. No split changes the order of a float operation.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "lane.h"

namespace kvern {
namespace {

constexpr int kRowsForBlocks = 64;  // rows of each worker from which it runs whole chains over rows of its own

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

}  // namespace

// Notes how long a stage takes while the profile is on.
class Lane::Watch {
  public:
    Watch(Lane& lane, const Stage& stage, const Rows& rows)
        : lane_(lane), stage_(stage), rows_(rows), began_(lane.profile_.on() ? now() : 0) {}
    ~Watch() {
        if (began_ != 0) lane_.note(stage_, rows_, now() - began_);
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

  private:
    Lane& lane_;
    const Stage& stage_;
    const Rows rows_;
    const int64_t began_;
};

// Many rows: each worker takes blocks of them through all stages up to the next attend, so that what passes between
// stages stays in its cache and workers meet twice a unit. Few rows: workers share the outputs of each linear, so
// that a weight is read from memory once.
void Lane::run(const Chain& chain, const int32_t* index, int rows) {
    chain_ = &chain, index_ = index, rows_ = rows;
    const std::vector<Stage>& stages = chain.stages;
    const bool blocks = rows >= kRowsForBlocks * pool_->workers() && !limits_.apart;
    appended_ = false;
    for (size_t i = 0; i < stages.size();) {
        size_t end = i;
        while (end < stages.size() && stages[end].kind != StageKind::attend && stages[end].kind != StageKind::logits)
            ++end;
        if (blocks && end > i) {
            const bool append = end < stages.size() && stages[end].kind == StageKind::attend;
            run_blocks(i, end, append ? &stages[end].ops[0] : nullptr);
            appended_ = append;
            i = end;
        } else {
            const Watch watch(*this, stages[i], {0, rows, 0, false});
            run_stage(stages[i]);
            appended_ = false;
            ++i;
        }
    }
}

// Stages [first, last) block by block, then the append of `attend` if there is one.
void Lane::run_blocks(size_t first, size_t last, const Operation* attend) {
    const int workers = pool_->workers();
    const int shares = workers * ((rows_ + workers * room_ - 1) / (workers * room_));
    const int even = (rows_ + shares - 1) / shares;
    const int block = std::min(room_, (even + 15) / 16 * 16), blocks = (rows_ + block - 1) / block;
    std::atomic<int> next{0};
    pool_->run([&](int worker, int) {
        for (int b = next.fetch_add(1); b < blocks; b = next.fetch_add(1)) {
            const Rows rows{b * block, std::min(block, rows_ - b * block), worker, true};
            for (size_t i = first; i < last; ++i) {
                const Stage& stage = chain_->stages[i];
                const Watch watch(*this, stage, rows);
                if (stage.kind == StageKind::rows)
                    run_rows(stage, rows);
                else
                    run_tiles(stage, rows, 0, tiles_of(stage.ops[0]));
            }
            if (attend != nullptr) append_rows(*attend, *step_, rows.begin, rows.begin + rows.count);
        }
    });
}

void Lane::run_stage(const Stage& stage) {
    if (stage.kind == StageKind::attend) return run_attend(stage.ops[0], *step_);
    if (stage.kind == StageKind::rows) {
        int64_t work = 0;
        for (const Operation& op : stage.ops) work += work_of(op);
        return for_rows(rows_, work, [&](int begin, int end) { run_rows(stage, {begin, end - begin, 0, false}); });
    }
    if (stage.kind == StageKind::linear) return share_linears(stage);
    // Groups of codes must stay whole.
    const int64_t tiles = tiles_of(stage.ops[0]);
    const int64_t grain = stage.kind == StageKind::gated && stage.ops.size() == 4
                              ? group_of(spec_.encodings[static_cast<size_t>(stage.ops[3].a)].code) / 16
                              : 1;
    pool_->parallel_for(tiles, grain, [&](int64_t begin, int64_t end, int worker) {
        run_tiles(stage, {0, rows_, worker, false}, begin, end);
    });
}

// The tiles of all linears of a stage in a row, cut evenly.
void Lane::share_linears(const Stage& stage) {
    int64_t all = 0;
    for (const Operation& op : stage.ops) all += tiles_of(op);
    pool_->parallel_for(all, 1, [&](int64_t begin, int64_t end, int worker) {
        int64_t first = 0;
        for (const Operation& op : stage.ops) {
            const int64_t tiles = tiles_of(op);
            const int64_t from = std::max(begin, first) - first, to = std::min(end, first + tiles) - first;
            if (from < to) run_linear(op, {0, rows_, worker, false}, from, to);
            first += tiles;
        }
    });
}

// Blocks of a chain run side by side, so each counts for its part of the wall time.
void Lane::note(const Stage& stage, const Rows& rows, int64_t nanoseconds) {
    Note note{static_cast<int32_t>(stage.kind), chain_kind(), -1, rows_, rows.begin == 0, nanoseconds, 0, 0};
    if (rows.alone) note.nanoseconds /= pool_->workers();
    for (const Operation& op : stage.ops) {
        if (op.code == OpCode::linear) {
            const WeightView& w = weight(op);
            if (note.format < 0) note.format = static_cast<int32_t>(w.format);
            note.bytes += note.calls * tiles_of(op) * w.tile_bytes;
            note.operations += 2 * w.n * w.k * rows.count;
        } else if (op.code == OpCode::attend) {
            count_attend(op, note);
        }
    }
    notes_[static_cast<size_t>(rows.worker)].push_back(note);
}

int32_t Lane::chain_kind() const {
    const auto at = chain_ - chains_.data(), last = static_cast<std::ptrdiff_t>(chains_.size()) - 1;
    return at == 0 ? 0 : at == last ? 3 : at % 2 == 1 ? 1 : 2;
}

// Keys and values that the slices of the step have, and the products with them.
void Lane::count_attend(const Operation& op, Note& note) const {
    const LayerShape& shape = spec_.layers[static_cast<size_t>(op.layer)];
    const auto token_bytes =
        static_cast<int64_t>(layouts_[static_cast<size_t>(op.layer)].block_bytes) * shape.kv_heads / kPageTokens;
    for (size_t s = 0; s + 1 < active_.begin.size(); ++s) {
        const int32_t end = active_.begin[s + 1];
        const int64_t first = active_.positions[static_cast<size_t>(active_.begin[s])];
        const int64_t last = active_.positions[static_cast<size_t>(end) - 1];
        note.bytes +=
            (last + 1 - (shape.window > 0 ? std::max<int64_t>(0, first - shape.window + 1) : 0)) * token_bytes;
        for (int32_t i = active_.begin[s]; i < end; ++i) {
            const int64_t seen = int64_t{active_.positions[static_cast<size_t>(i)]} + 1;
            note.operations +=
                4 * (shape.window > 0 ? std::min<int64_t>(seen, shape.window) : seen) * shape.heads * shape.head_dim;
        }
    }
}

}  // namespace kvern
