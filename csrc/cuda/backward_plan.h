// Geometry, shared memory and results of the backward kernels (backward.cuh): pure functions, which can be tested
// without a GPU.

#pragma once

#include <array>
#include <cstdint>

#include "cuda/plan.h"

namespace wae::cuda {

// The two ops mirror each other. Each has a first layer, two 16 -> 16 layers and a last layer. Of the first and the
// last layer, one has 3 channels at full resolution and the other 2 * 3 channels at half resolution.

inline constexpr int kBackwardThreads = 256;  // a warp for each of up to eight strips of 16 pixels
inline constexpr int kMaxBackwardStrips = 8, kMinBackwardStrips = 2;
inline constexpr int kSchedulers = 4;    // schedulers of a multiprocessor; each has every fourth warp
inline constexpr int kBackwardHalo = 6;  // pixels on every side: three layers forward and three back

// The number of live rows of each kind, such that no phase of a step overwrites a row that this or a later phase reads;
// backward.cuh has the table.
inline constexpr int kFirstRows = 6, kSecondRows = 4, kThirdRows = 2, kGradientRows = 4;
constexpr int full_rows(Op op) { return op == Op::kEncode ? 10 : 6; }
constexpr int half_rows(Op op) { return op == Op::kEncode ? 4 : 6; }

// The plain modes read their weights from global memory on chips with 64 KB of shared memory.
constexpr bool weights_in_shared(Mode mode, int capability) { return !(is_plain(mode) && capability < 80); }

constexpr int trunk_filter_bytes(Mode mode) { return 9 * 16 * 16 * stored_bytes(mode); }
// The sizes of the narrow layers' filters; backward/filters.cuh describes their layouts. In the 32-bit modes a pitch is
// the bytes of a wide channel's weights: 9 taps of 4 or 8 words. In the 16-bit modes the full-resolution filter has one
// layout for each direction.
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

// Offsets in shared memory, in bytes, with the names of backward.cuh: the activations, their gradients, and the inputs
// at full and half resolution.
struct BackwardLayout {
  int32_t strips;                 // strips of 16 pixels in a row
  int32_t row_plane, half_plane;  // bytes of a plane: 16 per pixel, with padding at the ends
  int32_t parity_plane;           // bytes of two half_planes: a row's even pixels, then the odd ones
  int32_t first, second, third;
  int32_t first_gradient, second_gradient, third_gradient;
  int32_t full, half;
  int32_t trunk_filters, full_filter, full_back_filter, half_filter, biases;
  int32_t affine;  // encode only: scale and shift, 4 floats each
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

// The most half-resolution rows over which a block sums in registers before it adds to its partial sums. The error of a
// sum in a float grows with the number of its additions, so without this limit it would grow with the image.
inline constexpr int kLongestSum = 256;

// A tile of h half-resolution rows takes h + 6 steps; the first step waits for its own loads.
constexpr TileShape backward_tile(int strips) {
  return {(16 * strips - 2 * kBackwardHalo) / 2, kBackwardHalo, 0, kLongestSum};
}

// The fewest strips with which an image is as few tiles wide as with the widest row that fits shared memory, of at most
// `most` strips.
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

// The number of strips in a row, for a batch. Wide rows recompute fewer pixels; narrow rows spread a small batch over
// the chip. A step takes one or two rounds of the schedulers. The choice has the fewest rounds in the busiest block
// and, among equals, the fewest strips in all.
constexpr int backward_strips(Op op, Mode mode, int capability, int shared_limit, int64_t batch,
                              int64_t half_height, int64_t half_width, int multiprocessors) {
  int best = 0;
  int64_t fewest_rounds = 0, fewest_strips = 0;
  for (int most = kSchedulers; most <= kMaxBackwardStrips; most += kSchedulers) {
    const int strips = strips_across(op, mode, capability, shared_limit, half_width, most);
    const TileShape shape = backward_tile(strips);
    const Chip chip{multiprocessors, 1};  // registers allow one block per multiprocessor
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

// The sums of a block, in floats: the gradients of the ten parameters in the op's order, each contiguous, then those of
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
// The floats of a launch: the sums of all blocks, then their excess (CompensatedSum) for blocks that add more than
// once.
constexpr int64_t partials_of_grid(Op op, int grid) { return int64_t{2} * grid * partial_floats(op); }

inline constexpr int kReduceThreads = 256, kReduceColumns = 32;  // a block adds 32 numbers, in 8 groups

}  // namespace wae::cuda
