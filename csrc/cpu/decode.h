// The decoder in one pass: the encoder's plan (encode.h) in the other direction.
//
//     low, high     upsampled (16)   conv1 (16)    conv2 (16)     picture
//     y/2   ---     y-1 ======       y-1 ======    y-1 ======
//     y/2+1 ---  -> ...           -> ...        -> y   ======  -> y ......
//                   y+4 ======       y+4 ======    y+1 ======
//
// Arithmetic per pixel, in vectors of 16: 13.5 + 2 * (36 + 7.5 + 6.3) + 27 + the sums over lanes (~10).

#pragma once

#include "pictures.h"
#include "workspace.h"

namespace wae::WAE_ISA {

inline void decode(const DecodeArgs& args, const Task& task) {
  const DecoderPack& weights = *args.weights;
  const int64_t height = args.image.height, width = args.image.width;
  const int64_t begin = 2 * task.x0, end = std::min(2 * task.x1, width);

  const Span span2 = tiled_span(begin - 1, end + 1, width);
  const Span span1 = tiled_span(span2.begin - 1, span2.tiles_end() + 1, width);
  const Span span_up = pixel_span(span1.begin - 1, span1.tiles_end() + 1, width);

  Workspace workspace(task);
  const Planes branches = workspace.half_planes(3, 6), image = workspace.planes(1, 3);
  const Rows rows_up = workspace.rows(6), rows1 = workspace.rows(9), rows2 = workspace.rows(6);
  WinogradScratch& scratch = workspace.winograd();

  int64_t next2 = floor4(std::max<int64_t>(2 * task.y0 - 1, 0));
  int64_t next1 = floor4(std::max<int64_t>(next2 - 1, 0));
  int64_t next_up = next1 - 1;
  int64_t next_half = std::max<int64_t>(next_up, 0) / 2;

  auto load_until = [&](int64_t row) {
    for (; next_half < row; ++next_half) {
      load_planes(args.low, {}, task.n, next_half, span_up.begin / 2, (span_up.end + 1) / 2 + 1, branches);
      load_planes(args.high, {}, task.n, next_half, span_up.begin / 2, (span_up.end + 1) / 2 + 1, branches,
                  3);
    }
  };
  auto up_until = [&](int64_t row) {
    for (; next_up < row; ++next_up) {
      load_until((next_up + 1) / 2 + 1);
      upsample_row(branches, rows_up, next_up, span_up, height, width, weights.up, weights.up_bias.b, Relu{});
    }
  };
  auto conv1_until = [&](int64_t row) {
    for (; next1 < row; next1 += kTile) {
      up_until(next1 + kTile + 1);
      conv16_rows(rows_up, rows1, next1, span1, height, width, weights.conv1, weights.conv1_bias.b, scratch,
                  Relu{});
    }
  };
  auto conv2_until = [&](int64_t row) {
    for (; next2 < row; next2 += kTile) {
      conv1_until(next2 + kTile + 1);
      conv16_rows(rows1, rows2, next2, span2, height, width, weights.conv2, weights.conv2_bias.b, scratch,
                  Relu{});
    }
  };

  if (next1 == 0) clear_row(rows1, -1, span1);
  if (next2 == 0) clear_row(rows2, -1, span2);
  for (int64_t y = 2 * task.y0; y < std::min(2 * task.y1, height); ++y) {
    conv2_until(y + 2);
    conv16to3_row(rows2, image, y, begin, end, weights.conv3, weights.conv3_bias);
    const float* planes[3] = {image.at(y, 0, begin), image.at(y, 1, begin), image.at(y, 2, begin)};
    store_row(args.image, task.n, y, begin, end, planes);
  }
}

}  // namespace wae::WAE_ISA
