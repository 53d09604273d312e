// The gradients of weights: sums over pixels of input times gradient. Each function computes one row of tiles or of
// pixels and adds it to `sums`.
//
// A float to which many numbers are added loses digits, most of all if the numbers are equal. So every sum here starts
// at zero, adds few numbers and is then added to `sums`, which are added to doubles after every kCollectPixels pixels.
//
// The 16 -> 16 layers are summed in the Winograd domain, where a tile of 16 pixels takes 36 products of channels
// instead of 144: dU = sum over tiles of (B^T d B) (A g A^T), and dg = G^T dU G once at the end.

#pragma once

#include "cpu/isa/layers.h"
#include "cpu/isa/workspace.h"
#include "cpu/sums.h"

namespace wae::WAE_ISA {

// At most kSumPixels pixels are added to one float; after kCollectPixels pixels the sums are added to doubles.
inline constexpr int64_t kCollectPixels = 4096, kSumPixels = 64;

// The number of rows, in a task of this width, after which the sums are added to doubles.
inline int64_t rows_until_collected(int64_t width) {
  return std::max<int64_t>(kCollectPixels / width / kTile, 1) * kTile;
}

// A g
WAE_INLINE void transform_gradient(const Vec g[4], Vec z[6]) {
  const Vec two = broadcast(2), four = broadcast(4);
  const Vec even = g[0] + g[2], odd = g[1] + g[3];
  const Vec even2 = fma(four, g[2], g[0]), odd2 = fma(four, g[3], g[1]);
  z[0] = g[0];
  z[1] = even + odd;
  z[2] = even - odd;
  z[3] = fma(two, odd2, even2);
  z[4] = fnma(two, odd2, even2);
  z[5] = g[3];
}

// Z = A g A^T of `tiles` neighbouring tiles; rows[i] point at the first gradient of the first tile.
inline void winograd_gradient(const float* const rows[kTile], int tiles, WinogradScratch& scratch) {
  for (int k = 0; k < kChannels; k += kLanes) {
    for (int t = 0; t < tiles; ++t) {
      Vec columns[kPatch][kTile];
      for (int j = 0; j < kTile; ++j) {
        Vec g[kTile], z[kPatch];
        for (int i = 0; i < kTile; ++i) g[i] = load(rows[i] + int64_t{t * kTile + j} * kChannels + k);
        transform_gradient(g, z);
        for (int i = 0; i < kPatch; ++i) columns[i][j] = z[i];
      }
      for (int i = 0; i < kPatch; ++i) {
        Vec z[kPatch];
        transform_gradient(columns[i], z);
        for (int j = 0; j < kPatch; ++j) store(&scratch.v[i * kPatch + j][t][k], z[j]);
      }
    }
  }
}

// sums[i][o] += v[t][i] * z[t][o], summed over the tiles t of a group, for kInputs input channels i.
template <int kInputs>
inline void add_products(const float* v, const float* z, int tiles, float* sums) {
  Vec sum[kInputs][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
  }
  for (int t = 0; t < tiles; ++t) {
    Vec gradient[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) gradient[j] = load(z + t * kChannels + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kInputs; ++i) {
      const Vec x = broadcast(v[t * kChannels + i]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] = fma(x, gradient[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) add_to(sums + i * kChannels + j * kLanes, sum[i][j]);
  }
}

// sums += the sum of `count` vectors of 16 channels.
inline void add_vectors(const float* vectors, int64_t count, Bias16& sums) {
  for (int k = 0; k < kChannels; k += kLanes) {
    Vec sum = zero();
    for (int64_t i = 0; i < count; ++i) sum = sum + load(vectors + i * kChannels + k);
    add_to(sums.b + k, sum);
  }
}

// What rows y..y+3, columns [begin, end), add to the gradients of a 16 -> 16 layer's weight and bias. Gradients outside
// the image are zero. `begin` is a multiple of 4, and so is `end` unless the image ends there.
inline void conv16_weight_gradient(const Rows& in, const Rows& gradient, int64_t y, int64_t begin,
                                   int64_t end, Winograd16& sums, Bias16& bias, WinogradScratch& inputs,
                                   WinogradScratch& gradients) {
  const int tiles = static_cast<int>((end - begin + kTile - 1) / kTile);
  for (int first = 0; first < tiles; first += kGroup) {
    const int count = std::min(tiles - first, kGroup);
    const int64_t x = begin + int64_t{first} * kTile;
    const float *in_rows[kPatch], *gradient_rows[kTile];
    for (int i = 0; i < kPatch; ++i) in_rows[i] = in.at(y + i - 1, x - 1);
    for (int i = 0; i < kTile; ++i) gradient_rows[i] = gradient.at(y + i, x);
    winograd_input(in_rows, count, inputs);
    winograd_gradient(gradient_rows, count, gradients);
    for (int p = 0; p < kPositions; ++p) {
      for_blocks<kLanes == 16 ? 16 : kBlock>(kChannels, [&]<int kInputs>(int64_t i) {
        add_products<kInputs>(&inputs.v[p][0][i], &gradients.v[p][0][0], count, &sums.u[p][i][0]);
      });
    }
    // Position (1, 1) holds the sum of a tile's 16 gradients.
    add_vectors(gradients.v[kPatch + 1][0], count, bias);
  }
}

// Calls f(first, last) for runs of up to kSumPixels pixels that cover [begin, end).
template <class F>
WAE_INLINE void for_runs(int64_t begin, int64_t end, const F& f) {
  for (; begin < end; begin += kSumPixels) f(begin, std::min(begin + kSumPixels, end));
}

// sums.w[ky][c][kx] += planes(y + ky - 1, x + kx - 1)[c] * rows(y, x), summed over the columns x of [begin, end).
inline void conv3_weight_gradient(const Planes& planes, const Rows& rows, int64_t y, int64_t begin,
                                  int64_t end, Direct3& sums) {
  for_runs(begin, end, [&](int64_t first, int64_t last) {
    for (int ky = 0; ky < 3; ++ky) {
      const float* x[3];
      for (int c = 0; c < 3; ++c) x[c] = planes.at(y + ky - 1, c, first - 1);
      for (int k = 0; k < kChannels; k += kLanes) {
        const float* g = rows.at(y, first) + k;
        Vec sum[3][3];
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
#pragma GCC unroll 3
          for (int kx = 0; kx < 3; ++kx) sum[c][kx] = zero();
        }
        for (int64_t i = 0; i < last - first; ++i) {
          const Vec value = load(g + i * kChannels);
#pragma GCC unroll 3
          for (int c = 0; c < 3; ++c) {
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx) sum[c][kx] = fma(broadcast(x[c][i + kx]), value, sum[c][kx]);
          }
        }
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
#pragma GCC unroll 3
          for (int kx = 0; kx < 3; ++kx) add_to(&sums.w[ky][c][kx][k], sum[c][kx]);
        }
      }
    }
  });
}

