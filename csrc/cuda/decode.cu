// wae::decode: low and high back to an image (docs/network.md), in one launch.
//
// A block computes tiles of the image, one after the other; pipeline.cuh explains how its warps share the layers. This
// file has the work of the end warps: they read one half-resolution row of low and high in each step, compute both
// transposed convolutions as one layer from 6 to 16 channels, and compute conv3, from 16 channels to 3.
//
//     arithmetic   per step, 64 x 2 pixels, of which 56 x 2 are output
//                  conv1, conv2: 9 * 256 multiply-adds per pixel
//                  transposed convolutions: 9 * 128 per half-resolution pixel (6 channels, padded to 8)
//                  conv3: 12 * 128 for two pixels, one above the other (see LastLayer)
//     memory       32 half-resolution pixels read for 28, times (h + 4) / h for tiles of h rows
//     bound        see docs/cuda.md, for each chip
//
// The transposed convolution by the parity of the output: output pixel 2i reads input i (tap 1), output pixel 2i + 1
// reads inputs i (tap 2) and i + 1 (tap 0). A warp computes one row of a pair: an upper row is even and reads one input
// row, a lower row reads two.

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/pipeline.cuh"

namespace wae::cuda {
namespace {

constexpr int kHalfPixels = kPixels / 2;
static_assert(kTileColumns + 4 <= kHalfPixels);  // half-resolution columns that a tile reads

// ------------------------------------------------------------------------------------- reading low and high

// Each lane of the first warp reads one pixel of low and high per step, one step ahead; see encode.cu.
template <Mode kMode>
struct Reader {
  using Number = typename Arithmetic<kMode>::Number;
  uint32_t raw[6] = {0, 0, 0, 0, 0, 0};
  int column = threadIdx.x;
  bool column_inside;
  const Number* at[2];  // the thread's pixel in the current rows of low and high, perhaps outside the image

  __device__ void begin_tile(const DecodeParameters& p, const Cursor& cursor) {
    const int x = cursor.x - 2 + column, y = cursor.y - 2;
    column_inside =
        cursor.active(kHaloPairs) && column < p.tiling.tile_width + 4 && inside(x, 0, half_size(p.width));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Images& from = i == 0 ? p.low : p.high;
      at[i] = static_cast<const Number*>(from.data) + int64_t{cursor.image} * from.stride[0] +
              y * from.stride[2] + x * from.stride[3];
    }
  }

  __device__ void prefetch(const DecodeParameters& p, const Cursor& cursor) {
    if (column >= kHalfPixels) return;
    if (cursor.phase == 0) begin_tile(p, cursor);
    const bool is_inside = column_inside && inside(cursor.y + cursor.phase - 2, 0, half_size(p.height));
#pragma unroll
    for (int c = 0; c < 6; ++c) {
      const Images& from = c < 3 ? p.low : p.high;
      raw[c] = is_inside ? bits_of(at[c / 3][c % 3 * from.stride[1]]) : 0;
    }
    at[0] += p.low.stride[2], at[1] += p.high.stride[2];
  }

  __device__ void store_pixel(uint32_t slot) const {
    if (column >= kHalfPixels) return;
    const uint32_t address = slot + column * 16;
    if constexpr (stored_bytes(kMode) == 2) {
      store(address, raw[0] | raw[1] << 16, raw[2] | raw[3] << 16, raw[4] | raw[5] << 16, 0);
    } else {
      uint32_t word[6];
#pragma unroll
      for (int c = 0; c < 6; ++c) word[c] = word_of_input<kMode>(float_of_bits<Number>(raw[c]));
      store(address, word[0], word[1], word[2], word[3]);
      store(address + kHalfPlane, word[4], word[5], 0, 0);
    }
  }
};

// ---------------------------------------------------------------------------------- low and high, transposed

// Computes one row of 32 pixels x 16 channels, from 16 half-resolution pixels (and one more) of one or two rows.
template <Mode kMode>
struct FirstLayer {
  static constexpr bool kNarrow = stored_bytes(kMode) == 2;
  using Packed = PackedFilter<kMode, 16, 2 * stored_bytes(kMode)>;
  // The tap column of each kind of product: even pixels; odd pixels from input i; odd pixels from input i + 1.
  static __device__ constexpr int tap_column(int kind) { return kind == 0 ? 1 : kind == 1 ? 2 : 0; }

