// Shared by encode_backward.cu and decode_backward.cu: gradients from the inputs alone, in one pass.
//
// A block walks down a tile, two rows a step, and does all layers in every step: three forward (first,
// second, third), three back, the gradient of the input, and the sums for the parameters' gradients. Only the
// results are written to global memory:
//
//               |<------- 16 * strips pixels, a warp for each strip of both rows ------->|
//     full      |########################################################################|   input rows
//     first     |.######################################################################.|
//     second    |..####################################################################..|
//     third     |...##################################################################...|   and its gradient
//     d second  |....################################################################....|
//     d first   |.....##############################################################.....|
//     d input   |......############################################################......|   the tile itself
//
// All rows have the same columns: pixel j is image column x0 - 6 + j. '.' is computed from missing neighbours
// and reaches no result. A tile of 2h rows takes h + 6 steps. With rows counted from 6 above the tile, step s
// computes, with a barrier after each phase:
//
//     phase   rows                 from
//     0       first 2s-1, 2s       full 2s-2..2s+1 (decode: half rows s-1, s)
//     1       second 2s-2, 2s-1    first 2s-3..2s
//     2       third 2s-3, 2s-2     second 2s-4..2s-1
//             d third, the same    half rows s-2, s-1 (decode: full 2s-4..2s-1), third
//     3       d second 2s-4, 2s-3  d third 2s-5..2s-2, second
//     4       d first 2s-5, 2s-4   d second 2s-6..2s-3, first
//     5       d input 2s-6, 2s-5   d first 2s-7..2s-4
//             sums                 d third * second, d second * first, d first and third * narrow inputs
//
// In phases 0 to 4, warp (row, strip) computes 16 pixels x 16 channels. The sums stay in registers from the
// first tile to the last: warps 0 to 5 have a row of taps of a 16 -> 16 layer each, warps 6 and 7 share the
// narrow layers. At the end each block writes its sums, and reduce.cu adds those of all blocks in a fixed
// order: the same bits every time, no atomics.
//
//     arithmetic   in m16n8k16 for 16 pixels: forward 10 or 6, 36, 6 or 10; back 36, 9 or 2.25; sums 36, 9,
//                  2.25: 145 (encode) and 138 (decode), where the forward pass has 44 and 48
//     memory       the inputs times 16 * strips / (16 * strips - 12), the results once, 24 KB of sums a block
//     bound        docs/cuda.md, for each chip

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/parameters.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

static_assert(kBackwardThreads == kPair * kStrips * 32 && kMaxBackwardStrips == kStrips);

// On this target, which is what counts inside a kernel.
#ifdef __CUDA_ARCH__
#define WAE_CAPABILITY (__CUDA_ARCH__ / 10)
#else
#define WAE_CAPABILITY 0
#endif

// The thread's place: row of the pair, strip, lane; role is the row here.
using Thread = ThreadCoordinates;

// --------------------------------------------------------------------------------------------- rows in rings

// Everything that a phase needs to find a row. Rows have one pixel of zeros on their left and three on their
// right, and live in rings: row r of a ring of n is in slot r % n.
template <Op kOp, Mode kMode>
struct Rings {
  const BackwardLayout& at;
  uint32_t shared;

  template <int kRows>
  __device__ __forceinline__ uint32_t row(int begin, int index) const {
    return shared + begin + index % kRows * (planes(kMode) * at.row_plane);
  }
  __device__ __forceinline__ uint32_t first(int i) const { return row<kFirstRows>(at.first, i); }
  __device__ __forceinline__ uint32_t second(int i) const { return row<kSecondRows>(at.second, i); }
  __device__ __forceinline__ uint32_t third(int i) const { return row<kThirdRows>(at.third, i); }
  __device__ __forceinline__ uint32_t first_gradient(int i) const {
    return row<kGradientRows>(at.first_gradient, i);
  }
  __device__ __forceinline__ uint32_t second_gradient(int i) const {
    return row<kGradientRows>(at.second_gradient, i);
  }
  __device__ __forceinline__ uint32_t third_gradient(int i) const {
    return row<kGradientRows>(at.third_gradient, i);
  }
  __device__ __forceinline__ uint32_t full(int i) const {
    return shared + at.full + i % full_rows(kOp) * at.row_plane;
  }
  __device__ __forceinline__ uint32_t half(int i) const {
    return shared + at.half + i % half_rows(kOp) * (half_planes(kMode) * at.half_plane);
  }
};

// Byte of pixel j in a plane.
__device__ __forceinline__ int pixel_at(int j) { return (j + 1) * 16; }

// Address of a 4-byte channel in a row of 32-bit numbers.
__device__ __forceinline__ uint32_t channel_word(uint32_t row, int plane, int pixel, int channel) {
  return row + channel / 4 * plane + pixel_at(pixel) + channel % 4 * 4;
}

// ---------------------------------------------------------------------------------------------- products

// sums (16 x 8 * kBlocks) += A (16 x 8 words) * B (8 words x 8 * kBlocks). a(m, k) and b(k, n) return words,
// in the plain modes floats. Tensor cores take a lane's own words; the plain modes all of its row and
// columns, of the first kWords only.
template <Mode kMode, int kBlocks, int kWords = 8, class A, class B>
__device__ __forceinline__ void add_product(float (&sums)[kBlocks][4], const Thread& thread, const A& a,
                                            const B& b) {
  const int g = thread.group, t = thread.member;
  if constexpr (!is_plain(kMode)) {
    const uint32_t words[4] = {a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4)};
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      const uint32_t weights[2] = {b(t, 8 * n + g), b(t + 4, 8 * n + g)};
      mma<kMode>(sums[n], words, weights);
    }
  } else {
    constexpr int kTogether = weights_in_shared(kMode, WAE_CAPABILITY) ? kWords : 1;  // 64-bit addresses
#pragma unroll kTogether
    for (int k = 0; k < kWords; ++k) {
      const float upper = __uint_as_float(a(g, k)), lower = __uint_as_float(a(g + 8, k));
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float weight = __uint_as_float(b(k, 8 * n + 2 * t + e));
          sums[n][e] = fmaf(upper, weight, sums[n][e]);
          sums[n][2 + e] = fmaf(lower, weight, sums[n][2 + e]);
        }
      }
    }
  }
}

// How often loops around products are unrolled: the plain modes' products are long as they are.
template <Mode kMode>
inline constexpr int kUnrolled = is_plain(kMode) ? 1 : 8;

// As load_matrices, with each matrix transposed (16-bit numbers only).
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(address)
               : "memory");
}

// -------------------------------------------------------------------------------------------------- filters

