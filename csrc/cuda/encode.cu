// wae::encode: an image to its half-resolution low and high (docs/network.md), in one launch.
//
// A block computes tiles of low and high, one after the other; pipeline.cuh explains how its warps share the layers.
// This file has the work of the end warps: they read two rows of the image in each step, compute conv1 from 3 to 16
// channels, and compute both branches, from 16 channels to 3 each with stride 2, as one layer with 6 output channels.
//
//     arithmetic   per step, 64 x 2 pixels, of which 56 x 2 are output
//                  conv2, conv3: 9 * 256 multiply-adds per pixel
//                  conv1: 9 * 48 (K = 27, padded to 48)
//                  branches: 9 * 128 per half-resolution pixel (6 channels, padded to 8)
//     memory       63 x 2 pixels read for 56 x 2: 1.125 of the image, times (h + 4) / h for tiles of h rows
//     bound        see docs/cuda.md, for each chip

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {
namespace {

constexpr int kColumns = 2 * kTileColumns + 7;  // image columns that a tile reads
static_assert(kColumns <= kPixels);

// --------------------------------------------------------------------------------------- reading the image

// The byte offset of pixel x in a plane of the image.
__device__ __forceinline__ int image_pixel(int x) { return (x + 1) * 16; }

// Each thread of the end warps reads one pixel of a pair of rows. A load is issued one step before its data is stored
// to shared memory, to hide its latency; in between, the raw bits are in registers.
template <Mode kMode>
struct Reader {
  using Number = typename Arithmetic<kMode>::Number;
  uint32_t raw[3] = {0, 0, 0};
  bool is_inside = false, column_inside;
  int column = threadIdx.x % kPixels, row = threadIdx.x / kPixels;  // the end warps are the block's first
  // The address of the thread's pixel in the tile's current pair, perhaps outside the image; the bytes from it to its
  // pixel of the next pair, and to the next channel.
  const unsigned char* at;
  int64_t pair_step, channel_step;

  __device__ explicit Reader(const EncodeParameters& p) {
    static_assert(32 * kStrips == kPair * kPixels);
    pair_step = kPair * bytes(p) * p.image.stride[2], channel_step = bytes(p) * p.image.stride[1];
  }

  // The bytes of one channel of a pixel in global memory.
  static __device__ __forceinline__ int bytes(const EncodeParameters& p) {
    return p.image_is_bytes ? 1 : p.are_floats ? 4 : static_cast<int>(sizeof(Number));
  }

  __device__ void begin_tile(const EncodeParameters& p, const Cursor& cursor) {
    const int x = 2 * cursor.x - 4 + column, y = 2 * cursor.y - 4 + row;
    column_inside =
        cursor.active(kHaloPairs) && column < 2 * p.tiling.tile_width + 7 && inside(x, 0, p.width);
    const int64_t* stride = p.image.stride;
    const int64_t offset = int64_t{cursor.image} * stride[0] + y * stride[2] + x * stride[3];
    at = static_cast<const unsigned char*>(p.image.data) + offset * bytes(p);
  }

  __device__ void prefetch(const EncodeParameters& p, const Cursor& cursor) {
    if (cursor.phase == 0) begin_tile(p, cursor);
    is_inside = column_inside && !(row == 1 && cursor.is_last(kHaloPairs)) &&
                inside(2 * (cursor.y + cursor.phase) - 4, row, p.height);
    if (is_inside) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const unsigned char* channel = at + c * channel_step;
        if (p.image_is_bytes) {
          raw[c] = *channel;
        } else if (p.are_floats) {
          raw[c] = *reinterpret_cast<const uint32_t*>(channel);
        } else {
          raw[c] = bits_of(*reinterpret_cast<const Number*>(channel));
        }
      }
    }
    at += pair_step;
  }

  __device__ void store_pixel(const EncodeParameters& p, uint32_t affine, uint32_t slot) const {
    const float4 scales = load_4(affine), shifts = load_4(affine + 16);
    const float scale[3] = {scales.x, scales.y, scales.z}, shift[3] = {shifts.x, shifts.y, shifts.z};
    float value[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float number = p.image_is_bytes ? static_cast<float>(raw[c])
                           : p.are_floats   ? __uint_as_float(raw[c])
                                            : float_of_bits<Number>(raw[c]);
      value[c] = is_inside ? fmaf(number, scale[c], shift[c]) : 0.0f;
    }
    const uint32_t address = slot + row * image_pitch(kMode) + image_pixel(column);
    using A = Arithmetic<kMode>;
    if constexpr (stored_bytes(kMode) == 2) {
      const uint32_t first = A::word(value[0], value[1]), second = A::word(value[2], 0.0f);
      store(address, first, second);
      store(address - 8, first, second);  // as right neighbour of the pixel to the left
      store(address + kRowPlane, first, second, 0, 0);
    } else {
      store(address, A::word(value[0]), A::word(value[1]), A::word(value[2]), 0);
    }
  }
};

