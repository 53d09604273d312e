// The int8 encoder for CPUs with AVX-512 (F, BW, DQ, VL, VNNI).

#if defined(__x86_64__)

#include "cpu/before_target.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define WAE_AVX512 1
#define WAE_ISA avx512vnni
#include "cpu/isa/encode_int8.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
