// A 3x3 convolution with padding 1, with any number of input and output channels, bias and ReLU, in the Winograd
// domain: F(4x4, 3x3), with the transforms of layers.h. Layers with up to kFewChannels input channels are convolved
// directly (at the end of this file), because the vectors of V would be mostly zeros.
//
// The batch is a list of tiles of 4x4 outputs, row by row and image by image. A tile reads 6x6 inputs, which are zero
// outside the image. A task computes up to kConvTiles tiles x some panels of 16 output channels, over all input
// channels. It multiplies blocks of 32 input channels (kDepth) x 4 panels (kConvPanels), smaller ones if there are few
// tiles (filter_block).
//
//    input, 32 channels       filters, 32 x 64             outputs of 56 tiles, 64 channels
//    +-+------+-+
//    |.|......|.|   B^T d B   9 floats      G g G^T
//    +-+------+-+  -------->               -------->                         A^T m A
//    |.| tile |.|   V [36][56][32]     U [36][32][64]       M [36][56][64]  -------->  bias, ReLU, out
//    | |  4x4 | |   \______________  * _____________/  +=  ^
//    +-+------+-+           36 matrix products ------------+
//    |.|......|.|
//    +-+------+-+
//
// U is usually precomputed. Here each task computes it from the filters when it uses it: 9 floats are read from memory,
// and 36 written to the second-level cache. At batch 1 a deep layer reads mostly filters, and reading four times as
// many bytes would take longer than the products (512 -> 512: 9.4 MB instead of 37.7 MB). No buffer grows with the
// image or the channels: V, U and M together are at most 1.1 MB a thread. If there are few tiles, a task has more
// panels, so that V is used for more of them; M's size limits tiles x panels.
//
// Vector instructions of 16 floats, for 16 input channels x 64 output channels x 56 tiles: products 16 * 4 * 36 * 56 =
// 129024 multiply-adds (direct: 516096); V 56 * (144 + 120 loads and stores) = 14784; U 16 * 4 * (72 + 45) = 7488;
// outputs, once for all input channels, 56 * 4 * (110 + 52). With 64 input channels the products are 80 % of the
// instructions, so the expected speed is at most 3.2 times that of a direct kernel if the tiles fit the image. An image
// 14 rows high pays for 16 and one 7 rows high for 8, which takes 1.3 times longer. Storing U to the second-level cache
// takes longer than its arithmetic (measured: docs/kernels.md).
//
// Every output is the same sum in the same order, however the work is divided: results do not depend on the number of
// threads, nor on the other images of the batch.

#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa/layers.h"
#include "cpu/isa/simd.h"
#include "cpu/isa/workspace.h"
#include "cpu/kernels.h"
#include "cpu/winograd_filter.h"