// From global memory, by the filter's strides.
template <class Number>
__device__ __forceinline__ float weight_at(const Filter& filter, int first, int second, int tap) {
  const int64_t* stride = filter.stride;
  return to_float(static_cast<const Number*>(
      filter.weight)[first * stride[0] + second * stride[1] + tap / 3 * stride[2] + tap % 3 * stride[3]]);
}

// A 16 -> 16 filter in shared memory, one copy for both directions. 16-bit: [tap][in / 8][out][in % 8], so
// that ldmatrix reads it as it is for the forward pass and transposed for the backward pass. 32-bit:
// [tap][out][in], the groups of 4 permuted so that neither direction has bank conflicts.
template <Mode kMode>
struct TrunkFilter {
  using Number = typename Arithmetic<kMode>::Number;
  uint32_t shared;
  const Filter& filter;

  static __device__ __forceinline__ int offset(int out, int in, int tap) {
    if constexpr (stored_bytes(kMode) == 2) {
      return tap * 512 + in / 8 * 256 + out * 16 + in % 8 * 2;
    } else {
      const int permuted = in ^ ((out & 2) << 2 | (out & 4));
      return (tap * 256 + out * 16 + permuted) * 4;
    }
  }
  __device__ __forceinline__ float global_at(int out, int in, int tap) const {
    return weight_at<Number>(filter, out, in, tap);
  }

  __device__ void fill(unsigned char* memory) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < 9 * 256; i += kBackwardThreads) {
      const int tap = i % 9, in = i / 9 % 16, out = i / 144;
      const float value = global_at(out, in, tap);
      if constexpr (stored_bytes(kMode) == 2) {
        *reinterpret_cast<Number*>(memory + offset(out, in, tap)) = from_float<Number>(value);
      } else {
        *reinterpret_cast<uint32_t*>(memory + offset(out, in, tap)) = Arithmetic<kMode>::word(value);
      }
    }
  }
  // Of the 32-bit modes.
  __device__ __forceinline__ uint32_t word(int out, int in, int tap) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + offset(out, in, tap));
    } else {
      return __float_as_uint(global_at(out, in, tap));
    }
  }
  // The B fragments of a tap, of the 16-bit modes. K is the input channel forward, the output channel back.
  template <bool kBack>
  __device__ __forceinline__ void fragments(uint32_t (&words)[4], int lane, int tap) const {
    const int matrix = lane / 8, row = lane % 8;  // matrix: block of N, half of K
    if constexpr (kBack) {
      load_matrices_transposed(words, shared + tap * 512 + matrix / 2 * 256 + (matrix % 2 * 8 + row) * 16);
    } else {
      load_matrices(words, shared + tap * 512 + matrix % 2 * 256 + (matrix / 2 * 8 + row) * 16);
    }
  }
};

// A filter between 16 channels and 3 (full resolution) or 6 (kHalf: both branches):
// [channel of 16][tap][narrow channel]. kWords: of a tap; narrow channels beyond the last are zeros. The tap
// is the offset at which the narrow pixel is read by the wide one: decode's conv3 goes the other way, so its
// taps are turned round.
template <Op kOp, Mode kMode, bool kHalf>
struct NarrowFilter {
  using Number = typename Arithmetic<kMode>::Number;
  static constexpr int kWords = kHalf ? half_planes(kMode) * 4 : 4;
  static constexpr int kPitch = kHalf ? half_filter_pitch(kMode) : kFullFilterPitch;
  uint32_t shared;
  const Filter* filters;  // of all layers

  __device__ __forceinline__ float global_at(int wide, int narrow, int tap) const {
    if (narrow >= (kHalf ? 6 : 3)) return 0.0f;
    if constexpr (kHalf) return weight_at<Number>(filters[3 + narrow / 3], wide, narrow % 3, tap);
    return weight_at<Number>(filters[0], wide, narrow, kOp == Op::kEncode ? tap : 8 - tap);
  }
  __device__ void fill(unsigned char* memory) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < 16 * 9 * kWords; i += kBackwardThreads) {
      const int word = i % kWords, tap = i / kWords % 9, wide = i / (9 * kWords);
      uint32_t bits;
      if constexpr (stored_bytes(kMode) == 2) {
        bits = Arithmetic<kMode>::word(global_at(wide, 2 * word, tap), global_at(wide, 2 * word + 1, tap));
      } else {
        bits = Arithmetic<kMode>::word(global_at(wide, word, tap));
      }
      *reinterpret_cast<uint32_t*>(memory + wide * kPitch + (tap * kWords + word) * 4) = bits;
    }
  }
  __device__ __forceinline__ uint32_t word(int wide, int tap, int word) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + wide * kPitch + (tap * kWords + word) * 4);
    } else {
      return __float_as_uint(global_at(wide, word, tap));
    }
  }
};

// ---------------------------------------------------------------------------------- layers, forward and back

// 16 pixels x 8 * kBlocks channels of a 3x3 convolution over 16-channel rows. rows: above, at and below the
// output. Pixel m of the strip reads around pixel `pixel + kStride * m`, but none beyond `last`.
// load_b(words, tap) gives a tap's B fragments (16-bit), word_b(k, n, tap) a word of them (32-bit).
template <Mode kMode, int kBlocks, int kStride, class LoadB, class WordB>
__device__ __forceinline__ void add_convolution(float (&sums)[kBlocks][4], const Thread& thread,
                                                const uint32_t (&rows)[3], int plane, int pixel, int last,
                                                const LoadB& load_b, const WordB& word_b) {
  const auto clamped = [&](int m) {
    if constexpr (kStride == 1) return pixel + m;
    return min(pixel + kStride * m, last);
  };
  if constexpr (is_plain(kMode)) {
    uint32_t row = rows[0], next = rows[1];  // no array is indexed by y: it would lie in local memory
#pragma unroll 1
    for (int y = 0; y < 3; ++y, row = next, next = rows[2]) {
#pragma unroll 1
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          add_product<kMode, kBlocks>(
              sums, thread,
              [&](int m, int k) {
                return load_word(channel_word(row, plane, clamped(m) + x - 1, 8 * half + k));
              },
              [&](int k, int n) { return word_b(8 * half + k, n, 3 * y + x); });
        }
      }
    }
  } else {
    const int lane_offset = thread.lane / 16 * plane + pixel_at(clamped(thread.lane % 16) - 1);
#pragma unroll
    for (int y = 0; y < 3; ++y) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        const int tap = 3 * y + x;
        if constexpr (stored_bytes(kMode) == 2) {
          uint32_t a[4], b[2 * kBlocks];
          load_matrices(a, rows[y] + lane_offset + x * 16);
          load_b(b, tap);
#pragma unroll
          for (int n = 0; n < kBlocks; ++n) {
            const uint32_t weights[2] = {b[2 * n], b[2 * n + 1]};
            mma<kMode>(sums[n], a, weights);
          }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t a[4];
            load_matrices(a, rows[y] + lane_offset + x * 16 + half * 2 * plane);
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
              const uint32_t weights[2] = {word_b(8 * half + thread.member, 8 * n + thread.group, tap),
                                           word_b(8 * half + thread.member + 4, 8 * n + thread.group, tap)};
              mma<kMode>(sums[n], a, weights);
            }
          }
        }
      }
    }
  }
}

