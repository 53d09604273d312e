// A 3x3 convolution with padding 1 from any number of channels to any number, with bias and ReLU, in the
// Winograd domain: F(4x4, 3x3), the transforms of layers.h.
//
// The batch is a list of tiles of 4x4 outputs, row by row, picture by picture; a tile reads 6x6 inputs, zero
// outside the picture. A task computes up to kConvTiles tiles x kConvPanels panels of 16 output channels,
// over all input channels, 32 of them (kDepth) at a time:
//
//      input, 32 channels      filters, 32 x 64            outputs of 56 tiles, 64 channels
//      +-+------+-+
//      |.|......|.|    B^T d B      9 floats  G g G^T
//      +-+------+-+   --------->    --------------->                      A^T m A
//      |.| tile |.|    V [36][56][32]      U [36][32][64]    M [36][56][64]  -------->  bias, ReLU, out
//      | |  4x4 | |                 \________ * ________/ +=     |
//      +-+------+-+                   36 matrix products --------+
//      |.|......|.|
//      +-+------+-+
//
// U is not stored, as is usual, but made from the filters where it is used: 9 floats come from memory, 36
// go to the second-level cache. At batch 1 the filters are most of what a deep layer reads, and four times as
// many bytes would take longer than the products (512 -> 512: 9.4 MB instead of 37.7 MB). V is made again
// for every 64 output channels, so no buffer grows with the picture or the channels: V, U and M together
// are 1.1 MB a thread.
//
// Vector instructions of 16 floats for 16 input x 16 output channels x 56 tiles: products 36 * 16 * 56 =
// 32256 multiply-adds (direct: 129024); filters 16 * (81 + 36 stores) = 1900; for every 64 outputs V 56 *
// (144
// + 36 loads and stores), a quarter of which is 2700; outputs 56 * (100 + 36 loads + 16 stores) once per
// all input channels. The products are 85 % of the instructions, so expect 3 times the speed of a direct
// kernel where tiles fit the picture; a picture 14 high pays for 16, one 7 high for 8: 1.3 times.
//
// Every output is the same sum in the same order, however the work is cut: results do not depend on the
// number of threads, nor on the other pictures of the batch.

#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "layers.h"
#include "simd.h"
#include "workspace.h"

