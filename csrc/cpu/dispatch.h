// Which kernels run on this processor.

#pragma once

#include "cpu/kernels.h"

namespace wae {

// The selected kernels; null when the reference was selected.
const Kernels* selected_kernels();

}  // namespace wae

// For wae_kernels/backends.py, which calls them through ctypes. Names: "avx512", "avx2", "portable";
// for selection also "auto", "cpu" (both: the best) and "reference".
extern "C" {
__attribute__((visibility("default"))) int wae_cpu_supports(const char* capability);
// Returns 0, or -1 if the name is unknown or this processor cannot run it.
__attribute__((visibility("default"))) int wae_cpu_select(const char* name);
}
