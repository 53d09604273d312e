// The backward kernels' small matrix products, and the threads' places in them.

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

// On this target, which is what counts inside a kernel.
#ifdef __CUDA_ARCH__
#define WAE_CAPABILITY (__CUDA_ARCH__ / 10)
#else
#define WAE_CAPABILITY 0
#endif

// The same number, of which the compiler knows nothing: what follows from it is computed where it is used and
// not kept from step to step, since the registers are needed for sums.
__device__ __forceinline__ int forgotten(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The thread's place: its warp, which is also its strip; the row and the column pair of mma fragments.
struct Thread {
  int warp, lane, group, member;

  __device__ Thread() : warp(threadIdx.x / 32), lane(threadIdx.x % 32) { forget(); }

  __device__ __forceinline__ void forget() {
    lane = forgotten(lane) & 31, group = lane / 4, member = lane % 4;
  }
};
static_assert(kBackwardThreads == kMaxBackwardStrips * 32);

// Of the 32-bit modes: for each row, sums (16 x 8 * kBlocks) += A (16 x 8 words) * B (8 words x 8 * kBlocks).
// a(row, m, k) and b(k, n) return words, in the plain modes floats. Tensor cores take a lane's own words; the
// plain modes all of its row and columns, of the first kWords only.
template <Mode kMode, int kWords = 8, int kRows, int kBlocks, class A, class B>
__device__ __forceinline__ void add_product(float (&sums)[kRows][kBlocks][4], const Thread& thread,
                                            const A& a, const B& b) {
  const int g = thread.group, t = thread.member;
  if constexpr (!is_plain(kMode)) {
    uint32_t weights[kBlocks][2];
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) weights[n][0] = b(t, 8 * n + g), weights[n][1] = b(t + 4, 8 * n + g);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const uint32_t words[4] = {a(row, g, t), a(row, g + 8, t), a(row, g, t + 4), a(row, g + 8, t + 4)};
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) mma<kMode>(sums[row][n], words, weights[n]);
    }
  } else {
    constexpr int kTogether = weights_in_shared(kMode, WAE_CAPABILITY) ? kWords : 1;  // 64-bit addresses
#pragma unroll kTogether
    for (int k = 0; k < kWords; ++k) {
      float weights[kBlocks][2];
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) weights[n][e] = __uint_as_float(b(k, 8 * n + 2 * t + e));
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const float upper = __uint_as_float(a(row, g, k)), lower = __uint_as_float(a(row, g + 8, k));
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[row][n][e] = fmaf(upper, weights[n][e], sums[row][n][e]);
            sums[row][n][2 + e] = fmaf(lower, weights[n][e], sums[row][n][2 + e]);
          }
        }
      }
    }
  }
}

// One row's sums as those of several.
template <int kBlocks>
__device__ __forceinline__ float (&one_row(float (&sums)[kBlocks][4]))[1][kBlocks][4] {
  return reinterpret_cast<float (&)[1][kBlocks][4]>(sums);
}

// How often loops around products are unrolled: the plain modes' products are long as they are.
template <Mode kMode>
inline constexpr int kUnrolled = is_plain(kMode) ? 1 : 8;

// sums += A * B for kBlocks blocks of 8 columns, whose fragments lie one after the other.
template <Mode kMode, int kBlocks>
__device__ __forceinline__ void mma_blocks(float (&sums)[kBlocks][4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[2 * kBlocks]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    const uint32_t words[2] = {b[2 * n], b[2 * n + 1]};
    mma<kMode>(sums[n], a, words);
  }
}

}  // namespace wae::cuda
