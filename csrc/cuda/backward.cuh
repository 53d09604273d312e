// Shared by encode_backward.cu and decode_backward.cu: all gradients, from the inputs alone, in one pass.
//
// A block computes tiles one after the other. It moves down a tile, two rows a step, and computes all layers in every
// step: three forward (first, second, third), three back, the gradient of the input, and the sums for the parameters'
// gradients. Only the results are written to global memory:
//
//               |<-------------- 16 * strips pixels, a warp for each strip ------------->|
//     full      |########################################################################|   input rows
//     first     |.######################################################################.|
//     second    |..####################################################################..|
//     third     |...##################################################################...|   and its gradient
//     d second  |....################################################################....|
//     d first   |.....##############################################################.....|
//     d input   |......############################################################......|   the tile itself
//
// All rows have the same columns: pixel j is image column x0 - 6 + j. Pixels marked '.' are computed without some of
// their neighbours and affect no result. A tile of 2h rows takes h + 6 steps. If rows are counted from 6 above the
// tile, step s computes the following rows, with a barrier after each phase:
//
//     phase   rows                 from
//     0       first 2s-1, 2s       full 2s-2..2s+1 (decode: half rows s-1, s)
//     1       second 2s-2, 2s-1    first 2s-3..2s
//     2       third 2s-3, 2s-2     second 2s-4..2s-1
//             d third, the same    half rows s-2, s-1 (decode: full 2s-4..2s-1), third
//     3       d second 2s-4, 2s-3  d third 2s-5..2s-2, second
//     4       d first 2s-5, 2s-4   d second 2s-6..2s-3, first
//     5       d input 2s-6, 2s-5   d first 2s-7..2s-4
//             sums, of             second 2s-4, 2s-3 with d third 2s-5..2s-2, first 2s-5, 2s-4 with
//                                  d second 2s-6..2s-3, d first and third with the narrow inputs
//             inputs of step s+1   full 2s+2, 2s+3 and half s (decode: full 2s, 2s+1 and half s+1), from memory
//
// The rows that a phase overwrites in its ring buffer (backward_plan.h) are read by no phase of the same step. So the
// inputs of step s+1 can be stored while other warps still compute sums.
//
// In the layers a warp computes a strip of 16 pixels of both rows. So weights are loaded once for two rows, and each of
// the four rows that are read is loaded once for both. For the sums, a row of activations is loaded once for the three
// rows of gradients around it, which stay in registers. Warps 0 to 3 compute the sums for the third and the
// half-resolution layer, warps 4 to 7 those for the second and the full-resolution layer, each over its own strips and
// in registers, over at most kLongestSum half-resolution rows. Then the sums of the four warps are added in their
// order, the block adds these to its partial sums in global memory, and reduce.cu adds those of all blocks. There are
// no atomics and every order is fixed, so the results are deterministic.
//
//     arithmetic   in m16n8k16 per 16 pixels, 16-bit modes: forward 6 or 4.5, 36, 4.5 or 6; back 36, 9 or 2.25; sums
//                  36, 6, 2.25: 136 (encode) and 129 (decode); the forward pass has 44 and 48
//     wavefronts   per 16 pixels, 16-bit modes: a 16 -> 16 layer 42 each way, its sums 20; docs/cuda.md has all
//     memory       the inputs times 16 * strips / (16 * strips - 12), the results once, 24 KB of sums per block
//     bound        see docs/cuda.md, for each chip

#pragma once

#include <cstdint>

#include "cuda/backward/compensated.cuh"
#include "cuda/backward/filters.cuh"
#include "cuda/backward/gradients.cuh"
#include "cuda/backward/input.cuh"
#include "cuda/backward/layers.cuh"
#include "cuda/backward/rows.cuh"
#include "cuda/backward_plan.h"
#include "cuda/parameters.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

// The sums in registers. The top of the file explains which warp has which, and over how many rows.
struct Sums {
  float trunk[3][3][2][4];  // [tap row][tap column][8 of the input channels]
  union {
    float half[3][1][4];  // warps 0 to 2: [tap row], for the warp's tap column
    float full[3][2][4];  // warps 4 to 7: [tap row][pair of tap columns; there is no fourth column]
  };
  CompensatedSum bias[3];  // of d first, d second and d third, for the lane's bias_channel()
  CompensatedSum scale[2], shift[2];
};

