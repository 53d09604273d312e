// The layers, each a function that computes one row of tiles or of pixels, from and to rows with 16 channels per pixel
// (`Rows`) or rows of planes (`Planes`). The rows are small enough to be in the cache and to stay there.
//
// Multiply-adds per full-resolution pixel, in vectors of 16 (one 512-bit instruction):
//
//   conv 3 -> 16                27        direct: the 16 outputs are the lanes
//   conv 16 -> 16               36        Winograd F(4x4, 3x3): 36 products for 16 pixels x 16 inputs
//     its input transform       7.5       (144 direct); additions that execute in parallel with multiplications
//     its output transform      6.3
//   conv 16 -> n, stride 2      2.25 n    direct: the 16 inputs are the lanes, then a sum over lanes
//   conv n -> 16, transposed    2.25 n    direct; both are 13.5 for low and high of images, n = 6
//   conv 16 -> 3                27        direct, sum over lanes

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/isa/simd.h"
#include "cpu/kernels.h"

namespace wae::WAE_ISA {

// A ring buffer of rows that moves down the image: row y is in slot y mod `count`. Column x of a row is at offset
// (x - origin) * kChannels.
struct Rows {
  float* data;
  int count;
  int64_t row_size;  // floats
  int64_t origin;

  float* at(int64_t y, int64_t x) const {
    return data + ((y + 64 * count) % count) * row_size + (x - origin) * kChannels;
  }
  // The rows from y on, all at column x, with only one division, which takes as long as many additions.
  template <class Float, int kRows>
  void at(int64_t y, int64_t x, Float* (&rows)[kRows]) const {
    int64_t slot = (y + 64 * count) % count;
    for (int i = 0; i < kRows; ++i) {
      rows[i] = data + slot * row_size + (x - origin) * kChannels;
      if (++slot == count) slot = 0;
    }
  }
};

// A ring buffer whose rows have `planes` separate planes: 3 for an image, 6 for its low and high, any number for
// scores.
struct Planes {
  float* data;
  int count, planes;
  int64_t plane_size;
  int64_t origin;

  float* at(int64_t y, int plane, int64_t x) const {
    return data + (((y + 64 * count) % count) * planes + plane) * plane_size + (x - origin);
  }
};

// ------------------------------------------------------------------------------- Winograd F(4x4, 3x3)
//
// out = A^T [ sum over input channels of U * (B^T d B) ] A, for a tile of 4x4 outputs and its patch d of 6x6 inputs,
// with the points 0, 1, -1, 2, -2, infinity. pack.cpp computes U = G g G^T.

inline constexpr int kTile = 4;   // outputs along a side
inline constexpr int kPatch = 6;  // inputs along a side
inline constexpr int kPositions = kPatch * kPatch;
// The number of tiles transformed together, such that V stays in the first-level cache.
inline constexpr int kGroup = kBlock * (kLanes == 16 ? 1 : 2);

struct alignas(64) WinogradScratch {
  float v[kPositions][kGroup][kChannels];
};

WAE_INLINE void add_to(float* sums, Vec v) { store(sums, load(sums) + v); }

// B^T d
WAE_INLINE void transform_input(const Vec d[6], Vec v[6]) {
  const Vec two = broadcast(2), four = broadcast(4), five = broadcast(5);
  const Vec even = fnma(four, d[2], d[4]), odd = fnma(four, d[1], d[3]);
  const Vec outer = d[4] - d[2], inner = d[3] - d[1];
  v[0] = fma(four, d[0], fnma(five, d[2], d[4]));
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = fma(two, inner, outer);
  v[4] = fnma(two, inner, outer);
  v[5] = fma(four, d[1], fnma(five, d[3], d[5]));
}

// A^T m
WAE_INLINE void transform_output(const Vec m[6], Vec y[4]) {
  const Vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  y[0] = m[0] + s1 + s2;
  y[1] = fma(broadcast(2), d2, d1);
  y[2] = fma(broadcast(4), s2, s1);
  y[3] = fma(broadcast(8), d2, d1) + m[5];
}

// Calls f<begin, end> for groups of the six rows of a transform that share terms. Each group loads the inputs again,
// but its sums stay in registers; all 36 would be spilled to the stack. The compiler eliminates what f computes for the
// other rows.
template <class F>
WAE_INLINE void for_row_groups(const F& f) {
  f.template operator()<0, 1>();
  f.template operator()<1, 3>();
  f.template operator()<3, 5>();
  f.template operator()<5, 6>();
}

// B^T d of column x of a patch; rows[i] points at column 0.
WAE_INLINE void transform_column(const float* const rows[kPatch], int64_t x, Vec v[kPatch]) {
  Vec d[kPatch];
  for (int i = 0; i < kPatch; ++i) d[i] = load(rows[i] + x * kChannels);
  transform_input(d, v);
}

// Rows [kBegin, kEnd) of V = B^T d B of `tiles` neighbouring tiles; inputs[i] points at the first tile's leftmost input.
template <int kBegin, int kEnd>
WAE_NOINLINE void winograd_input_rows(const float* const inputs[kPatch], int tiles,
                                      WinogradScratch& scratch) {
  for (int k = 0; k < kChannels; k += kLanes) {
    const float* rows[kPatch];
    for (int i = 0; i < kPatch; ++i) rows[i] = inputs[i] + k;
    Vec columns[kPatch][kPatch];  // [column][row]
    transform_column(rows, 0, columns[4]);
    transform_column(rows, 1, columns[5]);
    for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 6
      for (int j = 0; j < kPatch; ++j) {  // a tile shares two columns with the tile to its left
        if (j < 2) {
          for (int i = kBegin; i < kEnd; ++i) columns[j][i] = columns[j + kTile][i];
        } else {
          transform_column(rows, kTile * t + j, columns[j]);
        }
      }
#pragma GCC unroll 2
      for (int i = kBegin; i < kEnd; ++i) {
        const Vec d[kPatch] = {columns[0][i], columns[1][i], columns[2][i],
                               columns[3][i], columns[4][i], columns[5][i]};
        Vec v[kPatch];
        transform_input(d, v);
        for (int j = 0; j < kPatch; ++j) store(&scratch.v[i * kPatch + j][t][k], v[j]);
      }
    }
  }
}

