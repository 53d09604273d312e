// wae::decode: low and high back to an image (docs/network.md), in one launch.
//
// How a block works is told in pipeline.cuh. Here is what its end warps do: read low and high, one
// half-resolution row a step, run both transposed convolutions as one from 6 to 16 channels, and run conv3,
// 16 channels to 3.
//
//     arithmetic   per step, 64 x 2 pixels, of which 56 x 2 count: conv1 and conv2 9 * 256 multiply-adds a
//                  pixel, the transposed convolutions 9 * 128 a half-resolution pixel (6 channels padded to
//                  8), conv3 9 * 128 a pixel (3 padded to 8)
//     memory       32 half-resolution pixels read for 28, times (h + 4) / h for tiles of h rows
//     bound        the tensor cores; docs/cuda.md works it out for each chip
//
// The transposed convolution by parity: output pixel 2i lies on input i (tap 1), output 2i + 1 between i (tap
// 2) and i + 1 (tap 0). A warp computes one row of a pair: the upper rows are even and see one input row, the
// lower two.

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {
namespace {

constexpr int kHalfPixels = kPixels / 2;
static_assert(kTileColumns + 4 <= kHalfPixels);  // half-resolution columns that a tile needs

// ------------------------------------------------------------------------------------- reading low and high

// The first warp's lanes read one pixel of low and high a step, and keep its raw bits until the next; see
// encode.cu.
template <Mode kMode>
struct Reader {
  using Number = typename Arithmetic<kMode>::Number;
  uint32_t raw[6] = {0, 0, 0, 0, 0, 0};
  int column = threadIdx.x;

  __device__ void ask(const DecodeParameters& p, const Cursor& cursor) {
    if (column >= kHalfPixels) return;
    const int x = cursor.x - 2 + column, y = cursor.y + cursor.phase - 2;
    const bool is_inside = cursor.active(kHaloPairs) && column < p.tiling.tile_width + 4 &&
                           inside(x, 0, (p.width + 1) / 2) && inside(y, 0, (p.height + 1) / 2);
#pragma unroll
    for (int c = 0; c < 6; ++c) {
      const Pictures& from = c < 3 ? p.low : p.high;
      const int64_t at = int64_t{cursor.picture} * from.stride[0] + c % 3 * from.stride[1] +
                         y * from.stride[2] + x * from.stride[3];
      raw[c] = is_inside ? bits_of(static_cast<const Number*>(from.data)[at]) : 0;
    }
  }

  __device__ void store_pixel(uint32_t slot) const {
    if (column >= kHalfPixels) return;
    const uint32_t address = slot + column * 16;
    if constexpr (stored_bytes(kMode) == 2) {
      store(address, raw[0] | raw[1] << 16, raw[2] | raw[3] << 16, raw[4] | raw[5] << 16, 0);
    } else {
      uint32_t word[6];
#pragma unroll
      for (int c = 0; c < 6; ++c) word[c] = Arithmetic<kMode>::word(float_of_bits<Number>(raw[c]));
      store(address, word[0], word[1], word[2], word[3]);
      store(address + kHalfPlane, word[4], word[5], 0, 0);
    }
  }
};

// ---------------------------------------------------------------------------------- low and high, transposed

// One row of 32 pixels and 16 channels, from 16 half-resolution pixels (and one more) of one row or two.
template <Mode kMode>
struct FirstLayer {
  static constexpr bool kNarrow = stored_bytes(kMode) == 2;
  // The tap column of a kind of product: of even pixels; of odd ones from input i; from input i + 1.
  static __device__ constexpr int tap_column(int kind) { return kind == 0 ? 1 : kind == 1 ? 2 : 0; }

  int strip, row;
  // By input row, kind of tap, block of 8 channels. In 16 bits the two taps of odd pixels are one table,
  // weights[1].
  uint32_t weights[2][3][2][2];
  uint32_t plain_weights;
  float bias[2][2];
  float sums[2][2][4];  // even pixels, odd pixels
  uint32_t pixels;

  // The tap row that adds input row `input` (0, or 1 below it) to this warp's row.
  __device__ __forceinline__ int tap_row(int input) const { return row == 0 ? 1 : input == 0 ? 2 : 0; }

  template <class Weight, class Bias>
  __device__ FirstLayer(const Self& self, const Weight& weight, const Bias& bias_of, uint32_t plain)
      : strip(self.strip % 2), row(self.strip / 2) {
    static_assert(kStrips == 4);
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int input = 0; input < 2; ++input) {
#pragma unroll
        for (int kind = 0; kind < 3; ++kind) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const int tap = 3 * tap_row(input) + tap_column(kind), out = 8 * n + self.group;
            weights[input][kind][n][0] = weight_word<kMode>(weight, out, self.member, tap);
            if constexpr (!kNarrow) {
              weights[input][kind][n][1] = weight_word<kMode>(weight, out, self.member + 4, tap);
            } else {  // odd pixels: tap 2 of input i, then tap 0 of input i + 1
              weights[input][kind][n][1] = weight_word<kMode>(weight, out, self.member, 3 * tap_row(input));
            }
          }
        }
      }
      pixels = (strip * 16 + self.lane % 16) * 16 + self.lane / 16 * (kNarrow ? 16 : kHalfPlane);
    } else {
      pixels = (strip * 16 + self.group) * 16;
    }
    plain_weights = plain + self.member * 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      bias[n][0] = bias_of(8 * n + 2 * self.member);
      bias[n][1] = bias_of(8 * n + 2 * self.member + 1);
    }
  }

  __device__ void compute(uint32_t upper, uint32_t lower) {
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[parity][n][i] = bias[n][i % 2];
      }
    }
    add_row<0>(upper + pixels);
    if (row == 1) add_row<1>(lower + pixels);
  }

  template <int kInput>
  __device__ void add_row(uint32_t address) {
    if constexpr (is_plain(kMode)) {
      add_plain(address, 3 * tap_row(kInput));
    } else if constexpr (kNarrow) {
      uint32_t words[4];  // of input i, then of input i + 1
      load_matrices(words, address);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_half<kMode>(sums[0][n], words, weights[kInput][0][n]);
        multiply<kMode>(sums[1][n], words, weights[kInput][1][n]);
      }
    } else {
      uint32_t here[4], right[4];
      load_matrices(here, address);
      load_matrices(right, address + 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply<kMode>(sums[0][n], here, weights[kInput][0][n]);
        multiply<kMode>(sums[1][n], here, weights[kInput][1][n]);
        multiply<kMode>(sums[1][n], right, weights[kInput][2][n]);
      }
    }
  }

  __device__ void add_plain(uint32_t address, int first_tap) {
#pragma unroll
    for (int kind = 0; kind < 3; ++kind) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pixel = address + half * 128 + (kind == 2 ? 16 : 0);
        const float4 a = load_4(pixel);
        const float2 b = load_2(pixel + kHalfPlane);
        const float value[6] = {a.x, a.y, a.z, a.w, b.x, b.y};
        float (&sum)[2][4] = sums[kind == 0 ? 0 : 1];
#pragma unroll
        for (int c = 0; c < 6; ++c) {
          const float4 weight = load_4(plain_weights + ((first_tap + tap_column(kind)) * 6 + c) * 64);
          sum[0][2 * half] = fmaf(value[c], weight.x, sum[0][2 * half]);
          sum[0][2 * half + 1] = fmaf(value[c], weight.y, sum[0][2 * half + 1]);
          sum[1][2 * half] = fmaf(value[c], weight.z, sum[1][2 * half]);
          sum[1][2 * half + 1] = fmaf(value[c], weight.w, sum[1][2 * half + 1]);
        }
      }
    }
  }

  // A lane's even and odd pixel are neighbours, so storing first all even ones would use half of the banks
  // twice. Some groups store the odd one first.
  __device__ void store_row(const Self& self, const DecodeParameters& p, const Cursor& cursor,
                            uint32_t to) const {
    const bool odd_first = self.group & (kNarrow ? 4 : 2);
    const int x = 2 * cursor.x - 4, y = 2 * (cursor.y + cursor.phase) - 4;
    const bool row_inside = inside(y, row, p.height);
    to += (row == 0 ? 0 : kRowBytes<kMode, kRowPlane>)+channel_offset<kMode, kRowPlane>(self.member);
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
      const int pixel = 2 * (strip * 16 + self.group) + (odd_first ? 1 - turn : turn);
      float chosen[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) chosen[n][i] = odd_first ? sums[1 - turn][n][i] : sums[turn][n][i];
      }
      store_pixels<kMode, kRowPlane, 256>(to + pixel_offset<false>(pixel), chosen,
                                          row_inside && inside(x, pixel, p.width),
                                          row_inside && inside(x, pixel + 16, p.width));
    }
  }
};

