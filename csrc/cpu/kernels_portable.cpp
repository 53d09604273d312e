// The kernels for any CPU, written with compiler vectors of 16 bytes.

#define WAE_ISA portable
#include "cpu/isa/kernels_impl.h"

const wae::Kernels& wae::kernels_portable() { return wae::portable::kernels(); }
