// wae::encode: an image to its half-resolution low and high (docs/network.md), in one launch.
//
// pipeline.cuh explains the pipeline. This file has the work of the end warps: they read the image two rows a
// step, run conv1 from 3 to 16 channels, and run both branches, 16 channels to 3 and 3 with stride 2, as one
// layer with 6 output channels.
//
//     arithmetic   per step, 64 x 2 pixels, of which 56 x 2 are output
//                  conv2, conv3: 9 * 256 multiply-adds per pixel
//                  conv1: 9 * 48 (K = 27, padded to 40)
//                  branches: 9 * 128 per half-resolution pixel (6 channels, padded to 8)
//     memory       63 x 2 pixels read for 56 x 2: 1.125 of the image, times (h + 4) / h for tiles of h rows
//     bound        docs/cuda.md, for each chip

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {
namespace {

constexpr int kColumns = 2 * kTileColumns + 7;  // image columns that a tile reads
static_assert(kColumns <= kPixels);

// --------------------------------------------------------------------------------------- reading the image

// Each thread reads one pixel of a pair. The load is issued one step before its data is stored to shared
// memory, to hide its latency; the raw bits wait in registers.
template <Mode kMode>
struct Reader {
  using Number = typename Arithmetic<kMode>::Number;
  float scale[3], shift[3];
  uint32_t raw[3];
  bool is_inside = false;
  int column = threadIdx.x % kPixels, row = threadIdx.x / kPixels;  // end warps are the block's first

  __device__ explicit Reader(const EncodeParameters& p) {
    static_assert(32 * kStrips == kPair * kPixels);
    for (int c = 0; c < 3; ++c) {
      scale[c] = p.scale.type == NumberType::kNone ? 1.0f : number_at(p.scale, c);
      shift[c] = p.shift.type == NumberType::kNone ? 0.0f : number_at(p.shift, c);
      raw[c] = 0;
    }
  }

  __device__ void prefetch(const EncodeParameters& p, const Cursor& cursor) {
    const int x = 2 * cursor.x - 4 + column, y = 2 * (cursor.y + cursor.phase) - 4 + row;
    is_inside = cursor.active(kHaloPairs) && !(row == 1 && cursor.is_last(kHaloPairs)) &&
                column < 2 * p.tiling.tile_width + 7 && inside(x, 0, p.width) && inside(y, 0, p.height);
    if (!is_inside) return;
    const int64_t* stride = p.image.stride;
    const int64_t at = int64_t{cursor.image} * stride[0] + y * stride[2] + x * stride[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      if (p.image_is_bytes) {
        raw[c] = static_cast<const uint8_t*>(p.image.data)[at + c * stride[1]];
      } else {
        raw[c] = bits_of(static_cast<const Number*>(p.image.data)[at + c * stride[1]]);
      }
    }
  }

  __device__ void store_pixel(const EncodeParameters& p, uint32_t slot) const {
    float value[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float number = p.image_is_bytes ? static_cast<float>(raw[c]) : float_of_bits<Number>(raw[c]);
      value[c] = is_inside ? fmaf(number, scale[c], shift[c]) : 0.0f;
    }
    const uint32_t address = slot + row * image_pitch(kMode) + column * image_pixel(kMode);
    using A = Arithmetic<kMode>;
    if constexpr (stored_bytes(kMode) == 2) {
      store(address, A::word(value[0], value[1]), A::word(value[2], 0.0f));
    } else {
      store(address, A::word(value[0]), A::word(value[1]), A::word(value[2]), 0);
    }
  }
};

// --------------------------------------------------------------------------------------------------- conv1

// Two rows of 16 pixels and 16 channels. K runs over taps and, within a tap, over the pixel's 4 channels, so
// each word of a lane's A fragment is a word of one neighbouring pixel and needs no shuffle.
template <Mode kMode>
struct FirstLayer {
  static constexpr int kWords = image_pixel(kMode) / 4;                // per pixel
  static constexpr int kTaps = 4 / kWords;                             // per half of a fragment's K = 8 words
  static constexpr int kMmaSteps = (9 + 2 * kTaps - 1) / (2 * kTaps);  // 3, or 5 of 32-bit numbers

  uint32_t weights[kMmaSteps][2][2];
  uint32_t plain_weights;
  float bias[2][2];
  float sums[kPair][2][4];
  uint32_t pixels;

  template <class Weight, class Bias>
  __device__ FirstLayer(const ThreadCoordinates& thread, const Weight& weight, const Bias& bias_of,
                        uint32_t plain) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int step = 0; step < kMmaSteps; ++step) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int tap = (2 * step + half) * kTaps + thread.member / kWords;
            weights[step][n][half] =
                tap < 9 ? weight_word<kMode>(weight, 8 * n + thread.group, thread.member % kWords, tap) : 0;
          }
        }
      }
    }
    pixels = (thread.strip * 16 + thread.group) * image_pixel(kMode);
    if constexpr (!is_plain(kMode)) pixels += thread.member % kWords * 4;
    plain_weights = plain + thread.member * 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      bias[n][0] = bias_of(8 * n + 2 * thread.member);
      bias[n][1] = bias_of(8 * n + 2 * thread.member + 1);
    }
  }

  // From the pairs of image rows at `upper` and `lower`: image row r + y is tap row y of output row r.
  __device__ void compute(const ThreadCoordinates& thread, uint32_t upper, uint32_t lower) {
    const uint32_t rows[4] = {upper + pixels, upper + pixels + image_pitch(kMode), lower + pixels,
                              lower + pixels + image_pitch(kMode)};
#pragma unroll
    for (int row = 0; row < kPair; ++row) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[row][n][i] = bias[n][i % 2];
      }
    }
    if constexpr (is_plain(kMode)) {
      compute_plain(rows);
    } else {
      compute_mma(thread, rows);
    }
  }

  __device__ void compute_mma(const ThreadCoordinates& thread, const uint32_t (&rows)[4]) {
#pragma unroll
    for (int row = 0; row < kPair; ++row) {
#pragma unroll
      for (int step = 0; step < kMmaSteps; ++step) {
        uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int tap = (2 * step + half) * kTaps;  // for member 0
          if (tap >= 9) continue;
          uint32_t address = rows[row + tap / 3] + tap % 3 * image_pixel(kMode);
          bool exists = true;
          if constexpr (kTaps == 2) {  // members 2 and 3 hold the next tap
            const int next = tap + 1;
            if (thread.member >= 2) {
              exists = next < 9;
              if (next < 9) address = rows[row + next / 3] + next % 3 * image_pixel(kMode);
            }
          }
          const uint32_t low = load_word(address), high = load_word(address + 8 * image_pixel(kMode));
          words[2 * half] = exists ? low : 0;
          words[2 * half + 1] = exists ? high : 0;
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (kTaps == 2 && step == kMmaSteps - 1) {
            mma_half<kMode>(sums[row][n], words, weights[step][n]);
          } else {
            mma<kMode>(sums[row][n], words, weights[step][n]);
          }
        }
      }
    }
  }

  __device__ void compute_plain(const uint32_t (&rows)[4]) {
#pragma unroll
    for (int y = 0; y < 3; ++y) {
#pragma unroll 1
      for (int x = 0; x < 3; ++x) {
        float value[kPair][2][4];
#pragma unroll
        for (int row = 0; row < kPair; ++row) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float4 four = load_4(rows[row + y] + (x + 8 * half) * image_pixel(kMode));
            value[row][half][0] = four.x, value[row][half][1] = four.y, value[row][half][2] = four.z;
          }
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const float4 weight = load_4(plain_weights + ((3 * y + x) * 3 + c) * 64);
#pragma unroll
          for (int row = 0; row < kPair; ++row) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float (&sum)[2][4] = sums[row];
              const float v = value[row][half][c];
              sum[0][2 * half] = fmaf(v, weight.x, sum[0][2 * half]);
              sum[0][2 * half + 1] = fmaf(v, weight.y, sum[0][2 * half + 1]);
              sum[1][2 * half] = fmaf(v, weight.z, sum[1][2 * half]);
              sum[1][2 * half + 1] = fmaf(v, weight.w, sum[1][2 * half + 1]);
            }
          }
        }
      }
    }
  }

  __device__ void store_rows(const ThreadCoordinates& thread, const EncodeParameters& p, const Cursor& cursor,
                             uint32_t to) const {
    constexpr int kRow = kRowBytes<kMode, kRowPlane>;
    const int pixel = thread.strip * 16 + thread.group;
    const int x = 2 * cursor.x - 3, y = 2 * (cursor.y + cursor.phase) - 3;
    to += pixel_offset<false>(pixel) + channel_offset<kMode, kRowPlane>(thread.member);
#pragma unroll
    for (int row = 0; row < kPair; ++row) {
      const bool row_inside = inside(y, row, p.height);
      store_pixels<kMode, kRowPlane, 128>(to + row * kRow, sums[row], row_inside && inside(x, pixel, p.width),
                                          row_inside && inside(x, pixel + 8, p.width));
    }
  }
};

