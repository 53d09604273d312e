// Shared by encode.cu and decode.cu: the warp-specialised pipeline of a block, and the 16 -> 16 trunk layers.
//
// A block computes all four layers of a tile, then of its next tile. Its 12 warps form a pipeline. Each step advances
// every layer by one pair of rows, 64 pixels wide, and ends with one barrier:
//
//     warps 0-3   (ends)    read pair p+3 from memory -> [input] -> first layer, pair p
//     warps 4-7   (trunk)   [first]  -> second layer, pair p-1
//     warps 8-11  (trunk)   [second] -> third layer, pair p-3
//     warps 0-3   (ends)    [last]   -> last layer, to memory
//
// In brackets: a few rows in shared memory, the only storage between two layers. One barrier suffices because no step
// writes a slot that it reads: of [input]'s three slots a step writes one and reads those that the last two steps wrote;
// of the others' two it writes one and reads the other. In the plain modes these have one slot, and a second barrier
// separates the reads of a step from its writes.
//
// A warp computes a strip of 16 pixels of its layer and keeps the layer's weights in registers throughout the kernel.
// Each input row is loaded once and accumulated into the three output rows that read it, so four rows of accumulators
// are live: two that this pair of input rows completes, and two that it begins.
//
//     columns      0                                                             63
//     input       |<------------------------ 64 (+2 of padding) ------------------->|
//     first       |<------------------------ 64 ----------------------------------->|
//     second      |<------------------------ 62 valid ------------------------>|....|
//     third       |<------------------------ 60 valid -------------------->|........|
//     last        |<-- 2 * 28 full-resolution columns -->|..........................|
//
// Column j of a layer is computed from columns j, j + 1 and j + 2 of the previous layer, so with each layer the tile
// shifts by one pixel to the right, and one down, in the image. A tile of h half-resolution rows takes h + 4 steps. The
// next tile follows without a gap (rows that mix two tiles are skipped or discarded). Every layer stores zeros outside
// the image, as padding of the next layer. docs/cuda.md has the counts and bounds.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/parameters.h"

namespace wae::cuda {

// -------------------------------------------------------------------------------------------- thread roles

enum Role { kEnds, kSecond, kThird };

struct ThreadCoordinates {
  int role, strip, lane, group, member;  // group, member: the lane's row and column pair in mma fragments

  __device__ ThreadCoordinates()
      : role(threadIdx.x / (32 * kStrips)),
        strip(threadIdx.x / 32 % kStrips),
        lane(threadIdx.x % 32),
        group(lane / 4),
        member(lane % 4) {}
};

// Whether coordinate from + i is inside an image of this size.
__device__ __forceinline__ bool inside(int from, int i, int size) {
  return static_cast<unsigned>(from + i) < static_cast<unsigned>(size);
}

// -------------------------------------------------------------------------------------------- walking tiles

// The position of a pipeline stage: row pair `phase` of tile `tile`. Stages lag behind the loads of the inputs.
struct Cursor {
  const Tiling& tiling;
  int64_t tile;
  int phase;
  int pairs;  // the tile's height; after the block's last tile negative, so that no stage is active
  int image;
  int y, x;  // the tile's first output, in half-resolution pixels

  __device__ Cursor(const Tiling& tiling, int lag) : tiling(tiling), tile(blockIdx.x), phase(-lag) {
    locate();
  }

  // The cursor of a later stage, before the first step.
  __device__ Cursor lagging(int lag) const {
    Cursor later = *this;
    later.phase = -lag;
    return later;
  }