// The image's scale and shift are kept in shared memory, 4 numbers each: two loads a step instead of six registers.
// Returns the number that a thread below 8 stores there.
__device__ __forceinline__ float affine_number(const EncodeParameters& p) {
  const int c = threadIdx.x % 4;
  const ChannelVector& vector = threadIdx.x < 4 ? p.scale : p.shift;
  const float none = threadIdx.x < 4 ? 1.0f : 0.0f;
  return threadIdx.x >= 8 || c == 3 || vector.type == NumberType::kNone ? none : number_at(vector, c);
}

// --------------------------------------------------------------------------------------------------- conv1

// Computes two rows of 16 pixels x 16 channels. K runs over the three taps of a row and a fourth that is zero and,
// within a tap, over the pixel's 4 channels.
template <Mode kMode>
struct FirstLayer {
  using Packed =
      PackedFilter<kMode, 16, 4 * stored_bytes(kMode), 3>;   // a row of taps as one tap with 16 channels
  static constexpr int kMmaSteps = stored_bytes(kMode) / 2;  // for a row of taps

  uint32_t weights[3][kMmaSteps][2][2];  // [row of taps][step][block of 8 channels]
  uint32_t plain_weights;
  float bias[2][2];
  float sums[kPair][2][4];
  uint32_t pixels;