  int strip, row;
  // [input row][kind of product][block of 8 channels]. In the 16-bit modes the two taps of odd pixels share one mma,
  // that of kind 1.
  uint32_t weights[2][3][2][2];
  uint32_t plain_weights;
  float bias[2][2];
  float sums[2][2][4];  // even pixels, odd pixels
  uint32_t pixels;

  // The tap row that multiplies input row `input` (0 is the upper one, 1 the lower one) for this warp's row.
  __device__ __forceinline__ int tap_row(int input) const { return row == 0 ? 1 : input == 0 ? 2 : 0; }

  __device__ FirstLayer(const ThreadCoordinates& thread, const Packed& filter, uint32_t biases,
                        uint32_t plain)
      : strip(thread.strip % 2), row(thread.strip / 2) {
    static_assert(kStrips == 4);
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int input = 0; input < 2; ++input) {
#pragma unroll
        for (int kind = 0; kind < 3; ++kind) {
          uint32_t words[2][kNarrow ? 1 : 2];
          filter.load(words, thread.lane, 3 * tap_row(input) + tap_column(kind));
          const bool shares =
              kNarrow && kind == 2;  // odd pixels: tap 2 of input i, then tap 0 of input i + 1
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            weights[input][shares ? 1 : kind][n][shares ? 1 : 0] = words[n][0];
            if constexpr (!kNarrow) weights[input][kind][n][1] = words[n][1];
          }
        }
      }
      pixels = (strip * 16 + thread.lane % 16) * 16 + thread.lane / 16 * (kNarrow ? 16 : kHalfPlane);
    } else {
      pixels = (strip * 16 + thread.group) * 16;
    }
    plain_weights = plain + thread.member * 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) load_biases(bias[n], biases, 8 * n + 2 * thread.member);
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
        mma_half<kMode>(sums[0][n], words, weights[kInput][0][n]);
        mma<kMode>(sums[1][n], words, weights[kInput][1][n]);
      }
    } else {
      uint32_t here[4], right[4];
      load_matrices(here, address);
      load_matrices(right, address + 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma<kMode>(sums[0][n], here, weights[kInput][0][n]);
        mma<kMode>(sums[1][n], here, weights[kInput][1][n]);
        mma<kMode>(sums[1][n], right, weights[kInput][2][n]);
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

  // A lane's even and odd pixels are neighbours. If all lanes stored the even one first, half of the banks would be
  // accessed twice, so some groups store the odd one first.
  __device__ void store_row(const ThreadCoordinates& thread, const DecodeParameters& p, const Cursor& cursor,
                            uint32_t to) const {
    const bool odd_first = thread.group & (kNarrow ? 4 : 2);
    const int x = 2 * cursor.x - 4, y = 2 * (cursor.y + cursor.phase) - 4;
    const bool row_inside = inside(y, row, p.height);
    to += (row == 0 ? 0 : kRowBytes<kMode, kRowPlane>)+channel_offset<kMode, kRowPlane>(thread.member);
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
      const int pixel = 2 * (strip * 16 + thread.group) + (odd_first ? 1 - turn : turn);
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

// --------------------------------------------------------------------------------------------------- conv3

// conv3 has 3 output channels and the D fragment 8 columns, so one product computes a pair of output rows: columns 0 to
// 2 are the channels of the upper row, columns 4 to 6 those of the lower row, and 3 and 7 are padding. A pair of input
// rows completes one pair of output rows and begins the next one, each with these rows of conv3's taps:
//
//                          completed pair       begun pair
//                          upper    lower       upper    lower
//     upper input row        2        1           0        -
//     lower input row        -        2           1        0
//
// So an input row is in two products for each of the three columns of taps. A pair of rows takes 12 products; with one
// product for each tap and output row it would take 18. Where the table has no tap, the weights are zeros. This is not
// enough, because infinity or NaN times zero is NaN, so these columns of the product are discarded: a lane has columns
// of only one output row, and selects either the old sums or the new ones.
template <Mode kMode>
struct LastLayer {
  static constexpr int kChannelSteps = stored_bytes(kMode) / 2;
  static constexpr int kRow = kRowBytes<kMode, kRowPlane>;
  using Packed = PackedFilter<kMode, 8, 4 * stored_bytes(kMode), kDecodeLastTaps>;

  uint32_t weights[kDecodeLastTaps][kChannelSteps][1][2];
  uint32_t plain_weights;
  float bias[2];
  float sums[2][4];  // of the pair of rows that the next pair completes, and of the one that it begins
  uint32_t pixels;
  bool is_lower;  // whether the lane's columns are those of the lower row

  // The index of a tap of the packed filter: a pair of the table's entries (begins: 0 for the completed pair, 1 for the
  // begun pair; input: the row of the table) and a column of conv3's taps.
  static __device__ constexpr int tap_of(int begins, int input, int x) {
    return (2 * begins + input) * 3 + x;
  }
  // The weight of such a tap for column `out` of the D fragment; zero if the table has no tap.
  template <class Number>
  static __device__ __forceinline__ Number weight(const StagedFilter<Number>& conv3, int out, int in,
                                                  int tap) {
    const int y = tap / 3 % 2 + 2 - (tap / 6 * 2 + out / 4);
    return unless_padding(is_of_two_triples(out) && inside(y, 0, 3),
                          conv3.at(min(out % 4, 2), in, 3 * min(max(y, 0), 2) + tap % 3));
  }

  __device__ LastLayer(const ThreadCoordinates& thread, const Packed& filter, uint32_t biases, uint32_t plain)
      : is_lower(thread.member >= 2) {
    if constexpr (!is_plain(kMode)) {
#pragma unroll
      for (int tap = 0; tap < kDecodeLastTaps; ++tap) {
#pragma unroll
        for (int step = 0; step < kChannelSteps; ++step)
          filter.load(weights[tap][step], thread.lane, tap, step);
      }
      pixels = thread.lane / 16 * kRowPlane + (thread.strip * 16 + thread.lane % 16) * 16;
    } else {
      pixels = (thread.strip * 16 + thread.group) * 16;
    }
    plain_weights = plain + thread.member * 8;
    load_biases(bias, biases, 2 * thread.member);
    begin(sums[0]);
    begin(sums[1]);
  }

  __device__ __forceinline__ void begin(float (&pair)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) pair[i] = bias[i % 2];
  }

  // Accumulates the pair of rows at `pair`. Of a tile's last pair only the upper row is needed: the tile ends
  // with the upper row of the pair that it completes.
  __device__ void add(uint32_t pair, bool is_last) {
    float one[4];
    copy(one, sums[1]);
    add_row<0>(sums[0], one, pair);
    copy_if(!is_lower, sums[1], one);
    if (is_last) return;
    copy(one, sums[0]);
    add_row<1>(one, sums[1], pair + kRow);
    copy_if(is_lower, sums[0], one);
  }

  template <int kInput>
  __device__ __forceinline__ void add_row(float (&completed)[4], float (&begun)[4], uint32_t row) {
    if constexpr (is_plain(kMode)) {
      add_plain<kInput>(completed, begun, row);
    } else {
      add_mma<kInput>(completed, begun, row);
    }
  }

  template <int kInput>
  __device__ __forceinline__ void add_mma(float (&completed)[4], float (&begun)[4], uint32_t row) {
#pragma unroll
    for (int x = 0; x < 3; ++x) {
#pragma unroll
      for (int step = 0; step < kChannelSteps; ++step) {
        uint32_t words[4];
        load_matrices(words, row + pixels + x * 16 + step * 2 * kRowPlane);
        mma<kMode>(completed, words, weights[tap_of(0, kInput, x)][step][0]);
        mma<kMode>(begun, words, weights[tap_of(1, kInput, x)][step][0]);
      }
    }
  }

  // A lane computes the elements that it has in mma's D fragment.
  template <int kInput>
  __device__ __forceinline__ void add_plain(float (&completed)[4], float (&begun)[4], uint32_t row) {
#pragma unroll 1
    for (int x = 0; x < 3; ++x) {
#pragma unroll 1
      for (int plane = 0; plane < 4; ++plane) {
        const float4 left = load_4(row + pixels + x * 16 + plane * kRowPlane),
                     right = load_4(row + pixels + (x + 8) * 16 + plane * kRowPlane);
        const float value[2][4] = {{left.x, left.y, left.z, left.w}, {right.x, right.y, right.z, right.w}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t at = plain_weights + (4 * plane + i) * 32;
          const float2 a = load_2(at + tap_of(0, kInput, x) * 512);
          const float2 b = load_2(at + tap_of(1, kInput, x) * 512);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            completed[2 * half] = fmaf(value[half][i], a.x, completed[2 * half]);
            completed[2 * half + 1] = fmaf(value[half][i], a.y, completed[2 * half + 1]);
            begun[2 * half] = fmaf(value[half][i], b.x, begun[2 * half]);
            begun[2 * half + 1] = fmaf(value[half][i], b.y, begun[2 * half + 1]);
          }
        }
      }
    }
  }

  // To be called after the completed pair has been written.
  __device__ void next_pair() {
    copy(sums[0], sums[1]);
    begin(sums[1]);
  }
};

// Writes a lane's pixels of conv3 to the image: two channels, or one, of one row.
template <Mode kMode>
struct Writer {
  using Number = typename Arithmetic<kMode>::Number;
  Number* at[2];  // the lane's two channels of its first pixel, in its row of the current pair
  bool column_inside[2];

  // The lower row of the first pair that is written is the tile's first row; its upper row is above the tile.
  __device__ void begin_tile(const ThreadCoordinates& thread, const DecodeParameters& p,
                             const Cursor& cursor) {
    const int column = thread.strip * 16 + thread.group - 1, x = 2 * cursor.x + column;
    const int columns = min(2 * p.tiling.tile_width, p.width - 2 * cursor.x);
#pragma unroll
    for (int half = 0; half < 2; ++half) column_inside[half] = inside(column, 8 * half, columns);
    const int64_t* stride = p.image.stride;
    const int64_t y = int64_t{2 * cursor.y - 1} + thread.member / 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      at[i] = static_cast<Number*>(p.image.data) + int64_t{cursor.image} * stride[0] +
              (thread.member % 2 * 2 + i) * stride[1] + y * stride[2] + x * stride[3];
    }
  }

  __device__ void write_rows(const ThreadCoordinates& thread, const LastLayer<kMode>& layer,
                             const DecodeParameters& p, const Cursor& cursor) {
    const int64_t* stride = p.image.stride;
    const int rows = min(2 * p.tiling.tile_height, p.height - 2 * cursor.y);
    const bool row_inside = inside(2 * (cursor.phase - 1) - 1, thread.member / 2, rows);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool writes = row_inside && (i == 0 || thread.member % 2 == 0);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (writes && column_inside[half]) {
          at[i][8 * half * stride[3]] = from_float<Number>(layer.sums[0][2 * half + i]);
        }
      }
      at[i] += kPair * stride[2];
    }
  }
};

