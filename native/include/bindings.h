// What each part of the extension module `_native` adds to it; called from src/module.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace kvern {

void register_linear(nanobind::module_& module);  // Pool, PackedWeight, linear, quantize_rows, isa
void register_model(nanobind::module_& module);   // the resident model and its step

}  // namespace kvern