  __device__ void locate() {
    pairs = tile < tiling.tiles ? tiling.tile_height : -kHaloPairs;
    const int64_t tiles_per_image = static_cast<int64_t>(tiling.rows) * tiling.columns;
    image = static_cast<int>(tile / tiles_per_image);
    const int64_t rest = tile - image * tiles_per_image;
    const int row = static_cast<int>(rest / tiling.columns);
    y = row * tiling.tile_height;
    x = static_cast<int>(rest - static_cast<int64_t>(row) * tiling.columns) * tiling.tile_width;
  }
  __device__ void advance() {
    if (++phase < tiling.tile_height + kHaloPairs) return;
    phase = 0;
    tile += gridDim.x;
    locate();
  }
  // Whether a stage that processes the tile's height plus `more` pairs has work in this step.
  __device__ bool active(int more) const { return phase >= 0 && phase < pairs + more; }
  // Whether this is the last pair of the tile for such a stage.
  __device__ bool is_last(int more) const { return phase == pairs + more - 1; }
};

// The lags of the stages, in steps. A pair that is read in step p is in shared memory at the end of step p + 1. The
// first layer reads two pairs at a time; the other layers complete a pair when the next one arrives.
inline constexpr int kFirstLag = 3, kSecondLag = 4, kThirdLag = 6, kLastLag = 8;
static_assert(kLastLag == kPipelineSteps);

// The steps until the last stage, which processes a tile's height plus `last_more` pairs, has finished the block's last
// tile.
__device__ __forceinline__ int64_t steps_of_block(const Tiling& tiling, int last_more) {
  const int64_t mine = (tiling.tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  return mine * (tiling.tile_height + kHaloPairs) - kHaloPairs + last_more + kLastLag;
}

// -------------------------------------------------------------------------------------------------- filters

// Parameters are stored to shared memory twice. The first copy has the order of global memory, so that all loads are in
// flight at once: for a single image their latency matters. The second has the order in which the layers read; each of
// its words is built by one thread.

// A filter in the first copy: a dense filter keeps its own strides, any other becomes contiguous.
template <class Number>
struct StagedFilter {
  const Number* data;
  int stride[4];
  __device__ Number at(int out, int in, int tap) const {
    return data[out * stride[0] + in * stride[1] + tap / 3 * stride[2] + tap % 3 * stride[3]];
  }
};

// One of two filters, and below a number or zero: as selects, because there would be a branch for each number.
template <class Number>
__device__ __forceinline__ StagedFilter<Number> chosen(bool is_first, const StagedFilter<Number>& first,
                                                       const StagedFilter<Number>& second) {
  StagedFilter<Number> one{is_first ? first.data : second.data, {}};
#pragma unroll
  for (int i = 0; i < 4; ++i) one.stride[i] = is_first ? first.stride[i] : second.stride[i];
  return one;
}
template <class Number>
__device__ __forceinline__ Number unless_padding(bool is_channel, Number number) {
  return is_channel ? number : Number{};
}

// An element of a parameter, rounded to the mode's Number.
template <class Number, class From>
__device__ __forceinline__ Number converted(From number) {
  if constexpr (std::is_same_v<From, Number>) {
    return number;
  } else {
    return from_float<Number>(number);
  }
}

template <class From, class Number>
__device__ void copy_sparse_filter(Number* to, const Filter& filter, const FilterShape& shape) {
  const From* from = static_cast<const From*>(filter.weight);
#pragma unroll 1
  for (int i = threadIdx.x; i < shape.count(); i += kThreads) {
    const int tap = i % 9, rest = i / 9;
    to[i] = converted<Number>(from[rest / shape.in * filter.stride[0] + rest % shape.in * filter.stride[1] +
                                   tap / 3 * filter.stride[2] + tap % 3 * filter.stride[3]]);
  }
}

template <Op kOp, class Number>
struct StagedFilters {
  Number* numbers;
  const Filter (&filters)[kFilters];

  // A barrier must follow. are_floats: the filters are float32 in memory, whatever Number is.
  __device__ StagedFilters(Number* to, const Filter (&from)[kFilters], bool are_floats)
      : numbers(to), filters(from) {
    if (are_floats) {
      copy<float>();
    } else {
      copy<Number>();
    }
  }

  template <class From>
  __device__ __forceinline__ void copy() const {
    constexpr int kVector = 16 / sizeof(From), kVectors = kFilterNumbers / kVector;
    constexpr int kRounds = (kVectors + kThreads - 1) / kThreads;
    uint4 vectors[kRounds];
    bool has[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const uint4* vector = nullptr;
#pragma unroll
      for (int f = 0; f < kFilters; ++f) {
        const int i = threadIdx.x + round * kThreads - filter_offset(kOp, f) / kVector;
        if (filters[f].is_dense && inside(i, 0, filter_shapes(kOp)[f].count() / kVector)) {
          vector = static_cast<const uint4*>(filters[f].weight) + i;
        }
      }
      has[round] = vector != nullptr;
      if (has[round]) vectors[round] = *vector;
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (has[round])
        store_vector<From>(numbers + (threadIdx.x + round * kThreads) * kVector, vectors[round]);
    }
#pragma unroll
    for (int f = 0; f < kFilters; ++f) {
      if (!filters[f].is_dense) {
        copy_sparse_filter<From>(numbers + filter_offset(kOp, f), filters[f], filter_shapes(kOp)[f]);
      }
    }
  }

  template <class From>
  static __device__ __forceinline__ void store_vector(Number* to, const uint4& vector) {
    if constexpr (std::is_same_v<From, Number>) {
      *reinterpret_cast<uint4*>(to) = vector;
    } else {
      const auto two = [](uint32_t a, uint32_t b) {
        return bits_of(converted<Number>(__uint_as_float(a))) | bits_of(converted<Number>(__uint_as_float(b)))
                                                                    << 16;
      };
      *reinterpret_cast<uint2*>(to) = {two(vector.x, vector.y), two(vector.z, vector.w)};
    }
  }

  template <int kFilter>
  __device__ StagedFilter<Number> filter() const {
    constexpr FilterShape kShape = filter_shapes(kOp)[kFilter];
    StagedFilter<Number> staged{numbers + filter_offset(kOp, kFilter), {kShape.in * 9, 9, 3, 1}};
    if (filters[kFilter].is_dense) {
#pragma unroll
      for (int i = 0; i < 4; ++i) staged.stride[i] = static_cast<int>(filters[kFilter].stride[i]);
    }
    return staged;
  }
};

// Last layers have two groups of 3 channels in the 8 columns of a D fragment, 0 to 2 and 4 to 6, so that a lane has
// columns of only one group.
__device__ __forceinline__ bool is_of_two_triples(int column) { return column < 8 && column % 4 < 3; }

template <class Number>
__device__ __forceinline__ float bias_at(const Filter& filter, int channel, bool are_floats = false) {
  const int64_t at = channel * filter.bias_stride;
  if (are_floats) return static_cast<const float*>(filter.bias)[at];
  return to_float(static_cast<const Number*>(filter.bias)[at]);
}

// The biases of the four layers: floats [layer][16] in shared memory. `bias` returns the bias of a layer and channel,
// and 0 for padding channels. The constructor loads it and store_to() stores it, so that other loads can be issued in
// between.
struct StagedBias {
  static constexpr int kBytes = 4 * 16 * 4;
  float value = 0;

  template <class Bias>
  __device__ explicit StagedBias(const Bias& bias) {
    if (threadIdx.x < 64) value = bias(threadIdx.x / 16, threadIdx.x % 16);
  }
  __device__ void store_to(uint32_t biases) const {
    if (threadIdx.x < 64) store(biases + threadIdx.x * 4, __float_as_uint(value));
  }
};

__device__ __forceinline__ void load_biases(float (&bias)[2], uint32_t biases, int channel) {
  const float2 two = load_2(biases + channel * 4);
  bias[0] = two.x, bias[1] = two.y;
}

// A word of mma's B fragment, for output channel `out`: the weights of input channels in bytes 4 * word to 4 * word + 3
// of a pixel. `weight` returns the weight of an output channel, input channel and tap, and 0 for padding channels.
template <Mode kMode, class Weight>
__device__ __forceinline__ uint32_t weight_word(const Weight& weight, int out, int word, int tap) {
  if constexpr (stored_bytes(kMode) == 2) {
    return bits_of(weight(out, 2 * word, tap)) | bits_of(weight(out, 2 * word + 1, tap)) << 16;
  } else {
    return word_of_input<kMode>(to_float(weight(out, word, tap)));
  }
}

// A filter in shared memory for the tensor cores: [tap][16 bytes of input channels][output channel]. kWords is the
// number of 4-byte words in a tap's input channels.
template <Mode kMode, int kOuts, int kWords, int kTaps = 9>
struct PackedFilter {
  static constexpr int kBlocks = kOuts / 8, kHalves = kWords == 4 ? 1 : 2;
  static constexpr int kRow = kOuts * 16, kTap = kWords / 4 * kRow, kBytes = kTaps * kTap;
  static constexpr int kWriters = kOuts * kWords;  // the number of threads that write
  uint32_t at;

  // Writes with the threads from `first` on, so that several filters are written in parallel.
  template <class Weight>
  __device__ void write(const Weight& weight, int first) const {
#pragma unroll 1
    for (int i = (threadIdx.x + kThreads - first % kThreads) % kThreads; i < kWriters; i += kThreads) {
      const int out = i / 4 % kOuts, word = i / (4 * kOuts) * 4 + i % 4;  // no bank conflicts
      uint32_t words[kTaps];                                              // all loaded before any is stored
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) words[tap] = weight_word<kMode>(weight, out, word, tap);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        store(at + tap * kTap + word / 4 * kRow + out * 16 + word % 4 * 4, words[tap]);
      }
    }
  }