// A 16 -> 16 layer, forward or (with the taps turned round) back.
template <Mode kMode, bool kBack>
__device__ __forceinline__ void add_trunk(float (&sums)[2][4], const Thread& thread,
                                          const uint32_t (&rows)[3], int plane,
                                          const TrunkFilter<kMode>& filter) {
  add_convolution<kMode, 2, 1>(
      sums, thread, rows, plane, 16 * thread.strip, 0,
      [&](uint32_t (&words)[4], int tap) {
        filter.template fragments<kBack>(words, thread.lane, kBack ? 8 - tap : tap);
      },
      [&](int k, int n, int tap) { return kBack ? filter.word(k, n, 8 - tap) : filter.word(n, k, tap); });
}

// 3 or 6 channels from 16: the adjoint of a layer from the narrow channels to the wide ones.
template <Mode kMode, int kStride, class Narrow>
__device__ __forceinline__ void add_narrow_output(float (&sums)[1][4], const Thread& thread,
                                                  const uint32_t (&rows)[3], int plane, int pixel, int last,
                                                  const Narrow& filter) {
  add_convolution<kMode, 1, kStride>(
      sums, thread, rows, plane, pixel, last,
      [&](uint32_t (&words)[2], int tap) {
        const int from = kStride == 1 ? 8 - tap : tap;
        load_matrices_transposed(words, filter.shared + thread.lane % 16 * Narrow::kPitch + from * 16);
      },
      [&](int k, int n, int tap) {
        // The full-resolution filter has 4 words a tap; columns beyond are never written out.
        return kStride == 1 ? filter.word(k, 8 - tap, n % 4) : filter.word(k, tap, n);
      });
}

// 16 pixels x 16 channels from 3 channels at full resolution. rows: above, at and below. K runs over taps.
template <Mode kMode, class Narrow>
__device__ __forceinline__ void add_from_full(float (&sums)[2][4], const Thread& thread,
                                              const uint32_t (&rows)[3], const Narrow& filter) {
  const uint32_t pixel = pixel_at(16 * thread.strip - 1);
  if constexpr (is_plain(kMode)) {
    uint32_t row = rows[0], next = rows[1];
#pragma unroll 1
    for (int y = 0; y < 3; ++y, row = next, next = rows[2]) {
#pragma unroll 1
      for (int x = 0; x < 3; ++x) {
        add_product<kMode, 2, 3>(
            sums, thread, [&](int m, int k) { return load_word(row + pixel + (m + x) * 16 + k * 4); },
            [&](int k, int n) { return filter.word(n, 3 * y + x, k); });
      }
    }
  } else {
#pragma unroll
    for (int step = 0; step < 5; ++step) {
      const auto tap = [&](int k) { return 2 * step + k / 4; };
      add_product<kMode, 2>(
          sums, thread,
          [&](int m, int k) {
            if (tap(k) == 9) return 0u;
            return load_word(rows[tap(k) / 3] + pixel + (m + tap(k) % 3) * 16 + k % 4 * 4);
          },
          [&](int k, int n) { return tap(k) == 9 ? 0u : filter.word(n, tap(k), k % 4); });
    }
  }
}

// The same from 6 channels at half resolution, transposed: one row that has `input` as its tap row `tap_row`.
// Even pixels 2i read input i (tap 1); odd pixels 2i + 1 read i (tap 2) and i + 1 (tap 0).
template <Mode kMode, class Narrow>
__device__ __forceinline__ void add_from_half(float (&sums)[2][4], const Thread& thread, uint32_t input,
                                              int tap_row, int plane, const Narrow& filter) {
  constexpr int kWords = half_planes(kMode) * 4, kParts = 3;
  constexpr int kSteps = kParts * kWords / 8 + kParts * kWords % 8 / 4;
  const uint32_t pixels = input + pixel_at(8 * thread.strip);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    // Part 0: even pixels; 1: odd pixels from input i; 2: odd pixels from input i + 1.
    const auto part = [&](int k) { return (8 * step + k) / kWords; };
    const auto word = [&](int k) { return (8 * step + k) % kWords; };
    add_product<kMode, 2>(
        sums, thread,
        [&](int m, int k) {
          if (part(k) >= kParts) return 0u;
          const uint32_t value =
              load_word(pixels + word(k) / 4 * plane + (m / 2 + part(k) / 2) * 16 + word(k) % 4 * 4);
          return (m % 2 == 0) == (part(k) == 0) ? value : 0u;
        },
        [&](int k, int n) {
          const int column = part(k) == 0 ? 1 : part(k) == 1 ? 2 : 0;
          return part(k) >= kParts ? 0u : filter.word(n, 3 * tap_row + column, word(k));
        });
  }
}

// ----------------------------------------------------------------------------------------------- activations

template <Mode kMode>
__device__ __forceinline__ uint32_t lane_address(const Thread& thread, uint32_t row, int plane) {
  const int within =
      stored_bytes(kMode) == 2 ? thread.member * 4 : thread.member / 2 * plane + thread.member % 2 * 8;
  return row + pixel_at(16 * thread.strip + thread.group) + within;
}

// Stores a lane's sums as numbers of a row.
template <Mode kMode>
__device__ __forceinline__ void store_sums(uint32_t address, int plane, const float (&sums)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float a = sums[n][2 * half], b = sums[n][2 * half + 1];
      if constexpr (stored_bytes(kMode) == 2) {
        store(address + half * 128 + n * plane, Arithmetic<kMode>::word(a, b));
      } else {
        store(address + half * 128 + 2 * n * plane, Arithmetic<kMode>::word(a), Arithmetic<kMode>::word(b));
      }
    }
  }
}

// ReLU, and zero outside the image.
__device__ __forceinline__ void activate(float (&sums)[2][4], bool upper_inside, bool lower_inside) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = (i < 2 ? upper_inside : lower_inside) ? relu(sums[n][i]) : 0.0f;
  }
}

