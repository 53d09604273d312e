// The int8 encoder for CPUs with AVX2, FMA and AVX-VNNI.

#if defined(__x86_64__)

#include "cpu/before_target.h"

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