  // Loads the lane's words of a tap, by block of 8 output channels and half of K. `step` counts mma steps along K.
  __device__ __forceinline__ void load(uint32_t (&words)[kBlocks][kHalves], int lane, int tap,
                                       int step = 0) const {
    const int matrix = lane / 8 % (kBlocks * kHalves), block = matrix / kHalves, half = matrix % kHalves;
    uint32_t matrices[kBlocks * kHalves];
    load_matrices(matrices, at + half * kRow + (8 * block + lane % 8) * 16 + tap * kTap + 2 * step * kRow);
#pragma unroll
    for (int i = 0; i < kBlocks * kHalves; ++i) words[i / kHalves][i % kHalves] = matrices[i];
  }
};

// Writes the weights of the plain modes: float [tap][in][out]. 16 output channels are permuted so that a lane gets its
// four with one 16-byte load.
template <class Weight>
__device__ void write_plain_weights(float* to, const Weight& weight, int in, int out, int taps = 9) {
#pragma unroll 1
  for (int i = threadIdx.x; i < taps * in * out; i += kThreads) {
    const int column = i % out, rest = i / out;
    const int channel = out == 16 ? column % 4 / 2 * 8 + column / 4 * 2 + column % 2 : column;
    to[i] = to_float(weight(channel, rest % in, rest / in));
  }
}

