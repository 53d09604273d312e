// The matrix products for the gradients of weights, whose K dimension is pixels.

#pragma once

#include <cstdint>

#include "cuda/backward/products.cuh"
#include "cuda/backward/rows.cuh"

namespace wae::cuda {

// A mask of those of 16 pixels that the tile owns. In the products whose K is pixels, all others are set to zero in
// both factors: with only one of them zero, a NaN in the other factor would still make the sum NaN.
class Kept {
 public:
  __device__ __forceinline__ Kept(const Thread& thread, uint32_t bits)
      : bits_(bits), low_(two(2 * thread.member)), high_(two(2 * thread.member + 8)) {}

  __device__ __forceinline__ bool none() const { return bits_ == 0; }
  // Masks a word of pixel k, in the 32-bit modes.
  __device__ __forceinline__ uint32_t word(int k, uint32_t word) const { return bits_ >> k & 1 ? word : 0u; }
  // Mask the lane's words of the A and B fragments, in the 16-bit modes.
  __device__ __forceinline__ void a(uint32_t (&words)[4]) const {
    if (bits_ == 0xffff) return;
    words[0] &= low_, words[1] &= low_, words[2] &= high_, words[3] &= high_;
  }
  template <int kWords>
  __device__ __forceinline__ void b(uint32_t (&words)[kWords]) const {
    if (bits_ == 0xffff) return;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] &= i % 2 == 0 ? low_ : high_;
  }

 private:
  // The mask of pixels k and k + 1, as two 16-bit numbers.
  __device__ __forceinline__ uint32_t two(int k) const {
    return (bits_ >> k & 1 ? 0xffffu : 0u) | (bits_ >> k & 2 ? 0xffff0000u : 0u);
  }
  uint32_t bits_, low_, high_;
};

// Loads the A fragment of the 16-bit modes whose K is 16 pixels and whose rows are the 16 channels of a wide row.
template <bool kByParity>
__device__ __forceinline__ void load_wide(uint32_t (&words)[4], const Thread& thread, uint32_t row, int plane,
                                          const Columns<kByParity>& columns, int x, const Kept& kept) {
  const int matrix = thread.lane / 8;  // half of the channels, half of the pixels
  load_matrices_transposed(
      words, row + matrix % 2 * plane + columns.column(x) + columns.base(matrix / 2 * 8 + thread.lane % 8));
  kept.a(words);
}

// For the 32-bit modes: sums (16 wide channels x 8 * kBlocks columns) += wide^T * B over 16 pixels k, where b(k, n) is
// a word of B. The plain modes add the 16 products first, so that a long sum has a sixteenth of the roundings.
template <Mode kMode, bool kByParity, int kBlocks, class B>
__device__ __forceinline__ void add_gradient(float (&sums)[kBlocks][4], const Thread& thread, uint32_t wide,
                                             int plane, const Columns<kByParity>& columns, int x,
                                             const Kept& kept, const B& b) {
  const auto add_to = [&](float (&to)[kBlocks][4]) {
#pragma unroll kUnrolled < kMode>
    for (int half = 0; half < 2; ++half) {
      add_product<kMode>(
          one_row(to), thread,
          [&](int, int m, int k) {
            const int pixel = columns.base(8 * half + k) + columns.column(x);
            return kept.word(8 * half + k, load_channel(wide, plane, pixel, m));
          },
          [&](int k, int n) { return kept.word(8 * half + k, b(8 * half + k, n)); });
    }
  };
  if constexpr (is_plain(kMode)) {
    float of_pixels[kBlocks][4] = {};
    add_to(of_pixels);
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] += of_pixels[n][i];
    }
  } else {
    add_to(sums);
  }
}

}  // namespace wae::cuda