namespace wae::WAE_ISA {

// The input channels of one block, such that V, U and M fit the second-level cache.
inline constexpr int kDepth = kPackedDepth;
static_assert(kDepth % kLanes == 0);

// A cache line of padding after each position, so that the 36 positions do not map to the same cache sets.
inline constexpr int64_t kPad = 16;
inline constexpr int64_t kInputPosition = kConvTiles * kDepth + kPad;
inline constexpr int64_t kPanelSize = kDepth * kChannels;
inline constexpr int64_t kFilterPosition = kConvPanels * kPanelSize + kPad;

// Up to kFewChannels input channels are convolved directly. kFewPitch is the number of floats in a row of their pixels,
// kFewPanel in a panel of their filters.
inline constexpr int kFewChannels = 3;
inline constexpr int64_t kFewPitch = (kConvTiles * kTile + 2) * kFewChannels + kPad;
inline constexpr int64_t kFewPanel = 9 * kFewChannels * kChannels;

// The panels and input channels whose U is computed at a time. With few tiles, computing U takes longer than its
// products, so blocks are then small enough for the first-level cache (36 KB). Not with AVX-512, for whose
// multiplications one panel is too narrow.
struct FilterBlock {
  int64_t panels;
  int depth;
};
WAE_INLINE FilterBlock filter_block(int64_t tiles) {
  return tiles <= 8 && kLanes < 16 ? FilterBlock{1, kDepth / 2} : FilterBlock{kConvPanels, kDepth};
}

// The layout of M: m[position][tile][channels of the task's panels].
struct Sums {
  int64_t pitch, position;  // floats from one tile, and from one position, to the next
};

// Image n, and the coordinates of the first of a tile's 4x4 outputs.
struct TilePlace {
  int64_t n, y, x;
};

WAE_INLINE TilePlace place_of(const Conv3x3Args& args, int64_t tile) {
  const int64_t across = tiles_along(args.width), down = tiles_along(args.height);
  return {tile / (across * down), tile / across % down * kTile, tile % across * kTile};
}

// Calls f(place) for the task's tiles.
template <class F>
WAE_INLINE void for_tiles(const Conv3x3Args& args, const Conv3x3Task& task, const F& f) {
  TilePlace place = place_of(args, task.tile0);
  for (int64_t tile = task.tile0; tile < task.tile1; ++tile) {
    f(place);
    if ((place.x += kTile) < args.width) continue;
    place.x = 0;
    if ((place.y += kTile) < args.height) continue;
    place.y = 0;
    ++place.n;
  }
}

// ------------------------------------------------------------------------------------------------ V and U

// Points pixels[i] to the 6x6 inputs of a tile, from input channel `first` on: in the image if vectors can be read
// there, else in `copy`, padded to full vectors. Pixels outside the image are zeros.
WAE_INLINE void find_pixels(const Conv3x3Args& args, const TilePlace& place, int64_t first, int channels,
                            float (&copy)[kPositions][kDepth], const float* (&pixels)[kPositions]) {
  alignas(64) static constexpr float kZeros[kDepth] = {};
  const float* corner = args.input + place.n * args.stride_n + (place.y - 1) * args.stride_h +
                        (place.x - 1) * args.stride_w + first * args.stride_c;
  for (int i = 0; i < kPatch; ++i) {
    const bool row_inside = static_cast<uint64_t>(place.y + i - 1) < static_cast<uint64_t>(args.height);
    for (int j = 0; j < kPatch; ++j) {
      const bool inside =
          row_inside && static_cast<uint64_t>(place.x + j - 1) < static_cast<uint64_t>(args.width);
      pixels[i * kPatch + j] = inside ? corner + i * args.stride_h + j * args.stride_w : kZeros;
    }
  }
  if (args.stride_c == 1 && channels % kLanes == 0) return;
  for (int p = 0; p < kPositions; ++p) {
    if (pixels[p] == kZeros) continue;
    for (int c = 0; c < channels; ++c) copy[p][c] = pixels[p][c * args.stride_c];
    std::fill(copy[p] + channels, copy[p] + kDepth, 0.0f);
    pixels[p] = copy[p];
  }
}

// V = B^T d B of the task's tiles, input channels [first, first + channels): v[position][tile][channel]. Writes full
// vectors.
inline void conv3x3_input(const Conv3x3Args& args, const Conv3x3Task& task, int64_t first, int channels,
                          float* v) {
  alignas(64) float copy[kPositions][kDepth];
  int64_t tile = 0;
  for_tiles(args, task, [&](const TilePlace& place) {
    const float* pixels[kPositions];
    find_pixels(args, place, first, channels, copy, pixels);
    float* const out = v + kDepth * tile++;
    if (args.stride_c == 1 && place.x + kTile < args.width) {
      for (int i = 0; i < kPatch; ++i) {
        for (int j = 1; j < 5; ++j) {
          const float* next = pixels[i * kPatch + j] + kTile * args.stride_w;
          for (int k = 0; k < kDepth; k += 16) __builtin_prefetch(next + k);
        }
      }
    }
    for (int k = 0; k < channels; k += kLanes) {
      for_row_groups([&]<int kBegin, int kEnd>() {
        Vec rows[kPatch][kPatch];
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) {
          Vec d[kPatch], t[kPatch];
          for (int i = 0; i < kPatch; ++i) d[i] = load(pixels[i * kPatch + j] + k);
          transform_input(d, t);
          for (int i = kBegin; i < kEnd; ++i) rows[i][j] = t[i];
        }
#pragma GCC unroll 2
        for (int i = kBegin; i < kEnd; ++i) {
          Vec t[kPatch];
          transform_input(rows[i], t);
          for (int j = 0; j < kPatch; ++j) store(out + (i * kPatch + j) * kInputPosition + k, t[j]);
        }
      });
    }
  });
}

