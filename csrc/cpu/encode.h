// The encoder in one pass.
//
// A task is a strip of one picture. It moves down the picture four rows at a time; between its layers it
// keeps only the rows that the next layer still needs, so everything stays in the second-level cache:
//
//      picture      conv1 (16)     conv2 (16)     conv3 (16)     low, high
//     y-1 ......    y-1 ======     y-1 ======     y-1 ======
//     y   ...... -> y   ======     y   ======     y   ======  -> ------ y/2
//     y+1 ......    y+1 ======  -> y+1 ======  -> y+1 ======
//                   ...            ...            ...         -> ------ y/2 + 1
//                   y+4 ======     y+4 ======     y+3 ======
//
// Tiles of the Winograd layers begin at rows that are multiples of 4, wherever the task begins, so the
// result does not depend on how many threads share the work. What lies outside the picture is zero in
// every layer (not the convolution of zeros), as padding is.
//
// Arithmetic per pixel: 27 + 2 * (36 + 7.5 + 6.3) + 13.5 + the sums of the last layer over lanes (~5), in
// vectors of 16: about 145, against 342 by the definition. Bound by multiplications and additions, not by
// memory: a pixel is 12 bytes read and 6 written.

#pragma once

#include "pictures.h"
#include "workspace.h"

namespace wae::WAE_ISA {

inline void encode(const EncodeArgs& args, const Task& task) {
  const EncoderPack& weights = *args.weights;
  const int64_t height = args.image.height, width = args.image.width;

  // Columns, from the last layer to the first: each must cover what the tiles of the next one read.
  const Span span3 = tiled_span(2 * task.x0 - 1, 2 * task.x1, width);
  const Span span2 = tiled_span(span3.begin - 1, span3.tiles_end() + 1, width);
  const Span span1 = pixel_span(span2.begin - 1, span2.tiles_end() + 1, width);

  Workspace workspace(task);
  const Planes image = workspace.planes(3, 3);
  const Rows rows1 = workspace.rows(6), rows2 = workspace.rows(9), rows3 = workspace.rows(5);
  const Planes branches = workspace.half_planes(1, 6);
  WinogradScratch& scratch = workspace.winograd();

  int64_t next3 = floor4(std::max<int64_t>(2 * task.y0 - 1, 0));
  int64_t next2 = floor4(std::max<int64_t>(next3 - 1, 0));
  int64_t next1 = next2 - 1;
  int64_t next_image = next1 - 1;

  auto load_until = [&](int64_t end) {
    for (; next_image < end; ++next_image) {
      load_planes(args.image, args.affine, task.n, next_image, span1.begin - 1, span1.end + 1, image);
    }
  };
  auto conv1_until = [&](int64_t end) {
    for (; next1 < end; ++next1) {
      load_until(next1 + 2);
      conv3to16_row(image, rows1, next1, span1, height, width, weights.conv1, weights.conv1_bias.b, Relu{});
    }
  };
  auto conv2_until = [&](int64_t end) {
    for (; next2 < end; next2 += kTile) {
      conv1_until(next2 + kTile + 1);
      conv16_rows(rows1, rows2, next2, span2, height, width, weights.conv2, weights.conv2_bias.b, scratch,
                  Relu{});
    }
  };
  auto conv3_until = [&](int64_t end) {
    for (; next3 < end; next3 += kTile) {
      conv2_until(next3 + kTile + 1);
      conv16_rows(rows2, rows3, next3, span3, height, width, weights.conv3, weights.conv3_bias.b, scratch,
                  Relu{});
    }
  };

  if (next2 == 0) clear_row(rows2, -1, span2);
  if (next3 == 0) clear_row(rows3, -1, span3);
  for (int64_t y = task.y0; y < task.y1; ++y) {
    conv3_until(2 * y + 2);
    downsample_row(rows3, branches, y, task, weights.heads, weights.heads_bias);
    store_branches(branches, args.low, args.high, task, y);
  }
}

}  // namespace wae::WAE_ISA