inline void winograd_input(const float* const inputs[kPatch], int tiles, WinogradScratch& scratch) {
  for_row_groups([&]<int kBegin, int kEnd>() { winograd_input_rows<kBegin, kEnd>(inputs, tiles, scratch); });
}

// Calls f.template operator()<N>(begin) for blocks of N <= kMax that cover [0, count) and are as equal as possible.
template <int kMax, class F>
WAE_INLINE void for_blocks(int64_t count, const F& f) {
  int64_t blocks = (count + kMax - 1) / kMax;
  for (int64_t begin = 0; blocks > 0; --blocks) {
    const int64_t size = (count - begin + blocks - 1) / blocks;
    [&]<int... kSizes>(std::integer_sequence<int, kSizes...>) {
      (void)((size == kSizes + 1 && (f.template operator()<kSizes + 1>(begin), true)) || ...);
    }(std::make_integer_sequence<int, kMax>{});
    begin += size;
  }
}

// The number of positions whose weights stay in the first-level cache while all tiles are multiplied by them.
inline constexpr int kPositionsInCache = 12;

// The number of positions multiplied together. A few tiles of one position have too few independent sums to keep the
// multipliers busy, because each product waits for the previous one of its sum.
constexpr int positions_together(int tiles) {
  int count = std::max(kBlock / tiles, 1);
  while (kPositionsInCache % count != 0) --count;
  return count;
}