// G g of three taps that have been divided by kFilterScale.
WAE_INLINE void transform_filter(const Vec g[3], Vec u[6]) {
  const Vec two = broadcast(2), four = broadcast(4), six = broadcast(6);
  const Vec outer = g[0] + g[2], inner = fnma(four, g[0], -g[2]);
  u[0] = six * g[0];
  u[1] = fnma(two, g[1], inner);
  u[2] = fma(two, g[1], inner);
  u[3] = outer + g[1];
  u[4] = outer - g[1];
  u[5] = six * g[2];
}

// U = G g G^T of panels [begin, end) and `depth` input channels from first + c0 on: u[position][panel][input
// channel][16]. From `first` on, `channels` input channels are packed together.
inline void conv3x3_filters(const Conv3x3Args& args, int64_t begin, int64_t end, int64_t first, int channels,
                            int c0, int depth, float* u) {
  constexpr int kAhead = 8;  // prefetch distance, in filters
  const float* packed =
      args.packed + (first * panels_of(args.out_channels) + begin * channels + c0) * kPackedFilter;
  for (int64_t panel = begin; panel < end;
       ++panel, u += kPanelSize, packed += (channels - depth) * kPackedFilter) {
    for (int c = 0; c < depth; ++c, packed += kPackedFilter) {
      for (int i = 0; i < kPackedFilter; i += 16) __builtin_prefetch(packed + kAhead * kPackedFilter + i);
      for (int k = 0; k < kChannels; k += kLanes) {
        Vec columns[kPatch][3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          const Vec g[3] = {load(packed + j * kChannels + k), load(packed + (3 + j) * kChannels + k),
                            load(packed + (6 + j) * kChannels + k)};
          Vec t[kPatch];
          transform_filter(g, t);
          for (int i = 0; i < kPatch; ++i) columns[i][j] = t[i];
        }
#pragma GCC unroll 6
        for (int i = 0; i < kPatch; ++i) {
          Vec t[kPatch];
          transform_filter(columns[i], t);
          for (int j = 0; j < kPatch; ++j) {
            store(u + (i * kPatch + j) * kFilterPosition + c * kChannels + k, t[j]);
          }
        }
      }
    }
  }
}

// ----------------------------------------------------------------------------------------- M += V * U

// Registers hold the sums of kConvBlock tiles x kStrip panels, and kStrip panels of U.
inline constexpr int kConvBlock = kLanes == 16 ? 12 : kBlock;
inline constexpr int kStrip = kLanes == 16 ? 2 : 1;

// Calls f.template operator()<kPanels>(panel) for strips of panels that cover [0, panels).
template <class F>
WAE_INLINE void for_strips(int64_t panels, const F& f) {
  int64_t panel = 0;
  for (; panel + kStrip <= panels; panel += kStrip) f.template operator()<kStrip>(panel);
  for (; panel < panels; ++panel) f.template operator()<1>(panel);
}

// m[kTiles][kPanels panels] = start + v[kTiles][channels] * u[kPanels][channels][16]; the pitches are floats from one
// row of m, and of start, to the next.
template <int kTiles, int kPanels>
inline void multiply_tiles(const float* v, const float* u, int channels, const float* start,
                           int64_t start_pitch, float* m, int64_t pitch) {
  constexpr int kWide = kPanels * kVecs;
  const auto in_panels = [](int j) { return j / kVecs * kPanelSize + j % kVecs * kLanes; };
  Vec sum[kTiles][kWide];
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 8
    for (int j = 0; j < kWide; ++j) sum[t][j] = load(start + t * start_pitch + j * kLanes);
  }