namespace wae::WAE_ISA {

inline constexpr int kDepth = 32;  // input channels whose V, U stay in the second-level cache with M
static_assert(kDepth % kLanes == 0);

// Positions are one cache line more than their numbers apart, so that the 36 do not fall on the same sets.
inline constexpr int64_t kPad = 16;
inline constexpr int64_t kInputPosition = kConvTiles * kDepth + kPad;
inline constexpr int64_t kPanelSize = kDepth * kChannels;
inline constexpr int64_t kFilterPosition = kConvPanels * kPanelSize + kPad;
inline constexpr int64_t kSumPitch = kConvPanels * kChannels;
inline constexpr int64_t kSumPosition = kConvTiles * kSumPitch + kPad;

// A tile's place: picture n, and the first of its 4x4 outputs.
struct TilePlace {
  int64_t n, y, x;
};

// Calls f(place) for the task's tiles.
template <class F>
WAE_INLINE void for_tiles(const Conv3x3Args& args, const Conv3x3Task& task, const F& f) {
  const int64_t across = tiles_along(args.width), down = tiles_along(args.height);
  TilePlace place{task.tile0 / (across * down), task.tile0 / across % down * kTile,
                  task.tile0 % across * kTile};
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

// 6x6 pixels of channels in a row.
struct Patch {
  const float* data;
  int64_t stride_h, stride_w;
};

// The inputs of the tile at `place`: where they are if vectors can be read there, else copied to `copy`, with
// zeros outside the picture and, to whole vectors, beyond `channels`.
WAE_INLINE Patch patch_at(const Conv3x3Args& args, const TilePlace& place, int64_t first, int channels,
                          float (&copy)[kPatch][kPatch][kDepth]) {
  const float* corner = args.input + place.n * args.stride_n + (place.y - 1) * args.stride_h +
                        (place.x - 1) * args.stride_w + first * args.stride_c;
  const bool inside =
      place.y > 0 && place.y + kPatch - 1 <= args.height && place.x > 0 && place.x + kPatch - 1 <= args.width;
  if (inside && args.stride_c == 1 && channels % kLanes == 0) return {corner, args.stride_h, args.stride_w};
  for (int i = 0; i < kPatch; ++i) {
    for (int j = 0; j < kPatch; ++j) {
      float* to = copy[i][j];
      const int64_t y = place.y + i - 1, x = place.x + j - 1;
      if (y < 0 || y >= args.height || x < 0 || x >= args.width) {
        std::fill_n(to, kDepth, 0.0f);
        continue;
      }
      const float* from = corner + i * args.stride_h + j * args.stride_w;
      if (args.stride_c == 1 && channels == kDepth) {
        std::copy_n(from, kDepth, to);
        continue;
      }
      for (int c = 0; c < channels; ++c) to[c] = from[c * args.stride_c];
      std::fill(to + channels, to + kDepth, 0.0f);
    }
  }
  return {copy[0][0], kPatch * kDepth, kDepth};
}

// V = B^T d B of the task's tiles, input channels [first, first + channels): v[position][tile][channel].
// Whole vectors are written.
inline void conv3x3_input(const Conv3x3Args& args, const Conv3x3Task& task, int64_t first, int channels,
                          float* v) {
  alignas(64) float copy[kPatch][kPatch][kDepth];
  for_tiles(args, task, [&](const TilePlace& place) {
    const Patch patch = patch_at(args, place, first, channels, copy);
    for (int k = 0; k < channels; k += kLanes) {
      Vec columns[kPatch][kPatch];
      for (int j = 0; j < kPatch; ++j) {
        Vec d[kPatch], t[kPatch];
        for (int i = 0; i < kPatch; ++i)
          d[i] = load(patch.data + i * patch.stride_h + j * patch.stride_w + k);
        transform_input(d, t);
        for (int i = 0; i < kPatch; ++i) columns[i][j] = t[i];
      }
      for (int i = 0; i < kPatch; ++i) {
        Vec t[kPatch];
        transform_input(columns[i], t);
        for (int j = 0; j < kPatch; ++j) store(v + (i * kPatch + j) * kInputPosition + k, t[j]);
      }
    }
    v += kDepth;
  });
}

// G g of three taps that were divided by kFilterScale.
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

// The filters of one panel, from input channel `first` on.
WAE_INLINE const float* filters_at(const Conv3x3Args& args, int64_t panel, int64_t first) {
  return args.packed + (panel * args.channels + first) * kPackedFilter;
}

// U = G g G^T of the task's panels and input channels [first, first + channels):
// u[position][panel][input channel][16].
inline void conv3x3_filters(const Conv3x3Args& args, const Conv3x3Task& task, int64_t first, int channels,
                            float* u) {
  for (int64_t panel = task.panel0; panel < task.panel1; ++panel, u += kPanelSize) {
    const float* packed = filters_at(args, panel, first);
    for (int c = 0; c < channels; ++c, packed += kPackedFilter) {
      for (int k = 0; k < kChannels; k += kLanes) {
        Vec columns[kPatch][3];
        for (int j = 0; j < 3; ++j) {
          const Vec g[3] = {load(packed + j * kChannels + k), load(packed + (3 + j) * kChannels + k),
                            load(packed + (6 + j) * kChannels + k)};
          Vec t[kPatch];
          transform_filter(g, t);
          for (int i = 0; i < kPatch; ++i) columns[i][j] = t[i];
        }
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

// What registers hold: kConvBlock tiles x kStrip panels of sums, kStrip panels of U.
inline constexpr int kConvBlock = kLanes == 16 ? 12 : kBlock;
inline constexpr int kStrip = kLanes == 16 ? 2 : 1;

// m[kTiles][kPanels panels] = start + v[kTiles][channels] * u[kPanels][channels][16], where `start` is what m
// holds, or the same for all tiles.
template <int kTiles, int kPanels>
inline void multiply_tiles(const float* v, const float* u, int channels, const float* start,
                           int64_t start_pitch, float* m) {
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
    for (int j = 0; j < kWide; ++j) store(m + t * kSumPitch + j * kLanes, sum[t][j]);
  }
}

// One position: all tiles and panels of a task. `start` is null where m is to be added to.
inline void multiply_position(const float* v, const float* u, int channels, int64_t tiles, int64_t panels,
                              const float* start, float* m) {
  const int64_t start_pitch = start == nullptr ? kSumPitch : 0;
  for (int64_t panel = 0; panel < panels;) {
    const auto strip = [&]<int kPanels>() {
      for_blocks<kConvBlock>(tiles, [&]<int kTiles>(int64_t tile) {
        float* sums = m + tile * kSumPitch + panel * kChannels;
        multiply_tiles<kTiles, kPanels>(v + tile * kDepth, u + panel * kPanelSize, channels,
                                        start == nullptr ? sums : start + panel * kChannels, start_pitch,
                                        sums);
      });
      panel += kPanels;
    };
    if (panel + kStrip <= panels) {
      strip.template operator()<kStrip>();
    } else {
      strip.template operator()<1>();
    }
  }
}

// Asks for a 36th of the filters that the next turn of the loop over input channels transforms.
inline void prefetch_filters(const Conv3x3Args& args, const Conv3x3Task& task, int64_t first, int position) {
  const int64_t lines = std::clamp<int64_t>(args.channels - first, 0, kDepth) * (kPackedFilter / 16);
  for (int64_t panel = task.panel0; panel < task.panel1; ++panel) {
    const float* filters = filters_at(args, panel, first);
    for (int64_t i = position * lines / kPositions; i < (position + 1) * lines / kPositions; ++i) {
      __builtin_prefetch(filters + 16 * i, 0, 2);
    }
  }
}

// ------------------------------------------------------------------------------------------------ outputs

// The task's outputs from m: A^T m A, ReLU, and to the pixels that are inside the picture.
inline void conv3x3_output(const Conv3x3Args& args, const Conv3x3Task& task, const float* m) {
  for_tiles(args, task, [&](const TilePlace& place) {
    const int64_t rows = std::min<int64_t>(kTile, args.height - place.y);
    const int64_t columns_inside = std::min<int64_t>(kTile, args.width - place.x);
    float* out = args.output + ((place.n * args.height + place.y) * args.width + place.x) * args.out_channels;
    for (int64_t k = task.panel0 * kChannels; k < std::min(task.panel1 * kChannels, args.out_channels);
         k += kLanes) {
      const float* sums = m + (k - task.panel0 * kChannels);
      const int64_t count = std::min<int64_t>(kLanes, args.out_channels - k);
      Vec columns[kTile][kPatch];
      for (int j = 0; j < kPatch; ++j) {
        Vec s[kPatch], y[kTile];
        for (int i = 0; i < kPatch; ++i) s[i] = load(sums + (i * kPatch + j) * kSumPosition);
        transform_output(s, y);
        for (int i = 0; i < kTile; ++i) columns[i][j] = y[i];
      }
      for (int i = 0; i < rows; ++i) {
        Vec y[kTile];
        transform_output(columns[i], y);
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          if (j >= columns_inside) break;
          float* pixel = out + (i * args.width + j) * args.out_channels + k;
          const Vec value = args.relu ? positive_or_nan(y[j]) : y[j];
          if (count == kLanes) {
            store(pixel, value);
          } else {
            float numbers[kLanes];
            store(numbers, value);
            std::copy_n(numbers, count, pixel);
          }
        }
      }
    }
    m += kSumPitch;
  });
}

inline void conv3x3(const Conv3x3Args& args, const Conv3x3Task& task) {
  Scratch scratch;
  float* const v = scratch.take(kPositions * kInputPosition);
  float* const u = scratch.take(kPositions * kFilterPosition);
  float* const m = scratch.take(kPositions * kSumPosition);
  const int64_t tiles = task.tile1 - task.tile0, panels = task.panel1 - task.panel0;

  // The bias enters at position (1, 1), which reaches all 16 outputs of a tile with weight 1.
  alignas(64) static constexpr float kZeros[kSumPitch] = {};
  alignas(64) float bias[kSumPitch] = {};
  if (args.bias != nullptr) {
    const int64_t k = task.panel0 * kChannels;
    std::copy_n(args.bias + k, std::min(panels * kChannels, args.out_channels - k), bias);
  }
  for (int64_t first = 0; first < args.channels; first += kDepth) {
    const int channels = static_cast<int>(std::min<int64_t>(kDepth, args.channels - first));
    conv3x3_input(args, task, first, channels, v);
    conv3x3_filters(args, task, first, channels, u);
    for (int p = 0; p < kPositions; ++p) {
      prefetch_filters(args, task, first + kDepth, p);
      const float* start = first > 0 ? nullptr : p == kPatch + 1 ? bias : kZeros;
      multiply_position(v + p * kInputPosition, u + p * kFilterPosition, channels, tiles, panels, start,
                        m + p * kSumPosition);
    }
  }
  conv3x3_output(args, task, m);
}

}  // namespace wae::WAE_ISA