// Zeroes the rows of activations after all warps have loaded their weights, so that no pixel is read uninitialised.
__device__ __forceinline__ void clear_rows(uint32_t shared, int bytes) {
  block_barrier();
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) store(shared + i, 0, 0, 0, 0);
  block_barrier();
}

// --------------------------------------------------------------------------------------- rows of activations

template <Mode kMode, int kPlane>
inline constexpr int kRowBytes = planes(kMode) * kPlane;

// Stores a lane's part of 16 pixels x 16 channels after ReLU, and zeros for pixels outside the image. `address` is that
// of the lane's pixel `group` in the row; pixel group + 8 is kEight bytes further.
template <Mode kMode, int kPlane, int kEight>
__device__ __forceinline__ void store_pixels(uint32_t address, const float (&sums)[2][4], bool low_inside,
                                             bool high_inside) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool keep = half == 0 ? low_inside : high_inside;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float a = relu(sums[n][2 * half]), b = relu(sums[n][2 * half + 1]);
      if constexpr (stored_bytes(kMode) == 2) {
        const uint32_t word = Arithmetic<kMode>::word(a, b);
        store(address + half * kEight + n * kPlane, keep ? word : 0);
      } else {
        const uint32_t word_a = Arithmetic<kMode>::word(a), word_b = Arithmetic<kMode>::word(b);
        store(address + half * kEight + 2 * n * kPlane, keep ? word_a : 0, keep ? word_b : 0);
      }
    }
  }
}

