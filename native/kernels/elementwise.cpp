// Gated activations, the residual add and a scale; each value on its own, so any split gives the same bits.
#include "dispatch.h"
#include "lanes.h"
#include "norm.h"

namespace kvern::KVERN_ISA_NS {
namespace {

inline F16 sigmoid_times(F16 x, F16 exponent) { return x / (splat(1.0f) + exp(exponent)); }

inline F16 silu(F16 x) { return sigmoid_times(x, splat(0.0f) - x); }

// 0.5 x (1 + tanh(t)) = x / (1 + e^(-2t)), t = sqrt(2/pi) (x + 0.044715 x^3).
inline F16 gelu_tanh(F16 x) {
    const F16 inner = fma(x * x * x, splat(0.044715f), x);
    return sigmoid_times(x, inner * splat(-1.5957691216057308f));
}

template <class Act>
void gate_row(const float* gate, const float* up, float* y, int width, Act act) {
    for (int k = 0; k < width; k += 16) {
        const int n = width - k;
        store_first(y + k, act(load_first(gate + k, n)) * load_first(up + k, n), n);
    }
}

}  // namespace

void gate_rows(const GateWork& work, int begin, int end) {
    for (int i = begin; i < end; ++i) {
        const float* gate = work.gate + static_cast<size_t>(i) * work.gate_stride;
        const float* up = work.up + static_cast<size_t>(i) * work.up_stride;
        float* y = work.y + static_cast<size_t>(i) * work.y_stride;
        if (work.activation == Activation::silu)
            gate_row(gate, up, y, work.width, silu);
        else
            gate_row(gate, up, y, work.width, gelu_tanh);
    }
}

void add_rows(const AddWork& work, int begin, int end) {
    for (int i = begin; i < end; ++i) {
        float* x = work.x + static_cast<size_t>(work.index ? work.index[i] : i) * work.x_stride;
        const float* y = work.y + static_cast<size_t>(i) * work.y_stride;
        for (int k = 0; k < work.width; k += 16) {
            const int n = work.width - k;
            store_first(x + k, load_first(x + k, n) + load_first(y + k, n), n);
        }
    }
}

void scale_values(float* x, size_t count, float factor) {
    for (size_t k = 0; k < count; ++k) x[k] *= factor;
}

void fill_elementwise(KernelTable& table) {
    table.rows.gate = gate_rows;
    table.rows.add = add_rows;
    table.rows.scale = scale_values;
}

}  // namespace kvern::KVERN_ISA_NS
