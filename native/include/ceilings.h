// What this machine could do at best, measured by loops that do nothing else (kernels/ceilings.cpp).
#pragma once
#include <cstdint>

namespace kvern {

// Each runs `loops` rounds on the calling thread and returns the operations done (a multiply and an add are two).
// Null: the instruction set has no such instruction.
struct CeilingTable {
    int64_t (*float_fma)(int64_t loops);  // float32 fma, operands in registers
    int64_t (*int8_dots)(int64_t loops);  // int8 multiply-add instruction, operands in registers
    int64_t (*int8_tiles)(
        int64_t loops);  // AMX int8, activation and weight tiles reloaded from the first-level cache
    int64_t (*bf16_tiles)(int64_t loops);  // AMX bf16, likewise
};

}  // namespace kvern
