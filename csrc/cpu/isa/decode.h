// The decoder in one pass over the image. A task computes a rectangle of the image on one thread, as in encode.h:
//
//     low, high     upsampled (16)   conv1 (16)    conv2 (16)     image
//     y/2   ---     y-1 ======       y-1 ======    y-1 ======
//     y/2+1 ---  -> ...           -> ...        -> y   ======  -> y ......
//                   y+4 ======       y+4 ======    y+1 ======
//
// Arithmetic per pixel, in vectors of 16: 13.5 + 2 * (36 + 7.5 + 6.3) + 27 + the last layer's sums over lanes (~10).

#pragma once

#include "cpu/isa/image_rows.h"
#include "cpu/isa/workspace.h"

namespace wae::WAE_ISA {

// The number of rows kept of the first two layers, and of half-resolution rows of low and high (`branches`).
struct DecoderStartWindows {
  int branches, rows_up, rows1;
};

// The part of a pack that the decoder's first two layers read.
struct DecoderStartWeights {
  const float *up, *up_bias;
  const Winograd16& conv1;
  const float* conv1_bias;
};
template <class Pack>
DecoderStartWeights start_of(const Pack& pack) {
  return {pack.up.numbers(), pack.up_bias.b, pack.conv1, pack.conv1_bias.b};
}

// The outputs of the decoder's first two layers, computed on demand. low and high have any number of channels.
class DecoderStart {
 public:
  // [begin, end) are the columns of conv1 that are needed, and first_row is the first row.
  DecoderStart(const Images& low, const Images& high, const DecoderStartWeights& weights, const Task& task,
               int64_t height, int64_t width, Workspace& workspace, WinogradScratch& scratch,
               const DecoderStartWindows& windows, int64_t begin, int64_t end, int64_t first_row)
      : span1(tiled_span(begin, end, width)),
        span_up(pixel_span(span1.begin - 1, span1.tiles_end() + 1, width)),
        branches(workspace.half_planes(windows.branches, static_cast<int>(low.channels + high.channels))),
        rows_up(workspace.rows(windows.rows_up)),
        rows1(workspace.rows(windows.rows1)),
        low_(low),
        high_(high),
        weights_(weights),
        n_(task.n),
        height_(height),
        width_(width),
        scratch_(scratch),
        next1_(floor4(std::max<int64_t>(first_row, 0))),
        next_up_(next1_ - 1),
        next_half_(std::max<int64_t>(next_up_, 0) / 2) {
    if (next1_ == 0) clear_row(rows1, -1, span1);
  }

  void conv1_until(int64_t end) {
    for (; next1_ < end; next1_ += kTile) {
      if (next1_ < height_) up_until(next1_ + kTile + 1);
      conv16_rows(rows_up, rows1, next1_, span1, height_, width_, weights_.conv1, weights_.conv1_bias,
                  scratch_, Relu{});
    }
  }

  const Span span1, span_up;
  const Planes branches;
  const Rows rows_up, rows1;

 private:
  void up_until(int64_t end) {
    const int64_t begin_half = span_up.begin / 2, end_half = half_size(span_up.end) + 1;
    for (; next_up_ < end; ++next_up_) {
      for (; next_half_ < half_size(next_up_) + 1; ++next_half_) {
        load_planes(low_, nullptr, n_, next_half_, begin_half, end_half, branches);
        load_planes(high_, nullptr, n_, next_half_, begin_half, end_half, branches,
                    static_cast<int>(low_.channels));
      }
      upsample_row(branches, rows_up, next_up_, span_up, height_, width_, weights_.up, weights_.up_bias,
                   Relu{});
    }
  }

  const Images &low_, &high_;
  const DecoderStartWeights weights_;
  const int64_t n_, height_, width_;
  WinogradScratch& scratch_;
  int64_t next1_, next_up_, next_half_;
};

// The number of rows kept of each layer.
struct DecoderWindows {
  DecoderStartWindows start;
  int rows2;
};

// The outputs of the decoder's first three layers, computed on demand.
class DecoderTrunk {
 public:
  // [begin, end) are the columns of conv2 that are needed, and first_row is the first row.
  DecoderTrunk(const Images& low, const Images& high, const DecoderPack& weights, const Task& task,
               int64_t height, int64_t width, Workspace& workspace, WinogradScratch& scratch,
               const DecoderWindows& windows, int64_t begin, int64_t end, int64_t first_row)
      : span2(tiled_span(begin, end, width)),
        start(low, high, start_of(weights), task, height, width, workspace, scratch, windows.start,
              span2.begin - 1, span2.tiles_end() + 1, floor4(std::max<int64_t>(first_row, 0)) - 1),
        rows2(workspace.rows(windows.rows2)),
        weights_(weights),
        height_(height),
        width_(width),
        scratch_(scratch),
        next2_(floor4(std::max<int64_t>(first_row, 0))) {
    if (next2_ == 0) clear_row(rows2, -1, span2);
  }

  void conv2_until(int64_t end) {
    for (; next2_ < end; next2_ += kTile) {
      start.conv1_until(next2_ + kTile + 1);
      conv16_rows(start.rows1, rows2, next2_, span2, height_, width_, weights_.conv2, weights_.conv2_bias.b,
                  scratch_, Relu{});
    }
  }

  const Span span2;
  DecoderStart start;
  const Rows rows2;

 private:
  const DecoderPack& weights_;
  const int64_t height_, width_;
  WinogradScratch& scratch_;
  int64_t next2_;
};

inline void decode(const DecodeArgs& args, const Task& task) {
  const int64_t height = args.image.height, width = args.image.width;
  const int64_t begin = 2 * task.x0, end = std::min(2 * task.x1, width);
  Workspace workspace(task);
  const Planes image = workspace.planes(1, 3);
  DecoderTrunk trunk(args.low, args.high, *args.weights, task, height, width, workspace, workspace.winograd(),
                     {{3, 6, 9}, 6}, begin - 1, end + 1, 2 * task.y0 - 1);
  for (int64_t y = 2 * task.y0; y < std::min(2 * task.y1, height); ++y) {
    trunk.conv2_until(y + 2);
    conv16to3_row(trunk.rows2, image, y, begin, end, args.weights->conv3, args.weights->conv3_bias);
    store_planes(image, args.image, task.n, y, begin, end);
  }
}

}  // namespace wae::WAE_ISA
