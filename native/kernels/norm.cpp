// K1: RMSNorm and head norm. Sixteen lanes of squares over ascending k, the fixed tree, then x * r * w.
#include "norm.h"

#include "dispatch.h"
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {
namespace {

void norm_piece(const float* x, float* y, const float* weight, int width, float eps) {
    F16 squares = splat(0.0f);
    for (int k = 0; k < width; k += 16) {
        const F16 v = load_first(x + k, width - k);
        squares = fma(v, v, squares);
    }
    const float mean = quick_sum(squares) / static_cast<float>(width);
    const F16 factor = splat(1.0f / std::sqrt(mean + eps));
    for (int k = 0; k < width; k += 16)
        store_first(y + k, load_first(x + k, width - k) * factor * load_first(weight + k, width - k), width - k);
}

}  // namespace

void norm_rows(const NormWork& work, int begin, int end) {
    for (int i = begin; i < end; ++i) {
        const float* x = work.x + static_cast<size_t>(work.index ? work.index[i] : i) * work.x_stride;
        float* y = work.y + static_cast<size_t>(i) * work.y_stride;
        for (int part = 0; part < work.parts; ++part) {
            const size_t at = static_cast<size_t>(part) * work.width;
            norm_piece(x + at, y + at, work.weight, work.width, work.eps);
        }
    }
}

void fill_norm(KernelTable& table) { table.rows.norm = norm_rows; }

}  // namespace kvern::KVERN_ISA_NS
