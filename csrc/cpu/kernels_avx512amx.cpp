// The int8 encoder for CPUs with AMX for int8, all of which have AVX-512 VNNI. AMX is not part of the target, because
// its instructions are written in inline assembly.

#if defined(__x86_64__)

#include "cpu/before_target.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define WAE_AVX512 1
#define WAE_ISA avx512amx
#include "cpu/isa/encode_int8_amx.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