// ReLU's derivative, as autograd has it: the gradient passes unless the activation is <= 0, so it passes at a
// NaN. `address`: the lane's in the activation's row. Activations outside the image are stored as zeros.
template <Mode kMode>
__device__ __forceinline__ void mask(float (&sums)[2][4], uint32_t address, int plane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      bool first, second;
      if constexpr (stored_bytes(kMode) == 2) {
        const uint32_t word = load_word(address + half * 128 + n * plane);
        first = word & 0x7fff, second = word & 0x7fff0000;
      } else {
        const float2 two = load_2(address + half * 128 + 2 * n * plane);
        first = __float_as_uint(two.x) & 0x7fffffff, second = __float_as_uint(two.y) & 0x7fffffff;
      }
      sums[n][2 * half] = first ? sums[n][2 * half] : 0.0f;
      sums[n][2 * half + 1] = second ? sums[n][2 * half + 1] : 0.0f;
    }
  }
}

// ------------------------------------------------------------------------------------- parameters' gradients

// The A fragment whose K is 16 pixels, `pixel + kStride * k` of row `wide`, and whose rows are its 16
// channels.
template <Mode kMode, int kStride>
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const Thread& thread, uint32_t wide,
                                                int plane, int pixel, int last) {
  const int matrix = thread.lane / 8;  // half of the channels, half of the pixels
  const int j = pixel + kStride * (matrix / 2 * 8 + thread.lane % 8);
  load_matrices_transposed(words, wide + matrix % 2 * plane + pixel_at(kStride == 1 ? j : min(j, last)));
}

// The bits of pixels k and k + 1 of `keep` as a mask of two 16-bit numbers.
__device__ __forceinline__ uint32_t keep_two(uint32_t keep, int k) {
  return (keep >> k & 1 ? 0xffffu : 0u) | (keep >> k & 2 ? 0xffff0000u : 0u);
}

// sums[x] += gradient^T * activation, for the three taps of a tap row: the 16 x 16 weights of each. `keep`
// has a bit for each of the strip's pixels that the tile owns. The others are zeros in both factors: a NaN at
// an image's edge must not meet a zero outside of it.
template <Mode kMode>
__device__ __forceinline__ void add_trunk_gradient(float (&sums)[3][2][4], const Thread& thread,
                                                   uint32_t gradient, uint32_t activation, int plane,
                                                   int strip, uint32_t keep) {
  if constexpr (stored_bytes(kMode) == 2) {
    uint32_t a[4];
    load_transposed<kMode, 1>(a, thread, gradient, plane, 16 * strip, 0);
    const uint32_t low = keep_two(keep, 2 * thread.member), high = keep_two(keep, 2 * thread.member + 8);
    a[0] &= low, a[1] &= low, a[2] &= high, a[3] &= high;
    const int matrix = thread.lane / 8;  // half of the pixels, half of the channels
    const uint32_t address =
        activation + matrix / 2 * plane + pixel_at(16 * strip - 1 + matrix % 2 * 8 + thread.lane % 8);
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      uint32_t b[4];
      load_matrices_transposed(b, address + x * 16);
      if (keep != 0xffff) b[0] &= low, b[1] &= high, b[2] &= low, b[3] &= high;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t words[2] = {b[2 * n], b[2 * n + 1]};
        mma<kMode>(sums[x][n], a, words);
      }
    }
  } else {
#pragma unroll
    for (int x = 0; x < 3; ++x) {
#pragma unroll kUnrolled < kMode>
      for (int half = 0; half < 2; ++half) {
        const int pixel = 16 * strip + 8 * half;
        add_product<kMode, 2>(
            sums[x], thread,
            [&](int m, int k) {
              const uint32_t word = load_word(channel_word(gradient, plane, pixel + k, m));
              return keep >> (8 * half + k) & 1 ? word : 0u;
            },
            [&](int k, int n) {
              const uint32_t word = load_word(channel_word(activation, plane, pixel + k + x - 1, n));
              return keep >> (8 * half + k) & 1 ? word : 0u;
            });
      }
    }
  }
}

// sums (16 wide channels x 8 narrow ones) of one tap += wide^T * narrow, over 16 pixels k of those with a bit
// in `keep`: wide_pixel + kStride * k and narrow_pixel + k, none beyond the last.
template <Mode kMode, int kStride>
__device__ __forceinline__ void add_narrow_gradient(float (&sums)[4], const Thread& thread, uint32_t wide,
                                                    int wide_plane, int wide_pixel, int wide_last,
                                                    uint32_t narrow, int narrow_plane, int narrow_pixel,
                                                    int narrow_last, uint32_t keep) {
  const auto clamped = [](int pixel, int last) { return kStride == 1 ? pixel : min(pixel, last); };
  if constexpr (stored_bytes(kMode) == 2) {
    uint32_t a[4], b[2];
    load_transposed<kMode, kStride>(a, thread, wide, wide_plane, wide_pixel, wide_last);
    load_matrices_transposed(b, narrow + pixel_at(clamped(narrow_pixel + thread.lane % 16, narrow_last)));
    const int k = 2 * thread.member;
    a[0] &= keep_two(keep, k), a[1] &= keep_two(keep, k);
    a[2] &= keep_two(keep, k + 8), a[3] &= keep_two(keep, k + 8);
    b[0] &= keep_two(keep, k), b[1] &= keep_two(keep, k + 8);
    mma<kMode>(sums, a, b);
  } else {
    float (&one)[1][4] = reinterpret_cast<float (&)[1][4]>(sums);
#pragma unroll kUnrolled < kMode>
    for (int half = 0; half < 2; ++half) {
      add_product<kMode, 1>(
          one, thread,
          [&](int m, int k) {
            const int pixel = clamped(wide_pixel + kStride * (8 * half + k), wide_last);
            const uint32_t word = load_word(channel_word(wide, wide_plane, pixel, m));
            return keep >> (8 * half + k) & 1 ? word : 0u;
          },
          [&](int k, int n) {
            // Rows at full resolution have one plane; columns beyond it are never written out.
            const int channel = kStride == 1 ? n % 4 : n;
            const int pixel = clamped(narrow_pixel + 8 * half + k, narrow_last);
            const uint32_t word = load_word(channel_word(narrow, narrow_plane, pixel, channel));
            return keep >> (8 * half + k) & 1 ? word : 0u;
          });
    }
  }
}

// ------------------------------------------------------------------------------------------------- loading

// A tile in image coordinates, and which of the rows and columns that a block computes are the tile's own.
struct Tile {
  int image, y, x;    // of pixel 0 and row 0, kBackwardHalo outside of the tile
  int rows, columns;  // the tile's own, full resolution, at rows and columns kBackwardHalo...
  int height, width;  // of the image