// M = U * V for kTiles tiles at kCount positions from p on, overwriting V. The bias is added at position (1, 1), which
// the output transform adds to all 16 outputs of a tile with weight 1.
//
// It is not inlined, and all its offsets from one pointer are constant. When it was inlined with the 14 other
// instantiations and indexed by position, GCC kept addresses on the stack and moved sums between registers, which with
// AVX-512 took 3 to 4 % of the encoder's time, and 10 % with few tiles.
template <int kCount, int kTiles>
WAE_NOINLINE void multiply_block(const Winograd16& weights, const float* bias, int p, int64_t tile,
                                 WinogradScratch& scratch) {
  float* const v = scratch.v[p][tile];
  Vec sum[kCount][kTiles][kVecs];
#pragma GCC unroll 16
  for (int q = 0; q < kCount; ++q) {
    for (int j = 0; j < kVecs; ++j) {
      const Vec start = bias != nullptr && p + q == kPatch + 1 ? load(bias + j * kLanes) : zero();
      for (int t = 0; t < kTiles; ++t) sum[q][t][j] = start;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChannels; ++i) {
#pragma GCC unroll 16
    for (int q = 0; q < kCount; ++q) {
      Vec w[kVecs];
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        w[j] = load(&weights.u[p + q][i][j * kLanes]);
        if constexpr (kCount > 1) keep(w[j]);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
        const Vec x = broadcast(v[(q * kGroup + t) * kChannels + i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) sum[q][t][j] = fma(x, w[j], sum[q][t][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < kCount; ++q) {
    for (int t = 0; t < kTiles; ++t) {
      for (int j = 0; j < kVecs; ++j) store(v + (q * kGroup + t) * kChannels + j * kLanes, sum[q][t][j]);
    }
  }
}

// M = U * V for all tiles at all positions.
inline void winograd_multiply(const Winograd16& weights, const float* bias, int tiles,
                              WinogradScratch& scratch) {
  for (int first = 0; first < kPositions; first += kPositionsInCache) {
    for_blocks<kBlock>(tiles, [&]<int kTiles>(int64_t tile) {
      constexpr int kCount = positions_together(kTiles);
      for (int p = first; p < first + kPositionsInCache; p += kCount) {
        multiply_block<kCount, kTiles>(weights, bias, p, tile, scratch);
      }
    });
  }
}

// Epilogues, applied to a convolution's sums before they are stored.
struct Relu {
  WAE_INLINE Vec operator()(Vec sum, int, int64_t) const { return relu(sum); }
};
// Multiplies by the derivative of the ReLU whose outputs these rows hold.
struct ReluGradient {
  const float* rows[kTile];
  WAE_INLINE Vec operator()(Vec sum, int row, int64_t offset) const {
    return relu_backward(load(rows[row] + offset), sum);
  }
};

// Destinations of a convolution's outputs: put(y, row, x, k) stores 4 neighbouring pixels of one of the 4 rows,
// starting x columns from the first, and in each the channels from k on.

// To rows with 16 channels per pixel, after an epilogue.
template <class Epilogue>
struct PutPixels {
  float* const* rows;
  const Epilogue& epilogue;
  WAE_INLINE void operator()(const Vec y[kTile], int row, int64_t x, int k) const {
    for (int j = 0; j < kTile; ++j) {
      const int64_t offset = (x + j) * kChannels + k;
      store(rows[row] + offset, epilogue(y[j], row, offset));
    }
  }
};
// To a plane for each channel.
struct PutPlanes {
  float* const* rows;
  int64_t plane_size;
  WAE_INLINE void operator()(const Vec y[kTile], int row, int64_t x, int k) const {
    store_transposed4(rows[row] + k * plane_size + x, plane_size, y);
  }
};

template <class Put>
inline void winograd_output(int tiles, const WinogradScratch& scratch, int first_tile, const Put& put) {
  for (int k = 0; k < kChannels; k += kLanes) {
    for (int t = 0; t < tiles; ++t) {
      Vec columns[kTile][kPatch];
      for (int j = 0; j < kPatch; ++j) {
        Vec m[kPatch], y[kTile];
        for (int i = 0; i < kPatch; ++i) m[i] = load(&scratch.v[i * kPatch + j][t][k]);
        transform_output(m, y);
        for (int i = 0; i < kTile; ++i) columns[i][j] = y[i];
      }
      for (int i = 0; i < kTile; ++i) {
        Vec y[kTile];
        transform_output(columns[i], y);
        put(y, i, int64_t{first_tile + t} * kTile, k);
      }
    }
  }
}

// Four rows of a 16 -> 16 convolution. inputs[0..5] point at rows y-1..y+4 in the column left of the first tile; `put`
// stores rows y..y+3, from the first tile's first column on.
template <class Put>
inline void conv16(const float* const inputs[kPatch], int tiles, const Winograd16& weights, const float* bias,
                   WinogradScratch& scratch, const Put& put) {
  const int groups = (tiles + kGroup - 1) / kGroup;
  for (int g = 0, begin = 0; g < groups; ++g) {
    const int size = (tiles - begin + groups - g - 1) / (groups - g);
    const float* rows[kPatch];
    for (int i = 0; i < kPatch; ++i) rows[i] = inputs[i] + int64_t{begin} * kTile * kChannels;
    winograd_input(rows, size, scratch);
    winograd_multiply(weights, bias, size, scratch);
    winograd_output(size, scratch, begin, put);
    begin += size;
  }
}

// ------------------------------------------------------------------------------ few channels in, 16 out

// Taps of a row that are unrolled together share broadcasts; with 16 registers GCC would keep those on the stack.
inline constexpr int kTapsUnrolled = kLanes == 16 ? 3 : 1;

// `count` columns of one row of a 3 -> 16 convolution. inputs[ky][c] point at the column left of the first one, output
// at the first one.
template <class Epilogue>
inline void conv3to16(const float* const inputs[3][3], float* output, int64_t count, const Direct3& weights,
                      const float* bias, const Epilogue& epilogue) {
  for_blocks<kBlock>(count, [&]<int kPixels>(int64_t begin) {
    Vec sum[kPixels][kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      const Vec start = bias != nullptr ? load(bias + j * kLanes) : zero();
#pragma GCC unroll 16
      for (int t = 0; t < kPixels; ++t) sum[t][j] = start;
    }
#pragma GCC unroll 3
    for (int ky = 0; ky < 3; ++ky) {
#pragma GCC unroll 3
      for (int c = 0; c < 3; ++c) {
        const float* x = inputs[ky][c] + begin;
#pragma GCC unroll kTapsUnrolled
        for (int kx = 0; kx < 3; ++kx) {
          Vec w[kVecs];
#pragma GCC unroll 4
          for (int j = 0; j < kVecs; ++j) w[j] = load(&weights.w[ky][c][kx][j * kLanes]);
#pragma GCC unroll 16
          for (int t = 0; t < kPixels; ++t) {
            const Vec value = broadcast(x[t + kx]);
#pragma GCC unroll 4
            for (int j = 0; j < kVecs; ++j) sum[t][j] = fma(value, w[j], sum[t][j]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kPixels; ++t) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        const int64_t offset = (begin + t) * kChannels + j * kLanes;
        store(output + offset, epilogue(sum[t][j], 0, offset));
      }
    }
  });
}

// The pairs of output pixels, and the vectors of their channels, whose sums stay in registers with the weights. One
// vector of many pairs needs the fewest loads. The portable version takes one pair, because its broadcasts are slow.
inline constexpr int kPairs = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 1;
inline constexpr int kPairVecs = kLanes >= 8 ? 1 : kVecs;

// `pairs` pairs of output columns (2x, 2x+1) of one row of a transposed convolution to 16 channels. An even row reads
// one input row (taps ky = 1), an odd row two (ky = 2 for the upper one, ky = 0 for the lower one). inputs[r] point at
// the column of the first pair, in the first plane. kPlanes is the number of planes if it is known at compile time; if
// not, it is 0 and `planes` is the number. weights: [ky][kx][plane][16].
template <int kPlanes, class Epilogue>
inline void upsample_to16(const float* const inputs[2], int64_t plane_size, int planes, const int* ky,
                          int input_rows, float* output, int64_t pairs, const float* weights,
                          const float* bias, const Epilogue& epilogue) {
  if constexpr (kPlanes > 0) planes = kPlanes;
  const int64_t tap_size = int64_t{planes} * kChannels;
  for (int k = 0; k < kChannels; k += kPairVecs * kLanes) {
    for_blocks<kPairs>(pairs, [&]<int kCount>(int64_t begin) {
      Vec even[kCount][kPairVecs], odd[kCount][kPairVecs];
#pragma GCC unroll 4
      for (int j = 0; j < kPairVecs; ++j) {
        const Vec start = bias != nullptr ? load(bias + k + j * kLanes) : zero();
#pragma GCC unroll 16
        for (int t = 0; t < kCount; ++t) even[t][j] = odd[t][j] = start;
      }
      for (int r = 0; r < input_rows; ++r) {
        const float* x = inputs[r] + begin;
        const float* w = weights + 3 * ky[r] * tap_size + k;
#pragma GCC unroll 6
        for (int c = 0; c < planes; ++c, x += plane_size, w += kChannels) {
#pragma GCC unroll 4
          for (int j = 0; j < kPairVecs; ++j) {
            const Vec right = load(w + j * kLanes);
            const Vec centre = load(w + tap_size + j * kLanes);
            const Vec left = load(w + 2 * tap_size + j * kLanes);
#pragma GCC unroll 16
            for (int t = 0; t <= kCount; ++t) {
              const Vec value = broadcast(x[t]);
              if (t > 0) odd[t - 1][j] = fma(value, right, odd[t - 1][j]);
              if (t == kCount) break;
              even[t][j] = fma(value, centre, even[t][j]);
              odd[t][j] = fma(value, left, odd[t][j]);
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int t = 0; t < kCount; ++t) {
#pragma GCC unroll 4
        for (int j = 0; j < kPairVecs; ++j) {
          const int64_t offset = 2 * (begin + t) * kChannels + k + j * kLanes;
          store(output + offset, epilogue(even[t][j], 0, offset));
          store(output + offset + kChannels, epilogue(odd[t][j], 0, offset + kChannels));
        }
      }
    });
  }
}

// ------------------------------------------------------------------------------ 16 channels in, few out

// `count` pixels of one row of a convolution from 16 channels to few, 4 pixels at a time. Lanes are input channels,
// summed at the end. inputs[ky] point at the column left of the first pixel's centre. `outputs` have space for count
// rounded up to 4. kOut is the number of output channels if it is known at compile time; if not, it is 0 and `outs` is
// the number. The strides are those of `weights` in the output channel, in kx and in ky.
template <int kOut, int kStride>
inline void conv16to(const float* const inputs[3], float* const* outputs, int outs, int64_t count,
                     const float* weights, int64_t out_stride, int64_t kx_stride, int64_t ky_stride,
                     const float* bias) {
  constexpr int kPixels = 4;
  if constexpr (kOut > 0) outs = kOut;
  for (int64_t begin = 0; begin < count; begin += kPixels) {
    for_blocks<3>(outs, [&]<int kPass>(int64_t first) {  // the sums of 3 fit the registers
      Vec sum[kPass][kPixels];
#pragma GCC unroll 6
      for (int o = 0; o < kPass; ++o) {
#pragma GCC unroll 4
        for (int t = 0; t < kPixels; ++t) sum[o][t] = zero();
      }
      for (int ky = 0; ky < 3; ++ky) {
        const float* x = inputs[ky] + begin * kStride * kChannels;
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          const float* w = weights + ky * ky_stride + kx * kx_stride + first * out_stride;
#pragma GCC unroll 4
          for (int j = 0; j < kVecs; ++j) {
            Vec value[kPixels];
#pragma GCC unroll 4
            for (int t = 0; t < kPixels; ++t)
              value[t] = load(x + (t * kStride + kx) * kChannels + j * kLanes);
#pragma GCC unroll 6
            for (int o = 0; o < kPass; ++o) {
              const Vec filter = load(w + o * out_stride + j * kLanes);
#pragma GCC unroll 4
              for (int t = 0; t < kPixels; ++t) sum[o][t] = fma(value[t], filter, sum[o][t]);
            }
          }
        }
      }
#pragma GCC unroll 6
      for (int o = 0; o < kPass; ++o) {
        float* out = outputs[first + o] + begin;
        store_sums4(out, sum[o]);
        const float b = bias != nullptr ? bias[first + o] : 0.0f;
#pragma GCC unroll 4
        for (int t = 0; t < kPixels; ++t) out[t] += b;
      }
    });
  }
}

// 16 channels to planes of half the resolution: the encoder's branches, and the gradient of upsample_to16's input.
// weights: [ky][kx][plane][16].
template <int kPlanes>
inline void downsample16(const float* const inputs[3], float* const* outputs, int planes, int64_t count,
                         const float* weights, const float* bias) {
  if constexpr (kPlanes > 0) planes = kPlanes;
  const int64_t tap_size = int64_t{planes} * kChannels;
  conv16to<kPlanes, 2>(inputs, outputs, planes, count, weights, kChannels, tap_size, 3 * tap_size, bias);
}
// The decoder's last layer.
inline void conv16to3(const float* const inputs[3], float* const outputs[3], int64_t count,
                      const Direct3& weights, const float* bias) {
  conv16to<3, 1>(inputs, outputs, 3, count, &weights.w[0][0][0][0], 3 * 16, 16, 3 * 3 * 16, bias);
}

}  // namespace wae::WAE_ISA