// ----------------------------------------------------------------------------------------------------- conv3

template <Mode kMode>
__device__ void write_rows(const Self& self, const Layer<kMode, 1>& layer, const DecodeParameters& p,
                           const Cursor& cursor) {
  using Number = typename Arithmetic<kMode>::Number;
#pragma unroll
  for (int row = 0; row < kPair; ++row) {
    const int down = 2 * (cursor.phase - 1) + row - 1, y = 2 * cursor.y + down;  // from the tile's first row
    if (down < 0 || down >= 2 * p.tiling.tile_height || y >= p.height) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int right = self.strip * 16 + self.group + i / 2 * 8 - 1, x = 2 * cursor.x + right;
      const int channel = 2 * self.member + i % 2;
      if (channel >= 3 || right < 0 || right >= 2 * p.tiling.tile_width || x >= p.width) continue;
      const int64_t at = int64_t{cursor.picture} * p.image.stride[0] + channel * p.image.stride[1] +
                         y * p.image.stride[2] + x * p.image.stride[3];
      static_cast<Number*>(p.image.data)[at] = from_float<Number>(layer.sums[row][0][i]);
    }
  }
}

// ------------------------------------------------------------------------------------------------- the block

template <Mode kMode>
__device__ void run_ends(const Self& self, FirstLayer<kMode>& first, Layer<kMode, 1>& last,
                         const DecodeParameters& p, uint32_t shared, int64_t steps) {
  constexpr SharedLayout kLayout = decode_layout(kMode);
  constexpr int kHalfRow = half_planes(kMode) * kHalfPlane;
  constexpr int kRowPair = kPair * kRowBytes<kMode, kRowPlane>;
  Reader<kMode> reader;
  Cursor read_at(p.tiling, 0), first_at(p.tiling, kFirstLag), last_at(p.tiling, kLastLag);
  int parity = 0;
  uint32_t newest = shared, middle = shared + kHalfRow, oldest = shared + 2 * kHalfRow;
  for (; steps > 0; --steps, parity ^= 1) {
    reader.store_pixel(newest);  // what the step before asked for; zeros, in the first
    reader.ask(p, read_at);
    __syncwarp();  // lanes went different ways; ldmatrix and mma want all of them
    const bool first_active = first_at.active(4), last_active = last_at.active(2);
    if (first_active) first.compute(oldest, middle);
    if (last_active) last.add(slot<kMode>(shared + kLayout.last, kRowPair, parity ^ 1), last_at.is_last(2));
    if constexpr (row_slots(kMode) == 1) meet();
    if (first_active)
      first.store_row(self, p, first_at, slot<kMode>(shared + kLayout.first, kRowPair, parity));
    if (last_active) {
      if (last_at.phase > 0) write_rows(self, last, p, last_at);
      __syncwarp();
      last.next_pair();
    }
    meet();
    read_at.advance(), first_at.advance(), last_at.advance();
    const uint32_t next = oldest;  // the three slots go round
    oldest = middle, middle = newest, newest = next;
  }
}

