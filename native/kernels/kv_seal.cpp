// A full bf16 page of one KV head into the format of sealed pages (kv_tails.h says when).
#include "attention.h"
#include "dispatch.h"
#include "kv/formats.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// Token `slot` of bf16 values (Bf16Values in kv/bf16.h) as floats.
void read_values(const KvLayout& at, const uint8_t* block, int slot, float* x) {
    const auto* values = reinterpret_cast<const uint16_t*>(block + at.v_offset) +
                         static_cast<size_t>(slot / 2) * static_cast<size_t>(at.padded_dim) * 2 + slot % 2;
    for (int d = 0; d < at.head_dim; ++d) x[d] = bf16_to_float(values[2 * d]);
}

}  // namespace

void seal(const SealWork& work) {
    Channel4Keys::seal(*work.layout, work.block, work.from);
    const WriteVector write = kValueReaders[static_cast<int>(work.layout->format.values)].write;
    alignas(64) float x[kMaxHeadDim];
    for (int slot = 0; slot < kPageTokens; ++slot) {
        read_values(*work.from_layout, work.from, slot, x);
        write(*work.layout, work.block, slot, x);
    }
}

void fill_kv_seal(KernelTable& table) { table.attention.seal = seal; }

}  // namespace kvern::KVERN_ISA_NS
