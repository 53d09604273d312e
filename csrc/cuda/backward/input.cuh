// The tiles of the backward kernels in image coordinates, and the loads of their input rows from global memory.

#pragma once

#include <cstdint>

#include "cuda/backward/compensated.cuh"
#include "cuda/backward/products.cuh"
#include "cuda/backward/rows.cuh"
#include "cuda/parameters.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

// A tile in image coordinates. It owns those rows and columns that a block computes which are not its halo.
struct Tile {
  int image, y, x;    // y, x: the coordinates of pixel 0 of row 0, kBackwardHalo above and left of the tile
  int rows, columns;  // owned at full resolution, beginning at row and column kBackwardHalo
  int height, width;  // of the image

  __device__ Tile(const BackwardParameters& p, const Cursor& at)
      : image(at.image),
        y(2 * at.y - kBackwardHalo),
        x(2 * at.x - kBackwardHalo),
        rows(2 * p.tiling.tile_height),
        columns(2 * p.tiling.tile_width),
        height(p.height),
        width(p.width) {}

  __device__ __forceinline__ bool row_inside(int row) const { return inside(y, row, height); }
  __device__ __forceinline__ bool column_inside(int j) const { return inside(x, j, width); }
  __device__ __forceinline__ bool owns_row(int row) const {
    return static_cast<unsigned>(row - kBackwardHalo) < static_cast<unsigned>(rows) && row_inside(row);
  }
  __device__ __forceinline__ bool owns_column(int j) const {
    return static_cast<unsigned>(j - kBackwardHalo) < static_cast<unsigned>(columns) && column_inside(j);
  }
  // The same for half-resolution rows and columns. The last one has two full-resolution pixels, or one if the size is
  // odd.
  __device__ __forceinline__ bool half_inside(int row, int k) const {
    return inside(y / 2, row, half_size(height)) && inside(x / 2, k, half_size(width));
  }
  __device__ __forceinline__ bool owns_half_row(int row) const {
    return static_cast<unsigned>(row - kBackwardHalo / 2) < static_cast<unsigned>(rows / 2) &&
           inside(y / 2, row, half_size(height));
  }
  __device__ __forceinline__ bool owns_half_column(int k) const {
    return static_cast<unsigned>(k - kBackwardHalo / 2) < static_cast<unsigned>(columns / 2) &&
           inside(x / 2, k, half_size(width));
  }
  // Bit i tells whether the tile owns pixel first + i, for 16 pixels.
  __device__ __forceinline__ uint32_t owned_columns(int first) const {
    return __ballot_sync(~0u, owns_column(first + threadIdx.x % 16)) & 0xffff;
  }
  __device__ __forceinline__ uint32_t owned_half_columns(int first) const {
    return __ballot_sync(~0u, owns_half_column(first + threadIdx.x % 16)) & 0xffff;
  }
};

// Loads the rows of the inputs. A thread has one pixel of a pair of full-resolution rows and, counted from the last
// thread of the block, one pixel of a branch's half-resolution row. Loads are issued at the beginning of a step, and
// their data is stored at its end for the next step.
template <Op kOp, Mode kMode>
struct InputReader {
  using Number = typename Arithmetic<kMode>::Number;
  using A = Arithmetic<kMode>;
  uint32_t full[3] = {0, 0, 0}, half[3] = {0, 0, 0};
  CompensatedSum sums[3] = {};  // of the incoming gradient, over pixels that the tiles own
  bool full_inside = false, half_inside = false, is_owned = false;

  // The pixels that the thread loads.
  struct Place {
    bool reads_full, reads_half;
    int row, column, branch, half_column;

    __device__ __forceinline__ explicit Place(const BackwardParameters& p) {
      const int thread = forgotten(threadIdx.x), width = 16 * p.layout.strips;
      const int from_end = kBackwardThreads - 1 - thread;
      reads_full = thread < 2 * width, reads_half = from_end < width;
      row = thread < width ? 0 : 1, column = thread - row * width;
      branch = from_end < width / 2 ? 0 : 1, half_column = from_end - branch * (width / 2);
    }
  };