// -------------------------------------------------------------------------------------------- low and high

// A strip of 16 half-resolution pixels: row i of both branches reads rows 2i, 2i + 1, 2i + 2 of conv3's
// output. Columns 0 to 2 of the D fragment are low's channels, 3 to 5 high's.
template <Mode kMode>
struct Branches {
  static constexpr int kChannelSteps = stored_bytes(kMode) / 2;
  static constexpr int kRow = kRowBytes<kMode, kParityPlane>;
  using Number = typename Arithmetic<kMode>::Number;

  uint32_t weights[9][kChannelSteps][2];
  uint32_t plain_weights;
  float bias[2];
  float sums[2][4];  // the row that the next pair completes, and the one that it begins
  uint32_t pixels;

  template <class Weight, class Bias>
  __device__ Branches(const ThreadCoordinates& thread, const Weight& weight, const Bias& bias_of,
                      uint32_t plain) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weights[tap][step][half] =
                weight_word<kMode>(weight, thread.group, 8 * step + 4 * half + thread.member, tap);
          }
        }
      }
      pixels = thread.lane / 16 * kParityPlane + (thread.strip * 16 + thread.lane % 16) * 16;
    } else {
      pixels = (thread.strip * 16 + thread.group) * 16;
    }
    plain_weights = plain + thread.member * 8;
    bias[0] = bias_of(2 * thread.member);
    bias[1] = bias_of(2 * thread.member + 1);
    begin_row(0);
    begin_row(1);
  }

  __device__ void begin_row(int row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[row][i] = bias[i % 2];
  }

  // Column x of the 3 x 3 window: even pixel i, odd pixel i, even pixel i + 1.
  static __device__ __forceinline__ int column_offset(int x) { return x == 1 ? kParityHalf : x / 2 * 16; }

  // Of a tile's last pair only the upper row is needed.
  __device__ void add(uint32_t pair, bool is_last) {
    if (is_last) {
      add_rows<1>(pair);
    } else {
      add_rows<kPair>(pair);
    }
  }

  template <int kRows>
  __device__ __forceinline__ void add_rows(uint32_t pair) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        const uint32_t address = pair + pixels + row * kRow + column_offset(x);
        if constexpr (is_plain(kMode)) {
          add_plain(row, x, address);
        } else {
#pragma unroll
          for (int step = 0; step < kChannelSteps; ++step) {
            uint32_t words[4];
            load_matrices(words, address + step * 2 * kParityPlane);
            if (row == 0) {
              mma<kMode>(sums[0], words, weights[6 + x][step]);
              mma<kMode>(sums[1], words, weights[x][step]);
            } else {
              mma<kMode>(sums[1], words, weights[3 + x][step]);
            }
          }
        }
      }
    }
  }

  __device__ void add_plain(int row, int x, uint32_t address) {
#pragma unroll 1
    for (int plane = 0; plane < 4; ++plane) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 four = load_4(address + half * 128 + plane * kParityPlane);
        const float value[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t weight = plain_weights + (4 * plane + i) * 32;
          if (row == 0) {
            add_product(sums[0], half, value[i], load_2(weight + (6 + x) * 16 * 32));
            add_product(sums[1], half, value[i], load_2(weight + x * 16 * 32));
          } else {
            add_product(sums[1], half, value[i], load_2(weight + (3 + x) * 16 * 32));
          }
        }
      }
    }
  }
  static __device__ __forceinline__ void add_product(float (&sum)[4], int half, float value, float2 weight) {
    sum[2 * half] = fmaf(value, weight.x, sum[2 * half]);
    sum[2 * half + 1] = fmaf(value, weight.y, sum[2 * half + 1]);
  }

  __device__ void write_row(const ThreadCoordinates& thread, const EncodeParameters& p,
                            const Cursor& cursor) const {
    const int y = cursor.y + cursor.phase - 1;
    const int half_height = (p.height + 1) / 2, half_width = (p.width + 1) / 2;
    if (y >= half_height) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = thread.strip * 16 + thread.group + i / 2 * 8, x = cursor.x + column;
      const int channel = 2 * thread.member + i % 2;
      if (channel >= 6 || column >= p.tiling.tile_width || x >= half_width) continue;
      const Images& to = channel < 3 ? p.low : p.high;
      static_cast<Number*>(to.data)[int64_t{cursor.image} * to.stride[0] + channel % 3 * to.stride[1] +
                                    y * to.stride[2] + x * to.stride[3]] = from_float<Number>(sums[0][i]);
    }
  }

  __device__ void next_pair() {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[0][i] = sums[1][i];
    begin_row(1);
  }
};

