// The int8 encoder for processors with AMX for bytes, all of which have AVX-512 and its VNNI. Standard headers come before
// the target is changed, so that no inline function of theirs is compiled with instructions other processors lack.
// AMX's own are in assembler, for which the target need not name them.

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
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#if !defined(__clang__)
// GCC 12 sees an uninitialized variable in its own definition of many AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define WAE_AVX512 1
#define WAE_ISA avx512amx
#include "cpu/isa/encode_int8_amx.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
