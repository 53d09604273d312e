// Shared by encode_backward.cu and decode_backward.cu: gradients from the inputs alone, in one pass.
//
// A block walks down a tile, two rows a step, and does all layers in every step: three forward (first,
// second, third), three back, the gradient of the input, and the sums for the parameters' gradients. Only the
// results are written to global memory:
//
//               |<-------------- 16 * strips pixels, a warp for each strip ------------->|
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
//             sums, of             second 2s-4, 2s-3 with d third 2s-5..2s-2, first 2s-5, 2s-4 with
//                                  d second 2s-6..2s-3, d first and third with the narrow inputs
//
// A warp computes 16 pixels of both rows, so weights are loaded once for two rows, and each of the four rows
// that they read once for all that it touches. For the sums, a row of activations is loaded once for the
// three rows of gradients around it, which stay in registers. Warps 0 to 3 sum for the third layer and the
// half-resolution one, 4 to 7 for the second and the full-resolution one, each in its own strips and in
// registers, from the first tile to the last. At the end the four warps' sums are added in their order, each
// block writes its own, and reduce.cu adds those of all blocks in a fixed order: the same bits every time, no
// atomics.
//
//     arithmetic   in m16n8k16 for 16 pixels, 16-bit: forward 6 or 4.5, 36, 4.5 or 6; back 36, 9 or 2.25;
//                  sums 36, 6, 2.25: 136 (encode) and 129 (decode), where the forward pass has 44 and 48
//     wavefronts   for 16 pixels, 16-bit: a 16 -> 16 layer 42 each way, its sums 20; docs/cuda.md has all
//     memory       the inputs times 16 * strips / (16 * strips - 12), the results once, 24 KB of sums a block
//     bound        docs/cuda.md, for each chip

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/parameters.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {

// On this target, which is what counts inside a kernel.
#ifdef __CUDA_ARCH__
#define WAE_CAPABILITY (__CUDA_ARCH__ / 10)
#else
#define WAE_CAPABILITY 0
#endif

// The same number, of which the compiler knows nothing: what follows from it is computed where it is used and
// not kept from step to step, since the registers are needed for sums.
__device__ __forceinline__ int forgotten(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The thread's place: its warp, which is also its strip; the row and the column pair of mma fragments.
struct Thread {
  int warp, lane, group, member;

  __device__ Thread() : warp(threadIdx.x / 32), lane(threadIdx.x % 32) { forget(); }

  __device__ __forceinline__ void forget() {
    lane = forgotten(lane) & 31, group = lane / 4, member = lane % 4;
  }
};
static_assert(kBackwardThreads == kMaxBackwardStrips * 32);

// --------------------------------------------------------------------------------------------- rows in rings

// Everything that a phase needs to find a row. Rows have one pixel of zeros on their left and three on their
// right, and live in rings: row r of a ring of n is in slot r % n.
template <Op kOp, Mode kMode>
struct Rings {
  const BackwardLayout& at;
  uint32_t shared;
  // The rows next to the half-resolution layer, which reads every other pixel of them: even and odd pixels
  // are apart, so that the ones it reads are neighbours.
  static constexpr bool kThirdByParity = kOp == Op::kEncode, kFirstGradientByParity = kOp == Op::kDecode;

  template <int kRows>
  __device__ __forceinline__ uint32_t row(int begin, int index, int plane) const {
    return shared + begin + index % kRows * (planes(kMode) * plane);
  }
  __device__ __forceinline__ uint32_t first(int i) const {
    return row<kFirstRows>(at.first, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t second(int i) const {
    return row<kSecondRows>(at.second, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t third(int i) const {
    return row<kThirdRows>(at.third, i, plane<kThirdByParity>());
  }
  __device__ __forceinline__ uint32_t first_gradient(int i) const {
    return row<kGradientRows>(at.first_gradient, i, plane<kFirstGradientByParity>());
  }
  __device__ __forceinline__ uint32_t second_gradient(int i) const {
    return row<kGradientRows>(at.second_gradient, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t third_gradient(int i) const {
    return row<kGradientRows>(at.third_gradient, i, at.row_plane);
  }
  __device__ __forceinline__ uint32_t full(int i) const {
    return shared + at.full + i % full_rows(kOp) * at.row_plane;
  }
  __device__ __forceinline__ uint32_t half(int i) const {
    return shared + at.half + i % half_rows(kOp) * (half_planes(kMode) * at.half_plane);
  }
  template <bool kByParity>
  __device__ __forceinline__ int plane() const {
    return kByParity ? at.parity_plane : at.row_plane;
  }
};

// Byte of pixel j in a plane.
__device__ __forceinline__ int pixel_at(int j) { return (j + 1) * 16; }

// Bytes, in a plane, of the pixels that 16 neighbouring pixels of a layer read for tap column x: `base` of
// the layer's pixel m plus `column`. Of a row by pixels, those around pixel first + m.
template <bool kByParity>
struct Columns {
  int first;

  __device__ __forceinline__ int base(int m) const { return pixel_at(first + m - 1); }
  __device__ __forceinline__ int column(int x) const { return x * 16; }
};
// Of a row by parity, those around pixel 2 * (first + m), none beyond the last.
template <>
struct Columns<true> {
  int first, last, half_plane;

  __device__ __forceinline__ int base(int m) const { return min(first + m, last) * 16; }
  __device__ __forceinline__ int column(int x) const { return (x == 0 ? 0 : 16) + (x == 1 ? 0 : half_plane); }
};

// A 4-byte channel in a row of 32-bit numbers.
__device__ __forceinline__ uint32_t load_channel(uint32_t row, int plane, int pixel, int channel) {
  return load_word(row + channel / 4 * plane + pixel + channel % 4 * 4);
}

// ---------------------------------------------------------------------------------------------- products

// Of the 32-bit modes: for each row, sums (16 x 8 * kBlocks) += A (16 x 8 words) * B (8 words x 8 * kBlocks).
// a(row, m, k) and b(k, n) return words, in the plain modes floats. Tensor cores take a lane's own words; the
// plain modes all of its row and columns, of the first kWords only.
template <Mode kMode, int kWords = 8, int kRows, int kBlocks, class A, class B>
__device__ __forceinline__ void add_product(float (&sums)[kRows][kBlocks][4], const Thread& thread,
                                            const A& a, const B& b) {
  const int g = thread.group, t = thread.member;
  if constexpr (!is_plain(kMode)) {
    uint32_t weights[kBlocks][2];
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) weights[n][0] = b(t, 8 * n + g), weights[n][1] = b(t + 4, 8 * n + g);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const uint32_t words[4] = {a(row, g, t), a(row, g + 8, t), a(row, g, t + 4), a(row, g + 8, t + 4)};
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) mma<kMode>(sums[row][n], words, weights[n]);
    }
  } else {
    constexpr int kTogether = weights_in_shared(kMode, WAE_CAPABILITY) ? kWords : 1;  // 64-bit addresses
#pragma unroll kTogether
    for (int k = 0; k < kWords; ++k) {
      float weights[kBlocks][2];
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) weights[n][e] = __uint_as_float(b(k, 8 * n + 2 * t + e));
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const float upper = __uint_as_float(a(row, g, k)), lower = __uint_as_float(a(row, g + 8, k));
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[row][n][e] = fmaf(upper, weights[n][e], sums[row][n][e]);
            sums[row][n][2 + e] = fmaf(lower, weights[n][e], sums[row][n][2 + e]);
          }
        }
      }
    }
  }
}

// One row's sums as those of several.
template <int kBlocks>
__device__ __forceinline__ float (&one_row(float (&sums)[kBlocks][4]))[1][kBlocks][4] {
  return reinterpret_cast<float (&)[1][kBlocks][4]>(sums);
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

// sums += A * B for kBlocks blocks of 8 columns, whose fragments lie one after the other.
template <Mode kMode, int kBlocks>
__device__ __forceinline__ void mma_blocks(float (&sums)[kBlocks][4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[2 * kBlocks]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    const uint32_t words[2] = {b[2 * n], b[2 * n + 1]};
    mma<kMode>(sums[n], a, words);
  }
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
  // Of the 32-bit modes. K is the input channel forward, the output channel back.
  template <bool kBack>
  __device__ __forceinline__ uint32_t word(int k, int n, int tap) const {
    const int out = kBack ? k : n, in = kBack ? n : k;
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + offset(out, in, tap));
    } else {
      return __float_as_uint(global_at(out, in, tap));
    }
  }
  // The B fragments of a tap; in tf32, of 8 of its 16 words of K.
  template <bool kBack>
  __device__ __forceinline__ void fragments(uint32_t (&words)[4], const Thread& thread, int tap,
                                            int half) const {
    const int matrix = thread.lane / 8, row = thread.lane % 8;  // matrix: block of N, half of K
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = word<kBack>(8 * half + i % 2 * 4 + thread.member, i / 2 * 8 + thread.group, tap);
      }
    } else if constexpr (kBack) {
      load_matrices_transposed(words, shared + tap * 512 + matrix / 2 * 256 + (matrix % 2 * 8 + row) * 16);
    } else {
      load_matrices(words, shared + tap * 512 + matrix % 2 * 256 + (matrix / 2 * 8 + row) * 16);
    }
  }
};

