// Tile geometry and launch plans: pure functions of the shape and the chip, which can be tested without a GPU.
//
// A tile has at most kTileColumns half-resolution columns and `tile_height` half-resolution rows. A block moves down
// its tile, two full-resolution rows a step, and starts its next tile without a gap; see pipeline.cuh. Shared memory
// holds a few rows of each layer, whatever the height of a tile, so the height is chosen to balance the blocks.

#pragma once

#include <array>
#include <cstdint>
#include <limits>

namespace wae::cuda {

// The arithmetic of a kernel. The plain modes do not use tensor cores; kBFloat16Plain is for chips whose tensor cores
// lack bfloat16.
enum class Mode : int32_t { kFloat16, kBFloat16, kTf32, kFloat32, kBFloat16Plain };
inline constexpr int kModes = 5;
enum class Op : int32_t { kEncode, kDecode };

constexpr bool is_plain(Mode mode) { return mode == Mode::kFloat32 || mode == Mode::kBFloat16Plain; }
// Bytes of a channel of an activation in shared memory.
constexpr int stored_bytes(Mode mode) { return mode == Mode::kFloat16 || mode == Mode::kBFloat16 ? 2 : 4; }
// Whether a chip of this compute capability (75 is 7.5) supports the mode.
constexpr bool runs_on(Mode mode, int capability) {
  switch (mode) {
    case Mode::kBFloat16:
    case Mode::kTf32:
      return capability >= 80;
    case Mode::kBFloat16Plain:
      return capability < 80;
    default:
      return true;
  }
}

// ------------------------------------------------------------------------------------------------- geometry

inline constexpr int kStrips = 4;                  // warps side by side, of 16 pixels each
inline constexpr int kPixels = 16 * kStrips;       // pixels computed in every row of every layer
inline constexpr int kTileColumns = 28;            // half-resolution: 64 pixels lose 2 to each of 3 layers
inline constexpr int kThreads = 3 * 32 * kStrips;  // one group of warps per trunk layer, one for the ends
inline constexpr int kHaloPairs = 4;               // row pairs of halo that a tile reads
inline constexpr int kPipelineSteps = 8;           // from reading a pair to the row that it completes
static_assert(2 * kTileColumns + 2 <= kPixels - 6 + 1);

// A 3x3 filter's output and input channels.
struct FilterShape {
  int32_t out, in;
  constexpr int count() const { return out * in * 9; }
};
inline constexpr int kFilters = 5;
// The filters in the order of the op's parameters.
constexpr std::array<FilterShape, kFilters> filter_shapes(Op op) {
  if (op == Op::kEncode) return {{{16, 3}, {16, 16}, {16, 16}, {3, 16}, {3, 16}}};
  return {{{16, 3}, {16, 3}, {16, 16}, {16, 16}, {3, 16}}};
}
// The index of a filter's first number if all filters are concatenated.
constexpr int filter_offset(Op op, int filter) {
  int offset = 0;
  for (int i = 0; i < filter; ++i) offset += filter_shapes(op)[i].count();
  return offset;
}
inline constexpr int kFilterNumbers = filter_offset(Op::kEncode, kFilters);
static_assert(kFilterNumbers == filter_offset(Op::kDecode, kFilters));

// How a batch is divided into tiles, in half-resolution pixels.
struct Tiling {
  int64_t tiles;          // in the whole batch
  int32_t rows, columns;  // tiles down and across one image
  int32_t tile_height, tile_width;
};

// ------------------------------------------------------------------------------------------- shared memory

// A row of activations is stored in planes of 16 bytes per pixel: 8 channels of 16 bits or 4 of 32 bits. Neighbouring
// pixels are 16 bytes apart, so the 8 addresses of an ldmatrix phase, and those of a store, are in different banks.
inline constexpr int kRowPlane =
    (kPixels + 4) * 16;  // 2 pixels of padding are read; 2 shift the banks of the next plane
// Rows that are read with stride 2 store even and odd pixels apart.
inline constexpr int kParityHalf = (kPixels / 2 + 4) * 16;
inline constexpr int kParityPlane = 2 * kParityHalf + 2 * 16;
// The decoder's input: a plane holds a half-resolution row and one pixel of padding.
inline constexpr int kHalfPlane = (kPixels / 2 + 4) * 16;
static_assert(kRowPlane % 128 == 64 && kParityHalf % 128 == 64 && kParityPlane % 128 == 32);

constexpr int planes(Mode mode) { return 16 * stored_bytes(mode) / 16; }
// Pairs of rows are double-buffered so that one barrier a step suffices, except in the plain modes, which have long
// steps and little space.
constexpr int row_slots(Mode mode) { return is_plain(mode) ? 1 : 2; }
// The encoder's image: 3 channels and a zero, with a pixel of padding on the left and two on the right. In the 32-bit
// modes a pixel has 16 bytes. In the 16-bit modes there are two planes of 16 bytes per pixel: one has the pixel and its
// right neighbour, the other the pixel and zeros. With both, one ldmatrix loads the three taps of a row.
constexpr int image_pitch(Mode mode) { return (stored_bytes(mode) == 2 ? 2 : 1) * kRowPlane; }
// The planes of the decoder's input, whose pixels have 6 channels and two zeros.
constexpr int half_planes(Mode mode) { return 8 * stored_bytes(mode) / 16; }

// Offsets in shared memory, in bytes.
struct SharedLayout {
  int input;                // three slots: pairs of image rows, or half-resolution rows
  int first, second, last;  // activations between the layers, row_slots() pairs of rows each
  int weights;              // plain modes only
  int affine;               // encode only: scale and shift, 4 floats each
  int bytes;                // total
};

inline constexpr int kTrunkWeights = 9 * 16 * 16;
inline constexpr int kEncodeLastWeights = 9 * 16 * 8;  // 6 output channels, in 8 columns
// The columns of conv3's product are 3 channels of each of two output rows. Its taps are those of two pairs of output
// rows, two input rows and three columns; see LastLayer in decode.cu.
inline constexpr int kDecodeLastTaps = 2 * 2 * 3, kDecodeLastWeights = kDecodeLastTaps * 16 * 8;

constexpr SharedLayout shared_layout(Mode mode, int input_bytes, int last_plane, int first_weights,
                                     int last_weights) {
  const int pair = 2 * planes(mode) * kRowPlane * row_slots(mode);
  SharedLayout layout{};
  layout.first = input_bytes;
  layout.second = layout.first + pair;
  layout.last = layout.second + pair;
  layout.weights = layout.last + 2 * planes(mode) * last_plane * row_slots(mode);
  layout.bytes =
      layout.weights + (is_plain(mode) ? 4 * (first_weights + 2 * kTrunkWeights + last_weights) : 0);
  return layout;
}
inline constexpr int kEncodeFirstWeights = 9 * 3 * 16;
inline constexpr int kDecodeFirstWeights = 9 * 6 * 16;
constexpr SharedLayout encode_layout(Mode mode) {
  SharedLayout layout =
      shared_layout(mode, 3 * 2 * image_pitch(mode), kParityPlane, kEncodeFirstWeights, kEncodeLastWeights);
  layout.affine = layout.bytes;
  layout.bytes += 2 * 4 * 4;
  return layout;
}
constexpr SharedLayout decode_layout(Mode mode) {
  return shared_layout(mode, 3 * half_planes(mode) * kHalfPlane, kRowPlane, kDecodeFirstWeights,
                       kDecodeLastWeights);
}

// --------------------------------------------------------------------------------------------------- plans

struct Chip {
  int32_t multiprocessors;
  int32_t blocks_each;  // resident blocks per multiprocessor, from the occupancy calculator
};

struct LaunchPlan {
  Tiling tiling;
  int32_t grid, block, shared_bytes;
};

// The limits of a tile's size, and the costs of a tile besides its own row pairs.
struct TileShape {
  int32_t columns;  // the most half-resolution columns
  int32_t halo;     // steps of a tile beyond its height
  int32_t fill;     // steps of a block beyond those of its tiles: filling and draining the pipeline
  int32_t tallest = std::numeric_limits<int32_t>::max();  // the most half-resolution rows
};
inline constexpr TileShape kForwardTile{kTileColumns, kHaloPairs, kPipelineSteps};

inline constexpr int kCandidates = 6;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr Tiling tiling_of(int64_t batch, int64_t half_height, int64_t half_width, int64_t tile_height,
                           const TileShape& shape) {
  const int64_t columns = ceil_div(half_width, shape.columns);
  const int64_t rows = ceil_div(half_height, tile_height);
  // Tiles of equal size, instead of full ones and a small remainder.
  return {batch * rows * columns, static_cast<int32_t>(rows), static_cast<int32_t>(columns),
          static_cast<int32_t>(ceil_div(half_height, rows)),
          static_cast<int32_t>(ceil_div(half_width, columns))};
}

// The steps of the busiest block.
constexpr int64_t steps_of(const Tiling& tiling, int64_t blocks, const TileShape& shape) {
  return ceil_div(tiling.tiles, blocks) * (tiling.tile_height + shape.halo) + shape.fill;
}

// Tall tiles recompute fewer halo rows; many tiles fill the chip. Chooses among a few tilings the one with the fewest
// steps and, if several are equal, with the tallest tiles. There are only a few candidates because this runs before
// every launch.
constexpr LaunchPlan plan(int64_t batch, int64_t half_height, int64_t half_width, const Chip& chip,
                          const TileShape& shape, int32_t threads, int32_t shared_bytes) {
  const int64_t blocks = static_cast<int64_t>(chip.multiprocessors) * chip.blocks_each;
  const int64_t strips = batch * ceil_div(half_width, shape.columns);
  const int64_t fewest = ceil_div(half_height, shape.tallest);
  Tiling best = tiling_of(batch, half_height, half_width, ceil_div(half_height, fewest), shape);
  for (int64_t n = 1; n <= kCandidates; ++n) {
    for (const int64_t wanted : {n, n * blocks / strips}) {  // n tiles down an image; n tiles per block
      const int64_t rows = wanted < fewest ? fewest : wanted < half_height ? wanted : half_height;
      const Tiling tiling = tiling_of(batch, half_height, half_width, ceil_div(half_height, rows), shape);
      const int64_t steps = steps_of(tiling, blocks, shape), least = steps_of(best, blocks, shape);
      if (steps < least || (steps == least && tiling.rows < best.rows)) best = tiling;
    }
  }
  const int64_t grid = best.tiles < blocks ? best.tiles : blocks;
  return {best, static_cast<int32_t>(grid), threads, shared_bytes};
}

}  // namespace wae::cuda