template <class Array>
__device__ __forceinline__ void clear(Array& array) {
  float* numbers = reinterpret_cast<float*>(&array);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Array) / 4); ++i) numbers[i] = 0;
}

template <Op kOp, Mode kMode>
struct Backward {
  using Number = typename Arithmetic<kMode>::Number;
  const BackwardParameters& p;
  Thread thread;
  const Rings<kOp, kMode> rings;
  const TrunkFilter<kMode> second_filter, third_filter;
  const NarrowFilter<kOp, kMode, false> full_filter;
  const NarrowFilter<kOp, kMode, true> half_filter;
  Sums sums;

  __device__ Backward(const BackwardParameters& p, uint32_t shared)
      : p(p),
        rings{p.layout, shared},
        second_filter{shared + p.layout.trunk_filters, p.filters[1]},
        third_filter{shared + p.layout.trunk_filters + trunk_filter_bytes(kMode), p.filters[2]},
        full_filter{p.filters, shared + p.layout.full_filter, shared + p.layout.full_back_filter},
        half_filter{p.filters, shared + p.layout.half_filter, 0} {
    clear(sums);
  }

  __device__ void fill_filters(unsigned char* memory) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      second_filter.fill(memory + p.layout.trunk_filters);
      third_filter.fill(memory + p.layout.trunk_filters + trunk_filter_bytes(kMode));
      full_filter.fill(memory + p.layout.full_filter, memory + p.layout.full_back_filter);
      half_filter.fill(memory + p.layout.half_filter, nullptr);
    }
    if (threadIdx.x < 48) {
      const int layer = threadIdx.x / 16, channel = threadIdx.x % 16;
      float bias = 0;
      if (layer == 0 && kOp == Op::kDecode) {
        bias = bias_at<Number>(p.filters[3], channel) + bias_at<Number>(p.filters[4], channel);
      } else {
        bias = bias_at<Number>(p.filters[layer], channel);
      }
      reinterpret_cast<float*>(memory + p.layout.biases)[threadIdx.x] = bias;
    }
    if (kOp == Op::kEncode && threadIdx.x < 4) {
      const int channel = min(static_cast<int>(threadIdx.x), 2);
      float* affine = reinterpret_cast<float*>(memory + p.layout.affine) + threadIdx.x;
      affine[0] = p.scale.type == NumberType::kNone ? 1.0f : number_at(p.scale, channel);
      affine[4] = p.shift.type == NumberType::kNone ? 0.0f : number_at(p.shift, channel);
    }
  }

  // ----------------------------------------------------------------------------------------------- layers

  using Values = float[2][2][4];  // two rows of 16 pixels x 16 channels

  __device__ __forceinline__ void begin_with_bias(Values& to, int layer) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 bias =
          load_2(rings.shared + p.layout.biases + (layer * 16 + 8 * n + 2 * thread.member) * 4);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        to[row][n][0] = to[row][n][2] = bias.x, to[row][n][1] = to[row][n][3] = bias.y;
      }
    }
  }
  // Applies ReLU and stores rows `top` and top + 1 of the tile to the rows of a ring at `to`.
  template <bool kByParity>
  __device__ __forceinline__ void finish_activation(Values& values, const uint32_t (&to)[2], const Tile& tile,
                                                    int top) const {
    const int pixel = 16 * thread.warp + thread.group;
    const bool upper = tile.column_inside(pixel), lower = tile.column_inside(pixel + 8);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool row_inside = tile.row_inside(top + row);
      activate(values[row], row_inside && upper, row_inside && lower);
      LanePixels<kMode, kByParity>(thread, rings, to[row]).store_sums(values[row]);
    }
  }
  // Multiplies by ReLU's derivative at the activation, adds to the gradient of the bias, and stores.
  template <bool kMaskByParity, bool kByParity>
  __device__ __forceinline__ void finish_gradient(Values& values, const uint32_t (&activation)[2],
                                                  const uint32_t (&to)[2], const Tile& tile, int top,
                                                  int layer) {
    const int pixel = 16 * thread.warp + thread.group;
    const bool upper = tile.owns_column(pixel), lower = tile.owns_column(pixel + 8);
    float both_rows[2][2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      LanePixels<kMode, kMaskByParity>(thread, rings, activation[row]).mask(values[row]);
      const bool owns_row = tile.owns_row(top + row);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float one_row = (owns_row && upper ? values[row][n][e] : 0.0f) +
                                (owns_row && lower ? values[row][n][2 + e] : 0.0f);
          both_rows[n][e] = row == 0 ? one_row : both_rows[n][e] + one_row;
        }
      }
      LanePixels<kMode, kByParity>(thread, rings, to[row]).store_sums(values[row]);
    }
    add_to_bias(layer, both_rows);
  }
  // Lanes whose numbers differ by multiples of 4 have the same 4 channels. Of each four of them, every lane keeps the
  // sum of one channel, which takes a quarter of the registers and no more instructions.
  __device__ __forceinline__ void add_to_bias(int layer, const float (&sum)[2][2]) {
    const float first = exchanged(sum[0][0], sum[1][0], 4), second = exchanged(sum[0][1], sum[1][1], 4);
    sums.bias[layer].add(exchanged(first, second, 8));
  }
  // Of two lanes that are `distance` apart, one gets the sum of both lanes' `first` and the other that of `second`.
  __device__ __forceinline__ float exchanged(float first, float second, int distance) const {
    const bool is_second = thread.lane & distance;
    const float others = __shfl_xor_sync(~0u, is_second ? first : second, distance);
    return (is_second ? second : first) + others;
  }

  // Adds to rows `top`, which is odd, and top + 1 the transposed convolution of the 6 channels at half resolution.
  __device__ __forceinline__ void add_half_rows(Values& to, int top) const {
    const HalfRow<kMode> above(thread, rings.half(top / 2), p.layout.half_plane);
    above.add_to(to[0], 2, half_filter);
    const HalfRow<kMode> below(thread, rings.half(top / 2 + 1), p.layout.half_plane);
    below.add_to(to[0], 0, half_filter);
    below.add_to(to[1], 1, half_filter);
  }
  __device__ __forceinline__ void add_full_rows(Values& to, int top) const {
    const uint32_t rows[4] = {rings.full(top - 1), rings.full(top), rings.full(top + 1), rings.full(top + 2)};
    add_from_full<kMode>(to, thread, rows, full_filter);
  }

  // Each of the following computes rows `top` and top + 1 of the warp's strip.
  __device__ __forceinline__ void compute_first(const Tile& tile, int top) const {
    Values values;
    begin_with_bias(values, 0);
    if constexpr (kOp == Op::kEncode) {
      add_full_rows(values, top);
    } else {
      add_half_rows(values, top);
    }
    finish_activation<false>(values, {rings.first(top), rings.first(top + 1)}, tile, top);
  }
  __device__ __forceinline__ void compute_second(const Tile& tile, int top) const {
    const uint32_t rows[4] = {rings.first(top - 1), rings.first(top), rings.first(top + 1),
                              rings.first(top + 2)};
    Values values;
    begin_with_bias(values, 1);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_activation<false>(values, {rings.second(top), rings.second(top + 1)}, tile, top);
  }
  __device__ __forceinline__ void compute_third(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.second(top - 1), rings.second(top), rings.second(top + 1),
                              rings.second(top + 2)};
    const uint32_t third[2] = {rings.third(top), rings.third(top + 1)};
    Values values;
    begin_with_bias(values, 2);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_activation<rings.kThirdByParity>(values, third, tile, top);
    clear(values);
    if constexpr (kOp == Op::kEncode) {
      add_half_rows(values, top);
    } else {
      add_full_rows(values, top);
    }
    // No barrier is needed: the mask reads words that the lane itself has written.
    finish_gradient<rings.kThirdByParity, false>(
        values, third, {rings.third_gradient(top), rings.third_gradient(top + 1)}, tile, top, 2);
  }
  __device__ __forceinline__ void compute_second_gradient(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.third_gradient(top - 1), rings.third_gradient(top),
                              rings.third_gradient(top + 1), rings.third_gradient(top + 2)};
    Values values;
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_gradient<false, false>(values, {rings.second(top), rings.second(top + 1)},
                                  {rings.second_gradient(top), rings.second_gradient(top + 1)}, tile, top, 1);
  }
  __device__ __forceinline__ void compute_first_gradient(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.second_gradient(top - 1), rings.second_gradient(top),
                              rings.second_gradient(top + 1), rings.second_gradient(top + 2)};
    Values values;
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_gradient<false, rings.kFirstGradientByParity>(
        values, {rings.first(top), rings.first(top + 1)},
        {rings.first_gradient(top), rings.first_gradient(top + 1)}, tile, top, 0);
  }

  // encode: writes two rows of the image's gradient, and adds to the sums for scale and shift.
  __device__ __forceinline__ void write_full_gradient(const Tile& tile, int top) {
    const bool owned[2] = {tile.owns_row(top), tile.owns_row(top + 1)};
    if (!owned[0] && !owned[1]) return;
    const uint32_t rows[4] = {rings.first_gradient(top - 1), rings.first_gradient(top),
                              rings.first_gradient(top + 1), rings.first_gradient(top + 2)};
    float values[2][1][4];
    clear(values);
    add_narrow_output<kMode>(values, thread, rows, p.layout.row_plane, Columns<false>{16 * thread.warp},
                             full_filter);
    const int channel = 2 * thread.member, pixel = 16 * thread.warp + thread.group;
    if (channel >= 3) return;
    const auto offset = [&](const Images& images) {
      return int64_t{tile.image} * images.stride[0] + channel * images.stride[1] +
             (tile.y + top) * images.stride[2] + (tile.x + pixel) * images.stride[3];
    };
    const int64_t to = offset(p.grad_full), from = offset(p.full);
    const float2 two = load_2(rings.shared + p.layout.affine + channel * 4);
    const float scale[2] = {two.x, two.y};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!owned[row] || channel + i % 2 >= 3 || !tile.owns_column(pixel + i / 2 * 8)) continue;
        const auto element = [&](const Images& images) {
          return i % 2 * images.stride[1] + row * images.stride[2] + i / 2 * 8 * images.stride[3];
        };
        const float value = values[row][0][i];
        if (p.need_input) {
          static_cast<Number*>(p.grad_full.data)[to + element(p.grad_full)] =
              from_float<Number>(value * scale[i % 2]);
        }
        if (p.need_scale) {
          const int64_t at = from + element(p.full);
          const float image = p.image_is_bytes
                                  ? static_cast<float>(static_cast<const uint8_t*>(p.full.data)[at])
                                  : to_float(static_cast<const Number*>(p.full.data)[at]);
          sums.scale[i % 2].add(value * image);
          sums.shift[i % 2].add(value);
        }
      }
    }
  }

  // The columns, in a row by parity, of the pixels around 16 half-resolution pixels.
  __device__ __forceinline__ Columns<true> half_columns(int first) const {
    return {first, 8 * p.layout.strips - 1, p.layout.half_plane};
  }

  // decode: writes a row of the gradients of low and high, whose centre is row 2 * half_row.
  __device__ __forceinline__ void write_half_gradient(const Tile& tile, int half_row) const {
    if (16 * thread.warp >= 8 * p.layout.strips || !tile.owns_half_row(half_row)) return;
    const int row = 2 * half_row;
    const uint32_t rows[3] = {rings.first_gradient(row - 1), rings.first_gradient(row),
                              rings.first_gradient(row + 1)};
    float values[1][1][4];
    clear(values);
    add_narrow_output<kMode>(values, thread, rows, p.layout.parity_plane, half_columns(16 * thread.warp),
                             half_filter);
    const Images& to = thread.member < 2 ? p.grad_low : p.grad_high;
    const int64_t y = tile.y / 2 + half_row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = 16 * thread.warp + thread.group + i / 2 * 8, channel = thread.member % 2 * 2 + i % 2;
      if (channel == 3 || !tile.owns_half_column(k)) continue;
      const int64_t x = tile.x / 2 + k;
      static_cast<Number*>(to.data)[int64_t{tile.image} * to.stride[0] + channel * to.stride[1] +
                                    y * to.stride[2] + x * to.stride[3]] =
          from_float<Number>(values[0][0][i]);
    }
  }

  // ------------------------------------------------------------------------------------------------- sums

  // Adds gradient^T * activation of a 16 -> 16 layer, for rows `top` and top + 1 of the activation, each with the three
  // rows of gradients around it that read it.
  template <class Gradient, class Activation>
  __device__ __forceinline__ void sum_trunk(const Tile& tile, int top, const Gradient& gradient,
                                            const Activation& activation) {
    const int plane = p.layout.row_plane;
#pragma unroll 1
    for (int strip = thread.warp % 4; strip < p.layout.strips; strip += 4) {
      const Kept kept(thread, tile.owned_columns(16 * strip));
      if (kept.none()) continue;
      const Columns<false> columns{16 * strip};
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) load_wide(a[i], thread, gradient(top - 1 + i), plane, columns, 1, kept);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          if (tile.row_inside(top + row)) {
            add_activation(tile, top, row, a, activation(top + row), columns, kept);
          }
        }
      } else {
#pragma unroll 1
        for (int row = top; row < top + 2; ++row) {
          if (!tile.row_inside(row)) continue;
          const uint32_t reads = activation(row);
#pragma unroll
          for (int y = 0; y < 3; ++y) {
            if (!tile.owns_row(row + 1 - y)) continue;
            const uint32_t wide = gradient(row + 1 - y);
#pragma unroll
            for (int x = 0; x < 3; ++x) {
              add_gradient<kMode>(sums.trunk[y][x], thread, wide, plane, columns, 1, kept, [&](int k, int n) {
                return load_channel(reads, plane, columns.base(k) + columns.column(x), n);
              });
            }
          }
        }
      }
    }
  }
  // Adds the products of row top + row of the activation and the gradients `a` of the rows from top - 1 on.
  __device__ __forceinline__ void add_activation(const Tile& tile, int top, int row,
                                                 const uint32_t (&a)[4][4], uint32_t activation,
                                                 const Columns<false>& columns, const Kept& kept) {
    const int matrix = thread.lane / 8;  // half of the pixels, half of the channels
    const uint32_t address =
        activation + matrix / 2 * p.layout.row_plane + columns.base(matrix % 2 * 8 + thread.lane % 8);
    uint32_t b[3][4];
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      load_matrices_transposed(b[x], address + columns.column(x));
      kept.b(b[x]);
    }
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      if (!tile.owns_row(top + row + 1 - y)) continue;
#pragma unroll
      for (int x = 0; x < 3; ++x) mma_blocks<kMode>(sums.trunk[y][x], a[row + 2 - y], b[x]);
    }
  }

  // Adds the products of rows `top` and top + 1 at full resolution: in encode d first * image, in decode third *
  // incoming gradient.
  __device__ __forceinline__ void sum_full(const Tile& tile, int top) {
    const auto wide = [&](int row) {
      return kOp == Op::kEncode ? rings.first_gradient(row) : rings.third(row);
    };
    const int plane = p.layout.row_plane;
#pragma unroll 1
    for (int strip = thread.warp % 4; strip < p.layout.strips; strip += 4) {
      const Kept kept(thread, tile.owned_columns(16 * strip));
      if (kept.none()) continue;
      const Columns<false> columns{16 * strip};
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[2][4];
#pragma unroll
        for (int row = 0; row < 2; ++row) load_wide(a[row], thread, wide(top + row), plane, columns, 1, kept);
        // The columns of B are a pixel and its right neighbour, for two taps.
        const int matrix = thread.lane / 8, pixel = columns.base(matrix % 2 * 8 + thread.lane % 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!tile.row_inside(top - 1 + i)) continue;
          uint32_t b[4];
          load_matrices_transposed(b, rings.full(top - 1 + i) + pixel + columns.column(matrix / 2 * 2));
          kept.b(b);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const int y = i - row;
            if (y >= 0 && y < 3 && tile.owns_row(top + row)) mma_blocks<kMode>(sums.full[y], a[row], b);
          }
        }
      } else {
#pragma unroll 1
        for (int row = top; row < top + 2; ++row) {
          if (!tile.owns_row(row)) continue;
          const uint32_t of = wide(row);
#pragma unroll
          for (int y = 0; y < 3; ++y) {
            if (!tile.row_inside(row + y - 1)) continue;
            const uint32_t narrow = rings.full(row + y - 1);
            add_gradient<kMode>(sums.full[y], thread, of, plane, columns, 1, kept, [&](int k, int n) {
              return load_channel(narrow, 0, columns.base(k) + columns.column(n / 4), n % 4);
            });
          }
        }
      }
    }
  }

  // Adds the products of rows `odd` and odd + 1 and the half-resolution rows that read them, for tap column x: in
  // encode third * incoming gradient, in decode d first * low and high.
  __device__ __forceinline__ void sum_half(const Tile& tile, int odd, int x) {
    const uint32_t odd_row = kOp == Op::kEncode ? rings.third(odd) : rings.first_gradient(odd);
    const uint32_t even_row = kOp == Op::kEncode ? rings.third(odd + 1) : rings.first_gradient(odd + 1);
    const int above = odd / 2, below = above + 1;  // row `odd` is their tap row 2 and 0
    const bool is_above = tile.owns_half_row(above) && tile.row_inside(odd);
    const bool is_below = tile.owns_half_row(below) && tile.row_inside(odd);
    const bool is_centre = tile.owns_half_row(below) && tile.row_inside(odd + 1);
#pragma unroll 1
    for (int first = 0; first < 8 * p.layout.strips; first += 16) {
      const Kept kept(thread, tile.owned_half_columns(first));
      if (kept.none()) continue;
      const Columns<true> columns = half_columns(first);
      const auto narrow_pixel = [&](int k) { return pixel_at(min(first + k, columns.last)); };
      const int plane = p.layout.parity_plane;
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[4], b_above[2], b_below[2];
        load_matrices_transposed(b_above, rings.half(above) + narrow_pixel(thread.lane % 16));
        load_matrices_transposed(b_below, rings.half(below) + narrow_pixel(thread.lane % 16));
        kept.b(b_above), kept.b(b_below);
        load_wide(a, thread, odd_row, plane, columns, x, kept);
        if (is_above) mma_blocks<kMode>(sums.half[2], a, b_above);
        if (is_below) mma_blocks<kMode>(sums.half[0], a, b_below);
        load_wide(a, thread, even_row, plane, columns, x, kept);
        if (is_centre) mma_blocks<kMode>(sums.half[1], a, b_below);
      } else {
        const auto add = [&](float (&to)[1][4], uint32_t wide, int half_row) {
          const uint32_t narrow = rings.half(half_row);
          add_gradient<kMode>(to, thread, wide, plane, columns, x, kept, [&](int k, int n) {
            return load_channel(narrow, p.layout.half_plane, narrow_pixel(k), n);
          });
        };
        if (is_above) add(sums.half[2], odd_row, above);
        if (is_below) add(sums.half[0], odd_row, below);
        if (is_centre) add(sums.half[1], even_row, below);
      }
    }
  }

  __device__ __forceinline__ void add_sums(const Tile& tile, int step) {
    if (thread.warp < 4) {
      sum_trunk(
          tile, 2 * step - 4, [&](int row) { return rings.third_gradient(row); },
          [&](int row) { return rings.second(row); });
      if (thread.warp < 3) sum_half(tile, 2 * step - (kOp == Op::kEncode ? 3 : 5), thread.warp);
    } else {
      sum_trunk(
          tile, 2 * step - 5, [&](int row) { return rings.second_gradient(row); },
          [&](int row) { return rings.first(row); });
      sum_full(tile, 2 * step - (kOp == Op::kEncode ? 5 : 3));
    }
  }

  // ------------------------------------------------------------------------------------------------- steps

  // The rows that step `step` is the first to read. Some rows of step 0 are negative; no step reads them.
  static __device__ __forceinline__ int full_row_of(int step) {
    return 2 * step - (kOp == Op::kEncode ? 0 : 2);
  }
  static __device__ __forceinline__ int half_row_of(int step) { return step - (kOp == Op::kEncode ? 1 : 0); }

  __device__ void run_tile(const Tile& tile, InputReader<kOp, kMode>& reader) {
    const int steps = tile.rows / 2 + kBackwardHalo;
    const bool has_strip = thread.warp < p.layout.strips;
#pragma unroll 1
    for (int step = 0; step < 2; ++step) {
      reader.prefetch(p, tile, full_row_of(step), half_row_of(step));
      reader.store_rows(p, rings, full_row_of(step), half_row_of(step));
    }
    block_barrier();
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      thread.forget();
      const int top = 2 * step;  // minus 1 in the first phase, 2 in the second, ...
      const bool has_next = step + 1 < steps;
      if (has_next) reader.prefetch(p, tile, full_row_of(step + 1), half_row_of(step + 1));
      __syncwarp();  // reconverge for ldmatrix and mma
      if (has_strip) compute_first(tile, top - 1);
      block_barrier();
      if (has_strip && step >= 2) compute_second(tile, top - 2);
      block_barrier();
      if (has_strip && step >= 3) compute_third(tile, top - 3);
      block_barrier();
      if (has_strip && step >= 4) compute_second_gradient(tile, top - 4);
      block_barrier();
      if (has_strip && step >= 5) compute_first_gradient(tile, top - 5);
      block_barrier();
      if (step >= 6) {
        if constexpr (kOp == Op::kEncode) {
          if ((p.need_input || p.need_scale) && has_strip) write_full_gradient(tile, top - 6);
        } else {
          if (p.need_input) write_half_gradient(tile, step - 3);
        }
      }
      __syncwarp();
      if (p.need_parameters && step >= 4) add_sums(tile, step);
      if (has_next) reader.store_rows(p, rings, full_row_of(step + 1), half_row_of(step + 1));
      block_barrier();
    }
  }

  // ------------------------------------------------------------------------------------------- partial sums

  template <int kResult>
  static constexpr int kOffset = wae::cuda::result_offset(kOp, kResult);

  // Calls f(element, wide channel, column) for the lane's elements of a 16 x 8 product.
  template <class F>
  __device__ __forceinline__ void for_elements(const F& f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(i, thread.group + i / 2 * 8, 2 * thread.member + i % 2);
  }

  // Calls put(offset, sum) for each sum of the warp for weights that four warps share.
  template <class Put>
  __device__ __forceinline__ void for_shared_weights(const Put& put) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    const int trunk = thread.warp < 4 ? kOffset<(kEncodes ? 4 : 6)> : kOffset<(kEncodes ? 2 : 4)>;