// A filter between 16 wide channels and 8 narrow ones: 3 at full resolution, or 3 of each branch at half
// resolution, in places 0 to 2 and 4 to 6; the other places are zeros. The tap is the offset at which the
// narrow pixel is read by the wide one: decode's conv3 goes the other way, so its taps are turned round.
// 16-bit: [tap][wide][narrow]; of the full-resolution filter [tap row][tap column / 2][wide][tap column % 2]
// [4 narrow], so that K is a row of taps, and for the way back [tap][wide / 8][4 narrow][wide % 8].
// 32-bit: [wide][tap][narrow], of the full-resolution filter 4 narrow places.
template <Op kOp, Mode kMode, bool kHalf>
struct NarrowFilter {
  using Number = typename Arithmetic<kMode>::Number;
  static constexpr int kWords = kHalf ? 8 : 4, kPitch = kHalf ? kHalfFilterPitch : kFullFilterPitch;
  const Filter* filters;  // of all layers
  uint32_t shared, back;

  __device__ __forceinline__ float global_at(int wide, int narrow, int tap) const {
    if (narrow % 4 == 3) return 0.0f;
    if constexpr (kHalf) return weight_at<Number>(filters[3 + narrow / 4], wide, narrow % 4, tap);
    return weight_at<Number>(filters[0], wide, narrow, kOp == Op::kEncode ? tap : 8 - tap);
  }

  // Words i of `memory`, from f(i), which returns one number in 32 bits, two in 16.
  template <class F>
  static __device__ __forceinline__ void fill_words(unsigned char* memory, int words, const F& f) {
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += kBackwardThreads) reinterpret_cast<uint32_t*>(memory)[i] = f(i);
  }
  __device__ __forceinline__ uint32_t two_narrow(int wide, int narrow, int tap) const {
    return Arithmetic<kMode>::word(global_at(wide, narrow, tap), global_at(wide, narrow + 1, tap));
  }
  __device__ void fill(unsigned char* memory, unsigned char* memory_back) const {
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll 1
      for (int i = threadIdx.x; i < 16 * 9 * kWords; i += kBackwardThreads) {
        const int narrow = i % kWords, tap = i / kWords % 9, wide = i / (9 * kWords);
        *reinterpret_cast<uint32_t*>(memory + wide * kPitch + (tap * kWords + narrow) * 4) =
            Arithmetic<kMode>::word(global_at(wide, narrow, tap));
      }
    } else if constexpr (kHalf) {
      fill_words(memory, 9 * 16 * 4, [&](int i) { return two_narrow(i / 4 % 16, i % 4 * 2, i / 64); });
    } else {
      fill_words(memory, 3 * 2 * 16 * 4, [&](int i) {
        const int x = i / 64 % 2 * 2 + i % 4 / 2;
        return x == 3 ? 0u : two_narrow(i / 4 % 16, i % 2 * 2, i / 128 * 3 + x);
      });
      if constexpr (kOp == Op::kEncode) {
        fill_words(memory_back, 9 * 2 * 4 * 4, [&](int i) {
          const int wide = i / 16 % 2 * 8 + i % 4 * 2, narrow = i / 4 % 4, tap = i / 32;
          return Arithmetic<kMode>::word(global_at(wide, narrow, tap), global_at(wide + 1, narrow, tap));
        });
      }
    }
  }
  // Of the 32-bit modes.
  __device__ __forceinline__ uint32_t word(int wide, int tap, int narrow) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      return load_word(shared + wide * kPitch + (tap * kWords + narrow) * 4);
    } else {
      return __float_as_uint(global_at(wide, narrow, tap));
    }
  }
  // The same with K the wide channel, for the layer that goes back to the narrow ones. Of its columns, those
  // beyond the narrow places are never written out.
  __device__ __forceinline__ uint32_t back_word(int k, int n, int tap) const {
    return word(k, kHalf ? tap : 8 - tap, n % kWords);
  }
  // Its B fragments for a tap; in tf32, of 8 of its 16 words of K.
  __device__ __forceinline__ void back_fragments(uint32_t (&words)[2], const Thread& thread, int tap,
                                                 int half) const {
    const int row = thread.lane % 8, matrix = thread.lane / 8 % 2;  // half of K
    if constexpr (stored_bytes(kMode) == 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[i] = back_word(8 * half + 4 * i + thread.member, thread.group, tap);
      }
    } else if constexpr (kHalf) {
      load_matrices_transposed(words, shared + tap * 256 + thread.lane % 16 * 16);
    } else {
      load_matrices(words, back + (8 - tap) * 128 + matrix * 64 + row % 4 * 16);
    }
  }
};

// ---------------------------------------------------------------------------------- layers, forward and back