#pragma GCC unroll 2
  for (int c = 0; c < channels; ++c) {
    Vec w[kWide];
#pragma GCC unroll 8
    for (int j = 0; j < kWide; ++j) w[j] = load(u + c * kChannels + in_panels(j));
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t) {
      const Vec x = broadcast(v[t * kDepth + c]);
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j) sum[t][j] = fma(x, w[j], sum[t][j]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 8
    for (int j = 0; j < kWide; ++j) store(m + t * pitch + j * kLanes, sum[t][j]);
  }
}

// One position, for all tiles and the panels in u. start_pitch is 0 if all tiles start with the same values.
inline void multiply_position(const float* v, const float* u, int channels, int64_t tiles, int64_t panels,
                              const float* start, int64_t start_pitch, float* m, int64_t pitch) {
  for_strips(panels, [&]<int kPanels>(int64_t panel) {
    for_blocks<kConvBlock>(tiles, [&]<int kTiles>(int64_t tile) {
      multiply_tiles<kTiles, kPanels>(v + tile * kDepth, u + panel * kPanelSize, channels,
                                      start + tile * start_pitch + panel * kChannels, start_pitch,
                                      m + tile * pitch + panel * kChannels, pitch);
    });
  });
}

// ------------------------------------------------------------------------------------------------ outputs

WAE_INLINE float* output_at(const Conv3x3Args& args, const TilePlace& place) {
  return args.output + ((place.n * args.height + place.y) * args.width + place.x) * args.out_channels;
}

// Prefetches cache lines that are stored to soon, because stores wait for their lines one after the other.
template <int kLines>
WAE_INLINE void prefetch_lines(float* out) {
  for (int i = 0; i < kLines; ++i) __builtin_prefetch(out + i * 16, 1);
}

// Stores the first `count` lanes of a vector: all if there are fewer, none if count is negative.
WAE_INLINE void store_some(float* out, Vec value, int64_t count) {
  if (count >= kLanes) return store(out, value);
  float numbers[kLanes];
  store(numbers, value);
  std::copy_n(numbers, std::max<int64_t>(count, 0), out);
}

// The biases of the task's panels; zeros if there are none, and beyond out_channels.
inline float* take_bias(const Conv3x3Args& args, const Conv3x3Task& task, Scratch& scratch) {
  const int64_t first = task.panel0 * kChannels, count = task.panel1 * kChannels - first;
  float* const bias = scratch.take(count);
  std::fill_n(bias, count, 0.0f);
  if (args.bias != nullptr) std::copy_n(args.bias + first, std::min(count, args.out_channels - first), bias);
  return bias;
}

// Stores the task's outputs, A^T m A and ReLU, to the pixels that are inside the image.
inline void conv3x3_output(const Conv3x3Args& args, const Conv3x3Task& task, const Sums& layout,
                           const float* m) {
  for_tiles(args, task, [&](const TilePlace& place) {
    const int64_t rows = std::min<int64_t>(kTile, args.height - place.y);
    const int64_t columns_inside = std::min<int64_t>(kTile, args.width - place.x);
    float* const out = output_at(args, place);
    for (int64_t k = task.panel0 * kChannels; k < std::min(task.panel1 * kChannels, args.out_channels);
         k += kLanes) {
      const float* sums = m + (k - task.panel0 * kChannels);
      if (k % kChannels == 0) {
        for (int i = 0; i < kTile; ++i) {
          for (int j = kTile; j < 2 * kTile; ++j) {
            prefetch_lines<1>(out + (i * args.width + j) * args.out_channels + k);
          }
        }
      }
      Vec columns[kTile][kPatch];
      for (int j = 0; j < kPatch; ++j) {
        Vec s[kPatch], y[kTile];
        for (int i = 0; i < kPatch; ++i) s[i] = load(sums + (i * kPatch + j) * layout.position);
        transform_output(s, y);
        for (int i = 0; i < kTile; ++i) columns[i][j] = y[i];
      }
      for (int i = 0; i < rows; ++i) {
        Vec y[kTile];
        transform_output(columns[i], y);
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          if (j >= columns_inside) break;
          store_some(out + (i * args.width + j) * args.out_channels + k, args.relu ? relu(y[j]) : y[j],
                     args.out_channels - k);
        }
      }
    }
    m += layout.pitch;
  });
}

