// One table of kernels per instruction set; the best one this machine has is chosen once at start.
//
// Every file kernels/<file>.cpp defines, inside namespace kvern::KVERN_ISA_NS, `void fill_<file>(KernelTable&)` which
// sets its pointers, and has its name in KVERN_KERNEL_FILES below. Where a later file sets a pointer again (AMX), the
// later one wins.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "attention.h"
#include "ceilings.h"
#include "linear.h"
#include "norm.h"
#include "sample.h"

// A new kernel file needs one X(<file>) in one of these lists.
#define KVERN_LINEAR_FILES(X) \
    X(quantize_rows)          \
    X(linear_decoded)         \
    X(quantize_groups)        \
    X(quantize_bits)          \
    X(linear_blocks)          \
    X(linear_grouped)         \
    X(linear_bits)            \
    X(linear_rows)            \
    X(linear_qoq)             \
    X(linear_float)           \
    X(linear_w4a16)           \
    X(linear_bitstack)        \
    X(linear_amx)             \
    X(peak)
#define KVERN_ATTENTION_FILES(X) \
    X(rope_append)               \
    X(attention)                 \
    X(kv_seal)
#if defined(KVERN_LINEAR_ONLY)  // the emulated build of tests: linear layers and attention
#define KVERN_KERNEL_FILES(X) \
    KVERN_LINEAR_FILES(X)     \
    KVERN_ATTENTION_FILES(X)
#else
#define KVERN_KERNEL_FILES(X) \
    KVERN_LINEAR_FILES(X)     \
    KVERN_ATTENTION_FILES(X)  \
    X(norm)                   \
    X(elementwise)            \
    X(sample)                 \
    X(ceilings)
#endif

namespace kvern {

struct KernelTable {
    const char* isa;
    LinearTable linear;        // linear.h
    AttentionTable attention;  // attention.h
    RowTable rows;             // norm.h
    SampleTable sample;        // sample.h
    CeilingTable ceilings;     // ceilings.h
};

#define KVERN_DECLARE_FILL(file) void fill_##file(KernelTable&);
namespace portable {
KVERN_KERNEL_FILES(KVERN_DECLARE_FILL)
}
namespace avx2 {
KVERN_KERNEL_FILES(KVERN_DECLARE_FILL)
}
namespace avx512vnni {
KVERN_KERNEL_FILES(KVERN_DECLARE_FILL)
}
namespace amx {
KVERN_KERNEL_FILES(KVERN_DECLARE_FILL)
}
#undef KVERN_DECLARE_FILL

// The table chosen for this process: the best available, or the one named by the environment variable KVERN_ISA.
// Throws std::runtime_error naming the available ones when KVERN_ISA asks for one this machine lacks.
const KernelTable& kernels();

// The table of one instruction set; an empty name means kernels(). Throws std::runtime_error as above.
const KernelTable& kernels_for(std::string_view isa);

// Best first; "portable" is always the last.
const std::vector<std::string>& available_isas();

}  // namespace kvern
