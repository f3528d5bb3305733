#include "bindings.h"

NB_MODULE(_native_emulated, module) {
    kvern::register_linear(module);
    kvern::register_attention(module);
}
