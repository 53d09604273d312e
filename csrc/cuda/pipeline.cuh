// What encode.cu and decode.cu share: how a block walks down its tiles, and the two 16 -> 16 layers.
//
// One block carries a tile through all four layers. It is a pipeline of warps; each step moves every layer on
// by one pair of rows, 64 pixels wide, and ends with one barrier:
//
//     warps 0-3   (ends)    read pair p+3 from memory -> [input] -> first layer, pair p
//     warps 4-7   (trunk)   [first]  -> second layer, pair p-1
//     warps 8-11  (trunk)   [second] -> third layer, pair p-3
//     warps 0-3   (ends)    [last]   -> last layer, to memory
//
// In brackets: a few rows in shared memory, the only place between two layers. A warp owns a strip of 16
// pixels and keeps its layer's weights in registers for the whole kernel. Each input row is loaded once and
// added to the three output rows that it touches, so four rows of sums are live: two that this pair
// completes, two it begins.
//
//     columns      0                                                             63
//     input       |<------------------------ 64 (+2 of padding) ------------------->|
//     first       |<------------------------ 64 ----------------------------------->|
//     second      |<------------------------ 62 that count ------------------->|....|
//     third       |<------------------------ 60 that count --------------->|........|
//     last        |<-- 2 * 28 full-resolution columns -->|..........................|
//
// Column j of a layer is computed from columns j, j + 1, j + 2 of the one before: layer by layer the tile
// moves one pixel to the right in the picture, and down likewise. A tile of h half-resolution rows takes h +
// 4 steps; the next tile follows without a gap (rows that mix two tiles are computed by nobody or dropped).
// What lies outside the picture is stored as zero by every layer: the next one's padding. docs/cuda.md has
// the counts and bounds.

#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/parameters.h"

namespace wae::cuda {

// --------------------------------------------------------------------------------------------- who is who

enum Role { kEnds, kSecond, kThird };

struct Self {
  int role, strip, lane, group, member;  // group and member: the lane's row and column pair in mma's tables

  __device__ Self()
      : role(threadIdx.x / (32 * kStrips)),
        strip(threadIdx.x / 32 % kStrips),
        lane(threadIdx.x % 32),
        group(lane / 4),
        member(lane % 4) {}
};

// The pixels (or rows) i of a row (or column) that lie in a picture of `size`, when the first has coordinate
// `from`.
__device__ __forceinline__ bool inside(int from, int i, int size) {
  return static_cast<unsigned>(from + i) < static_cast<unsigned>(size);
}

// -------------------------------------------------------------------------------------------- walking tiles

// Where one stage of the pipeline is: pair `phase` of tile `tile`. A stage lags behind the reading of the
// picture.
struct Cursor {
  const Tiling& tiling;
  int64_t tile;
  int phase;
  int picture;
  int y, x;  // the tile's first output, in half-resolution pixels

  __device__ Cursor(const Tiling& tiling, int lag) : tiling(tiling), tile(blockIdx.x), phase(-lag) {
    locate();
  }