  __device__ Tile(const BackwardParameters& p, const Cursor& at)
      : image(at.image),
        y(2 * at.y - kBackwardHalo),
        x(2 * at.x - kBackwardHalo),
        rows(2 * p.tiling.tile_height),
        columns(2 * p.tiling.tile_width),
        height(p.height),
        width(p.width) {}

  __device__ __forceinline__ bool row_inside(int row) const { return inside(y, row, height); }
  __device__ __forceinline__ bool column_inside(int j) const { return inside(x, j, width); }
  __device__ __forceinline__ bool owns_row(int row) const {
    return static_cast<unsigned>(row - kBackwardHalo) < static_cast<unsigned>(rows) && row_inside(row);
  }
  __device__ __forceinline__ bool owns_column(int j) const {
    return static_cast<unsigned>(j - kBackwardHalo) < static_cast<unsigned>(columns) && column_inside(j);
  }
  // The same of half-resolution rows and columns: an even size's last pixel pair, or an odd one's last pixel.
  __device__ __forceinline__ bool half_inside(int row, int k) const {
    return inside(y / 2, row, half_size(height)) && inside(x / 2, k, half_size(width));
  }
  __device__ __forceinline__ bool owns_half_row(int row) const {
    return static_cast<unsigned>(row - kBackwardHalo / 2) < static_cast<unsigned>(rows / 2) &&
           inside(y / 2, row, half_size(height));
  }
  __device__ __forceinline__ bool owns_half_column(int k) const {
    return static_cast<unsigned>(k - kBackwardHalo / 2) < static_cast<unsigned>(columns / 2) &&
           inside(x / 2, k, half_size(width));
  }
  // The owned pixels among 16 from `first`, as bits.
  __device__ __forceinline__ uint32_t owned_columns(int first) const {
    return __ballot_sync(~0u, owns_column(first + threadIdx.x % 16)) & 0xffff;
  }
  __device__ __forceinline__ uint32_t owned_half_columns(int first) const {
    return __ballot_sync(~0u, owns_half_column(first + threadIdx.x % 16)) & 0xffff;
  }
};

// Loads the inputs' rows. The block's first half has a pixel of a pair of full-resolution rows for each
// thread, the next warp a pixel of a half-resolution row. Loads are issued at the beginning of a step, and
// stored at its end for the next.
template <Op kOp, Mode kMode>
struct InputReader {
  using Number = typename Arithmetic<kMode>::Number;
  using A = Arithmetic<kMode>;
  float scale[3], shift[3];
  uint32_t raw[6] = {0, 0, 0, 0, 0, 0};
  float sums[6] = {0, 0, 0, 0, 0, 0};  // of the incoming gradient over the tiles' own pixels
  bool is_inside = false, is_owned = false;
  bool is_full, is_half;
  int row, column;

  __device__ explicit InputReader(const BackwardParameters& p) {
    const int width = 16 * p.layout.strips, thread = threadIdx.x, half_thread = thread - kBackwardThreads / 2;
    is_full = thread < 2 * width;
    is_half = half_thread >= 0 && half_thread < width / 2;
    row = is_full ? thread / width : 0;
    column = is_full ? thread - row * width : half_thread;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      scale[c] = p.scale.type == NumberType::kNone ? 1.0f : number_at(p.scale, c);
      shift[c] = p.shift.type == NumberType::kNone ? 0.0f : number_at(p.shift, c);
    }
  }

  // Rows full_row, full_row + 1 and half_row of a tile.
  __device__ void prefetch(const BackwardParameters& p, const Tile& tile, int full_row, int half_row) {
    if (is_full) {
      const int r = full_row + row;
      is_inside = tile.row_inside(r) && tile.column_inside(column);
      is_owned = tile.owns_row(r) && tile.owns_column(column);
      if (!is_inside) return;
      const int64_t* stride = p.full.stride;
      const int64_t at =
          int64_t{tile.image} * stride[0] + (tile.y + r) * stride[2] + (tile.x + column) * stride[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        raw[c] = p.image_is_bytes ? static_cast<const uint8_t*>(p.full.data)[at + c * stride[1]]
                                  : bits_of(static_cast<const Number*>(p.full.data)[at + c * stride[1]]);
      }
    } else if (is_half) {
      is_inside = tile.half_inside(half_row, column);
      is_owned = tile.owns_half_row(half_row) && tile.owns_half_column(column);
      if (!is_inside) return;
      const int y = tile.y / 2 + half_row, x = tile.x / 2 + column;
#pragma unroll
      for (int c = 0; c < 6; ++c) {
        const Images& from = c < 3 ? p.low : p.high;
        raw[c] = bits_of(static_cast<const Number*>(
            from.data)[int64_t{tile.image} * from.stride[0] + c % 3 * from.stride[1] + y * from.stride[2] +
                       x * from.stride[3]]);
      }
    }
  }

  __device__ void store_rows(const BackwardParameters& p, const Rings<kOp, kMode>& rings, int full_row,
                             int half_row) {
    if (is_full) {
      float value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const float number = p.image_is_bytes ? static_cast<float>(raw[c]) : float_of_bits<Number>(raw[c]);
        value[c] = !is_inside ? 0.0f : kOp == Op::kEncode ? fmaf(number, scale[c], shift[c]) : number;
        if (kOp == Op::kDecode && is_owned) sums[c] += value[c];
      }
      const uint32_t address = rings.full(full_row + row + full_rows(kOp)) + pixel_at(column);
      if constexpr (stored_bytes(kMode) == 2) {
        store(address, A::word(value[0], value[1]), A::word(value[2], 0.0f), 0, 0);
      } else {
        store(address, A::word(value[0]), A::word(value[1]), A::word(value[2]), 0);
      }
    } else if (is_half) {
      float value[6];
#pragma unroll
      for (int c = 0; c < 6; ++c) {
        value[c] = is_inside ? float_of_bits<Number>(raw[c]) : 0.0f;
        if (kOp == Op::kEncode && is_owned) sums[c] += value[c];
      }
      const uint32_t address = rings.half(half_row + half_rows(kOp)) + pixel_at(column);
      if constexpr (stored_bytes(kMode) == 2) {
        store(address, A::word(value[0], value[1]), A::word(value[2], value[3]), A::word(value[4], value[5]),
              0);
      } else {
        store(address, A::word(value[0]), A::word(value[1]), A::word(value[2]), A::word(value[3]));
        store(address + p.layout.half_plane, A::word(value[4]), A::word(value[5]), 0, 0);
      }
    }
  }
};

// ------------------------------------------------------------------------------------------------ the block

