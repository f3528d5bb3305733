#include "bindings.h"

NB_MODULE(_native, module) {
    module.doc() = "kvern's kernels: packed weights, linear layers, attention and the resident model.";
    kvern::register_linear(module);
    kvern::register_ceilings(module);
    kvern::register_attention(module);
    kvern::register_model(module);
}
