// The memory of a task: ring buffers of rows, the geometry of their columns, and layers on them. Each thread has one
// block of memory, which it keeps for its next task.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/isa/image_rows.h"
#include "cpu/isa/layers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>

#include <limits>
#endif

namespace wae::WAE_ISA {

WAE_INLINE int64_t floor4(int64_t y) { return y & ~int64_t{3}; }

// The columns that a layer computes: [begin, end), inside the image, or `tiles` tiles from `begin` on, the last of
// which may reach beyond `end`.
struct Span {
  int64_t begin, end;
  int tiles;
  int64_t tiles_end() const { return begin + int64_t{tiles} * kTile; }
};

inline Span pixel_span(int64_t begin, int64_t end, int64_t width) {
  return {std::max<int64_t>(begin, 0), std::min(end, width), 0};
}
inline Span tiled_span(int64_t begin, int64_t end, int64_t width) {
  Span span = pixel_span(begin, end, width);
  span.tiles = static_cast<int>((span.end - span.begin + kTile - 1) / kTile);
  return span;
}

// Divides the thread's block of memory, aligned to 64 bytes, into the buffers of a task.
class Scratch {
 public:
  Scratch() {
#if defined(__SANITIZE_ADDRESS__)  // shows reads of what was not written
    ASAN_UNPOISON_MEMORY_REGION(memory(0), kBytes);
    std::fill_n(memory(0), kBytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
#endif
  }

  float* take(int64_t floats) {
    float* block = memory(used_ + floats) + used_;
    used_ += (floats + 15) / 16 * 16;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(memory(used_ + 16) + used_, 64);
    used_ += 16;
#endif
    return block;
  }

 private:
  static constexpr int64_t kBytes = 7 << 18;  // decode_scores_backward at kMaxTaskWidth needs 1.74 MB

  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  static float* memory(int64_t floats) {
    thread_local std::unique_ptr<float, Free> block;
    if (block == nullptr) block.reset(static_cast<float*>(std::aligned_alloc(64, kBytes)));
    if (block == nullptr || floats * int64_t{sizeof(float)} > kBytes) throw std::bad_alloc();
    return block.get();
  }

  int64_t used_ = 0;
};

// A task's windows of rows.
class Workspace : public Scratch {
 public:
  // The columns left and right of the task: the halos of all layers, and the overshoot of full tiles. Their sum is odd,
  // so that the rows of a window do not map to the same cache sets.
  static constexpr int64_t kLeft = 16, kRight = 33;

  explicit Workspace(const Task& task) : task_(task), columns_(kLeft + 2 * (task.x1 - task.x0) + kRight) {}

  Rows rows(int count) {
    const int64_t row_size = columns_ * kChannels;
    return {take(count * row_size), count, row_size, 2 * task_.x0 - kLeft};
  }
  Planes planes(int count, int planes) { return make_planes(count, planes, 2 * task_.x0 - kLeft); }
  Planes half_planes(int count, int planes) { return make_planes(count, planes, task_.x0 - kLeft); }
  WinogradScratch& winograd() {
    return *reinterpret_cast<WinogradScratch*>(take(sizeof(WinogradScratch) / sizeof(float)));
  }

 private:
  Planes make_planes(int count, int planes, int64_t origin) {
    const int64_t plane_size = (columns_ + 15) / 16 * 16;
    return {take(count * planes * plane_size), count, planes, plane_size, origin};
  }