template <Mode kMode>
__device__ void decode(const DecodeParameters& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Number = typename Arithmetic<kMode>::Number;
  constexpr SharedLayout kLayout = decode_layout(kMode);
  const Self self;
  const uint32_t shared = shared_address(memory);

  // The filters as they are, where later the rows lie; then each warp takes its own.
  Number* stage = reinterpret_cast<Number*>(memory);
  static_assert(5904 * static_cast<int>(sizeof(Number)) <= kLayout.weights);
  const StagedFilter<Number> low = stage_filter(stage, p.filters[0], 16, 3);
  const StagedFilter<Number> high = stage_filter(stage + 432, p.filters[1], 16, 3);
  const StagedFilter<Number> conv1 = stage_filter(stage + 864, p.filters[2], 16, 16);
  const StagedFilter<Number> conv2 = stage_filter(stage + 3168, p.filters[3], 16, 16);
  const StagedFilter<Number> conv3 = stage_filter(stage + 5472, p.filters[4], 3, 16);
  meet();
  const auto first_weight = [&](int out, int in, int tap) {
    return in < 3 ? low.at(out, in, tap) : in < 6 ? high.at(out, in - 3, tap) : 0.0f;
  };
  const auto last_weight = [&](int out, int in, int tap) { return out < 3 ? conv3.at(out, in, tap) : 0.0f; };
  const auto trunk_weight = [&](int out, int in, int tap) {
    return self.role == kSecond ? conv1.at(out, in, tap) : conv2.at(out, in, tap);
  };
  const uint32_t plain_first = shared + kLayout.weights, plain_second = plain_first + 4 * kDecodeFirstWeights,
                 plain_third = plain_second + 4 * kTrunkWeights, plain_last = plain_third + 4 * kTrunkWeights;
  if constexpr (is_plain(kMode)) {
    float* plain = reinterpret_cast<float*>(memory + kLayout.weights);
    write_plain_weights(plain, first_weight, 6, 16);
    write_plain_weights(
        plain += kDecodeFirstWeights, [&](int o, int i, int t) { return conv1.at(o, i, t); }, 16, 16);
    write_plain_weights(
        plain += kTrunkWeights, [&](int o, int i, int t) { return conv2.at(o, i, t); }, 16, 16);
    write_plain_weights(plain += kTrunkWeights, last_weight, 16, 8);
  }

  const int64_t steps = steps_of_block(p.tiling, 2);
  if (self.role == kEnds) {
    FirstLayer<kMode> first(
        self, first_weight,
        [&](int channel) {
          return bias_at<Number>(p.filters[0], channel) + bias_at<Number>(p.filters[1], channel);
        },
        plain_first);
    Layer<kMode, 1> last(
        self, last_weight,
        [&](int channel) { return channel < 3 ? bias_at<Number>(p.filters[4], channel) : 0.0f; }, plain_last);
    clear_rows(shared, kLayout.weights);
    run_ends<kMode>(self, first, last, p, shared, steps);
  } else {
    const Filter& filter = p.filters[self.role == kSecond ? 2 : 3];
    Layer<kMode, 2> layer(
        self, trunk_weight, [&](int channel) { return bias_at<Number>(filter, channel); },
        self.role == kSecond ? plain_second : plain_third);
    clear_rows(shared, kLayout.weights);
    const bool second = self.role == kSecond;
    run_trunk<kMode, false>(self, layer, p.tiling, p.height, p.width,
                            shared + (second ? kLayout.first : kLayout.second),
                            shared + (second ? kLayout.second : kLayout.last),
                            second ? Stage{kSecondLag, 4, -3} : Stage{kThirdLag, 3, -2}, steps);
  }
}

}  // namespace

template <Mode kMode>
__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParameters parameters) {
  if constexpr (WAE_RUNS_HERE(kMode)) decode<kMode>(parameters);
}

const void* decode_kernel_of(Mode mode) {
  switch (mode) {
    case Mode::kFloat16:
      return reinterpret_cast<const void*>(decode_kernel<Mode::kFloat16>);
    case Mode::kBFloat16:
      return reinterpret_cast<const void*>(decode_kernel<Mode::kBFloat16>);
    case Mode::kTf32:
      return reinterpret_cast<const void*>(decode_kernel<Mode::kTf32>);
    case Mode::kFloat32:
      return reinterpret_cast<const void*>(decode_kernel<Mode::kFloat32>);
    default:
      return reinterpret_cast<const void*>(decode_kernel<Mode::kBFloat16Plain>);
  }
}

}  // namespace wae::cuda
