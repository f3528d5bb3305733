// What each part of the extension module `_native` adds to it; called from src/module.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace kvern {

void register_linear(nanobind::module_& module);     // Pool, PackedWeight, linear, quantize_rows, isa
void register_attention(nanobind::module_& module);  // KvStore: the attention kernels alone
void register_ceilings(nanobind::module_& module);   // what the machine could do at best
void register_model(nanobind::module_& module);      // the resident model and its step

}  // namespace kvern