// kRows rows of 16 pixels x 8 * kBlocks channels of a 3x3 convolution over 16-channel rows. rows: from the
// one above the output's to the one below. fragments(words, tap, half) gives a tap's B fragments, word(k, n,
// tap) a word of them for the plain modes.
template <Mode kMode, bool kByParity, int kRows, int kBlocks, class Fragments, class Word>
__device__ __forceinline__ void add_convolution(float (&sums)[kRows][kBlocks][4], const Thread& thread,
                                                const uint32_t (&rows)[kRows + 2], int plane,
                                                const Columns<kByParity>& columns, const Fragments& fragments,
                                                const Word& word) {
  if constexpr (is_plain(kMode)) {
    uint32_t window[kRows + 2];  // moves down by registers: an array that y indexes would lie in local memory
#pragma unroll
    for (int i = 0; i < kRows + 2; ++i) window[i] = rows[i];
#pragma unroll 1
    for (int y = 0; y < 3; ++y) {
#pragma unroll 1
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          add_product<kMode>(
              sums, thread,
              [&](int row, int m, int k) {
                return load_channel(window[row], plane, columns.base(m) + columns.column(x), 8 * half + k);
              },
              [&](int k, int n) { return word(8 * half + k, n, 3 * y + x); });
        }
      }
#pragma unroll
      for (int i = 0; i < kRows + 1; ++i) window[i] = window[i + 1];
    }
  } else {
    const int lane_offset = thread.lane / 16 * plane + columns.base(thread.lane % 16);
#pragma unroll
    for (int x = 0; x < 3; ++x) {
#pragma unroll
      for (int half = 0; half < stored_bytes(kMode) / 2; ++half) {
        uint32_t b[3][2 * kBlocks];
#pragma unroll
        for (int y = 0; y < 3; ++y) fragments(b[y], 3 * y + x, half);
#pragma unroll
        for (int i = 0; i < kRows + 2; ++i) {
          uint32_t a[4];
          load_matrices(a, rows[i] + lane_offset + columns.column(x) + half * 2 * plane);
#pragma unroll
          for (int row = 0; row < kRows; ++row) {
            if (i - row >= 0 && i - row < 3) mma_blocks<kMode>(sums[row], a, b[i - row]);
          }
        }
      }
    }
  }
}

// A 16 -> 16 layer, forward or (with the taps turned round) back.
template <Mode kMode, bool kBack>
__device__ __forceinline__ void add_trunk(float (&sums)[2][2][4], const Thread& thread,
                                          const uint32_t (&rows)[4], int plane,
                                          const TrunkFilter<kMode>& filter) {
  const auto turned = [](int tap) { return kBack ? 8 - tap : tap; };
  add_convolution<kMode>(
      sums, thread, rows, plane, Columns<false>{16 * thread.warp},
      [&](uint32_t (&words)[4], int tap, int half) {
        filter.template fragments<kBack>(words, thread, turned(tap), half);
      },
      [&](int k, int n, int tap) { return filter.template word<kBack>(k, n, turned(tap)); });
}

// Narrow channels from 16: the adjoint of a layer from the narrow channels to the wide ones.
template <Mode kMode, bool kByParity, int kRows, class Narrow>
__device__ __forceinline__ void add_narrow_output(float (&sums)[kRows][1][4], const Thread& thread,
                                                  const uint32_t (&rows)[kRows + 2], int plane,
                                                  const Columns<kByParity>& columns, const Narrow& filter) {
  add_convolution<kMode>(
      sums, thread, rows, plane, columns,
      [&](uint32_t (&words)[2], int tap, int half) { filter.back_fragments(words, thread, tap, half); },
      [&](int k, int n, int tap) { return filter.back_word(k, n, tap); });
}

// Two rows of 16 pixels x 16 channels from 3 channels at full resolution. rows: from above to below.
template <Mode kMode, class Narrow>
__device__ __forceinline__ void add_from_full(float (&sums)[2][2][4], const Thread& thread,
                                              const uint32_t (&rows)[4], const Narrow& filter) {
  const int pixel = pixel_at(16 * thread.warp - 1);
  if constexpr (is_plain(kMode)) {
    uint32_t window[4] = {rows[0], rows[1], rows[2], rows[3]};
#pragma unroll 1
    for (int y = 0; y < 3; ++y) {
#pragma unroll 1
      for (int x = 0; x < 3; ++x) {
        add_product<kMode, 3>(
            sums, thread,
            [&](int row, int m, int k) { return load_word(window[row] + pixel + (m + x) * 16 + k * 4); },
            [&](int k, int n) { return filter.word(n, 3 * y + x, k); });
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) window[i] = window[i + 1];
    }
  } else if constexpr (kMode == Mode::kTf32) {  // K is two taps
#pragma unroll
    for (int step = 0; step < 5; ++step) {
      const auto tap = [&](int k) { return 2 * step + k / 4; };
      add_product<kMode>(
          sums, thread,
          [&](int row, int m, int k) {
            if (tap(k) == 9) return 0u;
            return load_word(rows[row + tap(k) / 3] + pixel + (m + tap(k) % 3) * 16 + k % 4 * 4);
          },
          [&](int k, int n) { return tap(k) == 9 ? 0u : filter.word(n, tap(k), k % 4); });
    }
  } else {  // K is a row of three taps and a fourth of zeros
    const int matrix = thread.lane / 8, row = thread.lane % 8;
    uint32_t b[3][4];
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      load_matrices(b[y], filter.shared + y * 512 + matrix % 2 * 256 + (matrix / 2 * 8 + row) * 16);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a[4];
      load_matrices(a, rows[i] + pixel + (thread.lane % 16 + thread.lane / 16 * 2) * 16);
      if (thread.member >= 2) a[2] = a[3] = 0;  // no weight is zero enough for a NaN
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        if (i - row >= 0 && i - row < 3) mma_blocks<kMode>(sums[row], a, b[i - row]);
      }
    }
  }
}

// A row of the branches' 6 channels at half resolution, and what it adds, transposed, to a strip of a row
// that has it as tap row `tap_row`. Even pixels 2i read input i (tap column 1); odd pixels 2i + 1 read i
// (column 2) and i + 1 (column 0).
template <Mode kMode>
class HalfRow {
 public:
  __device__ __forceinline__ HalfRow(const Thread& thread, uint32_t row, int plane)
      : thread_(thread), pixels_(row + pixel_at(8 * thread.warp)), plane_(plane) {
    if constexpr (stored_bytes(kMode) == 2) {
      const uint32_t address = pixels_ + thread.group / 2 * 16 + thread.member * 4;
      const uint32_t upper = load_word(address), lower = load_word(address + 64);
      const uint32_t upper_next = load_word(address + 16), lower_next = load_word(address + 80);
      const bool odd = thread.group % 2;
      this_[0] = odd ? 0 : upper, this_[1] = odd ? 0 : lower;
      this_[2] = odd ? upper : 0, this_[3] = odd ? lower : 0;
      next_[0] = odd ? upper_next : 0, next_[1] = odd ? lower_next : 0;
    }
  }

  template <class Narrow>
  __device__ __forceinline__ void add_to(float (&sums)[2][4], int tap_row, const Narrow& filter) const {
    if constexpr (stored_bytes(kMode) == 2) {
      const int matrix = thread_.lane / 8, row = thread_.lane % 8;  // matrix: block of N, column 1 or 2
      const uint32_t taps = filter.shared + 3 * tap_row * 256;
      uint32_t b[4], next[2];
      load_matrices(b, taps + (1 + matrix % 2) * 256 + (matrix / 2 * 8 + row) * 16);
      load_matrices(next, taps + thread_.lane % 16 * 16);
      mma_blocks<kMode>(sums, this_, b);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t words[2] = {next[n], 0};
        mma_half<kMode>(sums[n], next_, words);
      }
    } else {
#pragma unroll kUnrolled < kMode>
      for (int column = 0; column < 3; ++column) {
        add_product<kMode>(
            one_row(sums), thread_,
            [&](int, int m, int k) {
              const int pixel = (m / 2 + (column == 0 ? 1 : 0)) * 16;
              const uint32_t value = load_channel(pixels_, plane_, pixel, k);
              return m % 2 == column % 2 ? 0u : value;
            },
            [&](int k, int n) { return filter.word(n, 3 * tap_row + column, k); });
      }
    }
  }

 private:
  const Thread& thread_;
  uint32_t pixels_;
  int plane_;
  uint32_t this_[4], next_[4];  // A fragments of the 16-bit modes
};

