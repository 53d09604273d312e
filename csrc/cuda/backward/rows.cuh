// The rows of the backward kernels in shared memory: their addresses, and the layout of their pixels.

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/device.cuh"

namespace wae::cuda {

// Finds rows in shared memory. A row has one pixel of zeros on the left and three on the right. Rows are in ring
// buffers: row r is in slot r % n of a ring of n rows.
template <Op kOp, Mode kMode>
struct Rings {
  const BackwardLayout& at;
  uint32_t shared;
  // The half-resolution layer reads every other pixel of the rows next to it. In these rows even and odd pixels are
  // stored apart, so that the pixels that it reads are contiguous.
  static constexpr bool kThirdByParity = kOp == Op::kEncode, kFirstGradientByParity = kOp == Op::kDecode;

  template <int kRows>
  __device__ __forceinline__ uint32_t row(int begin, int index, int plane) const {
    return shared + begin + index % kRows * (planes(kMode) * plane);
  }
  __device__ __forceinline__ uint32_t first(int i) const {
    return row<kFirstRows>(at.first, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t second(int i) const {
    return row<kSecondRows>(at.second, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t third(int i) const {
    return row<kThirdRows>(at.third, i, plane<kThirdByParity>());
  }
  __device__ __forceinline__ uint32_t first_gradient(int i) const {
    return row<kGradientRows>(at.first_gradient, i, plane<kFirstGradientByParity>());
  }
  __device__ __forceinline__ uint32_t second_gradient(int i) const {
    return row<kGradientRows>(at.second_gradient, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t third_gradient(int i) const {
    return row<kGradientRows>(at.third_gradient, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t full(int i) const {
    return shared + at.full + i % full_rows(kOp) * at.row_plane;
  }
  __device__ __forceinline__ uint32_t half(int i) const {
    return shared + at.half + i % half_rows(kOp) * (half_planes(kMode) * at.half_plane);
  }
  template <bool kByParity>
  __device__ __forceinline__ int plane() const {
    return kByParity ? at.parity_plane : at.row_plane;
  }
};

// The byte offset of pixel j in a plane.
__device__ __forceinline__ int pixel_at(int j) { return (j + 1) * 16; }

// The byte offsets, in a plane, of the pixels that 16 neighbouring pixels of a layer read for tap column x: base(m) of
// the layer's pixel m plus column(x). In a plain row, these are the pixels around pixel first + m.
template <bool kByParity>
struct Columns {
  int first;

  __device__ __forceinline__ int base(int m) const { return pixel_at(first + m - 1); }
  __device__ __forceinline__ int column(int x) const { return x * 16; }
};
// In a row by parity, these are the pixels around pixel 2 * (first + m), but none beyond the last one.
template <>
struct Columns<true> {
  int first, last, half_plane;

  __device__ __forceinline__ int base(int m) const { return min(first + m, last) * 16; }
  __device__ __forceinline__ int column(int x) const { return (x == 0 ? 0 : 16) + (x == 1 ? 0 : half_plane); }
};

// Loads a channel from a row of 32-bit numbers.
__device__ __forceinline__ uint32_t load_channel(uint32_t row, int plane, int pixel, int channel) {
  return load_word(row + channel / 4 * plane + pixel + channel % 4 * 4);
}

}  // namespace wae::cuda