// ------------------------------------------------------------------------------------ few input channels

// rows[6][kFewPitch] = the pixels that `width` columns of outputs read, from (y - 1, x - 1) on, kFewChannels floats
// each; zero outside the image, and beyond the input's channels.
inline void few_rows(const Conv3x3Args& args, const TilePlace& place, int64_t width, float* rows) {
  const int64_t begin = std::max<int64_t>(place.x - 1, 0), end = std::min(place.x + width + 1, args.width);
  const bool whole = args.stride_c == 1 && args.stride_w == kFewChannels && args.channels == kFewChannels;
  for (int64_t y = place.y - 1; y < place.y - 1 + kPatch; ++y, rows += kFewPitch) {
    std::fill_n(rows, (width + 2) * kFewChannels, 0.0f);
    if (y < 0 || y >= args.height) continue;
    const float* from = args.input + place.n * args.stride_n + y * args.stride_h + begin * args.stride_w;
    float* to = rows + (begin - place.x + 1) * kFewChannels;
    if (whole) {
      std::copy_n(from, (end - begin) * kFewChannels, to);
      continue;
    }
    for (int64_t x = begin; x < end; ++x, from += args.stride_w, to += kFewChannels) {
      for (int64_t c = 0; c < args.channels; ++c) to[c] = from[c * args.stride_c];
    }
  }
}

// The filters of the task's panels: u[panel][ky][kx][kFewChannels][16].
inline void few_filters(const Conv3x3Args& args, const Conv3x3Task& task, float* u) {
  std::fill_n(u, (task.panel1 - task.panel0) * kFewPanel, 0.0f);
  const float* packed = args.packed + task.panel0 * args.channels * kPackedFilter;
  for (int64_t panel = task.panel0; panel < task.panel1; ++panel, u += kFewPanel) {
    for (int64_t c = 0; c < args.channels; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        const float scale = kFilterScale[tap / 3] * kFilterScale[tap % 3];
        float* const to = u + (tap * kFewChannels + c) * kChannels;
        for (int k = 0; k < kChannels; ++k) to[k] = *packed++ * scale;
      }
    }
  }
}