// ----------------------------------------------------------------------------------------------- activations

// The lane's first number of the first of its two pixels, 16 * warp + group; the other is 8 pixels further.
template <Mode kMode, bool kByParity>
struct LanePixels {
  static constexpr int kEight = kByParity ? 64 : 128;
  uint32_t address;
  int plane;

  template <class Rings>
  __device__ __forceinline__ LanePixels(const Thread& thread, const Rings& rings, uint32_t row)
      : plane(rings.template plane<kByParity>()) {
    const int j = 16 * thread.warp + thread.group;
    const int pixel = kByParity ? (j / 2 + 1) * 16 + j % 2 * rings.at.half_plane : pixel_at(j);
    const int within =
        stored_bytes(kMode) == 2 ? thread.member * 4 : thread.member / 2 * plane + thread.member % 2 * 8;
    address = row + pixel + within;
  }

  __device__ __forceinline__ void store_sums(const float (&sums)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float a = sums[n][2 * half], b = sums[n][2 * half + 1];
        if constexpr (stored_bytes(kMode) == 2) {
          store(address + half * kEight + n * plane, Arithmetic<kMode>::word(a, b));
        } else {
          store(address + half * kEight + 2 * n * plane, Arithmetic<kMode>::word(a),
                Arithmetic<kMode>::word(b));
        }
      }
    }
  }

  // ReLU's derivative, as autograd has it: the gradient passes unless the activation, which is read here, is
  // <= 0, so it passes at a NaN. Activations outside the image are stored as zeros.
  __device__ __forceinline__ void mask(float (&sums)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        bool first, second;
        if constexpr (stored_bytes(kMode) == 2) {
          const uint32_t word = load_word(address + half * kEight + n * plane);
          first = word & 0x7fff, second = word & 0x7fff0000;
        } else {
          const float2 two = load_2(address + half * kEight + 2 * n * plane);
          first = __float_as_uint(two.x) & 0x7fffffff, second = __float_as_uint(two.y) & 0x7fffffff;
        }
        sums[n][2 * half] = first ? sums[n][2 * half] : 0.0f;
        sums[n][2 * half + 1] = second ? sums[n][2 * half + 1] : 0.0f;
      }
    }
  }
};

// ReLU, and zero outside the image.
__device__ __forceinline__ void activate(float (&sums)[2][4], bool upper_inside, bool lower_inside) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = (i < 2 ? upper_inside : lower_inside) ? relu(sums[n][i]) : 0.0f;
  }
}

// ------------------------------------------------------------------------------------- parameters' gradients

// Of 16 pixels, those that the tile owns, a bit for each. In the products whose K is pixels, the others are
// zeros in both factors: a NaN at an image's edge must not meet a zero outside of it.
class Kept {
 public:
  __device__ __forceinline__ Kept(const Thread& thread, uint32_t bits)
      : bits_(bits), low_(two(2 * thread.member)), high_(two(2 * thread.member + 8)) {}

  __device__ __forceinline__ bool none() const { return bits_ == 0; }
  // Of pixel k, a word of the 32-bit modes.
  __device__ __forceinline__ uint32_t word(int k, uint32_t word) const { return bits_ >> k & 1 ? word : 0u; }
  // The lane's words of the fragments of the 16-bit modes.
  __device__ __forceinline__ void a(uint32_t (&words)[4]) const {
    if (bits_ == 0xffff) return;
    words[0] &= low_, words[1] &= low_, words[2] &= high_, words[3] &= high_;
  }
  template <int kWords>
  __device__ __forceinline__ void b(uint32_t (&words)[kWords]) const {
    if (bits_ == 0xffff) return;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] &= i % 2 == 0 ? low_ : high_;
  }

 private:
  // Pixels k and k + 1 as a mask of two 16-bit numbers.
  __device__ __forceinline__ uint32_t two(int k) const {
    return (bits_ >> k & 1 ? 0xffffu : 0u) | (bits_ >> k & 2 ? 0xffff0000u : 0u);
  }
  uint32_t bits_, low_, high_;
};

// The A fragment of the 16-bit modes whose K is 16 pixels and whose rows are a wide row's 16 channels.
template <bool kByParity>
__device__ __forceinline__ void load_wide(uint32_t (&words)[4], const Thread& thread, uint32_t row, int plane,
                                          const Columns<kByParity>& columns, int x, const Kept& kept) {
  const int matrix = thread.lane / 8;  // half of the channels, half of the pixels
  load_matrices_transposed(
      words, row + matrix % 2 * plane + columns.column(x) + columns.base(matrix / 2 * 8 + thread.lane % 8));
  kept.a(words);
}