// The byte offset of channel 2 * member from the address of a pixel.
template <Mode kMode, int kPlane>
__device__ __forceinline__ int channel_offset(int member) {
  return stored_bytes(kMode) == 2 ? member * 4 : member / 2 * kPlane + member % 2 * 8;
}

// The byte offset of pixel x in a plane; rows that are read with stride 2 store even and odd pixels apart.
template <bool kByParity>
__device__ __forceinline__ int pixel_offset(int x) {
  return kByParity ? x / 2 * 16 + x % 2 * kParityHalf : x * 16;
}

// ------------------------------------------------------------------------------------------- 16 -> 16 layers

inline constexpr int kPair = 2;  // rows per step

// A warp's strip of a 3x3 layer with stride 1, padding 1, from 16 channels to 16. sums[0..1] are the rows that the next
// pair completes, sums[2..3] those that it begins.
template <Mode kMode>
struct Layer {
  static constexpr int kBlocks = 2;  // blocks of 8 output channels
  using Packed = PackedFilter<kMode, 8 * kBlocks, 4 * stored_bytes(kMode)>;
  static constexpr int kChannelSteps = stored_bytes(kMode) / 2;  // mma steps along K for a tap's 16 channels
  static constexpr int kRow = kRowBytes<kMode, kRowPlane>;

  uint32_t weights[9][kChannelSteps][kBlocks][2];  // B fragments; the plain modes do not use them
  uint32_t plain_weights;                          // plain modes: shared address of the lane's weights
  float bias[kBlocks][2];
  float sums[4][kBlocks][4];
  uint32_t pixels;  // byte offset of the lane's pixel in a pair of rows

  __device__ Layer(const ThreadCoordinates& thread, const Packed& filter, uint32_t biases, uint32_t plain) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step)
          filter.load(weights[tap][step], thread.lane, tap, step);
      }
      pixels = thread.lane / 16 * kRowPlane + (thread.strip * 16 + thread.lane % 16) * 16;
    } else {
      pixels = (thread.strip * 16 + thread.group) * 16;
    }
    plain_weights = plain + thread.member * 8 * kBlocks;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) load_biases(bias[n], biases, 8 * n + 2 * thread.member);
    begin_rows(0);
    begin_rows(2);
  }

  __device__ void begin_rows(int first) {
#pragma unroll
    for (int row = 0; row < kPair; ++row) {
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[first + row][n][i] = bias[n][i % 2];
      }
    }
  }

  // Accumulates the pair of rows at `pair`: its row r is multiplied by tap row y for output row r + 2 - y. Of a tile's
  // last pair only the upper row is needed.
  __device__ void add(uint32_t pair, bool is_last) {
    if (is_last) {
      add_rows<1>(pair);
    } else {
      add_rows<kPair>(pair);
    }
  }

  template <int kRows>
  __device__ __forceinline__ void add_rows(uint32_t pair) {
    if constexpr (is_plain(kMode)) {
      add_plain<kRows>(pair);
    } else {
      add_mma<kRows>(pair);
    }
  }

  template <int kRows>
  __device__ __forceinline__ void add_mma(uint32_t pair) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step) {
          uint32_t words[4];
          load_matrices(words, pair + pixels + row * kRow + x * 16 + step * 2 * kRowPlane);
#pragma unroll
          for (int y = 2; y >= 0; --y) {
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
              mma<kMode>(sums[row + 2 - y][n], words, weights[3 * y + x][step][n]);
            }
          }
        }
      }
    }
  }

  // A lane computes the elements that it has in mma's D fragment. Each weight is used for both rows and both pixels.
  template <int kRows>
  __device__ __forceinline__ void add_plain(uint32_t pair) {
#pragma unroll 1
    for (int x = 0; x < 3; ++x) {
#pragma unroll 1
      for (int plane = 0; plane < 4; ++plane) {
        float value[kRows][2][4];
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float4 four = load_4(pair + pixels + row * kRow + (x + 8 * half) * 16 + plane * kRowPlane);
            value[row][half][0] = four.x, value[row][half][1] = four.y;
            value[row][half][2] = four.z, value[row][half][3] = four.w;
          }
        }
#pragma unroll
        for (int y = 2; y >= 0; --y) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float4 four = load_4(plain_weights + ((3 * y + x) * 16 + 4 * plane + i) * 32 * kBlocks);
            const float weight[2 * kBlocks] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int row = 0; row < kRows; ++row) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int c = 0; c < 2 * kBlocks; ++c) {
                  float& sum = sums[row + 2 - y][c / 2][2 * half + c % 2];
                  sum = fmaf(value[row][half][i], weight[c], sum);
                }
              }
            }
          }
        }
      }
    }
  }

  // To be called after the completed rows have been stored: the begun rows take their place.
  __device__ void next_pair() {
#pragma unroll
    for (int row = 0; row < kPair; ++row) {
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[row][n][i] = sums[row + kPair][n][i];
      }
    }
    begin_rows(kPair);
  }
};

