// The encoder in int8, in one pass: bytes for pixels and activations, sums of 32 bits (docs/network.md).
//
// As in encode.h a task moves down a strip of one image, and between two layers only the 3 rows live that the
// next layer reads. Here all of them fit the first-level cache: 41 KB at 224 pixels.
//
// A row is planes of one group of 4 channels and every other column, 4 bytes a pixel:
//
//      group 0, even columns   |0 2 4 6 ...|     a vector is 16 (AVX2: 8) pixels of a plane
//      group 0, odd columns    |1 3 5 7 ...|
//      group 1, even columns   ...
//
// Lanes are pixels. For 3 taps of a row, even outputs read (odd - 1, even, odd) and odd outputs (even, odd,
// even + 1): 4 loads serve both, and the layers with stride 2 find their columns together. A lane's dot product
// takes 4 input channels at once; its weights are the same for all lanes, one broadcast for two products.
//
// Instructions per pixel, in vectors of 16 lanes:
//
//                     dot products   to bytes or floats   broadcasts + loads of 64 bytes
//      conv1                9              2.5                  4.5 + 0.8
//      conv2, conv3     2 * 36          2 * 2.5               2 * (18 + 3)
//      low, high            3.4            0.3                  1.7 + 0.6
//      sum                 84.4            7.8                     49.6
//
// Bound by the dot products, of which a processor starts two a cycle at most.

#pragma once

#include "cpu/isa/simd_int8.h"
#include "cpu/isa/workspace.h"
#include "cpu/kernels.h"

namespace wae::WAE_ISA {

inline constexpr int64_t kLane = sizeof(int32_t), kVector = sizeof(Bytes);

// The columns that all layers of a task compute: `blocks` vectors of half-resolution columns from `begin` on. A
// layer's outermost columns inside the image are wrong, one more in each layer, and the task does not use them.
struct HalfSpan {
  int64_t begin, blocks;

  HalfSpan(const Task& task, int64_t half_width)
      : begin(std::max<int64_t>(task.x0 - 2, 0)),
        blocks((std::min(task.x1 + 2, half_width) - begin + kLanes - 1) / kLanes) {}
  int64_t end() const { return begin + blocks * kLanes; }
};

// A window of 3 rows; rows outside the image are one row of padding.
class ByteRows {
 public:
  static constexpr int kCount = 3;

  ByteRows(Scratch& scratch, int groups, const HalfSpan& span, int64_t height, uint32_t padding)
      : plane((((span.blocks * kVector + 63) / 64 + 2) | 1) *
              64),  // with margins, and an odd number of cache lines
        row_size_(2 * groups * plane),
        height_(height),
        data_(reinterpret_cast<uint8_t*>(scratch.take((kCount + 1) * row_size_ / sizeof(float)))) {
    for (int64_t i = 0; i < (kCount + 1) * row_size_; i += sizeof padding) {
      std::memcpy(data_ + i, &padding, sizeof padding);
    }
  }

  // The task's first even column in row y, for group 0. The odd one is `plane` further, the next group twice
  // that. Left of it, and right of the span, lies padding.
  uint8_t* at(int64_t y) const {
    const int64_t slot = y < 0 || y >= height_ ? kCount : y % kCount;
    return data_ + slot * row_size_ + 64;
  }

  const int64_t plane;

 private:
  int64_t row_size_, height_;
  uint8_t* data_;
};

// ------------------------------------------------------------------------------------------------ layers

// kOuts outputs from `first` on of one vector of columns, even and odd. in[ky] and out point at the even one.
template <int kGroups>
WAE_INLINE void conv_block(const uint8_t* const in[3], int64_t in_plane, const Int8Layer<kGroups>& layer,
                           int first, uint8_t* out, int64_t out_plane, const Mask masks[2]) {
  Bytes sum[2][kOuts];
#pragma GCC unroll 8
  for (int o = 0; o < kOuts; ++o) sum[0][o] = sum[1][o] = broadcast_lane(layer.start[first + o]);
  for (int ky = 0; ky < 3; ++ky) {
    for (int group = 0; group < kGroups; ++group) {
      const uint8_t* const even = in[ky] + 2 * group * in_plane;
      const uint8_t* const odd = even + in_plane;
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
      store_bytes(out + (2 * group + odd) * out_plane, masks[odd], bytes);
    }
  }
}

// Row y of a layer of the trunk. What lies outside the image stays padding.
template <int kGroups>
inline void conv_row(const ByteRows& in, const ByteRows& out, int64_t y, const Int8Layer<kGroups>& layer,
                     const HalfSpan& span, int64_t width) {
  const uint8_t* const rows[3] = {in.at(y - 1), in.at(y), in.at(y + 1)};
  uint8_t* const to = out.at(y);
  for (int64_t block = 0; block < span.blocks; ++block) {
    const uint8_t* const inputs[3] = {rows[0] + block * kVector, rows[1] + block * kVector,
                                      rows[2] + block * kVector};
    const int64_t half = span.begin + block * kLanes;
    const Mask masks[2] = {first_lanes(half_size(width) - half), first_lanes(width / 2 - half)};
    for (int first = 0; first < kChannels; first += kOuts) {
      conv_block(inputs, in.plane, layer, first, to + block * kVector, out.plane, masks);
    }
  }
}

// kBlocks vectors of columns of the 6 branch planes; in[ky] point at the first one's even column.
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
      const Vec value = to_floats(sum[o][b]) * broadcast(pack.scale[o]);
      store(outputs[o] + b * kLanes,
            pack.to_bytes ? to_byte_range(value, broadcast(pack.zero_point[o])) : value);
    }
  }
}

