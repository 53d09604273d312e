// The kernels for any processor, on compiler vectors of 16 bytes.

#define WAE_ISA portable
#include "cpu/isa/kernels_impl.h"

const wae::Kernels& wae::kernels_portable() { return wae::portable::kernels(); }
