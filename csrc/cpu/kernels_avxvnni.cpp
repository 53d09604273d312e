// The int8 encoder for CPUs with AVX2, FMA and AVX-VNNI. The standard headers are included before the target is
// changed, so that none of their inline functions is compiled with instructions that other CPUs lack.

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
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif

#define WAE_AVX2 1
#define WAE_ISA avxvnni
#include "cpu/isa/encode_int8.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