// Sums over the whole kernel, in registers. See the top of the file for the warps' shares.
struct Sums {
  union {
    float trunk[3][2][4];  // warps 0 to 5: a row of taps of the third layer (0 to 2) or the second (3 to 5)
    struct {
      float full[5][4];     // warp 6: taps 0 to 4 of the full-resolution layer, warp 7: 5 to 8
      float half[2][3][4];  // of the branches, warp 6: tap row 1, warp 7: tap rows 0 and 2
    } narrow;
  };
  float bias[3][2][2];  // a lane's channels of d first, d second, d third
  float scale[2], shift[2];
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
  const Thread thread;
  const Rings<kOp, kMode> rings;
  const TrunkFilter<kMode> second_filter, third_filter;
  const NarrowFilter<kOp, kMode, false> full_filter;
  const NarrowFilter<kOp, kMode, true> half_filter;
  float scale[2];  // of the channels that the lane writes of an image's gradient
  Sums sums;

  __device__ Backward(const BackwardParameters& p, uint32_t shared)
      : p(p),
        rings{p.layout, shared},
        second_filter{shared + p.layout.trunk_filters, p.filters[1]},
        third_filter{shared + p.layout.trunk_filters + trunk_filter_bytes(kMode), p.filters[2]},
        full_filter{shared + p.layout.full_filter, p.filters},
        half_filter{shared + p.layout.half_filter, p.filters} {
    clear(sums);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int channel = 2 * thread.member + e;
      scale[e] = p.scale.type == NumberType::kNone || channel >= 3 ? 1.0f : number_at(p.scale, channel);
    }
  }

  __device__ void fill_filters(unsigned char* memory) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      second_filter.fill(memory + p.layout.trunk_filters);
      third_filter.fill(memory + p.layout.trunk_filters + trunk_filter_bytes(kMode));
      full_filter.fill(memory + p.layout.full_filter);
      half_filter.fill(memory + p.layout.half_filter);
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
  }

  __device__ __forceinline__ void begin_with_bias(float (&to)[2][4], int layer) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 bias =
          load_2(rings.shared + p.layout.biases + (layer * 16 + 8 * n + 2 * thread.member) * 4);
      to[n][0] = to[n][2] = bias.x, to[n][1] = to[n][3] = bias.y;
    }
  }
  // ReLU and store; `row` is this warp's.
  __device__ __forceinline__ void finish_activation(float (&values)[2][4], uint32_t to, const Tile& tile,
                                                    int row) const {
    const int pixel = 16 * thread.strip + thread.group;
    const bool row_inside = tile.row_inside(row);
    activate(values, row_inside && tile.column_inside(pixel), row_inside && tile.column_inside(pixel + 8));
    store_sums<kMode>(lane_address<kMode>(thread, to, p.layout.row_plane), p.layout.row_plane, values);
  }
  // Mask by the activation, add to the bias' gradient, store.
  __device__ __forceinline__ void finish_gradient(float (&values)[2][4], uint32_t activation, uint32_t to,
                                                  const Tile& tile, int row, int layer) {
    mask<kMode>(values, lane_address<kMode>(thread, activation, p.layout.row_plane), p.layout.row_plane);
    const int pixel = 16 * thread.strip + thread.group;
    const bool owns_row = tile.owns_row(row);
    const bool upper = owns_row && tile.owns_column(pixel), lower = owns_row && tile.owns_column(pixel + 8);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        sums.bias[layer][n][e] += (upper ? values[n][e] : 0.0f) + (lower ? values[n][2 + e] : 0.0f);
      }
    }
    store_sums<kMode>(lane_address<kMode>(thread, to, p.layout.row_plane), p.layout.row_plane, values);
  }

  // A row from the 6 channels at half resolution: an even row reads one row of them, an odd row two.
  __device__ __forceinline__ void add_half_rows(float (&to)[2][4], int row) const {
    const int plane = p.layout.half_plane;
    if (row % 2 == 0) {
      add_from_half<kMode>(to, thread, rings.half(row / 2), 1, plane, half_filter);
    } else {
      add_from_half<kMode>(to, thread, rings.half(row / 2), 2, plane, half_filter);
      add_from_half<kMode>(to, thread, rings.half(row / 2 + 1), 0, plane, half_filter);
    }
  }
  __device__ __forceinline__ void add_full_rows(float (&to)[2][4], int row) const {
    const uint32_t rows[3] = {rings.full(row - 1), rings.full(row), rings.full(row + 1)};
    add_from_full<kMode>(to, thread, rows, full_filter);
  }

  __device__ __forceinline__ void compute_first(const Tile& tile, int row) const {
    float values[2][4];
    begin_with_bias(values, 0);
    if constexpr (kOp == Op::kEncode) {
      add_full_rows(values, row);
    } else {
      add_half_rows(values, row);
    }
    finish_activation(values, rings.first(row), tile, row);
  }
  __device__ __forceinline__ void compute_second(const Tile& tile, int row) const {
    const uint32_t rows[3] = {rings.first(row - 1), rings.first(row), rings.first(row + 1)};
    float values[2][4];
    begin_with_bias(values, 1);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_activation(values, rings.second(row), tile, row);
  }
  __device__ __forceinline__ void compute_third(const Tile& tile, int row) {
    const uint32_t rows[3] = {rings.second(row - 1), rings.second(row), rings.second(row + 1)};
    float values[2][4];
    begin_with_bias(values, 2);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_activation(values, rings.third(row), tile, row);
    clear(values);
    if constexpr (kOp == Op::kEncode) {
      add_half_rows(values, row);
    } else {
      add_full_rows(values, row);
    }
    finish_gradient(values, rings.third(row), rings.third_gradient(row), tile, row,
                    2);  // the lane's own words
  }
  __device__ __forceinline__ void compute_second_gradient(const Tile& tile, int row) {
    const uint32_t rows[3] = {rings.third_gradient(row - 1), rings.third_gradient(row),
                              rings.third_gradient(row + 1)};
    float values[2][4];
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_gradient(values, rings.second(row), rings.second_gradient(row), tile, row, 1);
  }
  __device__ __forceinline__ void compute_first_gradient(const Tile& tile, int row) {
    const uint32_t rows[3] = {rings.second_gradient(row - 1), rings.second_gradient(row),
                              rings.second_gradient(row + 1)};
    float values[2][4];
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_gradient(values, rings.first(row), rings.first_gradient(row), tile, row, 0);
  }

  // encode: a row of the image's gradient, and the sums for scale and shift.
  __device__ __forceinline__ void write_full_gradient(const Tile& tile, int row) {
    if (!tile.owns_row(row)) return;
    const uint32_t rows[3] = {rings.first_gradient(row - 1), rings.first_gradient(row),
                              rings.first_gradient(row + 1)};
    float values[1][4];
    clear(values);
    add_narrow_output<kMode, 1>(values, thread, rows, p.layout.row_plane, 16 * thread.strip, 0, full_filter);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pixel = 16 * thread.strip + thread.group + i / 2 * 8, channel = 2 * thread.member + i % 2;
      if (channel >= 3 || !tile.owns_column(pixel)) continue;
      const int64_t y = tile.y + row, x = tile.x + pixel;
      const auto offset = [&](const Images& images) {
        return int64_t{tile.image} * images.stride[0] + channel * images.stride[1] + y * images.stride[2] +
               x * images.stride[3];
      };
      if (p.need_input) {
        static_cast<Number*>(p.grad_full.data)[offset(p.grad_full)] =
            from_float<Number>(values[0][i] * scale[i % 2]);
      }
      if (p.need_scale) {
        const int64_t at = offset(p.full);
        const float image = p.image_is_bytes
                                ? static_cast<float>(static_cast<const uint8_t*>(p.full.data)[at])
                                : to_float(static_cast<const Number*>(p.full.data)[at]);
        sums.scale[i % 2] += values[0][i] * image;
        sums.shift[i % 2] += values[0][i];
      }
    }
  }

  // decode: a row of the gradients of low and high; row 2 * half_row is their centre.
  __device__ __forceinline__ void write_half_gradient(const Tile& tile, int half_row) const {
    if (thread.role != 0 || 16 * thread.strip >= 8 * p.layout.strips || !tile.owns_half_row(half_row)) return;
    const int row = 2 * half_row;
    const uint32_t rows[3] = {rings.first_gradient(row - 1), rings.first_gradient(row),
                              rings.first_gradient(row + 1)};
    float values[1][4];
    clear(values);
    add_narrow_output<kMode, 2>(values, thread, rows, p.layout.row_plane, 32 * thread.strip,
                                16 * p.layout.strips - 2, half_filter);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = 16 * thread.strip + thread.group + i / 2 * 8, channel = 2 * thread.member + i % 2;
      if (channel >= 6 || !tile.owns_half_column(k)) continue;
      const Images& to = channel < 3 ? p.grad_low : p.grad_high;
      const int64_t y = tile.y / 2 + half_row, x = tile.x / 2 + k;
      static_cast<Number*>(to.data)[int64_t{tile.image} * to.stride[0] + channel % 3 * to.stride[1] +
                                    y * to.stride[2] + x * to.stride[3]] = from_float<Number>(values[0][i]);
    }
  }

  // ------------------------------------------------------------------------------------------------- sums

  __device__ __forceinline__ void sum_trunk(const Tile& tile, int step) {
    const int warp = threadIdx.x / 32, tap_row = warp % 3;
    const bool is_third = warp < 3;
    const int top = 2 * step - (is_third ? 3 : 4), plane = p.layout.row_plane;
#pragma unroll 1
    for (int row = top; row < top + 2; ++row) {
      if (!tile.owns_row(row)) continue;
      const int reads = row + tap_row - 1;
      if (!tile.row_inside(reads)) continue;
      const uint32_t gradient = is_third ? rings.third_gradient(row) : rings.second_gradient(row);
      const uint32_t activation = is_third ? rings.second(reads) : rings.first(reads);
#pragma unroll 1
      for (int strip = 0; strip < p.layout.strips; ++strip) {
        add_trunk_gradient<kMode>(sums.trunk, thread, gradient, activation, plane, strip,
                                  tile.owned_columns(16 * strip));
      }
    }
  }

  // Rows at full resolution: encode d first * image, decode third * incoming gradient.
  __device__ __forceinline__ void sum_full(const Tile& tile, int step, int first_tap) {
    const int top = 2 * step - (kOp == Op::kEncode ? 5 : 3);
#pragma unroll 1
    for (int row = top; row < top + 2; ++row) {
      if (!tile.owns_row(row)) continue;
      const uint32_t wide = kOp == Op::kEncode ? rings.first_gradient(row) : rings.third(row);
#pragma unroll 1
      for (int strip = 0; strip < p.layout.strips; ++strip) {
        const uint32_t keep = tile.owned_columns(16 * strip);
#pragma unroll
        for (int i = 0; i < 5; ++i) {
          const int tap = first_tap + i, reads = row + tap / 3 - 1;
          if (tap >= 9 || !tile.row_inside(reads)) continue;
          add_narrow_gradient<kMode, 1>(sums.narrow.full[i], thread, wide, p.layout.row_plane, 16 * strip, 0,
                                        rings.full(reads), 0, 16 * strip + tap % 3 - 1, 0, keep);
        }
      }
    }
  }

  // Rows at half resolution: encode third * incoming gradient, decode d first * low and high. Wide row `row`
  // is tap row `tap_row` of half-resolution row `half_row`.
  __device__ __forceinline__ void sum_half(const Tile& tile, float (&to)[3][4], int row, int half_row) {
    if (!tile.owns_half_row(half_row) || !tile.row_inside(row)) return;
    const uint32_t wide = kOp == Op::kEncode ? rings.third(row) : rings.first_gradient(row);
#pragma unroll 1
    for (int first = 0; first < 8 * p.layout.strips; first += 16) {
      const uint32_t keep = tile.owned_half_columns(first);
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        add_narrow_gradient<kMode, 2>(to[x], thread, wide, p.layout.row_plane, 2 * first + x - 1,
                                      16 * p.layout.strips, rings.half(half_row), p.layout.half_plane, first,
                                      8 * p.layout.strips, keep);
      }
    }
  }

  __device__ __forceinline__ void add_sums(const Tile& tile, int step) {
    const int warp = threadIdx.x / 32;
    if (warp < 6) {
      sum_trunk(tile, step);
      return;
    }
    const int odd = 2 * step - (kOp == Op::kEncode ? 3 : 5), even = odd + 1;  // rows of the wide operand
    if (warp == 6) {
      sum_full(tile, step, 0);
      sum_half(tile, sums.narrow.half[0], even, even / 2);  // tap row 1
    } else {
      sum_full(tile, step, 5);
      sum_half(tile, sums.narrow.half[0], odd, (odd + 1) / 2);  // tap row 0
      sum_half(tile, sums.narrow.half[1], odd, odd / 2);        // tap row 2
    }
  }

  // ------------------------------------------------------------------------------------------------- steps

  // The rows that step `step` is the first to need. Some of step 0 are negative and needed by nobody.
  static __device__ __forceinline__ int full_row_of(int step) {
    return 2 * step - (kOp == Op::kEncode ? 0 : 2);
  }
  static __device__ __forceinline__ int half_row_of(int step) { return step - (kOp == Op::kEncode ? 1 : 0); }

  __device__ void run_tile(const Tile& tile, InputReader<kOp, kMode>& reader) {
    const int steps = tile.rows / 2 + kBackwardHalo;
    const bool has_strip = thread.strip < p.layout.strips;
#pragma unroll 1
    for (int step = 0; step < 2; ++step) {
      reader.prefetch(p, tile, full_row_of(step), half_row_of(step));
      reader.store_rows(p, rings, full_row_of(step), half_row_of(step));
    }
    block_barrier();
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      const int row = 2 * step + thread.role;  // less 1 in the first phase, 2 in the second, ...
      const bool has_next = step + 1 < steps;
      if (has_next) reader.prefetch(p, tile, full_row_of(step + 1), half_row_of(step + 1));
      __syncwarp();  // reconverge for ldmatrix and mma
      if (has_strip) compute_first(tile, row - 1);
      block_barrier();
      if (has_strip && step >= 2) compute_second(tile, row - 2);
      block_barrier();
      if (has_strip && step >= 3) compute_third(tile, row - 3);
      block_barrier();
      if (has_strip && step >= 4) compute_second_gradient(tile, row - 4);
      block_barrier();
      if (has_strip && step >= 5) compute_first_gradient(tile, row - 5);
      block_barrier();
      if (step >= 6) {
        if (kOp == Op::kEncode && (p.need_input || p.need_scale) && has_strip) {
          write_full_gradient(tile, row - 6);
        }
        if (kOp == Op::kDecode && p.need_input) write_half_gradient(tile, step - 3);
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

  // A lane's elements of a 16 x 8 product: f(element, wide channel, narrow channel).
  template <class F>
  __device__ __forceinline__ void for_elements(const F& f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(i, thread.group + i / 2 * 8, 2 * thread.member + i % 2);
  }

  __device__ void write_weights(float* out) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    const int warp = threadIdx.x / 32;
    if (warp < 6) {
      float* weight = out + (warp < 3 ? kOffset<(kEncodes ? 4 : 6)> : kOffset<(kEncodes ? 2 : 4)>);
#pragma unroll
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          for_elements([&](int i, int o, int c) {
            weight[(o * 16 + 8 * n + c) * 9 + warp % 3 * 3 + x] = sums.trunk[x][n][i];
          });
        }
      }
      return;
    }
