// What the int8 encoders (VNNI and AMX) share: windows of rows of bytes, and the order of the layers.
//
// As in encode.h a task moves down one image. Between two layers it keeps the 3 rows that the next layer reads. For
// VNNI the rows of all layers fit the first-level cache: 41 KB at 224 pixels. AMX's are twice as large.

#pragma once

#include "cpu/isa/simd_int8.h"
#include "cpu/isa/workspace.h"
#include "cpu/kernels.h"

namespace wae::WAE_ISA {

// The bytes of padding left and right of a row.
inline constexpr int64_t kMargin = 64;

// The columns that all layers of a task compute: `blocks` vectors of half-resolution columns from `begin` on. Where the
// span ends inside the image, the outermost columns of a layer are wrong, one more in each layer; the task does not use
// them.
struct HalfSpan {
  int64_t begin, blocks;

  HalfSpan(const Task& task, int64_t half_width)
      : begin(std::max<int64_t>(task.x0 - 2, 0)),
        blocks((std::min(task.x1 + 2, half_width) - begin + kLanes - 1) / kLanes) {}
  int64_t end() const { return begin + blocks * kLanes; }
};

// A window of 3 rows, and a row of padding that stands for all rows outside the image.
class ByteRows {
 public:
  static constexpr int kCount = 3;

  ByteRows(Scratch& scratch, int64_t row_size, int64_t height, uint32_t padding)
      : row_size_(row_size),
        height_(height),
        data_(reinterpret_cast<uint8_t*>(scratch.take((kCount + 1) * row_size / sizeof(float)))) {
    for (int64_t i = 0; i < (kCount + 1) * row_size_; i += sizeof padding) {
      std::memcpy(data_ + i, &padding, sizeof padding);
    }
  }

  // Row y at the span's first column, i.e. after the margin.
  uint8_t* at(int64_t y) const {
    const int64_t slot = y < 0 || y >= height_ ? kCount : y % kCount;
    return data_ + slot * row_size_ + kMargin;
  }

 private:
  int64_t row_size_, height_;
  uint8_t* data_;
};

// The columns of row y of image n that lie both in the span and in the image.
struct ByteColumns {
  const uint8_t* row;
  int64_t count;

  ByteColumns(const Images& image, int64_t n, int64_t y, const HalfSpan& span)
      : row(static_cast<const uint8_t*>(image.data) + n * image.stride_n + y * image.stride_h +
            2 * span.begin * image.stride_w),
        count(std::min(2 * span.end(), image.width) - 2 * span.begin) {
    if (y + 1 < image.height) prefetch_below<false>(image, row, count);
  }
};

// A pixel's three bytes and a zero as the 32 bits of a lane.
WAE_INLINE uint32_t pixel_at(const uint8_t* p, int64_t stride_c) {
  return p[0] | uint32_t{p[stride_c]} << 8 | uint32_t{p[2 * stride_c]} << 16;
}

// The sums of one of the 6 outputs for a vector of half-resolution columns, as results: floats, or the values of bytes.
WAE_INLINE Vec branch_value(Bytes sum, const EncoderInt8Pack& pack, int output) {
  const Vec value = to_floats(sum) * broadcast(pack.scale[output]);
  const float least = pack.least_byte[output];
  return least == kNoByte ? value : to_bytes(value, pack.zero_point[output], least);
}

// Calls image(y), conv1(y), conv2(y) and conv3(y) of `layers` for full-resolution rows, and branches(y) for
// half-resolution rows, in an order in which each row's inputs have been computed before it.
template <class Layers>
inline void encode_rows(const Layers& layers, const Task& task, int64_t height) {
  int64_t next3 = std::max<int64_t>(2 * task.y0 - 1, 0), next2 = std::max<int64_t>(next3 - 1, 0),
          next1 = std::max<int64_t>(next2 - 1, 0), next_image = std::max<int64_t>(next1 - 1, 0);
  const auto until = [&](int64_t& next, int64_t end, const auto& row) {
    for (end = std::min(end, height); next < end; ++next) row(next);
  };
  for (int64_t y = task.y0; y < task.y1; ++y) {
    until(next3, 2 * y + 2, [&](int64_t y3) {
      until(next2, y3 + 2, [&](int64_t y2) {
        until(next1, y2 + 2, [&](int64_t y1) {
          until(next_image, y1 + 2, [&](int64_t y0) { layers.image(y0); });
          layers.conv1(y1);
        });
        layers.conv2(y2);
      });
      layers.conv3(y3);
    });
    layers.branches(y);
  }
}

}  // namespace wae::WAE_ISA