// --------------------------------------------------------------------------------------------------- block

template <Mode kMode>
__device__ void run_ends(const ThreadCoordinates& thread, FirstLayer<kMode>& first, Branches<kMode>& branches,
                         const EncodeParameters& p, uint32_t shared, int64_t steps) {
  constexpr SharedLayout kLayout = encode_layout(kMode);
  constexpr int kImagePair = kPair * image_pitch(kMode);
  constexpr int kFirstPair = kPair * kRowBytes<kMode, kRowPlane>;
  constexpr int kLastPair = kPair * kRowBytes<kMode, kParityPlane>;
  const bool has_branch = thread.strip * 16 < kPixels / 2;  // half as many half-resolution strips
  Reader<kMode> reader(p);
  Cursor read_cursor(p.tiling, 0), first_cursor(p.tiling, kFirstLag), last_cursor(p.tiling, kLastLag);
  int parity = 0;
  uint32_t newest = shared, middle = shared + kImagePair, oldest = shared + 2 * kImagePair;
  for (; steps > 0; --steps, parity ^= 1) {
    reader.store_pixel(p, newest);  // loaded by the previous step; zeros in the first
    reader.prefetch(p, read_cursor);
    __syncwarp();  // reconverge for ldmatrix and mma
    const bool first_active = first_cursor.active(3), last_active = has_branch && last_cursor.active(1);
    if (first_active) first.compute(thread, oldest, middle);
    if (last_active)
      branches.add(slot<kMode>(shared + kLayout.last, kLastPair, parity ^ 1), last_cursor.is_last(1));
    if constexpr (row_slots(kMode) == 1) block_barrier();
    if (first_active)
      first.store_rows(thread, p, first_cursor, slot<kMode>(shared + kLayout.first, kFirstPair, parity));
    if (last_active) {
      if (last_cursor.phase > 0) branches.write_row(thread, p, last_cursor);
      __syncwarp();
      branches.next_pair();
    }
    block_barrier();
    read_cursor.advance(), first_cursor.advance(), last_cursor.advance();
    const uint32_t next = oldest;  // rotate the three slots
    oldest = middle, middle = newest, newest = next;
  }
}

