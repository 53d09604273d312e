// The kernels for CPUs with AVX2 and FMA.

#if defined(__x86_64__)

#include "cpu/before_target.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define WAE_AVX2 1
#define WAE_ISA avx2
#include "cpu/isa/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const wae::Kernels& wae::kernels_avx2() { return wae::avx2::kernels(); }

#endif
