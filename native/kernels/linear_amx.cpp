// AMX tiles; sets nothing on other instruction sets.
#include "dispatch.h"

namespace kvern::KVERN_ISA_NS {
void fill_linear_amx(KernelTable&) {}
}  // namespace kvern::KVERN_ISA_NS