// The slot of a double-buffered pair: a step reads the slot that the previous step wrote, and writes the other.
template <Mode kMode>
__device__ __forceinline__ uint32_t slot(uint32_t rows, int pair_bytes, int parity) {
  return row_slots(kMode) == 1 ? rows : rows + parity * pair_bytes;
}

// The differences between the two trunk layers.
struct Stage {
  int lag, more;  // more: the pairs read beyond the tile's height
  int shift;      // from twice the tile's first output to the first completed pixel, in x and y
};

// Main loop of a trunk warp.
template <Mode kMode, bool kByParity>
__device__ void run_trunk(const ThreadCoordinates& thread, Layer<kMode>& layer, const Tiling& tiling,
                          int height, int width, uint32_t from, uint32_t to, const Stage& stage,
                          int64_t steps) {
  constexpr int kPlane = kByParity ? kParityPlane : kRowPlane;
  constexpr int kFromPair = kPair * kRowBytes<kMode, kRowPlane>, kToRow = kRowBytes<kMode, kPlane>;
  const int pixel = thread.strip * 16 + thread.group;
  to += pixel_offset<kByParity>(pixel) + channel_offset<kMode, kPlane>(thread.member);
  Cursor cursor(tiling, stage.lag);
  int parity = 0;
  for (; steps > 0; --steps, parity ^= 1, cursor.advance()) {
    const bool active = cursor.active(stage.more);
    if (active) layer.add(slot<kMode>(from, kFromPair, parity ^ 1), cursor.is_last(stage.more));
    if constexpr (row_slots(kMode) == 1) block_barrier();
    if (active) {
      if (cursor.phase > 0) {
        const int x = 2 * cursor.x + stage.shift, y = 2 * (cursor.y + cursor.phase - 1) + stage.shift;
        const bool low_inside = inside(x, pixel, width), high_inside = inside(x, pixel + 8, width);
#pragma unroll
        for (int row = 0; row < kPair; ++row) {
          const bool row_inside = inside(y, row, height);
          store_pixels<kMode, kPlane, kByParity ? 64 : 128>(
              slot<kMode>(to, kPair * kToRow, parity) + row * kToRow, layer.sums[row],
              row_inside && low_inside, row_inside && high_inside);
        }
      }
      layer.next_pair();
    }
    block_barrier();
  }
}

// Whether a mode's kernel is compiled for this target. For chips whose tensor cores lack its number type the kernel is
// empty, and the host does not launch it (compiled_capability in ops.cpp).
#ifdef __CUDA_ARCH__
#define WAE_RUNS_HERE(mode) runs_on(mode, __CUDA_ARCH__ / 10)
#else
#define WAE_RUNS_HERE(mode) true
#endif

}  // namespace wae::cuda
