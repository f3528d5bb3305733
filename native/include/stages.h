// What a lane runs: operations grouped so that values pass from one to the next in cache and workers meet seldom.
#pragma once
#include <cstdint>
#include <vector>

#include "program.h"

namespace kvern {

enum class StageKind : int32_t {
    rows,    // operations on one row at a time, any but linear and attend
    linear,  // linears next to each other
    add,     // linear, add: residual += linear(x)
    gated,   // linear (gate), linear (up), gate, and encode where its code takes groups one by one
    attend,  // one attend
    logits,  // the linear that ends the head
};

struct Stage {
    StageKind kind;
    std::vector<Operation> ops;
};

// The operations of the embedding, a unit or the head. What is used on one side of an attend only ("private") may
// live in memory of the worker that runs all stages of that side over its rows.
struct Chain {
    std::vector<Stage> stages;
    std::vector<uint8_t> private_slot, private_encoding;  // by index; 1: private
    std::vector<uint8_t> used_slot;                       // by index; 0: needs no memory
};

// Inputs that share a scale, for codes whose groups are encoded one by one in order; 0: others.
int group_of(RowCode code);

// Each operation gives the bits that it gives on its own. With `apart`, every operation is a stage of its own (what
// tests compare with).
Chain fuse(const ProgramSpec& spec, const std::vector<Operation>& ops, bool apart);

}  // namespace kvern
