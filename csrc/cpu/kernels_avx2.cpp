// The kernels for CPUs with AVX2 and FMA. The standard headers are included before the target is changed, so that none
// of their inline functions is compiled with instructions that other CPUs lack.

#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "cpu/kernels.h"

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
