// The small matrix products of the backward kernels, and the place of a thread in them.

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

// The compute capability of the target that a kernel is compiled for.
#ifdef __CUDA_ARCH__
#define WAE_CAPABILITY (__CUDA_ARCH__ / 10)
#else
#define WAE_CAPABILITY 0
#endif

// Returns the same number, but the compiler cannot know that. So it recomputes values that depend on it where they are
// used, and does not keep them from step to step in registers, which are needed for sums.
__device__ __forceinline__ int forgotten(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The place of a thread: its warp, which is also its strip, and its row (group) and column pair (member) in mma
// fragments.
struct Thread {
  int warp, lane, group, member;

  __device__ Thread() : warp(threadIdx.x / 32), lane(threadIdx.x % 32) { forget(); }

  __device__ __forceinline__ void forget() {
    lane = forgotten(lane) & 31, group = lane / 4, member = lane % 4;
  }
};
static_assert(kBackwardThreads == kMaxBackwardStrips * 32);

// For the 32-bit modes: for each row, sums (16 x 8 * kBlocks) += A (16 x 8 words) * B (8 words x 8 * kBlocks). a(row,
// m, k) and b(k, n) return words, which are floats in the plain modes. With tensor cores a lane loads only its own
// words of the fragments; in the plain modes it loads all words of its rows and columns, of which only the first kWords
// are used.
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

// The sums of one row, as an array of rows.
template <int kBlocks>
__device__ __forceinline__ float (&one_row(float (&sums)[kBlocks][4]))[1][kBlocks][4] {
  return reinterpret_cast<float (&)[1][kBlocks][4]>(sums);
}

// The unroll factor of loops around products: the products of the plain modes are long already.
template <Mode kMode>
inline constexpr int kUnrolled = is_plain(kMode) ? 1 : 8;

// sums += A * B for kBlocks blocks of 8 columns, whose B fragments are consecutive.
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
