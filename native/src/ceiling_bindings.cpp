// Measuring the machine's ceilings on the threads of a pool.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "dispatch.h"
#include "threads.h"

namespace nb = nanobind;

namespace kvern {
namespace {

using Clock = std::chrono::steady_clock;
using Loop = int64_t (*)(int64_t);

Loop loop_of(const std::string& kind) {
    const CeilingTable& table = kernels().ceilings;
    if (kind == "float32 fma") return table.float_fma;
    if (kind == "int8 dot") return table.int8_dots;
    if (kind == "int8 tile") return table.int8_tiles;
    if (kind == "bf16 tile") return table.bf16_tiles;
    throw std::invalid_argument("ceiling '" + kind + "' is not one of float32 fma, int8 dot, int8 tile, bf16 tile");
}

void check_seconds(double seconds) {
    if (!(seconds > 0.0 && seconds <= 10.0)) throw std::invalid_argument("seconds must be above 0, at most 10");
}

// work(worker) returns what it did; repeated on every worker until `seconds` have passed. The sum of the workers'
// own rates, per second.
template <class Work>
double rate_of(Pool& pool, double seconds, Work work) {
    std::vector<double> rates(static_cast<size_t>(pool.workers()));
    pool.run([&](int worker, int) {
        const auto start = Clock::now();
        double done = 0, passed = 0;
        do {
            done += static_cast<double>(work(worker));
            passed = std::chrono::duration<double>(Clock::now() - start).count();
        } while (passed < seconds);
        rates[static_cast<size_t>(worker)] = done / passed;
    });
    double sum = 0;
    for (double rate : rates) sum += rate;
    return sum;
}

double operations(Pool& pool, const std::string& kind, double seconds) {
    check_seconds(seconds);
    const Loop loop = loop_of(kind);
    if (loop == nullptr) return 0.0;
    nb::gil_scoped_release release;
    return rate_of(pool, seconds, [&](int) { return loop(2000); });
}

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};

// Every worker reads a block of its own, again and again.
double read_rate(Pool& pool, int64_t bytes, double seconds) {
    check_seconds(seconds);
    if (bytes < 4096 || bytes > (int64_t{1} << 36)) throw std::invalid_argument("bytes must be 4096 to 2^36");
    nb::gil_scoped_release release;
    const auto size = static_cast<size_t>((bytes + 4095) / 4096 * 4096);
    std::vector<std::unique_ptr<uint8_t, Free>> blocks;
    for (int worker = 0; worker < pool.workers(); ++worker) {
        blocks.emplace_back(static_cast<uint8_t*>(std::aligned_alloc(4096, size)));
        if (!blocks.back()) throw std::bad_alloc();
    }
    // Each worker touches its own block first, so that it lies in the memory next to it.
    pool.run([&](int worker, int) { std::memset(blocks[static_cast<size_t>(worker)].get(), 1, size); });
    return rate_of(pool, seconds, [&](int worker) {
        return kernels().linear.read_memory(blocks[static_cast<size_t>(worker)].get(), static_cast<int64_t>(size));
    });
}

}  // namespace

void register_ceilings(nb::module_& module) {
    using namespace nb::literals;
    module.def("ceiling_operations", operations, "pool"_a, "kind"_a, "seconds"_a = 0.05,
               "Operations per second of all the pool's threads together, a multiply and an add being two; `kind` is "
               "'float32 fma', 'int8 dot', 'int8 tile' or 'bf16 tile'. 0.0 where the machine has none.");
    module.def("ceiling_read", read_rate, "pool"_a, "bytes"_a, "seconds"_a = 0.05,
               "Bytes per second that all the pool's threads read together, each from `bytes` of its own.");
}

}  // namespace kvern