// Of the 32-bit modes: sums (16 wide channels x 8 * kBlocks columns) += wide^T * B over 16 pixels k, with
// b(k, n) a word of B.
template <Mode kMode, bool kByParity, int kBlocks, class B>
__device__ __forceinline__ void add_gradient(float (&sums)[kBlocks][4], const Thread& thread, uint32_t wide,
                                             int plane, const Columns<kByParity>& columns, int x,
                                             const Kept& kept, const B& b) {
#pragma unroll kUnrolled < kMode>
  for (int half = 0; half < 2; ++half) {
    add_product<kMode>(
        one_row(sums), thread,
        [&](int, int m, int k) {
          const int pixel = columns.base(8 * half + k) + columns.column(x);
          return kept.word(8 * half + k, load_channel(wide, plane, pixel, m));
        },
        [&](int k, int n) { return kept.word(8 * half + k, b(8 * half + k, n)); });
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

// Loads the inputs' rows. A thread has a pixel of a pair of full-resolution rows and, counted from the block's
// last thread, a pixel of a branch's half-resolution row. Loads are issued at the beginning of a step, and
// stored at its end for the next.
template <Op kOp, Mode kMode>
struct InputReader {
  using Number = typename Arithmetic<kMode>::Number;
  using A = Arithmetic<kMode>;
  uint32_t full[3] = {0, 0, 0}, half[3] = {0, 0, 0};
  float sums[3] = {0, 0, 0};  // of the incoming gradient over the tiles' own pixels
  bool full_inside = false, half_inside = false, is_owned = false;

  // The thread's pixels.
  struct Place {
    bool reads_full, reads_half;
    int row, column, branch, half_column;

    __device__ __forceinline__ explicit Place(const BackwardParameters& p) {
      const int thread = forgotten(threadIdx.x), width = 16 * p.layout.strips;
      const int from_end = kBackwardThreads - 1 - thread;
      reads_full = thread < 2 * width, reads_half = from_end < width;
      row = thread < width ? 0 : 1, column = thread - row * width;
      branch = from_end < width / 2 ? 0 : 1, half_column = from_end - branch * (width / 2);
    }
  };

  // Rows full_row, full_row + 1 and half_row of a tile.
  __device__ void prefetch(const BackwardParameters& p, const Tile& tile, int full_row, int half_row) {
    const Place at(p);
    const int row = full_row + at.row;
    full_inside = at.reads_full && tile.row_inside(row) && tile.column_inside(at.column);
    half_inside = at.reads_half && tile.half_inside(half_row, at.half_column);
    is_owned = kOp == Op::kEncode
                   ? half_inside && tile.owns_half_row(half_row) && tile.owns_half_column(at.half_column)
                   : full_inside && tile.owns_row(row) && tile.owns_column(at.column);
    if (full_inside) {
      const int64_t* stride = p.full.stride;
      const int64_t first =
          int64_t{tile.image} * stride[0] + (tile.y + row) * stride[2] + (tile.x + at.column) * stride[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const int64_t i = first + c * stride[1];
        full[c] = p.image_is_bytes ? static_cast<const uint8_t*>(p.full.data)[i]
                                   : bits_of(static_cast<const Number*>(p.full.data)[i]);
      }
    }
    if (half_inside) {
      const Images& from = at.branch == 0 ? p.low : p.high;
      const int64_t first = int64_t{tile.image} * from.stride[0] + (tile.y / 2 + half_row) * from.stride[2] +
                            (tile.x / 2 + at.half_column) * from.stride[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        half[c] = bits_of(static_cast<const Number*>(from.data)[first + c * from.stride[1]]);
      }
    }
  }

  __device__ void store_rows(const BackwardParameters& p, const Rings<kOp, kMode>& rings, int full_row,
                             int half_row) {
    const Place at(p);
    if (at.reads_full) {
      float value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        value[c] = p.image_is_bytes ? static_cast<float>(full[c]) : float_of_bits<Number>(full[c]);
      }
      if constexpr (kOp == Op::kEncode) {
        const float4 scale = load_4(rings.shared + p.layout.affine);
        const float4 shift = load_4(rings.shared + p.layout.affine + 16);
        value[0] = fmaf(value[0], scale.x, shift.x), value[1] = fmaf(value[1], scale.y, shift.y);
        value[2] = fmaf(value[2], scale.z, shift.z);
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c] = full_inside ? value[c] : 0.0f;
      if (kOp == Op::kDecode && is_owned) add(value);
      const uint32_t address = rings.full(full_row + at.row + full_rows(kOp)) + pixel_at(at.column);
      if constexpr (stored_bytes(kMode) == 2) {  // beside its right neighbour, so that K can be a row of taps
        const uint32_t first = A::word(value[0], value[1]), second = A::word(value[2], 0.0f);
        store(address, first, second);
        store(address - 8, first, second);
      } else {
        store(address, A::word(value[0]), A::word(value[1]), A::word(value[2]), 0);
      }
    }
    if (at.reads_half) {
      float value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c] = half_inside ? float_of_bits<Number>(half[c]) : 0.0f;
      if (kOp == Op::kEncode && is_owned) add(value);
      const uint32_t address = rings.half(half_row + half_rows(kOp)) + pixel_at(at.half_column);
      if constexpr (stored_bytes(kMode) == 2) {
        store(address + 8 * at.branch, A::word(value[0], value[1]), A::word(value[2], 0.0f));
      } else {
        store(address + at.branch * p.layout.half_plane, A::word(value[0]), A::word(value[1]),
              A::word(value[2]), 0);
      }
    }
  }

  __device__ __forceinline__ void add(const float (&value)[3]) {
#pragma unroll
    for (int c = 0; c < 3; ++c) sums[c] += value[c];
  }
  // The thread's sum of channel c of 6 (decode: 3).
  __device__ __forceinline__ float sum_of(const BackwardParameters& p, int c) const {
    if constexpr (kOp == Op::kDecode) return c < 3 ? sums[c % 3] : 0.0f;
    return Place(p).branch == c / 3 ? sums[c % 3] : 0.0f;
  }
};

// ------------------------------------------------------------------------------------------------ the block

// Sums over the whole kernel, in registers. See the top of the file for the warps' shares.
struct Sums {
  float trunk[3][3][2][4];  // [tap row][tap column][8 of the input channels]
  union {
    float half[3][1][4];  // warps 0 to 2: [tap row], of the warp's tap column
    float full[3][2][4];  // warps 4 to 7: [tap row][two tap columns; the fourth is not one]
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
  Thread thread;
  const Rings<kOp, kMode> rings;
  const TrunkFilter<kMode> second_filter, third_filter;
  const NarrowFilter<kOp, kMode, false> full_filter;
  const NarrowFilter<kOp, kMode, true> half_filter;
  Sums sums;

  __device__ Backward(const BackwardParameters& p, uint32_t shared)
      : p(p),
        rings{p.layout, shared},
        second_filter{shared + p.layout.trunk_filters, p.filters[1]},
        third_filter{shared + p.layout.trunk_filters + trunk_filter_bytes(kMode), p.filters[2]},
        full_filter{p.filters, shared + p.layout.full_filter, shared + p.layout.full_back_filter},
        half_filter{p.filters, shared + p.layout.half_filter, 0} {
    clear(sums);
  }