  Task task_;
  int64_t columns_;
};

// ---------------------------------------------------------------------------- layers on windows of rows

// Tiles write and read up to this many columns beyond the image.
inline constexpr int64_t kOvershoot = 8;

// Zeroes a few pixels. The start-up of std::fill takes longer than these stores.
template <int kCount>
WAE_INLINE void clear_pixels(float* pixels) {
#pragma GCC unroll 32
  for (int i = 0; i < kCount * kVecs; ++i) store(pixels + i * kLanes, zero());
}

// Zeroes all that the next layer may read of a row; `row` points at the first computed column.
inline void clear_row(float* row, const Span& span) {
  const int64_t last = std::max(span.tiles_end(), span.end) + kOvershoot;
  std::fill(row - kChannels, row + (last - span.begin) * kChannels, 0.0f);
}

// Zeroes row y, which is outside the image: padding for the next layer.
inline void clear_row(const Rows& rows, int64_t y, const Span& span) {
  clear_row(rows.at(y, span.begin), span);
}

// Zeroes the part of a computed row that lies outside the image. `row` points at the first computed column.
inline void finish_row(float* row, int64_t y, const Span& span, int64_t height, int64_t width) {
  if (y < 0 || y >= height) return clear_row(row, span);
  if (span.begin == 0) clear_pixels<1>(row - kChannels);
  if (span.end == width) clear_pixels<kOvershoot>(row + (width - span.begin) * kChannels);
}

inline void load_planes(const Images& images, const Affine* affine, int64_t n, int64_t y, int64_t begin,
                        int64_t end, const Planes& planes, int first = 0) {
  float* out[kMaxScoreChannels];
  for (int c = 0; c < images.channels; ++c) out[c] = planes.at(y, first + c, begin);
  load_row(images, affine, n, y, begin, end, out);
}

template <class Epilogue>
inline void conv3to16_row(const Planes& in, const Rows& out, int64_t y, const Span& span, int64_t height,
                          int64_t width, const Direct3& weights, const float* bias,
                          const Epilogue& epilogue) {
  float* const row = out.at(y, span.begin);
  if (y >= 0 && y < height) {
    const float* inputs[3][3];
    for (int ky = 0; ky < 3; ++ky) {
      for (int c = 0; c < 3; ++c) inputs[ky][c] = in.at(y + ky - 1, c, span.begin - 1);
    }
    conv3to16(inputs, row, span.end - span.begin, weights, bias, epilogue);
  }
  finish_row(row, y, span, height, width);
}

template <class Epilogue>
inline void conv16_rows(const Rows& in, const Rows& out, int64_t y, const Span& span, int64_t height,
                        int64_t width, const Winograd16& weights, const float* bias, WinogradScratch& scratch,
                        const Epilogue& epilogue) {
  if (y >= height) return clear_row(out, y, span);  // the next layer's tiles read one row below the image
  const float* inputs[kPatch];
  float* outputs[kTile];
  in.at(y - 1, span.begin - 1, inputs);
  out.at(y, span.begin, outputs);
  conv16(inputs, span.tiles, weights, bias, scratch, PutPixels<Epilogue>{outputs, epilogue});
  for (int i = 0; i < kTile; ++i) finish_row(outputs[i], y + i, span, height, width);
}

// The same, stored to 16 planes from plane `first` on, without padding for a next layer.
inline void conv16_planes(const Rows& in, const Planes& out, int first, int64_t y, const Span& span,
                          const Winograd16& weights, const float* bias, WinogradScratch& scratch) {
  const float* inputs[kPatch];
  float* outputs[kTile];
  in.at(y - 1, span.begin - 1, inputs);
  for (int i = 0; i < kTile; ++i) outputs[i] = out.at(y + i, first, span.begin);
  conv16(inputs, span.tiles, weights, bias, scratch, PutPlanes{outputs, out.plane_size});
}

// The epilogue for the ReLU whose outputs are rows y..y+3, from column `begin` on.
inline ReluGradient mask(const Rows& rows, int64_t y, int64_t begin) {
  ReluGradient gradient;
  rows.at(y, begin, gradient.rows);
  return gradient;
}

// The task's columns of half-resolution row y of the planes of low and high. weights: [ky][kx][plane][16].
inline void downsample_row(const Rows& in, const Planes& out, int64_t y, const Task& task,
                           const float* weights, const float* bias) {
  const float* inputs[3];
  float* outputs[2 * kMaxScoreChannels];
  in.at(2 * y - 1, 2 * task.x0 - 1, inputs);
  for (int c = 0; c < out.planes; ++c) outputs[c] = out.at(y, c, task.x0);
  const auto downsample = [&]<int kPlanes>() {
    downsample16<kPlanes>(inputs, outputs, out.planes, task.x1 - task.x0, weights, bias);
  };
  if (out.planes == 6) {
    downsample.template operator()<6>();
  } else {
    downsample.template operator()<0>();
  }
}

// Copies row y, columns [begin, end), of 16 planes from plane `first` on to rows with 16 channels per pixel.
inline void planes_to_pixels(const Planes& planes, int first, const Rows& rows, int64_t y, int64_t begin,
                             int64_t end) {
  const float* in[kChannels];
  for (int c = 0; c < kChannels; ++c) in[c] = planes.at(y, first + c, begin);
  float* pixel = rows.at(y, begin);
  for (int64_t i = 0; i < end - begin; ++i, pixel += kChannels) {
    for (int c = 0; c < kChannels; ++c) pixel[c] = in[c][i];
  }
}

inline void store_planes(const Planes& planes, const Images& images, int64_t n, int64_t y, int64_t begin,
                         int64_t end, int first = 0) {
  const float* in[kMaxScoreChannels];
  for (int c = 0; c < images.channels; ++c) in[c] = planes.at(y, first + c, begin);
  store_row(images, n, y, begin, end, in);
}

// Stores the planes that downsample_row wrote to low and high.
inline void store_branches(const Planes& branches, const Images& low, const Images& high, const Task& task,
                           int64_t y) {
  store_planes(branches, low, task.n, y, task.x0, task.x1);
  store_planes(branches, high, task.n, y, task.x0, task.x1, static_cast<int>(low.channels));
}

// Full-resolution row y from the half-resolution planes of low and high. weights: [ky][kx][plane][16].
template <class Epilogue>
inline void upsample_row(const Planes& in, const Rows& out, int64_t y, const Span& span, int64_t height,
                         int64_t width, const float* weights, const float* bias, const Epilogue& epilogue) {
  if (y >= 0 && y < height) {
    static constexpr int kEvenTaps[2] = {1, 1}, kOddTaps[2] = {2, 0};
    const bool odd = y & 1;
    const int64_t first = span.begin / 2;  // pairs of columns begin at even columns
    const float* inputs[2];
    for (int r = 0; r < 1 + odd; ++r) inputs[r] = in.at((y >> 1) + r, 0, first);
    const auto upsample = [&]<int kPlanes>() {
      upsample_to16<kPlanes>(inputs, in.plane_size, in.planes, odd ? kOddTaps : kEvenTaps, 1 + odd,
                             out.at(y, 2 * first), half_size(span.end) - first, weights, bias, epilogue);
    };
    if (in.planes == 6) {  // low and high of images; a loop of variable length would take 4 % longer
      upsample.template operator()<6>();
    } else {
      upsample.template operator()<0>();
    }
  }
  finish_row(out.at(y, span.begin), y, span, height, width);
}

inline void conv16to3_row(const Rows& in, const Planes& out, int64_t y, int64_t begin, int64_t end,
                          const Direct3& weights, const float* bias) {
  const float* inputs[3];
  float* outputs[3];
  in.at(y - 1, begin - 1, inputs);
  for (int c = 0; c < 3; ++c) outputs[c] = out.at(y, c, begin);
  conv16to3(inputs, outputs, end - begin, weights, bias);
}

}  // namespace wae::WAE_ISA
