// K5: bipolar weights of n bits times bipolar activations of m bits by bit planes (arbitrary-precision
// "bipolar-INT").
//
// With every bit worth + or - its place, the product of planes i and j over 64 inputs is 64 - 2 popcount(w_i xor
// x_j), and the dot product is the sum of 2^(i + j) times that: exact. Per output and group, groups ascending: acc =
// fma(float(dot), s_a * s_w, acc).
#include "bit_counts.h"
#include "dispatch.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {
namespace {

// Whole numbers below 2^24: exact in float.
inline F16 dot_of(I16 differences, int32_t all) {
    return fma(to_float(differences), splat(-2.0f), splat(static_cast<float>(all)));
}

template <int N, int M>
struct Bits {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        constexpr int32_t all = kCodeGroup * ((1 << N) - 1) * ((1 << M) - 1);
        const EncodedRows& x = *work.x;
        for (int64_t g = 0; g < x.groups; ++g, tile += group_bytes(N)) {
            const uint32_t* planes[ROWS];
            for (int r = 0; r < ROWS; ++r)
                planes[r] = reinterpret_cast<const uint32_t*>(x.codes + (row + r) * x.stride + g * kCodeGroup);
            I16 differences[ROWS];
            group_differences<N, M, ROWS>(tile + kGroupScales, planes, differences);
            const F16 scale = from_f16(reinterpret_cast<const uint16_t*>(tile));
            for (int r = 0; r < ROWS; ++r) {
                const F16 both = splat(x.scales[(row + r) * x.groups + g]) * scale;
                acc[r] = fma(dot_of(differences[r], all), both, acc[r]);
            }
        }
    }
};

template <int N>
void set(KernelTable& table) {
    table.linear.at(bipolar<N>().format, RowCode::bit_planes1) = rows_by_tile<Bits<N, 1>>;
    table.linear.at(bipolar<N>().format, RowCode::bit_planes) = rows_by_tile<Bits<N, 2>>;
    table.linear.at(bipolar<N>().format, RowCode::bit_planes3) = rows_by_tile<Bits<N, 3>>;
    table.linear.at(bipolar<N>().format, RowCode::bit_planes4) = rows_by_tile<Bits<N, 4>>;
}

}  // namespace

void fill_linear_bits(KernelTable& table) {
    set<1>(table);
    set<2>(table);
    set<3>(table);
    set<4>(table);
}

}  // namespace kvern::KVERN_ISA_NS