// sums[ky][kx][plane][16] += planes(y, x) * rows(2y + ky - 1, 2x + kx - 1), summed over the half-resolution columns x
// of the task.
inline void half_weight_gradient(const Planes& planes, const Rows& rows, int64_t y, const Task& task,
                                 float* sums) {
  for_runs(task.x0, task.x1, [&](int64_t first, int64_t last) {
    const float* x[2 * kMaxScoreChannels];
    for (int c = 0; c < planes.planes; ++c) x[c] = planes.at(y, c, first);
    for (int tap = 0; tap < 9; ++tap) {
      for (int k = 0; k < kChannels; k += kLanes) {
        const float* in = rows.at(2 * y + tap / 3 - 1, 2 * first + tap % 3 - 1) + k;
        for_blocks<6>(planes.planes, [&]<int kCount>(int64_t plane) {
          Vec sum[kCount];
#pragma GCC unroll 6
          for (int c = 0; c < kCount; ++c) sum[c] = zero();
          for (int64_t i = 0; i < last - first; ++i) {
            const Vec value = load(in + 2 * i * kChannels);
#pragma GCC unroll 6
            for (int c = 0; c < kCount; ++c) sum[c] = fma(broadcast(x[plane + c][i]), value, sum[c]);
          }
          float* const to = sums + (tap * planes.planes + plane) * kChannels + k;
#pragma GCC unroll 6
          for (int c = 0; c < kCount; ++c) add_to(to + c * kChannels, sum[c]);
        });
      }
    }
  });
}

inline void add_row(const Rows& rows, int64_t y, int64_t begin, int64_t end, Bias16& sums) {
  for_runs(begin, end,
           [&](int64_t first, int64_t last) { add_vectors(rows.at(y, first), last - first, sums); });
}

// sums[c] += planes(y, x)[c], summed over the columns x of [begin, end).
template <int kCount>
inline void add_planes(const Planes& planes, int64_t y, int64_t begin, int64_t end, float* sums) {
  const float* x[kCount];
  double sum[kCount] = {};
  for (int c = 0; c < kCount; ++c) x[c] = planes.at(y, c, begin);
  for (int64_t i = 0; i < end - begin; ++i) {
#pragma GCC unroll 6
    for (int c = 0; c < kCount; ++c) sum[c] += x[c][i];
  }
  for (int c = 0; c < kCount; ++c) sums[c] += static_cast<float>(sum[c]);
}

}  // namespace wae::WAE_ISA