#pragma unroll
    for (int t = 0; t < 5; ++t) {
      const int tap = t + (warp == 6 ? 0 : 5);
      if (tap >= 9) continue;
      for_elements([&](int i, int wide, int c) {
        if (c >= 3) return;
        if (kEncodes) {
          out[kOffset<0> + (wide * 3 + c) * 9 + tap] = sums.narrow.full[t][i];
        } else {
          out[kOffset<8> + (c * 16 + wide) * 9 + 8 - tap] = sums.narrow.full[t][i];
        }
      });
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (warp == 6 && part == 1) continue;
      const int tap_row = warp == 6 ? 1 : 2 * part;
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        for_elements([&](int i, int wide, int c) {
          if (c >= 6) return;
          const int begin = c < 3 ? kOffset<(kEncodes ? 6 : 0)> : kOffset<(kEncodes ? 8 : 2)>;
          out[begin + (c % 3 * 16 + wide) * 9 + 3 * tap_row + x] = sums.narrow.half[part][x][i];
        });
      }
    }
  }

  static constexpr int kVectors = 48 + 4 * 2 * 2 + 6;  // a warp's: biases, scale and shift (8 each), incoming

  // Adds over the lanes that hold the same channels.
  static __device__ __forceinline__ float over_groups(float value) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
  }

  __device__ void write_vectors(float* out, float* scratch, const InputReader<kOp, kMode>& reader) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    float* mine = scratch + threadIdx.x / 32 * kVectors;