  __device__ FirstLayer(const ThreadCoordinates& thread, const Packed& filter, uint32_t biases,
                        uint32_t plain) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int y = 0; y < 3; ++y) {
#pragma unroll
        for (int step = 0; step < kMmaSteps; ++step) filter.load(weights[y][step], thread.lane, y, step);
      }
      // The address of the lane's row for ldmatrix; lanes 16 to 31 give those of the words from 4 on.
      pixels = image_pixel(thread.strip * 16 + thread.lane % 16) +
               thread.lane / 16 * (stored_bytes(kMode) == 2 ? kRowPlane + 2 * 16 : 16);
    } else {
      pixels = image_pixel(thread.strip * 16 + thread.group);
    }
    plain_weights = plain + thread.member * 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) load_biases(bias[n], biases, 8 * n + 2 * thread.member);
  }

  // From the pairs of image rows at `upper` and `lower`: image row r + y is multiplied by tap row y for output row r.
  __device__ void compute(uint32_t upper, uint32_t lower) {
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
      compute_mma(rows);
    }
  }

  __device__ void compute_mma(const uint32_t (&rows)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int step = 0; step < kMmaSteps; ++step) {
        uint32_t words[4] = {0, 0, 0, 0};
        if (step == 0) {
          load_matrices(words, rows[i]);
        } else {  // the third tap; the fourth is not read: zero times a NaN there would be NaN
          uint32_t third[2];
          load_matrices(third, rows[i] + 2 * 16);
          words[0] = third[0], words[1] = third[1];
        }
#pragma unroll
        for (int row = 0; row < kPair; ++row) {
          const int y = i - row;
          if (y < 0 || y > 2) continue;
#pragma unroll
          for (int n = 0; n < 2; ++n) mma<kMode>(sums[row][n], words, weights[y][step][n]);
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
            const float4 four = load_4(rows[row + y] + (x + 8 * half) * 16);
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

// Computes every other row of a strip of 16 half-resolution pixels: row i of both branches reads rows 2i, 2i + 1 and
// 2i + 2 of conv3's output. There are half as many strips as at full resolution, so two warps share a strip and take
// its rows alternately, and all schedulers have the same work. Columns 0 to 2 of the D fragment are low's channels and
// columns 4 to 6 high's, so that a lane writes to only one of them.
template <Mode kMode>
struct Branches {
  static constexpr int kChannelSteps = stored_bytes(kMode) / 2;
  static constexpr int kRow = kRowBytes<kMode, kParityPlane>;
  using Number = typename Arithmetic<kMode>::Number;
  using Packed = PackedFilter<kMode, 8, 4 * stored_bytes(kMode)>;

  uint32_t weights[9][kChannelSteps][1][2];
  uint32_t plain_weights;
  float bias[2];
  float sums[4];  // of the row that one pair of input rows begins and the next completes
  uint32_t pixels;
  int strip, turn;
  Number* at;  // the output address of the lane's first channel of its first pixel, in the current row
  int64_t channel_step, rows_step, eight_pixels;  // to the next channel, the warp's next row, 8 pixels on
  int columns_left;                               // of the tile and the image, from that pixel on

  __device__ Branches(const ThreadCoordinates& thread, const Packed& filter, uint32_t biases, uint32_t plain)
      : strip(thread.strip % 2), turn(thread.strip / 2) {
    static_assert(kStrips == 4);
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step)
          filter.load(weights[tap][step], thread.lane, tap, step);
      }
      pixels = thread.lane / 16 * kParityPlane + (strip * 16 + thread.lane % 16) * 16;
    } else {
      pixels = (strip * 16 + thread.group) * 16;
    }
    plain_weights = plain + thread.member * 8;
    load_biases(bias, biases, 2 * thread.member);
  }

  // The byte offset of column x of the 3 x 3 window: even pixel i, odd pixel i, even pixel i + 1.
  static __device__ __forceinline__ int column_offset(int x) { return x == 1 ? kParityHalf : x / 2 * 16; }

  // Whether the warp completes a row with this pair, whose upper row is the last of the row's three, and whether it
  // begins a row.
  __device__ bool completes(const Cursor& cursor) const {
    return cursor.phase > 0 && cursor.phase % 2 != turn;
  }
  __device__ bool begins(const Cursor& cursor) const {
    return cursor.phase % 2 == turn && !cursor.is_last(1);
  }

  __device__ void begin(uint32_t pair) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = bias[i % 2];
    add_row(pair, 0);
    add_row(pair + kRow, 1);
  }
  __device__ void complete(uint32_t pair) { add_row(pair, 2); }

  // Adds row y of the window.
  __device__ __forceinline__ void add_row(uint32_t row, int y) {
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      const uint32_t address = row + pixels + column_offset(x);
      if constexpr (is_plain(kMode)) {
        add_plain(3 * y + x, address);
      } else {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step) {
          uint32_t words[4];
          load_matrices(words, address + step * 2 * kParityPlane);
          mma<kMode>(sums, words, weights[3 * y + x][step][0]);
        }
      }
    }
  }

  __device__ void add_plain(int tap, uint32_t address) {
#pragma unroll 1
    for (int plane = 0; plane < 4; ++plane) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 four = load_4(address + half * 128 + plane * kParityPlane);
        const float value[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 weight = load_2(plain_weights + (16 * tap + 4 * plane + i) * 32);
          sums[2 * half] = fmaf(value[i], weight.x, sums[2 * half]);
          sums[2 * half + 1] = fmaf(value[i], weight.y, sums[2 * half + 1]);
        }
      }
    }
  }

  __device__ void begin_tile(const ThreadCoordinates& thread, const EncodeParameters& p,
                             const Cursor& cursor) {
    const int column = strip * 16 + thread.group;
    columns_left = min(p.tiling.tile_width, half_size(p.width) - cursor.x) - column;
    const Images& to = thread.member < 2 ? p.low : p.high;
    at = static_cast<Number*>(to.data) + int64_t{cursor.image} * to.stride[0] +
         thread.member % 2 * 2 * to.stride[1] + (cursor.y + turn) * to.stride[2] +
         (cursor.x + column) * to.stride[3];
    channel_step = to.stride[1], rows_step = 2 * to.stride[2], eight_pixels = 8 * to.stride[3];
  }

  __device__ void write_row(const ThreadCoordinates& thread, const EncodeParameters& p,
                            const Cursor& cursor) {
    const bool row_inside = cursor.y + cursor.phase - 1 < half_size(p.height);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!row_inside || columns_left <= 8 * half) continue;
      Number* pixel = at + half * eight_pixels;
      pixel[0] = from_float<Number>(sums[2 * half]);
      if (thread.member % 2 == 0) pixel[channel_step] = from_float<Number>(sums[2 * half + 1]);
    }
    at += rows_step;
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
  Reader<kMode> reader(p);
  Cursor read_cursor(p.tiling, 0), first_cursor = read_cursor.lagging(kFirstLag),
                                   last_cursor = read_cursor.lagging(kLastLag);
  int parity = 0;
  uint32_t newest = shared, middle = shared + kImagePair, oldest = shared + 2 * kImagePair;
  for (; steps > 0; --steps, parity ^= 1) {
    // The previous step loaded it; zeros in the first step.
    reader.store_pixel(p, shared + kLayout.affine, newest);
    reader.prefetch(p, read_cursor);
    __syncwarp();  // reconverge for ldmatrix and mma
    const bool first_active = first_cursor.active(3), last_active = last_cursor.active(1);
    const bool completes = last_active && branches.completes(last_cursor);
    if (first_active) first.compute(oldest, middle);
    const uint32_t last_pair = slot<kMode>(shared + kLayout.last, kLastPair, parity ^ 1);
    if (completes) {
      branches.complete(last_pair);
    } else if (last_active && branches.begins(last_cursor)) {
      branches.begin(last_pair);
    }
    if constexpr (row_slots(kMode) == 1) block_barrier();
    if (first_active)
      first.store_rows(thread, p, first_cursor, slot<kMode>(shared + kLayout.first, kFirstPair, parity));
    if (last_active && last_cursor.phase == 0) branches.begin_tile(thread, p, last_cursor);
    if (completes) branches.write_row(thread, p, last_cursor);
    __syncwarp();
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
  using Trunk = Layer<kMode>;
  using First = FirstLayer<kMode>;
  constexpr SharedLayout kLayout = encode_layout(kMode);
  const ThreadCoordinates thread;
  const uint32_t shared = shared_address(memory);

  // Parameters are staged in the memory of the rows. are_floats is false if Number is float: one copy then suffices.
  const bool are_floats = sizeof(Number) == 2 && p.are_floats;
  const float affine = affine_number(p);
  const StagedBias bias([&](int layer, int channel) {  // the branches' biases are in the order of D's columns
    const bool is_last = layer == 3;
    if (is_last && !is_of_two_triples(channel)) return 0.0f;
    return bias_at<Number>(p.filters[layer + (is_last ? channel / 4 : 0)], is_last ? channel % 4 : channel,
                           are_floats);
  });
  const StagedFilters<Op::kEncode, Number> stage(reinterpret_cast<Number*>(memory), p.filters, are_floats);
  const uint32_t biases = shared + kFilterNumbers * sizeof(Number);
  bias.store_to(biases);
  if (threadIdx.x < 8) store(shared + kLayout.affine + threadIdx.x * 4, __float_as_uint(affine));
  block_barrier();

  const auto conv1 = stage.template filter<0>(), conv2 = stage.template filter<1>(),
             conv3 = stage.template filter<2>(), low = stage.template filter<3>(),
             high = stage.template filter<4>();
  const auto first_weight = [&](int out, int in, int tap) { return conv1.at(out, in, tap); };
  const auto second_weight = [&](int out, int in, int tap) { return conv2.at(out, in, tap); };
  const auto third_weight = [&](int out, int in, int tap) { return conv3.at(out, in, tap); };
  const auto branch_weight = [&](int out, int in, int tap) {
    return unless_padding(is_of_two_triples(out), chosen(out < 4, low, high).at(min(out % 4, 2), in, tap));
  };
  const typename Trunk::Packed second_filter{biases + StagedBias::kBytes},
      third_filter{second_filter.at + second_filter.kBytes};
  const typename First::Packed first_filter{third_filter.at + third_filter.kBytes};
  const typename Branches<kMode>::Packed branch_filter{first_filter.at + first_filter.kBytes};
  constexpr int kStaged = kFilterNumbers * static_cast<int>(sizeof(Number)) + StagedBias::kBytes;
  constexpr int kPacked =
      second_filter.kBytes + third_filter.kBytes + first_filter.kBytes + branch_filter.kBytes;
  static_assert(kStaged + (is_plain(kMode) ? 0 : kPacked) <= kLayout.weights);
  const uint32_t plain_first = shared + kLayout.weights, plain_second = plain_first + 4 * kEncodeFirstWeights,
                 plain_third = plain_second + 4 * kTrunkWeights, plain_last = plain_third + 4 * kTrunkWeights;
  if constexpr (is_plain(kMode)) {
    float* plain = reinterpret_cast<float*>(memory + kLayout.weights);
    write_plain_weights(plain, first_weight, 3, 16);
    write_plain_weights(plain += kEncodeFirstWeights, second_weight, 16, 16);
    write_plain_weights(plain += kTrunkWeights, third_weight, 16, 16);
    write_plain_weights(plain += kTrunkWeights, branch_weight, 16, 8);
  } else {
    constexpr int kTrunkWriters = Trunk::Packed::kWriters, kFirstWriters = First::Packed::kWriters;
    second_filter.write(second_weight, 0);
    third_filter.write(third_weight, kTrunkWriters);
    first_filter.write(
        [&](int out, int in, int y) {  // in: 4 channels of each of four taps
          return unless_padding(in < 12 && in % 4 < 3, conv1.at(out, min(in % 4, 2), 3 * y + min(in / 4, 2)));
        },
        2 * kTrunkWriters);
    branch_filter.write(branch_weight, 2 * kTrunkWriters + kFirstWriters);
  }
  block_barrier();

  const int64_t steps = steps_of_block(p.tiling, 1);
  if (thread.role == kEnds) {
    First first(thread, first_filter, biases, plain_first);
    Branches<kMode> branches(thread, branch_filter, biases + 3 * 16 * 4, plain_last);
    clear_rows(shared, kLayout.weights);
    run_ends<kMode>(thread, first, branches, p, shared, steps);
  } else {
    const bool second = thread.role == kSecond;
    Trunk layer(thread, second ? second_filter : third_filter, biases + (second ? 1 : 2) * 16 * 4,
                second ? plain_second : plain_third);
    clear_rows(shared, kLayout.weights);
    if (second) {
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
