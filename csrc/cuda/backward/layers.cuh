// The layers of the backward kernels, forward and back. A warp computes two rows of 16 pixels from the rows that they
// read.

#pragma once

#include <cstdint>

#include "cuda/backward/filters.cuh"
#include "cuda/backward/products.cuh"
#include "cuda/backward/rows.cuh"

namespace wae::cuda {

// Adds kRows rows of 16 pixels x 8 * kBlocks channels of a 3x3 convolution over 16-channel rows. `rows` are the input
// rows, from the one above the first output row to the one below the last. fragments(words, tap, half) returns a tap's
// B fragments; word(k, n, tap) returns one of their words, for the plain modes.
template <Mode kMode, bool kByParity, int kRows, int kBlocks, class Fragments, class Word>
__device__ __forceinline__ void add_convolution(float (&sums)[kRows][kBlocks][4], const Thread& thread,
                                                const uint32_t (&rows)[kRows + 2], int plane,
                                                const Columns<kByParity>& columns, const Fragments& fragments,
                                                const Word& word) {
  if constexpr (is_plain(kMode)) {
    uint32_t window[kRows + 2];  // shifted by register moves: an array indexed by y would be in local memory
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

// Adds a 16 -> 16 layer, forward or (with the taps rotated by 180 degrees) back.
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

// Adds a layer from 16 channels to narrow ones: the adjoint of a layer from the narrow channels to the wide ones.
template <Mode kMode, bool kByParity, int kRows, class Narrow>
__device__ __forceinline__ void add_narrow_output(float (&sums)[kRows][1][4], const Thread& thread,
                                                  const uint32_t (&rows)[kRows + 2], int plane,
                                                  const Columns<kByParity>& columns, const Narrow& filter) {
  add_convolution<kMode>(
      sums, thread, rows, plane, columns,
      [&](uint32_t (&words)[2], int tap, int half) { filter.back_fragments(words, thread, tap, half); },
      [&](int k, int n, int tap) { return filter.back_word(k, n, tap); });
}

// Adds two rows of 16 pixels x 16 channels from 3 channels at full resolution. `rows` are the four input rows, from top
// to bottom.
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
      if (thread.member >= 2) a[2] = a[3] = 0;  // a NaN times a weight of zero would be NaN
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        if (i - row >= 0 && i - row < 3) mma_blocks<kMode>(sums[row], a, b[i - row]);
      }
    }
  }
}

// A row of the branches' 6 channels at half resolution. add_to() adds its transposed convolution to a strip of a
// full-resolution row that reads it with tap row `tap_row`. Even pixels 2i read input i (tap column 1); odd pixels 2i +
// 1 read i (tap column 2) and i + 1 (tap column 0). The products are computed for all pixels, and each lane, whose
// pixels are all even or all odd, selects: a product of zeros with a weight that is NaN or infinite would be NaN.
template <Mode kMode>
class HalfRow {
 public:
  __device__ __forceinline__ HalfRow(const Thread& thread, uint32_t row, int plane)
      : thread_(thread), pixels_(row + pixel_at(8 * thread.warp)), plane_(plane) {
    if constexpr (stored_bytes(kMode) == 2) {
      const uint32_t address = pixels_ + thread.group / 2 * 16 + thread.member * 4;
      inputs_[0] = load_word(address), inputs_[1] = load_word(address + 64);
      inputs_[2] = load_word(address + 16), inputs_[3] = load_word(address + 80);
    }
  }

  template <class Narrow>
  __device__ __forceinline__ void add_to(float (&sums)[2][4], int tap_row, const Narrow& filter) const {
    const bool odd = thread_.group % 2;
    if constexpr (stored_bytes(kMode) == 2) {
      const int matrix = thread_.lane / 8, row = thread_.lane % 8;  // matrix: block of N, column 1 or 2
      const uint32_t taps = filter.shared + 3 * tap_row * 256;
      uint32_t b[4], next[2];
      load_matrices(b, taps + (1 + matrix % 2) * 256 + (matrix / 2 * 8 + row) * 16);
      load_matrices(next, taps + thread_.lane % 16 * 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t even_words[2] = {b[2 * n], 0}, odd_words[2] = {b[2 * n + 1], next[n]};
        float of_odd[4];
        copy(of_odd, sums[n]);
        mma<kMode>(of_odd, inputs_, odd_words);
        mma_half<kMode>(sums[n], inputs_, even_words);
        copy_if(odd, sums[n], of_odd);
      }
    } else {
#pragma unroll kUnrolled < kMode>
      for (int column = 0; column < 3; ++column) {
        float added[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) copy(added[n], sums[n]);
        add_product<kMode>(
            one_row(added), thread_,
            [&](int, int m, int k) {
              return load_channel(pixels_, plane_, (m / 2 + (column == 0 ? 1 : 0)) * 16, k);
            },
            [&](int k, int n) { return filter.word(n, 3 * tap_row + column, k); });
#pragma unroll
        for (int n = 0; n < 2; ++n) copy_if(odd == (column != 1), sums[n], added[n]);
      }
    }
  }

 private:
  const Thread& thread_;
  uint32_t pixels_;
  int plane_;
  uint32_t inputs_[4];  // the A fragment of the 16-bit modes: input i of both pixels, then input i + 1
};

// ----------------------------------------------------------------------------------------------- activations

// The address of the lane's first number in the first of its two pixels, 16 * warp + group; the other pixel is 8
// further.
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

  // Multiplies by ReLU's derivative as autograd does: the gradient passes unless the activation, which is read here, is
  // <= 0, so it passes if the activation is NaN. Activations outside the image are stored as zeros.
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

// Applies ReLU, and zeroes what is outside the image.
__device__ __forceinline__ void activate(float (&sums)[2][4], bool upper_inside, bool lower_inside) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = (i < 2 ? upper_inside : lower_inside) ? relu(sums[n][i]) : 0.0f;
  }
}

}  // namespace wae::cuda