// --------------------------------------------------------------------------------------------------- block

template <Mode kMode>
__device__ void run_ends(const ThreadCoordinates& thread, FirstLayer<kMode>& first, LastLayer<kMode>& last,
                         const DecodeParameters& p, uint32_t shared, int64_t steps) {
  constexpr SharedLayout kLayout = decode_layout(kMode);
  constexpr int kHalfRow = half_planes(kMode) * kHalfPlane;
  constexpr int kRowPair = kPair * kRowBytes<kMode, kRowPlane>;
  Reader<kMode> reader;
  Writer<kMode> writer;
  Cursor read_cursor(p.tiling, 0), first_cursor = read_cursor.lagging(kFirstLag),
                                   last_cursor = read_cursor.lagging(kLastLag);
  int parity = 0;
  uint32_t newest = shared, middle = shared + kHalfRow, oldest = shared + 2 * kHalfRow;
  for (; steps > 0; --steps, parity ^= 1) {
    reader.store_pixel(newest);  // the previous step loaded it; zeros in the first step
    reader.prefetch(p, read_cursor);
    __syncwarp();  // reconverge for ldmatrix and mma
    const bool first_active = first_cursor.active(4), last_active = last_cursor.active(2);
    if (first_active) first.compute(oldest, middle);
    if (last_active)
      last.add(slot<kMode>(shared + kLayout.last, kRowPair, parity ^ 1), last_cursor.is_last(2));
    if constexpr (row_slots(kMode) == 1) block_barrier();
    if (first_active)
      first.store_row(thread, p, first_cursor, slot<kMode>(shared + kLayout.first, kRowPair, parity));
    if (last_active) {
      if (last_cursor.phase > 0) {
        writer.write_rows(thread, last, p, last_cursor);
      } else {
        writer.begin_tile(thread, p, last_cursor);
      }
      __syncwarp();
      last.next_pair();
    }
    block_barrier();
    read_cursor.advance(), first_cursor.advance(), last_cursor.advance();
    const uint32_t next = oldest;  // rotate the three slots
    oldest = middle, middle = newest, newest = next;
  }
}

