// hadamard4: keys of token4 rotated first, queries rotated alike (src/kvern/formats/kv/kv4_hadamard.py).
#pragma once
#include "hadamard.h"
#include "kv4_token.h"

namespace kvern::KVERN_ISA_NS {

struct Hadamard4Keys {
    static constexpr int kForm = 42;

    static void write(const KvLayout& at, uint8_t* block, int slot, const float* x) {
        alignas(64) float rotated[kMaxHeadDim];
        std::memcpy(rotated, x, static_cast<size_t>(at.head_dim) * sizeof(float));
        hadamard(rotated, at.head_dim);
        Token4Keys::write(at, block, slot, rotated);
    }

    static void scores(Vectors& at, const Pages& pages) {
        encode_queries(at, kForm, hadamard);
        Token4Keys::scores_of_encoded(at, pages);
    }
};

}  // namespace kvern::KVERN_ISA_NS
