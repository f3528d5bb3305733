// Peak rates of the instructions that the other kernels are made of.
#include "amx_tiles.h"
#include "dispatch.h"
#include "simd.h"

namespace kvern::KVERN_ISA_NS {
namespace {

constexpr int kChains = 10;  // independent sums: more than latency times throughput of an fma

int64_t float_fma(int64_t loops) {
    F16 sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = splat(static_cast<float>(c));
    const F16 a = splat(0.5f), b = splat(1.5f);
#if defined(__AVX512F__)
    constexpr int together = kChains;
#else
    constexpr int together = kChains / 2;  // two registers each
#endif
    for (int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 10
        for (int c = 0; c < together; ++c) sums[c] = fma(sums[c], a, b);
    }
    float lanes[16];
    for (int c = 0; c < together; ++c) {
        store(lanes, sums[c]);
        __asm__ volatile("" ::"r"(lanes) : "memory");
    }
    return loops * together * 32;
}

#if defined(KVERN_ISA_amx)
// Four sums from two tiles of activations and two of weights, as the tile kernels do: four loads, four products.
template <bool BF16>
int64_t tiles(int64_t loops) {
    alignas(64) static uint8_t operands[4][1024] = {};
    const TileShapes shapes(16, 16, 64);
    memory_is_written();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < loops; ++i) {
        _tile_loadd(4, operands[0], 64);
        _tile_loadd(6, operands[2], 64);
        _tile_loadd(7, operands[3], 64);
        _tile_loadd(5, operands[1], 64);
        if constexpr (BF16) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    return loops * 4 * 16 * 16 * (BF16 ? 32 : 64) * 2;
}
#endif

}  // namespace

void fill_ceilings(KernelTable& table) {
    table.ceilings.float_fma = float_fma;
    table.ceilings.int8_dots = table.linear.multiply_add_peak;
#if defined(KVERN_ISA_portable)
    table.ceilings.int8_dots = nullptr;
#endif
#if defined(KVERN_ISA_amx)
    table.ceilings.int8_tiles = tiles<false>;
    table.ceilings.bf16_tiles = tiles<true>;
#endif
}

}  // namespace kvern::KVERN_ISA_NS