template <Mode kMode>
__device__ void decode(const DecodeParameters& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Number = typename Arithmetic<kMode>::Number;
  using Trunk = Layer<kMode>;
  using First = FirstLayer<kMode>;
  using Last = LastLayer<kMode>;
  constexpr SharedLayout kLayout = decode_layout(kMode);
  const ThreadCoordinates thread;
  const uint32_t shared = shared_address(memory);

  // Parameters are staged in the memory of the rows.
  const bool are_floats = sizeof(Number) == 2 && p.are_floats;
  const StagedBias bias([&](int layer, int channel) {  // conv3's bias is in the order of D's columns
    const bool is_last = layer == 3;
    if (is_last && !is_of_two_triples(channel)) return 0.0f;
    const float sum =
        bias_at<Number>(p.filters[layer == 0 ? 0 : layer + 1], is_last ? channel % 4 : channel, are_floats);
    return layer == 0 ? sum + bias_at<Number>(p.filters[1], channel, are_floats) : sum;
  });
  const StagedFilters<Op::kDecode, Number> stage(reinterpret_cast<Number*>(memory), p.filters, are_floats);
  const uint32_t biases = shared + kFilterNumbers * sizeof(Number);
  bias.store_to(biases);
  block_barrier();

  const auto low = stage.template filter<0>(), high = stage.template filter<1>(),
             conv1 = stage.template filter<2>(), conv2 = stage.template filter<3>(),
             conv3 = stage.template filter<4>();
  const auto first_weight = [&](int out, int in, int tap) {
    return unless_padding(in < 6, chosen(in < 3, low, high).at(out, in % 3, tap));
  };
  const auto second_weight = [&](int out, int in, int tap) { return conv1.at(out, in, tap); };
  const auto third_weight = [&](int out, int in, int tap) { return conv2.at(out, in, tap); };
  const auto last_weight = [&](int out, int in, int tap) { return Last::weight(conv3, out, in, tap); };
  const typename Trunk::Packed second_filter{biases + StagedBias::kBytes},
      third_filter{second_filter.at + second_filter.kBytes};
  const typename First::Packed first_filter{third_filter.at + third_filter.kBytes};
  const typename Last::Packed last_filter{first_filter.at + first_filter.kBytes};
  constexpr int kStaged = kFilterNumbers * static_cast<int>(sizeof(Number)) + StagedBias::kBytes;
  constexpr int kPacked =
      second_filter.kBytes + third_filter.kBytes + first_filter.kBytes + last_filter.kBytes;
  static_assert(kStaged + (is_plain(kMode) ? 0 : kPacked) <= kLayout.weights);
  const uint32_t plain_first = shared + kLayout.weights, plain_second = plain_first + 4 * kDecodeFirstWeights,
                 plain_third = plain_second + 4 * kTrunkWeights, plain_last = plain_third + 4 * kTrunkWeights;
  if constexpr (is_plain(kMode)) {
    float* plain = reinterpret_cast<float*>(memory + kLayout.weights);
    write_plain_weights(plain, first_weight, 6, 16);
    write_plain_weights(plain += kDecodeFirstWeights, second_weight, 16, 16);
    write_plain_weights(plain += kTrunkWeights, third_weight, 16, 16);
    write_plain_weights(plain += kTrunkWeights, last_weight, 16, 8, kDecodeLastTaps);
  } else {
    constexpr int kTrunkWriters = Trunk::Packed::kWriters, kFirstWriters = First::Packed::kWriters;
    second_filter.write(second_weight, 0);
    third_filter.write(third_weight, kTrunkWriters);
    first_filter.write(first_weight, 2 * kTrunkWriters);
    last_filter.write(last_weight, 2 * kTrunkWriters + kFirstWriters);
  }
  block_barrier();

  const int64_t steps = steps_of_block(p.tiling, 2);
  if (thread.role == kEnds) {
    First first(thread, first_filter, biases, plain_first);
    Last last(thread, last_filter, biases + 3 * 16 * 4, plain_last);
    clear_rows(shared, kLayout.weights);
    run_ends<kMode>(thread, first, last, p, shared, steps);
  } else {
    const bool second = thread.role == kSecond;
    Trunk layer(thread, second ? second_filter : third_filter, biases + (second ? 1 : 2) * 16 * 4,
                second ? plain_second : plain_third);
    clear_rows(shared, kLayout.weights);
    run_trunk<kMode, false>(thread, layer, p.tiling, p.height, p.width,
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
