// Geometry, shared memory and results of the backward kernels (backward.cuh). Pure functions, testable
// without a GPU.

#pragma once

#include <array>
#include <cstdint>

#include "cuda/plan.h"

namespace wae::cuda {

// The two ops are mirror images: each has a first layer, two 16 -> 16 layers and a last layer; one of the
// first and the last is 3 channels at full resolution, the other 2 * 3 channels at half resolution.

inline constexpr int kBackwardThreads = 256;  // a warp for each of up to eight strips of 16 pixels
inline constexpr int kMaxBackwardStrips = 8, kMinBackwardStrips = 2;
inline constexpr int kSchedulers = 4;    // of a multiprocessor; each has every fourth warp
inline constexpr int kBackwardHalo = 6;  // pixels on every side: three layers forward and three back

// Rows that are live at a time, by what they hold. Chosen so that a step of two rows never overwrites a row
// that a later phase of the same step reads; backward.cuh has the table.
inline constexpr int kFirstRows = 6, kSecondRows = 4, kThirdRows = 2, kGradientRows = 4;
constexpr int full_rows(Op op) { return op == Op::kEncode ? 10 : 6; }
constexpr int half_rows(Op op) { return op == Op::kEncode ? 4 : 6; }

// The plain modes read their weights from global memory on chips with 64 KB of shared memory.
constexpr bool weights_in_shared(Mode mode, int capability) { return !(is_plain(mode) && capability < 80); }

constexpr int trunk_filter_bytes(Mode mode) { return 9 * 16 * 16 * stored_bytes(mode); }
// The filters of the narrow layers; backward/filters.cuh has their forms. In 32 bits, bytes of a wide channel's
// weights: 9 taps of 4 or 8 words. In 16 bits the full-resolution filter has a form for each direction.
inline constexpr int kFullFilterPitch = 9 * 16, kHalfFilterPitch = 9 * 32 + 16;
constexpr int full_filter_bytes(Mode mode) {
  return stored_bytes(mode) == 2 ? 3 * 16 * 16 * 2 : 16 * kFullFilterPitch;
}
constexpr int full_back_filter_bytes(Op op, Mode mode) {
  return stored_bytes(mode) == 2 && op == Op::kEncode ? 9 * 4 * 16 * 2 : 0;
}
constexpr int half_filter_bytes(Mode mode) {
  return stored_bytes(mode) == 2 ? 9 * 16 * 8 * 2 : 16 * kHalfFilterPitch;
}

// Offsets in shared memory, in bytes. The names are those of backward.cuh: activations, their gradients,
// the inputs at full and half resolution.
struct BackwardLayout {
  int32_t strips;                 // of 16 pixels in a row
  int32_t row_plane, half_plane;  // bytes of a plane: 16 a pixel, with padding at the ends
  int32_t parity_plane;           // of two half_planes: a row's even pixels, then the odd ones
  int32_t first, second, third;
  int32_t first_gradient, second_gradient, third_gradient;
  int32_t full, half;
  int32_t trunk_filters, full_filter, full_back_filter, half_filter, biases;
  int32_t affine;  // of encode: scale and shift, 4 floats each
  int32_t bytes;   // total
};

constexpr BackwardLayout backward_layout(Op op, Mode mode, int strips, int capability) {
  BackwardLayout at{};
  at.strips = strips;
  at.row_plane = (16 * strips + 4) * 16;
  at.half_plane = (8 * strips + 4) * 16;
  at.parity_plane = 2 * at.half_plane + 2 * 16;
  const int row = planes(mode) * at.row_plane, parity_row = planes(mode) * at.parity_plane;
  int bytes = 0;
  const auto take = [&](int size) {
    const int begin = bytes;
    bytes += size;
    return begin;
  };
  at.first = take(kFirstRows * row);
  at.second = take(kSecondRows * row);
  at.third = take(kThirdRows * (op == Op::kEncode ? parity_row : row));
  at.first_gradient = take(kGradientRows * (op == Op::kDecode ? parity_row : row));
  at.second_gradient = take(kGradientRows * row);
  at.third_gradient = take(kGradientRows * row);
  at.full = take(full_rows(op) * at.row_plane);
  at.half = take(half_rows(op) * half_planes(mode) * at.half_plane);
  const int copies = weights_in_shared(mode, capability) ? 1 : 0;
  at.trunk_filters = take(copies * 2 * trunk_filter_bytes(mode));
  at.full_filter = take(copies * full_filter_bytes(mode));
  at.full_back_filter = take(copies * full_back_filter_bytes(op, mode));
  at.half_filter = take(copies * half_filter_bytes(mode));
  at.biases = take(3 * 16 * 4);
  at.affine = take(op == Op::kEncode ? 2 * 4 * 4 : 0);
  at.bytes = bytes;
  return at;
}

// Half-resolution rows over which a block sums in registers, at most; then it adds to its partial sums. What a
// float loses grows with the number of its additions, so without an end it would grow with the image.
inline constexpr int kLongestSum = 256;

// A tile of h half-resolution rows takes h + 6 steps; the first step waits for its own loads.
constexpr TileShape backward_tile(int strips) {
  return {(16 * strips - 2 * kBackwardHalo) / 2, kBackwardHalo, 0, kLongestSum};
}

// The fewest strips that get across an image in as many tiles as the widest row of at most `most` strips for
// which shared memory has room.
constexpr int strips_across(Op op, Mode mode, int capability, int shared_limit, int64_t half_width,
                            int most) {
  const auto tiles = [&](int strips) { return ceil_div(half_width, backward_tile(strips).columns); };
  int widest = most;
  while (widest > kMinBackwardStrips && backward_layout(op, mode, widest, capability).bytes > shared_limit) {
    --widest;
  }
  int strips = widest;
  while (strips > kMinBackwardStrips && tiles(strips - 1) == tiles(widest)) --strips;
  return strips;
}

// The strips of a row for a batch: wide rows recompute fewer pixels, narrow ones spread a small batch over the
// chip. A step takes a round or two of the schedulers; the busiest block is to have the fewest rounds, and the
// whole batch, among equals, the fewest strips.
constexpr int backward_strips(Op op, Mode mode, int capability, int shared_limit, int64_t batch,
                              int64_t half_height, int64_t half_width, int multiprocessors) {
  int best = 0;
  int64_t fewest_rounds = 0, fewest_strips = 0;
  for (int most = kSchedulers; most <= kMaxBackwardStrips; most += kSchedulers) {
    const int strips = strips_across(op, mode, capability, shared_limit, half_width, most);
    const TileShape shape = backward_tile(strips);
    const Chip chip{multiprocessors, 1};  // registers allow one block for each
    const Tiling tiling = plan(batch, half_height, half_width, chip, shape, kBackwardThreads, 0).tiling;
    const int64_t rounds = steps_of(tiling, multiprocessors, shape) * ceil_div(strips, kSchedulers);
    const int64_t all_strips = tiling.tiles * strips;
    if (best == 0 || rounds < fewest_rounds || (rounds == fewest_rounds && all_strips < fewest_strips)) {
      best = strips, fewest_rounds = rounds, fewest_strips = all_strips;
    }
  }
  return best;
}

// ---------------------------------------------------------------------------------------------- partial sums

// A block's sums, in floats: the gradients of the ten parameters in the op's order, each contiguous, then of
// scale and shift.
inline constexpr int kResults = 12;
constexpr std::array<int32_t, kResults> result_sizes(Op op) {
  if (op == Op::kEncode) return {432, 16, 2304, 16, 2304, 16, 432, 3, 432, 3, 3, 3};
  return {432, 16, 432, 16, 2304, 16, 2304, 16, 432, 3, 0, 0};
}
constexpr int result_offset(Op op, int result) {
  int offset = 0;
  for (int i = 0; i < result; ++i) offset += result_sizes(op)[i];
  return offset;
}
constexpr int partial_floats(Op op) { return result_offset(op, kResults); }
// Of a launch: the blocks' sums, then what those that are added to more than once are too large by.
constexpr int64_t partials_of_grid(Op op, int grid) { return int64_t{2} * grid * partial_floats(op); }

inline constexpr int kReduceThreads = 256, kReduceColumns = 32;  // a block adds 32 numbers, in 8 groups

}  // namespace wae::cuda
