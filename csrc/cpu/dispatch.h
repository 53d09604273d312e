// Which kernels run on this processor.

#pragma once

#include "cpu/kernels.h"

namespace wae {

// The kernels to run now; null for the reference. Ask once for each op: another thread may select meanwhile.
const Kernels* selected_kernels();

// The int8 encoder that goes with these kernels; null where this processor has none.
EncodeInt8* int8_encoder(const Kernels* kernels);

}  // namespace wae

// For wae_kernels/backends.py, which calls them through ctypes. Names: "avx512", "avx2", "portable", "auto" and
// "cpu" (both: the best that this processor runs), "reference".
extern "C" {
using wae_cpu_callback = const void* (*)();

__attribute__((visibility("default"))) int wae_cpu_supports(const char* capability);

// A name's kernels; null for the reference, and for kernels that this processor cannot run.
__attribute__((visibility("default"))) const void* wae_cpu_kernels(const char* name);

// Whether the kernels that run now have an int8 encoder.
__attribute__((visibility("default"))) int wae_cpu_int8();

// Whether that encoder may be AMX's, as at first. Returns whether it is.
__attribute__((visibility("default"))) int wae_cpu_amx(int use);

// The process's choice.
__attribute__((visibility("default"))) void wae_cpu_select(const char* name);

// A function that returns the kernels to run now instead, asked at each op; null for none. Python sets it while
// threads or tasks have choices of their own.
__attribute__((visibility("default"))) void wae_cpu_ask(wae_cpu_callback ask);
}