  __device__ void locate() {
    const int64_t in_picture = static_cast<int64_t>(tiling.rows) * tiling.columns;
    picture = static_cast<int>(tile / in_picture);
    const int64_t rest = tile - picture * in_picture;
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
  // Whether there is work now for a stage that takes the tile's height and `more` pairs.
  __device__ bool active(int more) const {
    return phase >= 0 && phase < tiling.tile_height + more && tile < tiling.tiles;
  }
  // Whether this is the last pair that such a stage takes of a tile.
  __device__ bool is_last(int more) const { return phase == tiling.tile_height + more - 1; }
};

// Lags of the stages, in steps. A pair read in step p is in shared memory at the end of step p + 1. The first
// layer takes two pairs at a time; the others complete a pair when they get the next one.
inline constexpr int kFirstLag = 3, kSecondLag = 4, kThirdLag = 6, kLastLag = 8;
static_assert(kLastLag == kPipelineSteps);

// Steps until the last stage, which takes a tile's height and `last_more` pairs, has done the block's last
// tile.
__device__ __forceinline__ int64_t steps_of_block(const Tiling& tiling, int last_more) {
  const int64_t mine = (tiling.tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  return mine * (tiling.tile_height + kHaloPairs) - kHaloPairs + last_more + kLastLag;
}

// ------------------------------------------------------------------------------------------ filters, staged

// A 3x3 filter in shared memory as it lay in global memory, or in order where it did not lie in one piece.
template <class Number>
struct StagedFilter {
  const Number* data;
  int stride[4];
  __device__ float at(int out, int in, int tap) const {
    return to_float(data[out * stride[0] + in * stride[1] + tap / 3 * stride[2] + tap % 3 * stride[3]]);
  }
};

template <class Number>
__device__ StagedFilter<Number> stage_filter(Number* to, const Filter& filter, int out, int in) {
  const Number* from = static_cast<const Number*>(filter.weight);
  const int count = out * in * 9;
  if (filter.in_one_piece) {
#pragma unroll 1
    for (int i = threadIdx.x; i < count * static_cast<int>(sizeof(Number)) / 16; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    return {to,
            {static_cast<int>(filter.stride[0]), static_cast<int>(filter.stride[1]),
             static_cast<int>(filter.stride[2]), static_cast<int>(filter.stride[3])}};
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int tap = i % 9, rest = i / 9;
    to[i] = from[rest / in * filter.stride[0] + rest % in * filter.stride[1] + tap / 3 * filter.stride[2] +
                 tap % 3 * filter.stride[3]];
  }
  return {to, {in * 9, 9, 3, 1}};
}

template <class Number>
__device__ __forceinline__ float bias_at(const Filter& filter, int channel) {
  return to_float(static_cast<const Number*>(filter.bias)[channel * filter.bias_stride]);
}

// The word that mma wants of output channel `out` and the word-th 4 bytes of a pixel's channels. `weight`
// gives the weight of an output and an input channel and a tap; 0 beyond the last.
template <Mode kMode, class Weight>
__device__ __forceinline__ uint32_t weight_word(const Weight& weight, int out, int word, int tap) {
  if constexpr (stored_bytes(kMode) == 2) {
    return Arithmetic<kMode>::word(weight(out, 2 * word, tap), weight(out, 2 * word + 1, tap));
  } else {
    return Arithmetic<kMode>::word(weight(out, word, tap));
  }
}

// For the plain modes: floats by tap and input channel, and within them by output channel; 16 output channels
// in the order in which lanes hold them, so that one 16-byte load brings a lane all of its four.
template <class Weight>
__device__ void write_plain_weights(float* to, const Weight& weight, int in, int out) {
#pragma unroll 1
  for (int i = threadIdx.x; i < 9 * in * out; i += kThreads) {
    const int column = i % out, rest = i / out;
    const int channel = out == 16 ? column % 4 / 2 * 8 + column / 4 * 2 + column % 2 : column;
    to[i] = weight(channel, rest % in, rest / in);
  }
}

// Everything that has taken its weights waits here until the rows are cleared: no pixel is ever read
// unwritten.
__device__ __forceinline__ void clear_rows(uint32_t shared, int bytes) {
  meet();
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) store(shared + i, 0, 0, 0, 0);
  meet();
}

// ---------------------------------------------------------------------------------------------- rows between

template <Mode kMode, int kPlane>
inline constexpr int kRowBytes = planes(kMode) * kPlane;

// Writes a lane's sums of 16 pixels and 16 channels, ReLU applied, as the numbers of a row. `address`: of the
// row and the lane's pixel `group`; pixel group + 8 lies kEight bytes on. Zero where the pixel is outside.
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

// The byte in a pixel's planes where a lane's channels 2 * member begin.
template <Mode kMode, int kPlane>
__device__ __forceinline__ int channel_offset(int member) {
  return stored_bytes(kMode) == 2 ? member * 4 : member / 2 * kPlane + member % 2 * 8;
}

// The byte of pixel x in a plane; rows that are read with stride 2 keep even and odd pixels apart.
template <bool kByParity>
__device__ __forceinline__ int pixel_offset(int x) {
  return kByParity ? x / 2 * 16 + x % 2 * kParityHalf : x * 16;
}

// ------------------------------------------------------------------------------------------- 16 -> 16 layers

inline constexpr int kPair = 2;  // rows a step

// One warp's part of a conv k3 s1 p1 from 16 channels to 8 * kBlocks (2 in the trunk, 1 in the decoder's
// last). sums[0..1] are the rows that the next pair completes, sums[2..3] those it begins.
template <Mode kMode, int kBlocks>
struct Layer {
  static constexpr int kQuads = stored_bytes(kMode) / 2;  // mma steps for the 16 channels of a tap
  static constexpr int kRow = kRowBytes<kMode, kRowPlane>;

  uint32_t weights[9][kQuads][kBlocks][2];  // unused by the plain modes
  uint32_t plain_weights;                   // used by them: the address of the lane's
  float bias[kBlocks][2];
  float sums[4][kBlocks][4];
  uint32_t pixels;  // where the lane reads, from the beginning of a pair of rows

  template <class Weight, class Bias>
  __device__ Layer(const Self& self, const Weight& weight, const Bias& bias_of, uint32_t plain) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
          for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              weights[tap][quad][n][half] =
                  weight_word<kMode>(weight, 8 * n + self.group, 8 * quad + 4 * half + self.member, tap);
            }
          }
        }
      }
      pixels = self.lane / 16 * kRowPlane + (self.strip * 16 + self.lane % 16) * 16;
    } else {
      pixels = (self.strip * 16 + self.group) * 16;
    }
    plain_weights = plain + self.member * 8 * kBlocks;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      bias[n][0] = bias_of(8 * n + 2 * self.member);
      bias[n][1] = bias_of(8 * n + 2 * self.member + 1);
    }
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

  // Adds the pair of rows at `pair`: row r of it is tap row y of output row r + 2 - y. Of a tile's last pair
  // only the upper row is needed.
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
      add_tables<kRows>(pair);
    }
  }

  template <int kRows>
  __device__ __forceinline__ void add_tables(uint32_t pair) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          uint32_t words[4];
          load_matrices(words, pair + pixels + row * kRow + x * 16 + quad * 2 * kRowPlane);