#pragma unroll
    for (int y = 0; y < 3; ++y) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          for_elements([&](int i, int o, int c) {
            put(trunk + (o * 16 + 8 * n + c) * 9 + 3 * y + x, sums.trunk[y][x][n][i]);
          });
        }
      }
      if (thread.warp < 4) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        for_elements([&](int i, int wide, int column) {
          const int x = 2 * n + column / 4, c = column % 4, tap = 3 * y + x;
          if (x > 2 || c > 2) return;
          put(kEncodes ? kOffset<0> + (wide * 3 + c) * 9 + tap : kOffset<8> + (c * 16 + wide) * 9 + 8 - tap,
              sums.full[y][n][i]);
        });
      }
    }
  }
  // The same for weights that only this warp has.
  template <class Put>
  __device__ __forceinline__ void for_own_weights(const Put& put) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    if (thread.warp >= 3) return;
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      for_elements([&](int i, int wide, int c) {
        const int begin = c < 4 ? kOffset<(kEncodes ? 6 : 0)> : kOffset<(kEncodes ? 8 : 2)>;
        if (c % 4 < 3) put(begin + (c % 4 * 16 + wide) * 9 + 3 * y + thread.warp, sums.half[y][0][i]);
      });
    }
  }

  static constexpr int kVectors = 48 + 4 * 2 * 2 + 6;  // a warp's biases; scale, shift (8 each); incoming

  // Adds over the lanes with the same channels, whose numbers differ by multiples of kFirst.
  template <int kFirst = 4>
  static __device__ __forceinline__ float over_groups(float value) {
#pragma unroll
    for (int distance = kFirst; distance < 32; distance *= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
  }

  __device__ __forceinline__ int bias_channel() const {
    return 8 * (thread.group % 2) + 2 * thread.member + thread.group / 2 % 2;
  }

  __device__ __forceinline__ void store_vectors(float* mine, const InputReader<kOp, kMode>& reader) const {
#pragma unroll
    for (int layer = 0; layer < 3; ++layer) {
      const float sum = over_groups<16>(sums.bias[layer].value);
      if (thread.group < 4) mine[layer * 16 + bias_channel()] = sum;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale = over_groups(sums.scale[e].value), shift = over_groups(sums.shift[e].value);
      if (thread.group == 0) {
        mine[48 + 2 * thread.member + e] = scale, mine[56 + 2 * thread.member + e] = shift;
      }
    }
#pragma unroll
    for (int c = 0; c < 6; ++c) {
      float sum = over_groups(reader.sum_of(p, c));
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (thread.lane == 0) mine[64 + c] = sum;
    }
  }

  // The offset in the partial sums of number i of the warps' vectors, or -1 if there is none.
  static __device__ __forceinline__ int vector_offset(int i) {
    constexpr bool kEncodes = kOp == Op::kEncode;
    if (i < 48) {
      return (i < 16   ? kOffset<1>
              : i < 32 ? kOffset<(kEncodes ? 3 : 5)>
                       : kOffset<(kEncodes ? 5 : 7)>)+i %
             16;
    }
    if (i < 64) return kEncodes && i % 8 < 3 ? (i < 56 ? kOffset<10> : kOffset<11>)+i % 8 : -1;
    if (kEncodes) return (i < 67 ? kOffset<7> : kOffset<9>)+(i - 64) % 3;
    return i < 67 ? kOffset<9> + i - 64 : -1;
  }

  // Adds the sums of the block's warps in shared memory, in the place of the rows, which are not needed any more: those
  // of weights one after the other of the four warps that share a layer, all others over all warps. Then adds the
  // result to the block's partial sums; `first`: there are none yet. Unless it is the `last` time, the excess is stored
  // as well.
  __device__ void write_sums(float* scratch, const InputReader<kOp, kMode>& reader, bool first, bool last) {
    thread.forget();  // keeps nothing of what follows in registers from tile to tile
    constexpr int kWarps = kBackwardThreads / 32;
    static_assert(4 * (partial_floats(kOp) + kWarps * kVectors) <=
                  backward_layout(kOp, kMode, kMinBackwardStrips, WAE_CAPABILITY).trunk_filters);
    float* vectors = scratch + partial_floats(kOp);
    store_vectors(vectors + thread.warp * kVectors, reader);
    for_own_weights([&](int at, float sum) { scratch[at] = sum; });
#pragma unroll 1
    for (int turn = 0; turn < 4; ++turn) {
      if (thread.warp % 4 == turn) {
        for_shared_weights([&](int at, float sum) { scratch[at] = turn == 0 ? sum : scratch[at] + sum; });
      }
      block_barrier();
    }
    const int own = forgotten(threadIdx.x);
    const int at = own < kVectors ? vector_offset(own) : -1;
    if (at >= 0) {
      CompensatedSum sum{};
#pragma unroll 1
      for (int warp = 0; warp < kWarps; ++warp) sum.add(vectors[warp * kVectors + own]);
      scratch[at] = sum.value;
      if (kOp == Op::kDecode && own < 16) {
        scratch[kOffset<3> + own] = sum.value;  // both branches' biases have the same gradient
      }
    }
    block_barrier();
    // 32-bit offsets suffice: a grid has a few hundred blocks.
    float* out = p.partials + forgotten(blockIdx.x) * partial_floats(kOp);
    float* excess = out + forgotten(gridDim.x) * partial_floats(kOp);
#pragma unroll 1
    for (int i = own; i < partial_floats(kOp); i += kBackwardThreads) {
      CompensatedSum sum{};
      if (!first) sum = {out[i], excess[i]};
      sum.add(scratch[i]);
      out[i] = sum.value;
      if (!last) excess[i] = sum.excess;
    }
  }

  // Zeroes all rows, so that no pixel is read uninitialised; the ends of the rows stay zero.
  __device__ void clear_rows() const {
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < p.layout.trunk_filters; i += kBackwardThreads * 16) {
      store(rings.shared + i, 0, 0, 0, 0);
    }
  }
};

template <Op kOp, Mode kMode>
__device__ void run_backward(const BackwardParameters& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Backward<kOp, kMode> backward(p, shared_address(memory));
  backward.clear_rows();
  backward.fill_filters(memory);
  block_barrier();
  InputReader<kOp, kMode> reader;
  Cursor cursor(p.tiling, 0);
#pragma unroll 1
  for (; cursor.tile < p.tiling.tiles; cursor.tile += gridDim.x) {
    cursor.locate();
    backward.run_tile(Tile(p, cursor), reader);
    if (!p.need_parameters && !p.need_scale) continue;
    // Derived from the tile's number, so that no register is needed for a count while tiles are computed.
    const int64_t together = kLongestSum / p.tiling.tile_height, number = cursor.tile / gridDim.x;
    const bool last = cursor.tile + gridDim.x >= p.tiling.tiles;
    if (!last && (number + 1) % together != 0) continue;
    backward.write_sums(reinterpret_cast<float*>(memory), reader, number < together, last);
    if (last) return;
    clear(backward.sums), clear(reader.sums);
    block_barrier();
    backward.clear_rows();
    block_barrier();
  }
}

}  // namespace wae::cuda