// Computes and stores out[kPixels][the first `count` channels of kPanels panels], pixels out_channels apart.
template <int kPixels, int kPanels>
inline void few_pixels(const Conv3x3Args& args, const float* rows, const float* u, const float* bias,
                       float* out, int64_t count) {
  constexpr int kWide = kPanels * kVecs, kRow = 3 * kFewChannels;
  Vec sum[kPixels][kWide];
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t) {
    prefetch_lines<kPanels>(out + (kPixels + t) * args.out_channels);
#pragma GCC unroll 8
    for (int j = 0; j < kWide; ++j) sum[t][j] = load(bias + j * kLanes);
  }
  for (int ky = 0; ky < 3; ++ky) {
    const float* row = rows + ky * kFewPitch;
#pragma GCC unroll 9
    for (int i = 0; i < kRow; ++i, u += kChannels) {
      Vec w[kWide];
#pragma GCC unroll 8
      for (int j = 0; j < kWide; ++j) w[j] = load(u + j / kVecs * kFewPanel + j % kVecs * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kPixels; ++t) {
        const Vec x = broadcast(row[t * kFewChannels + i]);
#pragma GCC unroll 8
        for (int j = 0; j < kWide; ++j) sum[t][j] = fma(x, w[j], sum[t][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t, out += args.out_channels) {
#pragma GCC unroll 8
    for (int j = 0; j < kWide; ++j) {
      store_some(out + j * kLanes, args.relu ? relu(sum[t][j]) : sum[t][j], count - j * kLanes);
    }
  }
}

// Convolves the task directly, with 27 products per output, in runs of neighbouring tiles.
inline void conv3x3_few_channels(const Conv3x3Args& args, const Conv3x3Task& task) {
  Scratch scratch;
  float* const rows = scratch.take(kPatch * kFewPitch);
  float* const u = scratch.take((task.panel1 - task.panel0) * kFewPanel);
  float* const bias = take_bias(args, task, scratch);
  few_filters(args, task, u);
  const int64_t across = tiles_along(args.width);
  int64_t run;
  for (int64_t tile = task.tile0; tile < task.tile1; tile += run) {
    run = std::min(task.tile1 - tile, across - tile % across);
    const TilePlace place = place_of(args, tile);
    const int64_t width = std::min(run * kTile, args.width - place.x);
    few_rows(args, place, width, rows);
    for (int64_t i = 0; i < std::min<int64_t>(kTile, args.height - place.y); ++i) {
      float* const out = output_at(args, place) + i * args.width * args.out_channels;
      for_blocks<kConvBlock>(width, [&]<int kPixels>(int64_t x) {
        for_strips(task.panel1 - task.panel0, [&]<int kPanels>(int64_t panel) {
          const int64_t k = (task.panel0 + panel) * kChannels;
          few_pixels<kPixels, kPanels>(args, rows + i * kFewPitch + x * kFewChannels, u + panel * kFewPanel,
                                       bias + panel * kChannels, out + x * args.out_channels + k,
                                       args.out_channels - k);
        });
      });
    }
  }
}

// ---------------------------------------------------------------------------------------------- the layer

inline void conv3x3(const Conv3x3Args& args, const Conv3x3Task& task) {
  if (args.channels <= kFewChannels) return conv3x3_few_channels(args, task);
  const int64_t tiles = task.tile1 - task.tile0, panels = task.panel1 - task.panel0;
  const Sums sums{panels * kChannels, tiles * panels * kChannels + kPad};
  const FilterBlock block = filter_block(tiles);
  Scratch scratch;
  float* const v = scratch.take(kPositions * kInputPosition);
  float* const u = scratch.take(kPositions * kFilterPosition);
  float* const m = scratch.take(kPositions * sums.position);

  // The bias is added at position (1, 1), which the output transform adds to all 16 outputs of a tile with weight 1.
  float* const zeros = scratch.take(sums.pitch);
  float* const bias = take_bias(args, task, scratch);
  std::fill_n(zeros, sums.pitch, 0.0f);

  for (int64_t first = 0; first < args.channels; first += kDepth) {
    const int channels = static_cast<int>(std::min<int64_t>(kDepth, args.channels - first));
    conv3x3_input(args, task, first, channels, v);
    for (int64_t group = task.panel0; group < task.panel1; group += block.panels) {
      const int64_t end = std::min(group + block.panels, task.panel1);
      const int64_t offset = (group - task.panel0) * kChannels;
      for (int c = 0; c < channels; c += block.depth) {
        const int depth = std::min(block.depth, channels - c);
        conv3x3_filters(args, group, end, first, channels, c, depth, u);
        for (int p = 0; p < kPositions; ++p) {
          float* const to = m + p * sums.position + offset;
          const bool more = first + c > 0;
          const float* start = more ? to : (p == kPatch + 1 ? bias : zeros) + offset;
          multiply_position(v + p * kInputPosition + c, u + p * kFilterPosition, depth, tiles, end - group,
                            start, more ? sums.pitch : 0, to, sums.pitch);
        }
      }
    }
  }
  conv3x3_output(args, task, sums, m);
}

}  // namespace wae::WAE_ISA
