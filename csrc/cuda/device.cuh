// Device primitives: number types, and one small function for each PTX instruction that the kernels use.

#pragma once

#include <cstdint>

#include "common/sizes.h"
#include "cuda/parameters.h"

namespace wae::cuda {

// --------------------------------------------------------------------------------------------- numbers

// 16-bit floats are stored as bits, because CUDA's headers for them take longer to compile than our code.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <class Number>
__device__ __forceinline__ Number from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Float16 from_float<Float16>(float value) {
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
#if __CUDA_ARCH__ >= 800
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, 0f00000000, %1;" : "=r"(packed) : "f"(value));
  return {static_cast<uint16_t>(packed)};
#else
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  return {static_cast<uint16_t>(value != value ? 0x7fff : rounded)};
#endif
}

template <class Number>
__device__ __forceinline__ uint32_t bits_of(Number value) {
  if constexpr (sizeof(Number) == 4) {
    return __float_as_uint(value);
  } else {
    return value.bits;
  }
}
template <class Number>
__device__ __forceinline__ float float_of_bits(uint32_t bits) {
  if constexpr (sizeof(Number) == 4) {
    return __uint_as_float(bits);
  } else {
    return to_float(Number{static_cast<uint16_t>(bits)});
  }
}

__device__ __forceinline__ float number_at(const ChannelVector& vector, int i) {
  const int64_t at = i * vector.stride;
  switch (vector.type) {
    case NumberType::kFloat16:
      return to_float(static_cast<const Float16*>(vector.data)[at]);
    case NumberType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(vector.data)[at]);
    case NumberType::kFloat32:
      return static_cast<const float*>(vector.data)[at];
    default:
      return static_cast<float>(static_cast<const double*>(vector.data)[at]);
  }
}

// max(value, 0) that propagates NaN, as torch's ReLU does.
__device__ __forceinline__ float relu(float value) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(value));
  return value;
#else
  return value < 0 ? 0 : value;
#endif
}

// ------------------------------------------------------------------------------------------------ modes

// The arithmetic of a mode. Number is the type of parameters and outputs. word() converts channels to a 4-byte word of
// shared memory: two neighbouring channels in the 16-bit modes, one in the others. A NaN must be one that arithmetic
// gave; word_of_input() takes any.
template <Mode kMode>
struct Arithmetic;
template <>
struct Arithmetic<Mode::kFloat16> {
  using Number = Float16;
  static __device__ __forceinline__ uint32_t word(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return from_float<Float16>(low).bits | static_cast<uint32_t>(from_float<Float16>(high).bits) << 16;
#endif
  }
};
template <>
struct Arithmetic<Mode::kBFloat16> {
  using Number = BFloat16;
  static __device__ __forceinline__ uint32_t word(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return 0;
#endif
  }
};
template <>
struct Arithmetic<Mode::kTf32> {
  using Number = float;
  static __device__ __forceinline__ uint32_t word(float value) {
#if __CUDA_ARCH__ >= 900
    uint32_t rounded;
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));  // one instruction; rna takes three
    return rounded;
#elif __CUDA_ARCH__ >= 800
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
#else
    return 0;
#endif
  }
};
template <>
struct Arithmetic<Mode::kFloat32> {
  using Number = float;
  static __device__ __forceinline__ uint32_t word(float value) { return __float_as_uint(value); }
};
template <>
struct Arithmetic<Mode::kBFloat16Plain> {
  using Number = BFloat16;
  static __device__ __forceinline__ uint32_t word(float value) { return __float_as_uint(value); }
};

// The word of a number from global memory, in the 32-bit modes. cvt.rna.tf32 clears the low 13 bits of a NaN as it is,
// which leaves infinity if the others are zero; max gives the NaN whose bits are all ones.
template <Mode kMode>
__device__ __forceinline__ uint32_t word_of_input(float value) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kMode == Mode::kTf32) asm("max.NaN.f32 %0, %0, 0fff800000;" : "+f"(value));
#endif
  return Arithmetic<kMode>::word(value);
}

// ----------------------------------------------------------------------------------------- shared memory

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ uint32_t load_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ float2 load_2(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ float4 load_4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store(uint32_t address, uint32_t a) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(a) : "memory");
}
__device__ __forceinline__ void store(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}
__device__ __forceinline__ void store(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// ldmatrix.x4: four 8 x 8 matrices of 16-bit numbers (8 x 4 of 32-bit ones). Lane l gives the address of row
// l % 8 of matrix l / 8, and receives word l % 4 of row l / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// ldmatrix.x2: the first two of these matrices. Only lanes 0 to 15 give addresses, but on 7.5 those of the others must be
// valid too.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(address)
               : "memory");
}

// As load_matrices, with each matrix transposed (16-bit numbers only).
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(address)
               : "memory");
}

// Barrier of all threads of the block; each warp role reaches it in its own loop.
__device__ __forceinline__ void block_barrier() { asm volatile("bar.sync 0;" ::: "memory"); }

// ------------------------------------------------------------------------------------------ tensor cores

// D += A * B: sums (16 pixels x 8 channels) += pixels (16 x 8 words) * weights (8 words x 8 channels).
// Fragments, with g = lane / 4 and t = lane % 4: A has word t of rows g and g + 8, then word t + 4 of both rows; B has
// words t and t + 4 of column g; D has columns 2t and 2t + 1 of row g, then of row g + 8. All lanes of a warp must
// execute it. It is volatile so that the compiler does not move it into a branch that only some lanes take.
template <Mode kMode>
__device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&pixels)[4],
                                    const uint32_t (&weights)[2]) {
#define WAE_MMA(shape_and_types)                                                                             \
  asm volatile(                                                                                              \
      "mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                           \
      : "r"(pixels[0]), "r"(pixels[1]), "r"(pixels[2]), "r"(pixels[3]), "r"(weights[0]), "r"(weights[1]))
#define WAE_MMA_HALF(shape_and_types, first)                                                              \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                               \
               : "r"(pixels[first]), "r"(pixels[first + 1]), "r"(weights[first / 2]))
#if __CUDA_ARCH__ >= 800
  if constexpr (kMode == Mode::kFloat16) WAE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  if constexpr (kMode == Mode::kBFloat16) WAE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  if constexpr (kMode == Mode::kTf32) WAE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  if constexpr (kMode == Mode::kFloat16) {
    WAE_MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", 0);
    WAE_MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", 2);
  }
#endif
}

// The same with half of K: only words t of A and B (16 pixels x 4 words * 4 words x 8 channels).
template <Mode kMode>
__device__ __forceinline__ void mma_half(float (&sums)[4], const uint32_t (&pixels)[4],
                                         const uint32_t (&weights)[2]) {
  if constexpr (kMode == Mode::kFloat16) WAE_MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", 0);
#if __CUDA_ARCH__ >= 800
  if constexpr (kMode == Mode::kBFloat16) WAE_MMA_HALF("m16n8k8.row.col.f32.bf16.bf16.f32", 0);
#endif
}
#undef WAE_MMA
#undef WAE_MMA_HALF

// Copies of a lane's sums. copy_if() selects and does not branch, because the lanes of a warp differ and mma needs all
// of them.
__device__ __forceinline__ void copy(float (&to)[4], const float (&from)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}
__device__ __forceinline__ void copy_if(bool copies, float (&to)[4], const float (&from)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = copies ? from[i] : to[i];
}

}  // namespace wae::cuda
