#include "dispatch.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kvern {
namespace {

#if defined(__x86_64__) && !defined(KVERN_EMULATE)
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf cpuid(unsigned leaf, unsigned sub) {
    Leaf r;
    __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool bit(unsigned word, int n) { return (word >> n) & 1u; }

// State components that the operating system saves (XCR0); 0 without XSAVE.
uint64_t saved_state() {
    if (!bit(cpuid(1, 0).c, 27)) return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

[[maybe_unused]] bool has_avx2() {
    const Leaf one = cpuid(1, 0);
    return (saved_state() & 0x6) == 0x6 && bit(one.c, 12) && bit(one.c, 29) && bit(cpuid(7, 0).b, 5);
}

[[maybe_unused]] bool has_avx512vnni() {
    const Leaf seven = cpuid(7, 0);
    const bool base = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    return has_avx2() && (saved_state() & 0xe6) == 0xe6 && base && bit(seven.c, 11);
}

[[maybe_unused]] bool has_amx() {
    const Leaf seven = cpuid(7, 0);
    const bool tiles = bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) && bit(cpuid(7, 1).a, 5) &&
                       bit(seven.c, 14);  // AMX tiles, bf16 and int8; AVX512-BF16; VPOPCNTDQ
    if (!has_avx512vnni() || !tiles || (saved_state() & 0x60000) != 0x60000) return false;
#if defined(__linux__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
#elif defined(KVERN_EMULATE)  // tests only: the kernels are compiled against an emulation of the intrinsics
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_avx512vnni() { return has_avx2(); }
[[maybe_unused]] bool has_amx() { return has_avx2(); }
#else
[[maybe_unused]] bool has_avx2() { return false; }
[[maybe_unused]] bool has_avx512vnni() { return false; }
[[maybe_unused]] bool has_amx() { return false; }
#endif

template <class Fill>
KernelTable table_of(const char* isa, Fill fill) {
    KernelTable table{};
    table.isa = isa;
    fill(table);
    return table;
}

const std::vector<KernelTable>& tables() {
    static const std::vector<KernelTable> all = [] {
        std::vector<KernelTable> found;
#define KVERN_CALL_FILL(file) fill_##file(table);
#if !defined(KVERN_WITHOUT_amx)
        if (has_amx())
            found.push_back(table_of("amx", [](KernelTable& table) {
                using namespace amx;
                KVERN_KERNEL_FILES(KVERN_CALL_FILL)
            }));
#endif
#if !defined(KVERN_WITHOUT_avx512vnni)
        if (has_avx512vnni())
            found.push_back(table_of("avx512vnni", [](KernelTable& table) {
                using namespace avx512vnni;
                KVERN_KERNEL_FILES(KVERN_CALL_FILL)
            }));
#endif
#if !defined(KVERN_WITHOUT_avx2)
        if (has_avx2())
            found.push_back(table_of("avx2", [](KernelTable& table) {
                using namespace avx2;
                KVERN_KERNEL_FILES(KVERN_CALL_FILL)
            }));
#endif
        found.push_back(table_of("portable", [](KernelTable& table) {
            using namespace portable;
            KVERN_KERNEL_FILES(KVERN_CALL_FILL)
        }));
#undef KVERN_CALL_FILL
        return found;
    }();
    return all;
}

}  // namespace

const std::vector<std::string>& available_isas() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> list;
        for (const KernelTable& table : tables()) list.emplace_back(table.isa);
        return list;
    }();
    return names;
}

const KernelTable& kernels_for(std::string_view isa) {
    if (isa.empty()) return kernels();
    for (const KernelTable& table : tables())
        if (isa == table.isa) return table;
    std::string message = "instruction set '" + std::string(isa) + "' is not available on this machine; it has";
    for (const std::string& name : available_isas()) message += " " + name;
    throw std::runtime_error(message);
}

const KernelTable& kernels() {
    const char* wanted = std::getenv("KVERN_ISA");
    static const KernelTable& chosen = wanted && *wanted ? kernels_for(wanted) : tables().front();
    return chosen;
}

}  // namespace kvern