#pragma unroll
    for (int layer = 0; layer < 3; ++layer) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float sum = over_groups(sums.bias[layer][n][e]);
          if (thread.group == 0) mine[layer * 16 + 8 * n + 2 * thread.member + e] = sum;
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale = over_groups(sums.scale[e]), shift = over_groups(sums.shift[e]);
      if (thread.group == 0) {
        mine[48 + 2 * thread.member + e] = scale, mine[56 + 2 * thread.member + e] = shift;
      }
    }
#pragma unroll
    for (int c = 0; c < 6; ++c) {
      float sum = over_groups(reader.sums[c]);
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (thread.lane == 0) mine[64 + c] = sum;
    }
    block_barrier();
    if (threadIdx.x >= kVectors) return;
    float sum = 0;
#pragma unroll 1
    for (int warp = 0; warp < kBackwardThreads / 32; ++warp) sum += scratch[warp * kVectors + threadIdx.x];
    const int i = threadIdx.x;
    if (i < 48) {
      const int layer = i / 16;
      out[(layer == 0   ? kOffset<1>
           : layer == 1 ? kOffset<(kEncodes ? 3 : 5)>
                        : kOffset<(kEncodes ? 5 : 7)>)+i %
          16] = sum;
      if (!kEncodes && layer == 0) out[kOffset<3> + i] = sum;  // of both branches
    } else if (i < 64) {
      if (kEncodes && i % 8 < 3) out[(i < 56 ? kOffset<10> : kOffset<11>)+i % 8] = sum;
    } else if (kEncodes || i < 67) {
      out[(!kEncodes || i < 67 ? kOffset<(kEncodes ? 7 : 9)> : kOffset<9>)+(i - 64) % 3] = sum;
    }
  }
};

template <Op kOp, Mode kMode>
__device__ void run_backward(const BackwardParameters& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Backward<kOp, kMode> backward(p, shared_address(memory));
  // No pixel is read unwritten: the rows' ends stay zeros.
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < p.layout.trunk_filters; i += kBackwardThreads * 16) {
    store(backward.rings.shared + i, 0, 0, 0, 0);
  }
  backward.fill_filters(memory);
  block_barrier();
  InputReader<kOp, kMode> reader(p);
  Cursor cursor(p.tiling, 0);
#pragma unroll 1
  for (; cursor.tile < p.tiling.tiles; cursor.tile += gridDim.x) {
    cursor.locate();
    backward.run_tile(Tile(p, cursor), reader);
  }
  if (!p.need_parameters && !p.need_scale) return;
  float* out = p.partials + static_cast<int64_t>(blockIdx.x) * partial_floats(kOp);
  backward.write_weights(out);
  backward.write_vectors(out, reinterpret_cast<float*>(memory), reader);
}

}  // namespace wae::cuda
