// The int8 encoder with VNNI, in one pass: pixels and activations are bytes, sums have 32 bits (docs/network.md).
//
// A row consists of planes, each with every other column of a group of 4 channels, 4 bytes per pixel:
//
//      group 0, even columns   |0 2 4 6 ...|     a vector is 16 (AVX2: 8) pixels of a plane
//      group 0, odd columns    |1 3 5 7 ...|
//      group 1, even columns   ...
//
// Lanes are pixels. For the 3 taps of a row, even outputs read the columns (odd - 1, even, odd) and odd outputs (even,
// odd, even + 1): 4 loads serve both, and layers with stride 2 read contiguous columns. A dot product adds 4 input
// channels to each lane. Its weights are the same for all lanes: one broadcast for two products.
//
// Instructions per pixel, in vectors of 16 lanes:
//
//                     dot products   to bytes or floats   broadcasts + loads of 64 bytes
//      conv1                9              2.5                  4.5 + 0.8
//      conv2, conv3     2 * 36          2 * 2.5               2 * (18 + 3)
//      low, high            3.4            0.3                  1.7 + 0.6
//      sum                 84.4            7.8                     49.6
//
// It is bound by the dot products, of which a CPU starts at most two a cycle.

#pragma once

#include "cpu/isa/encode_int8_pass.h"

namespace wae::WAE_ISA {

inline constexpr int64_t kLane = sizeof(int32_t), kVector = sizeof(Bytes);

// The bytes of a plane: the even columns of a group of channels; the plane of the odd columns follows. There is padding
// left and right of the span. It is an odd number of cache lines, so that planes do not map to the same cache sets.
inline int64_t plane_size(const HalfSpan& span) {
  return (((span.blocks * kVector + 63) / 64 + 2 * kMargin / 64) | 1) * 64;
}

// ------------------------------------------------------------------------------------------------ layers

// kOuts output channels from `first` on, for one vector of even columns and one of odd columns. in[ky] and out point at
// the even ones.
template <int kGroups>
WAE_INLINE void conv_block(const uint8_t* const in[3], int64_t plane, const Int8Layer<kGroups>& layer,
                           int first, uint8_t* out, const Mask masks[2]) {
  Bytes sum[2][kOuts];
#pragma GCC unroll 8
  for (int o = 0; o < kOuts; ++o) sum[0][o] = sum[1][o] = broadcast_lane(layer.start[first + o]);
  for (int ky = 0; ky < 3; ++ky) {
    for (int group = 0; group < kGroups; ++group) {
      const uint8_t* const even = in[ky] + 2 * group * plane;
      const uint8_t* const odd = even + plane;
      const Bytes x[4] = {load_bytes(odd - kLane), load_bytes(even), load_bytes(odd),
                          load_bytes(even + kLane)};
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 8
        for (int o = 0; o < kOuts; ++o) {
          const int8_t* const weights = layer.w[first / 4 + o / 4][ky][group][kx][o % 4];
          const Bytes filter = broadcast_lane(read_lane(weights));
          sum[0][o] = dot(sum[0][o], x[kx], filter);
          sum[1][o] = dot(sum[1][o], x[kx + 1], filter);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int o = 0; o < kOuts; o += 4) {
    const int group = (first + o) / 4;
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const Bytes bytes = requantize(&sum[odd][o], &layer.shift[first + o], layer.multiplier[group]);
      store_bytes(out + (2 * group + odd) * plane, masks[odd], bytes);
    }
  }
}

// Row y of a layer of the trunk. Pixels outside the image are not written and stay padding.
template <int kGroups>
inline void conv_row(const ByteRows& in, const ByteRows& out, int64_t y, const Int8Layer<kGroups>& layer,
                     const HalfSpan& span, int64_t width) {
  const int64_t plane = plane_size(span);
  const uint8_t* const rows[3] = {in.at(y - 1), in.at(y), in.at(y + 1)};
  uint8_t* const to = out.at(y);
  for (int64_t block = 0; block < span.blocks; ++block) {
    const uint8_t* const inputs[3] = {rows[0] + block * kVector, rows[1] + block * kVector,
                                      rows[2] + block * kVector};
    const int64_t half = span.begin + block * kLanes;
    const Mask masks[2] = {first_lanes(half_size(width) - half), first_lanes(width / 2 - half)};
    for (int first = 0; first < kChannels; first += kOuts) {
      conv_block(inputs, plane, layer, first, to + block * kVector, masks);
    }
  }
}

// kBlocks vectors of columns of the 6 branch planes; in[ky] point at the even columns of the first one.
template <int kBlocks>
WAE_INLINE void branches_block(const uint8_t* const in[3], int64_t plane, const EncoderInt8Pack& pack,
                               float* const outputs[6]) {
  Bytes sum[6][kBlocks];
#pragma GCC unroll 6
  for (int o = 0; o < 6; ++o) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sum[o][b] = broadcast_lane(pack.branches_start[o]);
  }
  for (int ky = 0; ky < 3; ++ky) {
    for (int group = 0; group < 4; ++group) {
      const uint8_t* const even = in[ky] + 2 * group * plane;
      const uint8_t* const columns[3] = {even + plane - kLane, even, even + plane};
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) {
        Bytes x[kBlocks];
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) x[b] = load_bytes(columns[kx] + b * kVector);
#pragma GCC unroll 6
        for (int o = 0; o < 6; ++o) {
          const Bytes filter = broadcast_lane(read_lane(pack.branches[ky][group][kx][o]));
#pragma GCC unroll 2
          for (int b = 0; b < kBlocks; ++b) sum[o][b] = dot(sum[o][b], x[b], filter);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int o = 0; o < 6; ++o) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      store(outputs[o] + b * kLanes, branch_value(sum[o][b], pack, o));
    }
  }
}

