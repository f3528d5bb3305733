// Linears and what follows them on their outputs: a few tiles of a few rows at a time go through a panel that stays
// in the first-level cache.
#include <algorithm>

#include "lane.h"

namespace kvern {
namespace {

constexpr int64_t kPanelTiles = 4, kPanelOutputs = 16 * kPanelTiles, kPanelRows = 64;

struct alignas(64) Panel {
    float values[kPanelRows * kPanelOutputs];
};

// Never read before it is written, so that each thread may keep its own between calls.
Panel& panel(int number) {
    thread_local Panel panels[2];
    return panels[number];
}

// `p` moved by `count` floats to where an array would begin of which only a part is there.
float* base_of(float* p, int64_t count) {
    return reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(p) - static_cast<uintptr_t>(count * 4));
}

// f(row, rows, tile, tiles) for panels over `count` rows and the tiles: tiles outside, so that each is read from
// memory once.
template <class F>
void for_pieces(int64_t count, int64_t tile_begin, int64_t tile_end, F&& f) {
    for (int64_t tile = tile_begin; tile < tile_end; tile += kPanelTiles)
        for (int64_t row = 0; row < count; row += kPanelRows)
            f({row, std::min(kPanelRows, count - row), tile, std::min(kPanelTiles, tile_end - tile)});
}

}  // namespace

LinearWork Lane::work_for(const Operation& op, const EncodedRows& x) const {
    return {weight(op), &x, nullptr, 0,
            op.vector < 0 ? nullptr : spec_.vectors[static_cast<size_t>(op.vector)].data()};
}

void Lane::run_linear(const Operation& op, const Rows& rows, int64_t tile_begin, int64_t tile_end) {
    const Encoded x = encoded(op.a, rows);
    LinearWork work = work_for(op, x.rows);
    work.y_stride = width(op.out);
    work.y = base_of(at(op.out, rows), x.first * work.y_stride);
    kernels_.linear.at(work.weight.format, x.rows.code)(work, x.first, x.first + rows.count, tile_begin, tile_end);
}

// Rows [row, row + count) of `rows`, tiles [begin, end), to a panel.
void Lane::fill_panel(const Operation& op, const Encoded& x, const Piece& piece, float* panel) const {
    LinearWork work = work_for(op, x.rows);
    const int64_t first = x.first + piece.row;
    work.y_stride = kPanelOutputs;
    work.y = base_of(panel, first * kPanelOutputs + piece.tile * 16);
    kernels_.linear.at(work.weight.format, x.rows.code)(work, first, first + piece.rows, piece.tile,
                                                        piece.tile + piece.tiles);
}

void Lane::run_tiles(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end) {
    switch (stage.kind) {
        case StageKind::linear:
            for (const Operation& op : stage.ops) run_linear(op, rows, 0, tiles_of(op));
            return;
        case StageKind::add:
            return run_add(stage, rows, tile_begin, tile_end);
        case StageKind::gated:
            return run_gated(stage, rows, tile_begin, tile_end);
        case StageKind::logits:
            return run_logits(stage, rows, tile_begin, tile_end);
        default:
            return;
    }
}

void Lane::run_add(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end) {
    const Operation& linear = stage.ops[0];
    const Encoded x = encoded(linear.a, rows);
    float* values = panel(0).values;
    for_pieces(rows.count, tile_begin, tile_end, [&](const Piece& piece) {
        fill_panel(linear, x, piece, values);
        const int64_t output = piece.tile * 16;
        kernels_.rows.add({slot(kResidual) + output, values, static_cast<size_t>(spec_.hidden), kPanelOutputs,
                           index_ + rows.begin + piece.row,
                           static_cast<int>(std::min(piece.tiles * 16, width(linear.out) - output))},
                          0, static_cast<int>(piece.rows));
    });
}

void Lane::run_gated(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end) {
    const Operation &gate = stage.ops[0], &up = stage.ops[1], &act = stage.ops[2];
    const Encoded x = encoded(gate.a, rows), x_up = encoded(up.a, rows);
    const bool encodes = stage.ops.size() == 4;
    const Encoded codes = encodes ? encoded(stage.ops[3].a, rows) : Encoded{};
    float* out = encodes ? nullptr : at(act.out, rows);
    float *gates = panel(0).values, *ups = panel(1).values;
    const int64_t all = width(act.out);
    for_pieces(rows.count, tile_begin, tile_end, [&](const Piece& piece) {
        fill_panel(gate, x, piece, gates);
        fill_panel(up, x_up, piece, ups);
        const int64_t output = piece.tile * 16, outputs = std::min(piece.tiles * 16, all - output);
        GateWork work{gates,
                      ups,
                      gates,
                      kPanelOutputs,
                      kPanelOutputs,
                      kPanelOutputs,
                      static_cast<int>(outputs),
                      static_cast<Activation>(act.parts)};
        if (!encodes) work.y = out + piece.row * all + output, work.y_stride = static_cast<size_t>(all);
        kernels_.rows.gate(work, 0, static_cast<int>(piece.rows));
        if (encodes) encode_panel(codes, piece, gates, outputs);
    });
}

// Whole groups of each row: the row's codes from there on are a row of their own.
void Lane::encode_panel(const Encoded& out, const Piece& piece, const float* values, int64_t outputs) const {
    const int group = group_of(out.rows.code);
    const int64_t first = piece.tile * 16;
    for (int64_t r = 0; r < piece.rows; ++r) {
        const int64_t row = out.first + piece.row + r, at = row * out.rows.groups + first / group;
        EncodedRows part = out.rows;
        part.rows = 1, part.k = outputs, part.groups = outputs / group;
        part.codes += row * out.rows.stride + first;
        part.scales += at, part.scaled_sums += at, part.sums += at, part.half_sums += 2 * at;
        kernels_.linear.encode[static_cast<int>(out.rows.code)](values + r * kPanelOutputs, kPanelOutputs, part, 0,
                                                                1);
    }
}

// Rows that want logits get them; of the others only the likeliest token so far is kept.
void Lane::run_logits(const Stage& stage, const Rows& rows, int64_t tile_begin, int64_t tile_end) {
    const Operation& linear = stage.ops[0];
    const Encoded x = encoded(linear.a, rows);
    const int64_t wanted = step_->logit_count, greedy = step_->greedy_count;
    const TilesKernel kernel = kernels_.linear.at(weight(linear).format, x.rows.code);
    LinearWork work = work_for(linear, x.rows);
    work.y = step_->logits, work.y_stride = width(kLogits);
    RunningTop* tops = tops_.data() + rows.worker * greedy;
    float* values = panel(0).values;
    for (int64_t tile = tile_begin; tile < tile_end; tile += kPanelTiles) {
        const int64_t tiles = std::min(kPanelTiles, tile_end - tile);
        if (wanted > 0) kernel(work, 0, wanted, tile, tile + tiles);
        for (int64_t row = 0; row < greedy; row += kPanelRows) {
            const int64_t count = std::min(kPanelRows, greedy - row), first = tile * 16;
            fill_panel(linear, x, {wanted + row, count, tile, tiles}, values);
            kernels_.sample.running_top({values, kPanelOutputs, static_cast<int>(count), static_cast<int32_t>(first),
                                         static_cast<int>(std::min(tiles * 16, width(kLogits) - first))},
                                        tops + row);
        }
    }
}

}  // namespace kvern
