// The backward kernels' filters in shared memory, which are read in both directions.

#pragma once

#include <cstdint>

#include "cuda/backward/products.cuh"
#include "cuda/parameters.h"

namespace wae::cuda {

// Loads a weight from global memory.
template <class Number>
__device__ __forceinline__ float weight_at(const Filter& filter, int first, int second, int tap) {
  const int64_t* stride = filter.stride;
  return to_float(static_cast<const Number*>(
      filter.weight)[first * stride[0] + second * stride[1] + tap / 3 * stride[2] + tap % 3 * stride[3]]);
}

// A 16 -> 16 filter in shared memory, one copy for both directions. In the 16-bit modes it is [tap][in / 8][out][in %
// 8], which ldmatrix reads as it is for the forward pass, and transposed for the backward pass. In the 32-bit modes it
// is [tap][out][in], with groups of 4 permuted so that neither direction has bank conflicts.
template <Mode kMode>
struct TrunkFilter {
  using Number = typename Arithmetic<kMode>::Number;
  uint32_t shared;
  const Filter& filter;

  static __device__ __forceinline__ int offset(int out, int in, int tap) {
    if constexpr (stored_bytes(kMode) == 2) {
      return tap * 512 + in / 8 * 256 + out * 16 + in % 8 * 2;
    } else {
      const int permuted = in ^ ((out & 2) << 2 | (out & 4));
      return (tap * 256 + out * 16 + permuted) * 4;
    }
  }
  __device__ __forceinline__ float global_at(int out, int in, int tap) const {
    return weight_at<Number>(filter, out, in, tap);
  }

  __device__ void fill(unsigned char* memory) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < 9 * 256; i += kBackwardThreads) {
      const int tap = i % 9, in = i / 9 % 16, out = i / 144;
      const float value = global_at(out, in, tap);
      if constexpr (stored_bytes(kMode) == 2) {
        *reinterpret_cast<Number*>(memory + offset(out, in, tap)) = from_float<Number>(value);
      } else {
        *reinterpret_cast<uint32_t*>(memory + offset(out, in, tap)) = word_of_input<kMode>(value);
      }
    }
  }
  // For the 32-bit modes. K is the input channel in the forward direction, and the output channel back.
  template <bool kBack>
  __device__ __forceinline__ uint32_t word(int k, int n, int tap) const {
    const int out = kBack ? k : n, in = kBack ? n : k;
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + offset(out, in, tap));
    } else {
      return __float_as_uint(global_at(out, in, tap));
    }
  }
  // Loads the B fragments of a tap; in tf32, those of 8 of its 16 words of K.
  template <bool kBack>
  __device__ __forceinline__ void fragments(uint32_t (&words)[4], const Thread& thread, int tap,
                                            int half) const {
    const int matrix = thread.lane / 8, row = thread.lane % 8;  // matrix: block of N, half of K
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = word<kBack>(8 * half + i % 2 * 4 + thread.member, i / 2 * 8 + thread.group, tap);
      }
    } else if constexpr (kBack) {
      load_matrices_transposed(words, shared + tap * 512 + matrix / 2 * 256 + (matrix % 2 * 8 + row) * 16);
    } else {
      load_matrices(words, shared + tap * 512 + matrix % 2 * 256 + (matrix / 2 * 8 + row) * 16);
    }
  }
};

// A filter between 16 wide channels and 8 narrow ones. The narrow ones are 3 at full resolution, or 3 of each branch at
// half resolution, in places 0 to 2 and 4 to 6; the other places are zeros. A tap is the offset at which a wide pixel
// reads the narrow one. decode's conv3 has the opposite direction, so its taps are rotated by 180 degrees.
//
// 16-bit modes, half resolution    [tap][wide][narrow]
//               full resolution    [tap row][tap column / 2][wide][tap column % 2][4 narrow], so that K is a row of
//               taps,
//                                  and for the way back [tap][wide / 8][4 narrow][wide % 8]
// 32-bit modes                     [wide][tap][narrow], with 4 narrow places at full resolution
template <Op kOp, Mode kMode, bool kHalf>
struct NarrowFilter {
  using Number = typename Arithmetic<kMode>::Number;
  static constexpr int kWords = kHalf ? 8 : 4, kPitch = kHalf ? kHalfFilterPitch : kFullFilterPitch;
  const Filter* filters;  // of all layers
  uint32_t shared, back;