// Half-resolution row y of the 6 branch planes.
inline void branches_row(const ByteRows& in, const Planes& out, int64_t y, const EncoderInt8Pack& pack,
                         const HalfSpan& span) {
  const int64_t plane = plane_size(span);
  const uint8_t* const rows[3] = {in.at(2 * y - 1), in.at(2 * y), in.at(2 * y + 1)};
  for (int64_t block = 0; block < span.blocks; block += 2) {
    const uint8_t* inputs[3];
    float* outputs[6];
    for (int ky = 0; ky < 3; ++ky) inputs[ky] = rows[ky] + block * kVector;
    for (int o = 0; o < 6; ++o) outputs[o] = out.at(0, o, span.begin + block * kLanes);
    if (block + 1 < span.blocks) {
      branches_block<2>(inputs, plane, pack, outputs);
    } else {
      branches_block<1>(inputs, plane, pack, outputs);
    }
  }
}

// -------------------------------------------------------------------------------------------------- pass

// The windows of a task, and the layers that encode_rows calls.
class Int8Layers {
 public:
  Int8Layers(const EncodeInt8Args& args, const Task& task)
      : args_(args),
        pack_(*args.weights),
        task_(task),
        span_(task, half_size(args.image.width)),
        pixels_(scratch_, 2 * plane_size(span_), args.image.height, pack_.padding),
        rows1_(scratch_, 8 * plane_size(span_), args.image.height, 0),
        rows2_(scratch_, 8 * plane_size(span_), args.image.height, 0),
        rows3_(scratch_, 8 * plane_size(span_), args.image.height, 0),
        branches_{scratch_.take(6 * span_.blocks * kLanes), 1, 6, span_.blocks * kLanes, span_.begin} {}

  void image(int64_t y) const {
    const ByteColumns columns(args_.image, task_.n, y, span_);
    uint8_t* const planes[2] = {pixels_.at(y), pixels_.at(y) + plane_size(span_)};
    for (int64_t x = 0; x < columns.count; ++x) {
      const uint32_t pixel = pixel_at(columns.row + x * args_.image.stride_w, args_.image.stride_c);
      std::memcpy(planes[x % 2] + x / 2 * kLane, &pixel, sizeof pixel);
    }
  }
  void conv1(int64_t y) const { conv_row(pixels_, rows1_, y, pack_.conv1, span_, args_.image.width); }
  void conv2(int64_t y) const { conv_row(rows1_, rows2_, y, pack_.conv2, span_, args_.image.width); }
  void conv3(int64_t y) const { conv_row(rows2_, rows3_, y, pack_.conv3, span_, args_.image.width); }
  void branches(int64_t y) const {
    branches_row(rows3_, branches_, y, pack_, span_);
    store_branches(branches_, args_.low, args_.high, task_, y);
  }

 private:
  const EncodeInt8Args& args_;
  const EncoderInt8Pack& pack_;
  const Task& task_;
  const HalfSpan span_;
  Scratch scratch_;
  const ByteRows pixels_, rows1_, rows2_, rows3_;
  const Planes branches_;
};

// The only function here that is not inline: kernels_<isa>.cpp compiles this header once for each instruction set.
void encode_int8(const EncodeInt8Args& args, const Task& task) {
  encode_rows(Int8Layers(args, task), task, args.image.height);
}

}  // namespace wae::WAE_ISA