// Row y (half resolution) of the 6 branch planes.
inline void branches_row(const ByteRows& in, const Planes& out, int64_t y, const EncoderInt8Pack& pack,
                         const HalfSpan& span) {
  const uint8_t* const rows[3] = {in.at(2 * y - 1), in.at(2 * y), in.at(2 * y + 1)};
  for (int64_t block = 0; block < span.blocks; block += 2) {
    const uint8_t* inputs[3];
    float* outputs[6];
    for (int ky = 0; ky < 3; ++ky) inputs[ky] = rows[ky] + block * kVector;
    for (int o = 0; o < 6; ++o) outputs[o] = out.at(0, o, span.begin + block * kLanes);
    if (block + 1 < span.blocks) {
      branches_block<2>(inputs, in.plane, pack, outputs);
    } else {
      branches_block<1>(inputs, in.plane, pack, outputs);
    }
  }
}

// ------------------------------------------------------------------------------------------------- image

// A pixel of bytes as a lane: its channels, and zero.
WAE_INLINE uint32_t pixel_at(const uint8_t* p, int64_t stride_c) {
  return p[0] | uint32_t{p[stride_c]} << 8 | uint32_t{p[2 * stride_c]} << 16;
}

// Row y of image n, columns of the span that lie inside.
inline void load_bytes_row(const Images& image, int64_t n, int64_t y, const HalfSpan& span,
                           const ByteRows& out) {
  if (y < 0 || y >= image.height) return;
  const int64_t first = 2 * span.begin, count = std::min(2 * span.end(), image.width) - first;
  const uint8_t* const row = static_cast<const uint8_t*>(image.data) + n * image.stride_n +
                             y * image.stride_h + first * image.stride_w;
  uint8_t* const planes[2] = {out.at(y), out.at(y) + out.plane};
  if (y + 1 < image.height) prefetch_below<false>(image, row, count);
  for (int64_t x = 0; x < count; ++x) {
    const uint32_t pixel = pixel_at(row + x * image.stride_w, image.stride_c);
    std::memcpy(planes[x % 2] + x / 2 * kLane, &pixel, sizeof pixel);
  }
}

// -------------------------------------------------------------------------------------------------- pass

// The only function here that is not inline: kernels_<isa>.cpp compiles this header once for each set of
// instructions.
void encode_int8(const EncodeInt8Args& args, const Task& task) {
  const Images& image = args.image;
  const EncoderInt8Pack& pack = *args.weights;
  const HalfSpan span(task, half_size(image.width));
  Scratch scratch;
  const ByteRows pixels(scratch, 1, span, image.height, pack.padding);
  const ByteRows rows1(scratch, 4, span, image.height, 0), rows2(scratch, 4, span, image.height, 0),
      rows3(scratch, 4, span, image.height, 0);
  const int64_t plane = span.blocks * kLanes;
  const Planes branches{scratch.take(6 * plane), 1, 6, plane, span.begin};

  int64_t next3 = std::max<int64_t>(2 * task.y0 - 1, 0), next2 = std::max<int64_t>(next3 - 1, 0),
          next1 = std::max<int64_t>(next2 - 1, 0), next_image = std::max<int64_t>(next1 - 1, 0);
  const auto until = [&](int64_t& next, int64_t end, const auto& row) {
    for (end = std::min(end, image.height); next < end; ++next) row(next);
  };
  for (int64_t y = task.y0; y < task.y1; ++y) {
    until(next3, 2 * y + 2, [&](int64_t y3) {
      until(next2, y3 + 2, [&](int64_t y2) {
        until(next1, y2 + 2, [&](int64_t y1) {
          until(next_image, y1 + 2, [&](int64_t y0) { load_bytes_row(image, task.n, y0, span, pixels); });
          conv_row(pixels, rows1, y1, pack.conv1, span, image.width);
        });
        conv_row(rows1, rows2, y2, pack.conv2, span, image.width);
      });
      conv_row(rows2, rows3, y3, pack.conv3, span, image.width);
    });
    branches_row(rows3, branches, y, pack, span);
    store_branches(branches, args.low, args.high, task, y);
  }
}

}  // namespace wae::WAE_ISA