  __device__ __forceinline__ float global_at(int wide, int narrow, int tap) const {
    if (narrow % 4 == 3) return 0.0f;
    if constexpr (kHalf) return weight_at<Number>(filters[3 + narrow / 4], wide, narrow % 4, tap);
    return weight_at<Number>(filters[0], wide, narrow, kOp == Op::kEncode ? tap : 8 - tap);
  }

  // Fills `memory` with words f(i): one number each in the 32-bit modes, two in the 16-bit modes.
  template <class F>
  static __device__ __forceinline__ void fill_words(unsigned char* memory, int words, const F& f) {
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += kBackwardThreads) reinterpret_cast<uint32_t*>(memory)[i] = f(i);
  }
  __device__ __forceinline__ uint32_t two_narrow(int wide, int narrow, int tap) const {
    return Arithmetic<kMode>::word(global_at(wide, narrow, tap), global_at(wide, narrow + 1, tap));
  }
  __device__ void fill(unsigned char* memory, unsigned char* memory_back) const {
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll 1
      for (int i = threadIdx.x; i < 16 * 9 * kWords; i += kBackwardThreads) {
        const int narrow = i % kWords, tap = i / kWords % 9, wide = i / (9 * kWords);
        *reinterpret_cast<uint32_t*>(memory + wide * kPitch + (tap * kWords + narrow) * 4) =
            word_of_input<kMode>(global_at(wide, narrow, tap));
      }
    } else if constexpr (kHalf) {
      fill_words(memory, 9 * 16 * 4, [&](int i) { return two_narrow(i / 4 % 16, i % 4 * 2, i / 64); });
    } else {
      fill_words(memory, 3 * 2 * 16 * 4, [&](int i) {
        const int x = i / 64 % 2 * 2 + i % 4 / 2;
        return x == 3 ? 0u : two_narrow(i / 4 % 16, i % 2 * 2, i / 128 * 3 + x);
      });
      if constexpr (kOp == Op::kEncode) {
        fill_words(memory_back, 9 * 2 * 4 * 4, [&](int i) {
          const int wide = i / 16 % 2 * 8 + i % 4 * 2, narrow = i / 4 % 4, tap = i / 32;
          return Arithmetic<kMode>::word(global_at(wide, narrow, tap), global_at(wide + 1, narrow, tap));
        });
      }
    }
  }
  // For the 32-bit modes.
  __device__ __forceinline__ uint32_t word(int wide, int tap, int narrow) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + wide * kPitch + (tap * kWords + narrow) * 4);
    } else {
      return __float_as_uint(global_at(wide, narrow, tap));
    }
  }
  // The same with the wide channel as K, for the layer back to the narrow channels. Columns beyond the narrow places
  // are computed but never written.
  __device__ __forceinline__ uint32_t back_word(int k, int n, int tap) const {
    return word(k, kHalf ? tap : 8 - tap, n % kWords);
  }
  // Loads the B fragments of that layer for a tap; in tf32, those of 8 of its 16 words of K.
  __device__ __forceinline__ void back_fragments(uint32_t (&words)[2], const Thread& thread, int tap,
                                                 int half) const {
    const int row = thread.lane % 8, matrix = thread.lane / 8 % 2;  // half of K
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[i] = back_word(8 * half + 4 * i + thread.member, thread.group, tap);
      }
    } else if constexpr (kHalf) {
      load_matrices_transposed(words, shared + tap * 256 + thread.lane % 16 * 16);
    } else {
      load_matrices(words, back + (8 - tap) * 128 + matrix * 64 + row % 4 * 16);
    }
  }
};

}  // namespace wae::cuda