#pragma unroll
          for (int y = 2; y >= 0; --y) {
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
              multiply<kMode>(sums[row + 2 - y][n], words, weights[3 * y + x][quad][n]);
            }
          }
        }
      }
    }
  }

  // A lane's pixels and channels are those of the mma tables; a weight serves both rows and both pixels.
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
            float weight[2 * kBlocks];
            load_weights(weight, plain_weights + ((3 * y + x) * 16 + 4 * plane + i) * 32 * kBlocks);
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

  static __device__ __forceinline__ void load_weights(float (&weight)[2 * kBlocks], uint32_t address) {
    if constexpr (kBlocks == 2) {
      const float4 four = load_4(address);
      weight[0] = four.x, weight[1] = four.y, weight[2] = four.z, weight[3] = four.w;
    } else {
      const float2 two = load_2(address);
      weight[0] = two.x, weight[1] = two.y;
    }
  }

  // The completed rows have been stored: the begun ones are next.
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

// The pair slots of a step: what was written in the step before is read, the other is written.
template <Mode kMode>
__device__ __forceinline__ uint32_t slot(uint32_t rows, int pair_bytes, int parity) {
  return row_slots(kMode) == 1 ? rows : rows + parity * pair_bytes;
}

// What tells the two trunk layers apart.
struct Stage {
  int lag, more;  // pairs read beyond the tile's height
  int shift;      // of the first pixel completed, both ways, from twice the tile's first output
};

// The whole life of a trunk warp.
template <Mode kMode, bool kByParity>
__device__ void run_trunk(const Self& self, Layer<kMode, 2>& layer, const Tiling& tiling, int height,
                          int width, uint32_t from, uint32_t to, const Stage& stage, int64_t steps) {
  constexpr int kPlane = kByParity ? kParityPlane : kRowPlane;
  constexpr int kFromPair = kPair * kRowBytes<kMode, kRowPlane>, kToRow = kRowBytes<kMode, kPlane>;
  const int pixel = self.strip * 16 + self.group;
  to += pixel_offset<kByParity>(pixel) + channel_offset<kMode, kPlane>(self.member);
  Cursor cursor(tiling, stage.lag);
  int parity = 0;
  for (; steps > 0; --steps, parity ^= 1, cursor.advance()) {
    const bool active = cursor.active(stage.more);
    if (active) layer.add(slot<kMode>(from, kFromPair, parity ^ 1), cursor.is_last(stage.more));
    if constexpr (row_slots(kMode) == 1) meet();
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
    meet();
  }
}

// Whether a mode's kernel has a body here: a chip whose tensor cores lack its numbers gets an empty one,
// which the host never launches.
#ifdef __CUDA_ARCH__
#define WAE_RUNS_HERE(mode) runs_on(mode, __CUDA_ARCH__ / 10)
#else
#define WAE_RUNS_HERE(mode) true
#endif

}  // namespace wae::cuda