template <Mode kMode>
__device__ void encode(const EncodeParameters& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Number = typename Arithmetic<kMode>::Number;
  constexpr SharedLayout kLayout = encode_layout(kMode);
  const ThreadCoordinates thread;
  const uint32_t shared = shared_address(memory);

  // Stage the raw filters where the rows will be; each warp then loads its own weights from there.
  Number* stage = reinterpret_cast<Number*>(memory);
  static_assert(5904 * static_cast<int>(sizeof(Number)) <= kLayout.weights);
  const StagedFilter<Number> conv1 = stage_filter(stage, p.filters[0], 16, 3);
  const StagedFilter<Number> conv2 = stage_filter(stage + 432, p.filters[1], 16, 16);
  const StagedFilter<Number> conv3 = stage_filter(stage + 2736, p.filters[2], 16, 16);
  const StagedFilter<Number> low = stage_filter(stage + 5040, p.filters[3], 3, 16);
  const StagedFilter<Number> high = stage_filter(stage + 5472, p.filters[4], 3, 16);
  block_barrier();
  const auto first_weight = [&](int out, int in, int tap) { return in < 3 ? conv1.at(out, in, tap) : 0.0f; };
  const auto branch_weight = [&](int out, int in, int tap) {
    return out < 3 ? low.at(out, in, tap) : out < 6 ? high.at(out - 3, in, tap) : 0.0f;
  };
  const auto trunk_weight = [&](int out, int in, int tap) {
    return thread.role == kSecond ? conv2.at(out, in, tap) : conv3.at(out, in, tap);
  };
  const uint32_t plain_first = shared + kLayout.weights, plain_second = plain_first + 4 * kEncodeFirstWeights,
                 plain_third = plain_second + 4 * kTrunkWeights, plain_last = plain_third + 4 * kTrunkWeights;
  if constexpr (is_plain(kMode)) {
    float* plain = reinterpret_cast<float*>(memory + kLayout.weights);
    write_plain_weights(plain, first_weight, 3, 16);
    write_plain_weights(
        plain += kEncodeFirstWeights, [&](int o, int i, int t) { return conv2.at(o, i, t); }, 16, 16);
    write_plain_weights(
        plain += kTrunkWeights, [&](int o, int i, int t) { return conv3.at(o, i, t); }, 16, 16);
    write_plain_weights(plain += kTrunkWeights, branch_weight, 16, 8);
  }

  const int64_t steps = steps_of_block(p.tiling, 1);
  if (thread.role == kEnds) {
    FirstLayer<kMode> first(
        thread, first_weight, [&](int channel) { return bias_at<Number>(p.filters[0], channel); },
        plain_first);
    Branches<kMode> branches(
        thread, branch_weight,
        [&](int channel) {
          return channel < 6 ? bias_at<Number>(p.filters[3 + channel / 3], channel % 3) : 0.0f;
        },
        plain_last);
    clear_rows(shared, kLayout.weights);
    run_ends<kMode>(thread, first, branches, p, shared, steps);
  } else {
    const Filter& filter = p.filters[thread.role == kSecond ? 1 : 2];
    Layer<kMode, 2> layer(
        thread, trunk_weight, [&](int channel) { return bias_at<Number>(filter, channel); },
        thread.role == kSecond ? plain_second : plain_third);
    clear_rows(shared, kLayout.weights);
    if (thread.role == kSecond) {
      run_trunk<kMode, false>(thread, layer, p.tiling, p.height, p.width, shared + kLayout.first,
                              shared + kLayout.second, {kSecondLag, 3, -2}, steps);
    } else {
      run_trunk<kMode, true>(thread, layer, p.tiling, p.height, p.width, shared + kLayout.second,
                             shared + kLayout.last, {kThirdLag, 2, -1}, steps);
    }
  }
}

}  // namespace

template <Mode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    encode_kernel(const __grid_constant__ EncodeParameters parameters) {
  if constexpr (WAE_RUNS_HERE(kMode)) encode<kMode>(parameters);
}

const void* encode_kernel_of(Mode mode) {
  switch (mode) {
    case Mode::kFloat16:
      return reinterpret_cast<const void*>(encode_kernel<Mode::kFloat16>);
    case Mode::kBFloat16:
      return reinterpret_cast<const void*>(encode_kernel<Mode::kBFloat16>);
    case Mode::kTf32:
      return reinterpret_cast<const void*>(encode_kernel<Mode::kTf32>);
    case Mode::kFloat32:
      return reinterpret_cast<const void*>(encode_kernel<Mode::kFloat32>);
    default:
      return reinterpret_cast<const void*>(encode_kernel<Mode::kBFloat16Plain>);
  }
}

}  // namespace wae::cuda
