// What the int8 encoders share, whatever they multiply with: windows of rows of bytes, and the order of the layers.
//
// As in encode.h a task moves down a strip of one image, and between two layers only the 3 rows live that the
// next layer reads. As planes all of them fit the first-level cache, 41 KB at 224 pixels; AMX's are twice that.

#pragma once

#include "cpu/isa/simd_int8.h"
#include "cpu/isa/workspace.h"
#include "cpu/kernels.h"

namespace wae::WAE_ISA {

// Left and right of a row of bytes.
inline constexpr int64_t kMargin = 64;

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

  ByteRows(Scratch& scratch, int64_t row_size, int64_t height, uint32_t padding)
      : row_size_(row_size),
        height_(height),
        data_(reinterpret_cast<uint8_t*>(scratch.take((kCount + 1) * row_size / sizeof(float)))) {
    for (int64_t i = 0; i < (kCount + 1) * row_size_; i += sizeof padding) {
      std::memcpy(data_ + i, &padding, sizeof padding);
    }
  }

  // Row y behind its margin: the task's first column.
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

// A pixel of bytes as a lane: its channels, and zero.
WAE_INLINE uint32_t pixel_at(const uint8_t* p, int64_t stride_c) {
  return p[0] | uint32_t{p[stride_c]} << 8 | uint32_t{p[2 * stride_c]} << 16;
}

// The 6 sums of a vector of half-resolution columns, as floats or as numbers of bytes.
WAE_INLINE Vec branch_value(Bytes sum, const EncoderInt8Pack& pack, int output) {
  const Vec value = to_floats(sum) * broadcast(pack.scale[output]);
  const float least = pack.least_byte[output];
  return least == kNoByte ? value : to_bytes(value, pack.zero_point[output], least);
}

// Asks `layers` for their rows in the order in which each has its inputs: image(y), conv1(y), conv2(y), conv3(y)
// at full resolution, branches(y) at half.
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