  __device__ void fill_filters(unsigned char* memory) const {
    if constexpr (weights_in_shared(kMode, WAE_CAPABILITY)) {
      second_filter.fill(memory + p.layout.trunk_filters);
      third_filter.fill(memory + p.layout.trunk_filters + trunk_filter_bytes(kMode));
      full_filter.fill(memory + p.layout.full_filter, memory + p.layout.full_back_filter);
      half_filter.fill(memory + p.layout.half_filter, nullptr);
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
    if (kOp == Op::kEncode && threadIdx.x < 4) {
      const int channel = min(static_cast<int>(threadIdx.x), 2);
      float* affine = reinterpret_cast<float*>(memory + p.layout.affine) + threadIdx.x;
      affine[0] = p.scale.type == NumberType::kNone ? 1.0f : number_at(p.scale, channel);
      affine[4] = p.shift.type == NumberType::kNone ? 0.0f : number_at(p.shift, channel);
    }
  }

  // ----------------------------------------------------------------------------------------------- layers

  using Values = float[2][2][4];  // two rows of 16 pixels x 16 channels

  __device__ __forceinline__ void begin_with_bias(Values& to, int layer) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 bias =
          load_2(rings.shared + p.layout.biases + (layer * 16 + 8 * n + 2 * thread.member) * 4);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        to[row][n][0] = to[row][n][2] = bias.x, to[row][n][1] = to[row][n][3] = bias.y;
      }
    }
  }
  // ReLU, and store. to: the ring's rows `top` and top + 1.
  template <bool kByParity>
  __device__ __forceinline__ void finish_activation(Values& values, const uint32_t (&to)[2], const Tile& tile,
                                                    int top) const {
    const int pixel = 16 * thread.warp + thread.group;
    const bool upper = tile.column_inside(pixel), lower = tile.column_inside(pixel + 8);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool row_inside = tile.row_inside(top + row);
      activate(values[row], row_inside && upper, row_inside && lower);
      LanePixels<kMode, kByParity>(thread, rings, to[row]).store_sums(values[row]);
    }
  }
  // Mask by the activation, add to the bias' gradient, store.
  template <bool kMaskByParity, bool kByParity>
  __device__ __forceinline__ void finish_gradient(Values& values, const uint32_t (&activation)[2],
                                                  const uint32_t (&to)[2], const Tile& tile, int top,
                                                  int layer) {
    const int pixel = 16 * thread.warp + thread.group;
    const bool upper = tile.owns_column(pixel), lower = tile.owns_column(pixel + 8);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      LanePixels<kMode, kMaskByParity>(thread, rings, activation[row]).mask(values[row]);
      const bool owns_row = tile.owns_row(top + row);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          sums.bias[layer][n][e] += (owns_row && upper ? values[row][n][e] : 0.0f) +
                                    (owns_row && lower ? values[row][n][2 + e] : 0.0f);
        }
      }
      LanePixels<kMode, kByParity>(thread, rings, to[row]).store_sums(values[row]);
    }
  }

  // Rows `top`, which is odd, and top + 1 from the 6 channels at half resolution.
  __device__ __forceinline__ void add_half_rows(Values& to, int top) const {
    const HalfRow<kMode> above(thread, rings.half(top / 2), p.layout.half_plane);
    above.add_to(to[0], 2, half_filter);
    const HalfRow<kMode> below(thread, rings.half(top / 2 + 1), p.layout.half_plane);
    below.add_to(to[0], 0, half_filter);
    below.add_to(to[1], 1, half_filter);
  }
  __device__ __forceinline__ void add_full_rows(Values& to, int top) const {
    const uint32_t rows[4] = {rings.full(top - 1), rings.full(top), rings.full(top + 1), rings.full(top + 2)};
    add_from_full<kMode>(to, thread, rows, full_filter);
  }

  // Each computes rows `top` and top + 1 of the warp's strip.
  __device__ __forceinline__ void compute_first(const Tile& tile, int top) const {
    Values values;
    begin_with_bias(values, 0);
    if constexpr (kOp == Op::kEncode) {
      add_full_rows(values, top);
    } else {
      add_half_rows(values, top);
    }
    finish_activation<false>(values, {rings.first(top), rings.first(top + 1)}, tile, top);
  }
  __device__ __forceinline__ void compute_second(const Tile& tile, int top) const {
    const uint32_t rows[4] = {rings.first(top - 1), rings.first(top), rings.first(top + 1),
                              rings.first(top + 2)};
    Values values;
    begin_with_bias(values, 1);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_activation<false>(values, {rings.second(top), rings.second(top + 1)}, tile, top);
  }
  __device__ __forceinline__ void compute_third(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.second(top - 1), rings.second(top), rings.second(top + 1),
                              rings.second(top + 2)};
    const uint32_t third[2] = {rings.third(top), rings.third(top + 1)};
    Values values;
    begin_with_bias(values, 2);
    add_trunk<kMode, false>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_activation<rings.kThirdByParity>(values, third, tile, top);
    clear(values);
    if constexpr (kOp == Op::kEncode) {
      add_half_rows(values, top);
    } else {
      add_full_rows(values, top);
    }
    // The mask reads the lane's own words.
    finish_gradient<rings.kThirdByParity, false>(
        values, third, {rings.third_gradient(top), rings.third_gradient(top + 1)}, tile, top, 2);
  }
  __device__ __forceinline__ void compute_second_gradient(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.third_gradient(top - 1), rings.third_gradient(top),
                              rings.third_gradient(top + 1), rings.third_gradient(top + 2)};
    Values values;
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, third_filter);
    finish_gradient<false, false>(values, {rings.second(top), rings.second(top + 1)},
                                  {rings.second_gradient(top), rings.second_gradient(top + 1)}, tile, top, 1);
  }
  __device__ __forceinline__ void compute_first_gradient(const Tile& tile, int top) {
    const uint32_t rows[4] = {rings.second_gradient(top - 1), rings.second_gradient(top),
                              rings.second_gradient(top + 1), rings.second_gradient(top + 2)};
    Values values;
    clear(values);
    add_trunk<kMode, true>(values, thread, rows, p.layout.row_plane, second_filter);
    finish_gradient<false, rings.kFirstGradientByParity>(
        values, {rings.first(top), rings.first(top + 1)},
        {rings.first_gradient(top), rings.first_gradient(top + 1)}, tile, top, 0);
  }

  // encode: two rows of the image's gradient, and the sums for scale and shift.
  __device__ __forceinline__ void write_full_gradient(const Tile& tile, int top) {
    const bool owned[2] = {tile.owns_row(top), tile.owns_row(top + 1)};
    if (!owned[0] && !owned[1]) return;
    const uint32_t rows[4] = {rings.first_gradient(top - 1), rings.first_gradient(top),
                              rings.first_gradient(top + 1), rings.first_gradient(top + 2)};
    float values[2][1][4];
    clear(values);
    add_narrow_output<kMode>(values, thread, rows, p.layout.row_plane, Columns<false>{16 * thread.warp},
                             full_filter);
    const int channel = 2 * thread.member, pixel = 16 * thread.warp + thread.group;
    if (channel >= 3) return;
    const auto offset = [&](const Images& images) {
      return int64_t{tile.image} * images.stride[0] + channel * images.stride[1] +
             (tile.y + top) * images.stride[2] + (tile.x + pixel) * images.stride[3];
    };
    const int64_t to = offset(p.grad_full), from = offset(p.full);
    const float2 two = load_2(rings.shared + p.layout.affine + channel * 4);
    const float scale[2] = {two.x, two.y};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!owned[row] || channel + i % 2 >= 3 || !tile.owns_column(pixel + i / 2 * 8)) continue;
        const auto element = [&](const Images& images) {
          return i % 2 * images.stride[1] + row * images.stride[2] + i / 2 * 8 * images.stride[3];
        };
        const float value = values[row][0][i];
        if (p.need_input) {
          static_cast<Number*>(p.grad_full.data)[to + element(p.grad_full)] =
              from_float<Number>(value * scale[i % 2]);
        }
        if (p.need_scale) {
          const int64_t at = from + element(p.full);
          const float image = p.image_is_bytes
                                  ? static_cast<float>(static_cast<const uint8_t*>(p.full.data)[at])
                                  : to_float(static_cast<const Number*>(p.full.data)[at]);
          sums.scale[i % 2] += value * image;
          sums.shift[i % 2] += value;
        }
      }
    }
  }

  // Of a row by parity, the pixels around 16 at half resolution.
  __device__ __forceinline__ Columns<true> half_columns(int first) const {
    return {first, 8 * p.layout.strips - 1, p.layout.half_plane};
  }

  // decode: a row of the gradients of low and high; row 2 * half_row is their centre.
  __device__ __forceinline__ void write_half_gradient(const Tile& tile, int half_row) const {
    if (16 * thread.warp >= 8 * p.layout.strips || !tile.owns_half_row(half_row)) return;
    const int row = 2 * half_row;
    const uint32_t rows[3] = {rings.first_gradient(row - 1), rings.first_gradient(row),
                              rings.first_gradient(row + 1)};
    float values[1][1][4];
    clear(values);
    add_narrow_output<kMode>(values, thread, rows, p.layout.parity_plane, half_columns(16 * thread.warp),
                             half_filter);
    const Images& to = thread.member < 2 ? p.grad_low : p.grad_high;
    const int64_t y = tile.y / 2 + half_row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = 16 * thread.warp + thread.group + i / 2 * 8, channel = thread.member % 2 * 2 + i % 2;
      if (channel == 3 || !tile.owns_half_column(k)) continue;
      const int64_t x = tile.x / 2 + k;
      static_cast<Number*>(to.data)[int64_t{tile.image} * to.stride[0] + channel * to.stride[1] +
                                    y * to.stride[2] + x * to.stride[3]] =
          from_float<Number>(values[0][0][i]);
    }
  }

  // ------------------------------------------------------------------------------------------------- sums

  // Of a 16 -> 16 layer, gradient^T * activation: rows `top` and top + 1 of the activation, each with the
  // three rows of gradients around it that have it as a tap row.
  template <class Gradient, class Activation>
  __device__ __forceinline__ void sum_trunk(const Tile& tile, int top, const Gradient& gradient,
                                            const Activation& activation) {
    const int plane = p.layout.row_plane;
#pragma unroll 1
    for (int strip = thread.warp % 4; strip < p.layout.strips; strip += 4) {
      const Kept kept(thread, tile.owned_columns(16 * strip));
      if (kept.none()) continue;
      const Columns<false> columns{16 * strip};
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) load_wide(a[i], thread, gradient(top - 1 + i), plane, columns, 1, kept);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          if (tile.row_inside(top + row)) {
            add_activation(tile, top, row, a, activation(top + row), columns, kept);
          }
        }
      } else {
#pragma unroll 1
        for (int row = top; row < top + 2; ++row) {
          if (!tile.row_inside(row)) continue;
          const uint32_t reads = activation(row);
#pragma unroll
          for (int y = 0; y < 3; ++y) {
            if (!tile.owns_row(row + 1 - y)) continue;
            const uint32_t wide = gradient(row + 1 - y);
#pragma unroll
            for (int x = 0; x < 3; ++x) {
              add_gradient<kMode>(sums.trunk[y][x], thread, wide, plane, columns, 1, kept, [&](int k, int n) {
                return load_channel(reads, plane, columns.base(k) + columns.column(x), n);
              });
            }
          }
        }
      }
    }
  }
  // Of row top + row of the activation, with gradients a of rows from top - 1.
  __device__ __forceinline__ void add_activation(const Tile& tile, int top, int row,
                                                 const uint32_t (&a)[4][4], uint32_t activation,
                                                 const Columns<false>& columns, const Kept& kept) {
    const int matrix = thread.lane / 8;  // half of the pixels, half of the channels
    const uint32_t address =
        activation + matrix / 2 * p.layout.row_plane + columns.base(matrix % 2 * 8 + thread.lane % 8);
    uint32_t b[3][4];
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      load_matrices_transposed(b[x], address + columns.column(x));
      kept.b(b[x]);
    }
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      if (!tile.owns_row(top + row + 1 - y)) continue;
#pragma unroll
      for (int x = 0; x < 3; ++x) mma_blocks<kMode>(sums.trunk[y][x], a[row + 2 - y], b[x]);
    }
  }

  // Rows `top` and top + 1 at full resolution: encode d first * image, decode third * incoming gradient.
  __device__ __forceinline__ void sum_full(const Tile& tile, int top) {
    const auto wide = [&](int row) {
      return kOp == Op::kEncode ? rings.first_gradient(row) : rings.third(row);
    };
    const int plane = p.layout.row_plane;
#pragma unroll 1
    for (int strip = thread.warp % 4; strip < p.layout.strips; strip += 4) {
      const Kept kept(thread, tile.owned_columns(16 * strip));
      if (kept.none()) continue;
      const Columns<false> columns{16 * strip};
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[2][4];
#pragma unroll
        for (int row = 0; row < 2; ++row) load_wide(a[row], thread, wide(top + row), plane, columns, 1, kept);
        // Columns of B: a pixel beside its right neighbour, for two taps.
        const int matrix = thread.lane / 8, pixel = columns.base(matrix % 2 * 8 + thread.lane % 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!tile.row_inside(top - 1 + i)) continue;
          uint32_t b[4];
          load_matrices_transposed(b, rings.full(top - 1 + i) + pixel + columns.column(matrix / 2 * 2));
          kept.b(b);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const int y = i - row;
            if (y >= 0 && y < 3 && tile.owns_row(top + row)) mma_blocks<kMode>(sums.full[y], a[row], b);
          }
        }
      } else {
#pragma unroll 1
        for (int row = top; row < top + 2; ++row) {
          if (!tile.owns_row(row)) continue;
          const uint32_t of = wide(row);
#pragma unroll
          for (int y = 0; y < 3; ++y) {
            if (!tile.row_inside(row + y - 1)) continue;
            const uint32_t narrow = rings.full(row + y - 1);
            add_gradient<kMode>(sums.full[y], thread, of, plane, columns, 1, kept, [&](int k, int n) {
              return load_channel(narrow, 0, columns.base(k) + columns.column(n / 4), n % 4);
            });
          }
        }
      }
    }
  }

  // Rows `odd` and odd + 1, with the rows at half resolution that read them: encode third * incoming
  // gradient, decode d first * low and high. Of the warp's tap column x.
  __device__ __forceinline__ void sum_half(const Tile& tile, int odd, int x) {
    const uint32_t odd_row = kOp == Op::kEncode ? rings.third(odd) : rings.first_gradient(odd);
    const uint32_t even_row = kOp == Op::kEncode ? rings.third(odd + 1) : rings.first_gradient(odd + 1);
    const int above = odd / 2, below = above + 1;  // have row odd as tap row 2 and 0
    const bool is_above = tile.owns_half_row(above) && tile.row_inside(odd);
    const bool is_below = tile.owns_half_row(below) && tile.row_inside(odd);
    const bool is_centre = tile.owns_half_row(below) && tile.row_inside(odd + 1);
#pragma unroll 1
    for (int first = 0; first < 8 * p.layout.strips; first += 16) {
      const Kept kept(thread, tile.owned_half_columns(first));
      if (kept.none()) continue;
      const Columns<true> columns = half_columns(first);
      const auto narrow_pixel = [&](int k) { return pixel_at(min(first + k, columns.last)); };
      const int plane = p.layout.parity_plane;
      if constexpr (stored_bytes(kMode) == 2) {
        uint32_t a[4], b_above[2], b_below[2];
        load_matrices_transposed(b_above, rings.half(above) + narrow_pixel(thread.lane % 16));
        load_matrices_transposed(b_below, rings.half(below) + narrow_pixel(thread.lane % 16));
        kept.b(b_above), kept.b(b_below);
        load_wide(a, thread, odd_row, plane, columns, x, kept);
        if (is_above) mma_blocks<kMode>(sums.half[2], a, b_above);
        if (is_below) mma_blocks<kMode>(sums.half[0], a, b_below);
        load_wide(a, thread, even_row, plane, columns, x, kept);
        if (is_centre) mma_blocks<kMode>(sums.half[1], a, b_below);
      } else {
        const auto add = [&](float (&to)[1][4], uint32_t wide, int half_row) {
          const uint32_t narrow = rings.half(half_row);
          add_gradient<kMode>(to, thread, wide, plane, columns, x, kept, [&](int k, int n) {
            return load_channel(narrow, p.layout.half_plane, narrow_pixel(k), n);
          });
        };
        if (is_above) add(sums.half[2], odd_row, above);
        if (is_below) add(sums.half[0], odd_row, below);
        if (is_centre) add(sums.half[1], even_row, below);
      }
    }
  }

  __device__ __forceinline__ void add_sums(const Tile& tile, int step) {
    if (thread.warp < 4) {
      sum_trunk(
          tile, 2 * step - 4, [&](int row) { return rings.third_gradient(row); },
          [&](int row) { return rings.second(row); });
      if (thread.warp < 3) sum_half(tile, 2 * step - (kOp == Op::kEncode ? 3 : 5), thread.warp);
    } else {
      sum_trunk(
          tile, 2 * step - 5, [&](int row) { return rings.second_gradient(row); },
          [&](int row) { return rings.first(row); });
      sum_full(tile, 2 * step - (kOp == Op::kEncode ? 5 : 3));
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
    const bool has_strip = thread.warp < p.layout.strips;
#pragma unroll 1
    for (int step = 0; step < 2; ++step) {
      reader.prefetch(p, tile, full_row_of(step), half_row_of(step));
      reader.store_rows(p, rings, full_row_of(step), half_row_of(step));
    }
    block_barrier();
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      thread.forget();
      const int top = 2 * step;  // less 1 in the first phase, 2 in the second, ...
      const bool has_next = step + 1 < steps;
      if (has_next) reader.prefetch(p, tile, full_row_of(step + 1), half_row_of(step + 1));
      __syncwarp();  // reconverge for ldmatrix and mma
      if (has_strip) compute_first(tile, top - 1);
      block_barrier();
      if (has_strip && step >= 2) compute_second(tile, top - 2);
      block_barrier();
      if (has_strip && step >= 3) compute_third(tile, top - 3);
      block_barrier();
      if (has_strip && step >= 4) compute_second_gradient(tile, top - 4);
      block_barrier();
      if (has_strip && step >= 5) compute_first_gradient(tile, top - 5);
      block_barrier();
      if (step >= 6) {
        if constexpr (kOp == Op::kEncode) {
          if ((p.need_input || p.need_scale) && has_strip) write_full_gradient(tile, top - 6);
        } else {
          if (p.need_input) write_half_gradient(tile, step - 3);
        }
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

  // A lane's elements of a 16 x 8 product: f(element, wide channel, column).
  template <class F>
  __device__ __forceinline__ void for_elements(const F& f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(i, thread.group + i / 2 * 8, 2 * thread.member + i % 2);
  }

  // put(offset, sum) for each of the warp's sums of weights that four warps share.
  template <class Put>
  __device__ __forceinline__ void for_shared_weights(const Put& put) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    const int trunk = thread.warp < 4 ? kOffset<(kEncodes ? 4 : 6)> : kOffset<(kEncodes ? 2 : 4)>;
#pragma unroll
    for (int y = 0; y < 3; ++y) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          for_elements([&](int i, int o, int c) {
            put(trunk + (o * 16 + 8 * n + c) * 9 + 3 * y + x, sums.trunk[y][x][n][i]);
          });
        }
      }
      if (thread.warp < 4) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        for_elements([&](int i, int wide, int column) {
          const int x = 2 * n + column / 4, c = column % 4, tap = 3 * y + x;
          if (x > 2 || c > 2) return;
          put(kEncodes ? kOffset<0> + (wide * 3 + c) * 9 + tap : kOffset<8> + (c * 16 + wide) * 9 + 8 - tap,
              sums.full[y][n][i]);
        });
      }
    }
  }
  // The same of those that the warp has alone.
  template <class Put>
  __device__ __forceinline__ void for_own_weights(const Put& put) const {
    constexpr bool kEncodes = kOp == Op::kEncode;
    if (thread.warp >= 3) return;
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      for_elements([&](int i, int wide, int c) {
        const int begin = c < 4 ? kOffset<(kEncodes ? 6 : 0)> : kOffset<(kEncodes ? 8 : 2)>;
        if (c % 4 < 3) put(begin + (c % 4 * 16 + wide) * 9 + 3 * y + thread.warp, sums.half[y][0][i]);
      });
    }
  }

  static constexpr int kVectors = 48 + 4 * 2 * 2 + 6;  // a warp's: biases, scale and shift (8 each), incoming

  // Adds over the lanes that hold the same channels.
  static __device__ __forceinline__ float over_groups(float value) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
  }

  __device__ __forceinline__ void store_vectors(float* mine, const InputReader<kOp, kMode>& reader) const {
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
      float sum = over_groups(reader.sum_of(p, c));
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (thread.lane == 0) mine[64 + c] = sum;
    }
  }

  // Where number i of the warps' vectors goes, or -1.
  static __device__ __forceinline__ int vector_offset(int i) {
    constexpr bool kEncodes = kOp == Op::kEncode;
    if (i < 48) {
      return (i < 16   ? kOffset<1>
              : i < 32 ? kOffset<(kEncodes ? 3 : 5)>
                       : kOffset<(kEncodes ? 5 : 7)>)+i %
             16;
    }
    if (i < 64) return kEncodes && i % 8 < 3 ? (i < 56 ? kOffset<10> : kOffset<11>)+i % 8 : -1;
    if (kEncodes) return (i < 67 ? kOffset<7> : kOffset<9>)+(i - 64) % 3;
    return i < 67 ? kOffset<9> + i - 64 : -1;
  }

  // The block's sums, added in shared memory, where no row is needed any more: those of weights warp after
  // warp of the four that share a layer, the others over the warps.
  __device__ void write_sums(float* scratch, const InputReader<kOp, kMode>& reader) const {
    constexpr int kWarps = kBackwardThreads / 32;
    static_assert(4 * (partial_floats(kOp) + kWarps * kVectors) <=
                  backward_layout(kOp, kMode, kMinBackwardStrips, WAE_CAPABILITY).bytes);
    float* vectors = scratch + partial_floats(kOp);
    store_vectors(vectors + thread.warp * kVectors, reader);
    for_own_weights([&](int at, float sum) { scratch[at] = sum; });
#pragma unroll 1
    for (int turn = 0; turn < 4; ++turn) {
      if (thread.warp % 4 == turn) {
        for_shared_weights([&](int at, float sum) { scratch[at] = turn == 0 ? sum : scratch[at] + sum; });
      }
      block_barrier();
    }
    const int at = threadIdx.x < kVectors ? vector_offset(threadIdx.x) : -1;
    if (at >= 0) {
      float sum = 0;
#pragma unroll 1
      for (int warp = 0; warp < kWarps; ++warp) sum += vectors[warp * kVectors + threadIdx.x];
      scratch[at] = sum;
      if (kOp == Op::kDecode && threadIdx.x < 16) {
        scratch[kOffset<3> + threadIdx.x] = sum;  // one bias for both branches
      }
    }
    block_barrier();
    float* out = p.partials + blockIdx.x * partial_floats(kOp);  // in 32 bits: a grid is a few hundred blocks
#pragma unroll 1
    for (int i = threadIdx.x; i < partial_floats(kOp); i += kBackwardThreads) out[i] = scratch[i];
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
  InputReader<kOp, kMode> reader;
  Cursor cursor(p.tiling, 0);
#pragma unroll 1
  for (; cursor.tile < p.tiling.tiles; cursor.tile += gridDim.x) {
    cursor.locate();
    backward.run_tile(Tile(p, cursor), reader);
  }
  if (!p.need_parameters && !p.need_scale) return;
  backward.write_sums(reinterpret_cast<float*>(memory), reader);
}

}  // namespace wae::cuda
