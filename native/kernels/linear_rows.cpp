// w8a8: int8 over the whole of K, then (float(acc) * s_a) * s_w.
#include "dispatch.h"
#include "dots.h"
#include "lanes.h"
#include "rows_by_tile.h"

namespace kvern::KVERN_ISA_NS {
namespace {

struct WholeRows {
    template <int ROWS>
    static void run(const LinearWork& work, const uint8_t* tile, int64_t row, F16* acc) {
        const EncodedRows& x = *work.x;
        const int8_t* a[ROWS];
        I16 total[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            a[r] = x.codes + (row + r) * x.stride;
            total[r] = splat(-kByteOffset * x.sums[row + r]);
        }
        const uint8_t* planes = tile + 64;
        for (int64_t i = 0; i < x.stride; i += 32, planes += plane_bytes(8)) {
            prefetch_ahead<plane_bytes(8)>(planes);
            add_byte_dots<ROWS>(planes, a, total);
            for (int r = 0; r < ROWS; ++r) a[r] += 32;
        }
        const F16 scale = load(reinterpret_cast<const float*>(tile));
        for (int r = 0; r < ROWS; ++r) acc[r] = (to_float(total[r]) * splat(x.scales[row + r])) * scale;
    }
};

}  // namespace

void fill_linear_rows(KernelTable& table) {
    table.linear.at(Format::w8a8, RowCode::q8_row) = rows_by_tile<WholeRows>;
}

}  // namespace kvern::KVERN_ISA_NS
