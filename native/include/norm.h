// Root-mean-square norms and element-wise steps over rows of float32.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvern {

// y[i] = x[index ? index[i] : i] normalised, for rows [begin, end). A row holds `parts` pieces of `width` floats,
// each normalised on its own with the same weights (1 piece: RMSNorm; one per head: head norm). y may be x.
struct NormWork {
    const float* x;
    float* y;
    size_t x_stride, y_stride;
    const int32_t* index;
    const float* weight;  // [width]
    int width, parts;
    float eps;
};

enum class Activation : int32_t { silu = 0, gelu_tanh = 1 };

// y[i] = act(gate[i]) * up[i]; y may be either input.
struct GateWork {
    const float *gate, *up;
    float* y;
    size_t gate_stride, up_stride, y_stride;
    int width;
    Activation activation;
};

// x[index ? index[i] : i] += y[i].
struct AddWork {
    float* x;
    const float* y;
    size_t x_stride, y_stride;
    const int32_t* index;
    int width;
};

struct RowTable {
    void (*norm)(const NormWork&, int begin, int end);
    void (*gate)(const GateWork&, int begin, int end);
    void (*add)(const AddWork&, int begin, int end);
    void (*scale)(float* x, size_t count, float factor);
};

}  // namespace kvern