  // Loads rows full_row, full_row + 1 and half_row of a tile to registers.
  __device__ void prefetch(const BackwardParameters& p, const Tile& tile, int full_row, int half_row) {
    const Place at(p);
    const int row = full_row + at.row;
    full_inside = at.reads_full && tile.row_inside(row) && tile.column_inside(at.column);
    half_inside = at.reads_half && tile.half_inside(half_row, at.half_column);
    is_owned = kOp == Op::kEncode
                   ? half_inside && tile.owns_half_row(half_row) && tile.owns_half_column(at.half_column)
                   : full_inside && tile.owns_row(row) && tile.owns_column(at.column);
    if (full_inside) {
      const int64_t* stride = p.full.stride;
      const int64_t first =
          int64_t{tile.image} * stride[0] + (tile.y + row) * stride[2] + (tile.x + at.column) * stride[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const int64_t i = first + c * stride[1];
        full[c] = p.image_is_bytes ? static_cast<const uint8_t*>(p.full.data)[i]
                                   : bits_of(static_cast<const Number*>(p.full.data)[i]);
      }
    }
    if (half_inside) {
      const Images& from = at.branch == 0 ? p.low : p.high;
      const int64_t first = int64_t{tile.image} * from.stride[0] + (tile.y / 2 + half_row) * from.stride[2] +
                            (tile.x / 2 + at.half_column) * from.stride[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        half[c] = bits_of(static_cast<const Number*>(from.data)[first + c * from.stride[1]]);
      }
    }
  }

  __device__ void store_rows(const BackwardParameters& p, const Rings<kOp, kMode>& rings, int full_row,
                             int half_row) {
    const Place at(p);
    if (at.reads_full) {
      float value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        value[c] = p.image_is_bytes ? static_cast<float>(full[c]) : float_of_bits<Number>(full[c]);
      }
      if constexpr (kOp == Op::kEncode) {
        const float4 scale = load_4(rings.shared + p.layout.affine);
        const float4 shift = load_4(rings.shared + p.layout.affine + 16);
        value[0] = fmaf(value[0], scale.x, shift.x), value[1] = fmaf(value[1], scale.y, shift.y);
        value[2] = fmaf(value[2], scale.z, shift.z);
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c] = full_inside ? value[c] : 0.0f;
      if (kOp == Op::kDecode && is_owned) add(value);
      const uint32_t address = rings.full(full_row + at.row + full_rows(kOp)) + pixel_at(at.column);
      if constexpr (stored_bytes(kMode) == 2) {  // with its right neighbour, so that K can be a row of taps
        const uint32_t first = A::word(value[0], value[1]), second = A::word(value[2], 0.0f);
        store(address, first, second);
        store(address - 8, first, second);
      } else {
        store(address, word_of_input<kMode>(value[0]), word_of_input<kMode>(value[1]),
              word_of_input<kMode>(value[2]), 0);
      }
    }
    if (at.reads_half) {
      float value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c] = half_inside ? float_of_bits<Number>(half[c]) : 0.0f;
      if (kOp == Op::kEncode && is_owned) add(value);
      const uint32_t address = rings.half(half_row + half_rows(kOp)) + pixel_at(at.half_column);
      if constexpr (stored_bytes(kMode) == 2) {
        store(address + 8 * at.branch, A::word(value[0], value[1]), A::word(value[2], 0.0f));
      } else {
        store(address + at.branch * p.layout.half_plane, word_of_input<kMode>(value[0]),
              word_of_input<kMode>(value[1]), word_of_input<kMode>(value[2]), 0);
      }
    }
  }

  __device__ __forceinline__ void add(const float (&value)[3]) {
#pragma unroll
    for (int c = 0; c < 3; ++c) sums[c].add(value[c]);
  }
  // The thread's sum for channel c of 6 (decode: of 3).
  __device__ __forceinline__ float sum_of(const BackwardParameters& p, int c) const {
    if constexpr (kOp == Op::kDecode) return c < 3 ? sums[c % 3].value : 0.0f;
    return Place(p).branch == c / 3 ? sums[c % 3].value : 0.0f;
  }
};

}  // namespace wae::cuda
