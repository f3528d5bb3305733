// Operations on one row at a time, over a few rows so that each value is still in cache for the next operation.
#include <algorithm>
#include <cmath>

#include "lane.h"

namespace kvern {
namespace {

constexpr int kRowsAtOnce = 4;

}  // namespace

// Angles are rounded to float32 as the models were trained; their cosines are exact to float32.
void Lane::fill_angles(const StepView& step) {
    for (size_t i = 0; i < spec_.ropes.size(); ++i) {
        const std::vector<float>& frequencies = spec_.ropes[i];
        const size_t half = frequencies.size();
        float *cosine = cosines_[i].get(), *sine = sines_[i].get();
        for_rows(static_cast<int>(step.rows), static_cast<int64_t>(half) * 64, [&](int begin, int end) {
            for (int r = begin; r < end; ++r)
                for (size_t d = 0; d < half; ++d) {
                    const auto angle = static_cast<double>(static_cast<float>(step.positions[r]) * frequencies[d]);
                    cosine[static_cast<size_t>(r) * half + d] = static_cast<float>(std::cos(angle));
                    sine[static_cast<size_t>(r) * half + d] = static_cast<float>(std::sin(angle));
                }
        });
    }
}

// Where row `rows.begin` of a slot is.
float* Lane::at(int32_t index, const Rows& rows) {
    const int64_t first = chain_->private_slot[static_cast<size_t>(index)] != 0 && rows.alone
                              ? int64_t{rows.worker} * room_
                              : rows.begin;
    return slot(index) + first * width(index);
}

// Encoded rows, and which of them is row `rows.begin`.
Lane::Encoded Lane::encoded(int32_t index, const Rows& rows) {
    const Encoding& e = spec_.encodings[static_cast<size_t>(index)];
    if (e.code == RowCode::f32) return {plain_rows(at(e.slot, rows), width(e.slot), rows.count, width(e.slot)), 0};
    const bool own = chain_->private_encoding[static_cast<size_t>(index)] != 0 && rows.alone;
    auto* memory = reinterpret_cast<uint8_t*>(encodings_[static_cast<size_t>(index)].get());
    if (own) memory += static_cast<size_t>(rows.worker) * encoded_rows_bytes(e.code, room_, width(e.slot));
    Encoded found{encoded_rows_view(e.code, own ? rows.count : rows_, width(e.slot), memory), own ? 0 : rows.begin};
    found.rows.header = spec_.weights[static_cast<size_t>(e.weight)]->view().header;
    return found;
}

// Values that an operation touches in a row, dear ones counted more.
int64_t Lane::work_of(const Operation& op) const {
    switch (op.code) {
        case OpCode::encode:
            return width(spec_.encodings[static_cast<size_t>(op.a)].slot) * 2;
        case OpCode::gate:
            return width(op.a) * 8;
        case OpCode::embed:
            return int64_t{spec_.hidden} * 4;
        default:
            return width(op.a);
    }
}

void Lane::run_rows(const Stage& stage, const Rows& rows) {
    for (int done = 0; done < rows.count; done += kRowsAtOnce)
        for (const Operation& op : stage.ops) row_operation(op, rows, done, std::min(done + kRowsAtOnce, rows.count));
}

// Rows [begin, end) of `rows`.
void Lane::row_operation(const Operation& op, const Rows& rows, int begin, int end) {
    const int32_t* index = index_ + rows.begin;
    switch (op.code) {
        case OpCode::embed:
            return embed(op, index, begin, end);
        case OpCode::norm: {
            const auto stride = static_cast<size_t>(width(op.a));
            const float* x = op.a == kResidual ? slot(kResidual) : at(op.a, rows);
            return kernels_.rows.norm({x, at(op.out, rows), stride, stride, op.a == kResidual ? index : nullptr,
                                       spec_.vectors[static_cast<size_t>(op.vector)].data(),
                                       static_cast<int>(width(op.a) / op.parts), op.parts, op.value},
                                      begin, end);
        }
        case OpCode::encode: {
            const Encoded out = encoded(op.a, rows);
            if (out.rows.code == RowCode::f32) return;
            const int32_t from = spec_.encodings[static_cast<size_t>(op.a)].slot;
            return kernels_.linear.encode[static_cast<int>(out.rows.code)](
                at(from, rows) - out.first * width(from), width(from), out.rows, out.first + begin, out.first + end);
        }
        case OpCode::gate: {
            const auto w = static_cast<size_t>(width(op.a));
            return kernels_.rows.gate({at(op.a, rows), at(op.b, rows), at(op.out, rows), w, w, w, static_cast<int>(w),
                                       static_cast<Activation>(op.parts)},
                                      begin, end);
        }
        case OpCode::add: {
            const auto w = static_cast<size_t>(spec_.hidden);
            return kernels_.rows.add({slot(kResidual), at(op.a, rows), w, w, index, spec_.hidden}, begin, end);
        }
        default:
            return;  // linear and attend are never in a stage of rows
    }
}

void Lane::embed(const Operation& op, const int32_t* index, int begin, int end) {
    const PackedWeight& table = *spec_.weights[static_cast<size_t>(op.weight)];
    for (int i = begin; i < end; ++i) {
        float* out = slot(kResidual) + int64_t{index[i]} * spec_.hidden;
        table.row(step_->tokens[index[i]], out);
        if (op.value != 1.0f) kernels_.rows.scale(out, static_cast<size_t>(spec_.hidden), op.value);
    }
}

}  // namespace kvern
