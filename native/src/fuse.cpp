// From recorded operations to stages. A slot is written once in a chain, so its value has the readers of the slot.
#include <algorithm>

#include "stages.h"

namespace kvern {
namespace {

bool is_rows(const Operation& op) { return op.code != OpCode::linear && op.code != OpCode::attend; }

int32_t source_slot(const ProgramSpec& spec, const Operation& op) {
    return spec.encodings[static_cast<size_t>(op.a)].slot;
}

bool plain(const ProgramSpec& spec, int32_t encoding) {
    return spec.encodings[static_cast<size_t>(encoding)].code == RowCode::f32;
}

// Whether `op` reads `slot` itself (a linear over plain rows does; over encoded ones its encode does).
bool reads(const ProgramSpec& spec, const Operation& op, int32_t slot) {
    switch (op.code) {
        case OpCode::embed:
            return false;
        case OpCode::norm:
            return op.a == slot;
        case OpCode::encode:
            return source_slot(spec, op) == slot;
        case OpCode::linear:
            return plain(spec, op.a) && source_slot(spec, op) == slot;
        case OpCode::attend:
            return op.a == slot || op.b == slot || op.c == slot;
        case OpCode::gate:
            return op.a == slot || op.b == slot;
        case OpCode::add:
            return op.a == slot || slot == kResidual;
    }
    return true;
}

int32_t written_slot(const Operation& op) {
    if (op.code == OpCode::encode) return -1;
    return op.code == OpCode::embed || op.code == OpCode::add ? kResidual : op.out;
}

bool read_by_one(const ProgramSpec& spec, const std::vector<Operation>& ops, int32_t slot) {
    return std::count_if(ops.begin(), ops.end(), [&](const Operation& op) { return reads(spec, op, slot); }) == 1;
}

bool written_once(const std::vector<Operation>& ops) {
    std::vector<int32_t> seen;
    for (const Operation& op : ops) {
        const int32_t slot = written_slot(op);
        if (slot <= kLogits) continue;
        if (std::find(seen.begin(), seen.end(), slot) != seen.end()) return false;
        seen.push_back(slot);
    }
    return true;
}

// Moves each linear forward past operations that neither make its rows nor touch what it writes.
void gather_linears(const ProgramSpec& spec, std::vector<Operation>& ops) {
    for (size_t i = 1; i < ops.size(); ++i) {
        for (size_t j = i; j > 0 && ops[j].code == OpCode::linear && is_rows(ops[j - 1]); --j) {
            const Operation &linear = ops[j], &before = ops[j - 1];
            const bool makes_rows = (before.code == OpCode::encode && before.a == linear.a) ||
                                    written_slot(before) == source_slot(spec, linear);
            if (makes_rows || reads(spec, before, linear.out)) break;
            std::swap(ops[j], ops[j - 1]);
        }
    }
}

// Whether groups of a code are encoded one by one, and the slot holds whole ones.
bool encodes_groups(const ProgramSpec& spec, const Operation& op) {
    const Encoding& e = spec.encodings[static_cast<size_t>(op.a)];
    const int group = group_of(e.code);
    return group > 0 && spec.slots[static_cast<size_t>(e.slot)] % group == 0;
}

// linear, linear, gate [, encode] from `at`; how many operations belong together (0: not this).
size_t gated_length(const ProgramSpec& spec, const std::vector<Operation>& ops, size_t at) {
    if (at + 2 >= ops.size() || ops[at + 1].code != OpCode::linear || ops[at + 2].code != OpCode::gate) return 0;
    const Operation &first = ops[at], &second = ops[at + 1], &gate = ops[at + 2];
    const bool ordered = gate.a == first.out && gate.b == second.out;
    const bool swapped = gate.a == second.out && gate.b == first.out;
    if (first.out == second.out || !(ordered || swapped)) return 0;
    if (!read_by_one(spec, ops, first.out) || !read_by_one(spec, ops, second.out)) return 0;
    if (at + 3 < ops.size() && ops[at + 3].code == OpCode::encode && source_slot(spec, ops[at + 3]) == gate.out &&
        read_by_one(spec, ops, gate.out) && encodes_groups(spec, ops[at + 3]))
        return 4;
    return 3;
}

Stage gated_stage(const std::vector<Operation>& ops, size_t at, size_t length) {
    const auto begin = ops.begin() + static_cast<std::ptrdiff_t>(at);
    Stage stage{StageKind::gated, {begin, begin + static_cast<std::ptrdiff_t>(length)}};
    if (stage.ops[2].a != stage.ops[0].out) std::swap(stage.ops[0], stage.ops[1]);
    return stage;
}

// The stage of a linear at `at`, with what follows it.
Stage linear_stage(const ProgramSpec& spec, const std::vector<Operation>& ops, size_t at) {
    const Operation& first = ops[at];
    if (first.out == kLogits) return {StageKind::logits, {first}};
    if (const size_t length = gated_length(spec, ops, at)) return gated_stage(ops, at, length);
    const bool last = at + 1 == ops.size();
    if (!last && ops[at + 1].code == OpCode::add && ops[at + 1].a == first.out && read_by_one(spec, ops, first.out))
        return {StageKind::add, {first, ops[at + 1]}};
    Stage stage{StageKind::linear, {}};
    for (size_t i = at; i < ops.size() && ops[i].code == OpCode::linear && ops[i].out != kLogits; ++i) {
        if (i > at && gated_length(spec, ops, i) > 0) break;
        stage.ops.push_back(ops[i]);
    }
    return stage;
}

std::vector<Stage> stages_of(const ProgramSpec& spec, std::vector<Operation> ops) {
    std::vector<Stage> stages;
    gather_linears(spec, ops);
    for (size_t i = 0; i < ops.size();) {
        if (ops[i].code == OpCode::linear) {
            stages.push_back(linear_stage(spec, ops, i));
        } else if (ops[i].code == OpCode::attend) {
            stages.push_back({StageKind::attend, {ops[i]}});
        } else {
            stages.push_back({StageKind::rows, {}});
            for (size_t j = i; j < ops.size() && is_rows(ops[j]); ++j) stages.back().ops.push_back(ops[j]);
        }
        i += stages.back().ops.size();
    }
    return stages;
}

std::vector<Stage> stages_apart(const std::vector<Operation>& ops) {
    std::vector<Stage> stages;
    for (const Operation& op : ops) {
        const StageKind kind = op.code == OpCode::attend   ? StageKind::attend
                               : op.code != OpCode::linear ? StageKind::rows
                               : op.out == kLogits         ? StageKind::logits
                                                           : StageKind::linear;
        stages.push_back({kind, {op}});
    }
    return stages;
}

// Marks what is used between two stages that all workers run together.
void find_private(const ProgramSpec& spec, Chain& chain) {
    std::vector<int> slot_side(spec.slots.size(), -1), encoding_side(spec.encodings.size(), -1);
    const auto use = [](std::vector<int>& sides, int32_t index, int side) {
        if (index < 0) return;
        int& found = sides[static_cast<size_t>(index)];
        found = found == -1 || found == side ? side : -2;  // -2: not private
    };
    int side = 0;
    for (const Stage& stage : chain.stages)
        for (const Operation& op : stage.ops) {
            const bool together = stage.kind == StageKind::attend || stage.kind == StageKind::logits;
            const int here = together ? -2 : side;
            if (op.code == OpCode::encode || op.code == OpCode::linear) {
                use(encoding_side, op.a, here);
                use(slot_side, source_slot(spec, op), here);
            } else {
                for (int32_t slot : {op.a, op.b, op.c}) use(slot_side, slot, here);
            }
            use(slot_side, op.out, here);
            side += together;
        }
    slot_side[kResidual] = slot_side[kLogits] = -2;
    for (int found : slot_side) chain.private_slot.push_back(found >= 0);
    for (int found : encoding_side) chain.private_encoding.push_back(found >= 0);
}

// Outputs that go no further than a panel.
bool stays_in_panel(const Stage& stage, int32_t slot) {
    if (stage.kind == StageKind::add) return slot == stage.ops[0].out;
    if (stage.kind != StageKind::gated) return false;
    return slot == stage.ops[0].out || slot == stage.ops[1].out ||
           (stage.ops.size() == 4 && slot == stage.ops[2].out);
}

void find_used(const ProgramSpec& spec, Chain& chain) {
    chain.used_slot.assign(spec.slots.size(), 0);
    for (const Stage& stage : chain.stages)
        for (const Operation& op : stage.ops) {
            int32_t read = op.a;  // a linear over encoded rows does not read the slot they are of
            if (op.code == OpCode::encode) read = source_slot(spec, op);
            if (op.code == OpCode::linear) read = plain(spec, op.a) ? source_slot(spec, op) : -1;
            for (int32_t slot : {read, op.b, op.c, op.out})
                if (slot >= 0 && !stays_in_panel(stage, slot)) chain.used_slot[static_cast<size_t>(slot)] = 1;
        }
}

}  // namespace

int group_of(RowCode code) {
    if (code == RowCode::q8_group) return 32;
    return code == RowCode::q8_group64 || code == RowCode::q6_group64 ? 64 : 0;
}

Chain fuse(const ProgramSpec& spec, const std::vector<Operation>& ops, bool apart) {
    Chain chain;
    chain.stages = apart || !written_once(ops) ? stages_apart(ops) : stages_of(spec, ops);
    find_private(spec, chain);
    find_used(spec, chain);
    return chain;
}

}  // namespace kvern
