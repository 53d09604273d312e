// Selects the kernels for this CPU.

#pragma once

#include "cpu/kernels.h"

namespace wae {

// The kernels to run now; null for the reference. Call it once per op: another thread may select others meanwhile.
const Kernels* selected_kernels();

// The int8 encoder that belongs to these kernels; null if this CPU cannot run one.
EncodeInt8* int8_encoder(const Kernels* kernels);

}  // namespace wae

// wae_kernels/backends.py calls these functions through ctypes. Names are "avx512", "avx2", "portable", "auto" and
// "cpu" (both mean the best kernels that this CPU can run), and "reference".
extern "C" {
using wae_cpu_callback = const void* (*)();

__attribute__((visibility("default"))) int wae_cpu_supports(const char* capability);

// The kernels of this name; null for the reference, and for kernels that this CPU cannot run.
__attribute__((visibility("default"))) const void* wae_cpu_kernels(const char* name);

// Whether the kernels that run now have an int8 encoder.
__attribute__((visibility("default"))) int wae_cpu_int8();

// Sets whether that encoder may use AMX, which is the default. Returns whether it does.
__attribute__((visibility("default"))) int wae_cpu_amx(int use);

// Sets the choice of the process.
__attribute__((visibility("default"))) void wae_cpu_select(const char* name);

// Sets a function that each op calls for the kernels to run, instead of using the choice of the process; null for none.
// Python sets it while threads or tasks have their own choices.
__attribute__((visibility("default"))) void wae_cpu_ask(wae_cpu_callback ask);
}
