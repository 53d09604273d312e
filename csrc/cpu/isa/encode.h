// The encoder in one pass over the image.
//
// A task computes a rectangle of low and high of one image, on one thread. It moves down the image, four rows at a time
// in the trunk. Between two layers it keeps only the rows that the next layer still reads, so that all of them stay in
// the second-level cache:
//
//      image        conv1 (16)     conv2 (16)     conv3 (16)     low, high
//     y-1 ......    y-1 ======     y-1 ======     y-1 ======
//     y   ...... -> y   ======     y   ======     y   ======  -> ------ y/2
//     y+1 ......    y+1 ======  -> y+1 ======  -> y+1 ======
//                   ...            ...            ...         -> ------ y/2 + 1
//                   y+4 ======     y+4 ======     y+3 ======
//
// The tiles of the Winograd layers begin at rows that are multiples of 4, wherever the task begins, so the result does
// not depend on the number of threads. Pixels outside the image are set to zero in every layer, as padding, and not to
// the convolution's result there.
//
// Arithmetic per pixel, in vectors of 16: 27 + 2 * (36 + 7.5 + 6.3) + 13.5 + the last layer's sums over lanes (~5),
// about 145 without the ReLUs, against 328.5 by the definition. It is bound by arithmetic and not by memory: 12 bytes
// are read and 6 written per pixel.

#pragma once

#include "cpu/isa/image_rows.h"
#include "cpu/isa/workspace.h"

namespace wae::WAE_ISA {

// The number of rows kept of each layer.
struct EncoderWindows {
  int image, rows1, rows2, rows3;
};

// The outputs of the trunk's three layers, computed on demand: a request for rows up to some height of one layer
// requests the rows that it reads from the layer before.
class EncoderTrunk {
 public:
  // [begin, end) are the columns of conv3 that are needed, and first_row is the first row.
  EncoderTrunk(const Images& image, const Affine& affine, const EncoderPack& weights, const Task& task,
               Workspace& workspace, WinogradScratch& scratch, const EncoderWindows& windows, int64_t begin,
               int64_t end, int64_t first_row)
      : span3(tiled_span(begin, end, image.width)),
        span2(tiled_span(span3.begin - 1, span3.tiles_end() + 1, image.width)),
        span1(pixel_span(span2.begin - 1, span2.tiles_end() + 1, image.width)),
        planes(workspace.planes(windows.image, 3)),
        rows1(workspace.rows(windows.rows1)),
        rows2(workspace.rows(windows.rows2)),
        rows3(workspace.rows(windows.rows3)),
        image_(image),
        affine_(affine),
        weights_(weights),
        n_(task.n),
        scratch_(scratch),
        next3_(floor4(std::max<int64_t>(first_row, 0))),
        next2_(floor4(std::max<int64_t>(next3_ - 1, 0))),
        next1_(next2_ - 1),
        next_image_(next1_ - 1) {
    if (next2_ == 0) clear_row(rows2, -1, span2);
    if (next3_ == 0) clear_row(rows3, -1, span3);
  }

  void conv3_until(int64_t end) {
    for (; next3_ < end; next3_ += kTile) {
      conv2_until(next3_ + kTile + 1);
      conv16_rows(rows2, rows3, next3_, span3, image_.height, image_.width, weights_.conv3,
                  weights_.conv3_bias.b, scratch_, Relu{});
    }
  }

  // From the last layer to the first: a layer covers what the tiles of the next layer read.
  const Span span3, span2, span1;
  const Planes planes;
  const Rows rows1, rows2, rows3;

 private:
  void conv2_until(int64_t end) {
    for (; next2_ < end; next2_ += kTile) {
      if (next2_ < image_.height) conv1_until(next2_ + kTile + 1);
      conv16_rows(rows1, rows2, next2_, span2, image_.height, image_.width, weights_.conv2,
                  weights_.conv2_bias.b, scratch_, Relu{});
    }
  }
  void conv1_until(int64_t end) {
    for (; next1_ < end; ++next1_) {
      for (; next_image_ < next1_ + 2; ++next_image_) {
        load_planes(image_, &affine_, n_, next_image_, span1.begin - 1, span1.end + 1, planes);
      }
      conv3to16_row(planes, rows1, next1_, span1, image_.height, image_.width, weights_.conv1,
                    weights_.conv1_bias.b, Relu{});
    }
  }

  const Images& image_;
  const Affine& affine_;
  const EncoderPack& weights_;
  const int64_t n_;
  WinogradScratch& scratch_;
  int64_t next3_, next2_, next1_, next_image_;
};

inline void encode(const EncodeArgs& args, const Task& task) {
  Workspace workspace(task);
  const Planes branches = workspace.half_planes(1, 6);
  EncoderTrunk trunk(args.image, args.affine, *args.weights, task, workspace, workspace.winograd(),
                     {3, 6, 9, 5}, 2 * task.x0 - 1, 2 * task.x1, 2 * task.y0 - 1);
  for (int64_t y = task.y0; y < task.y1; ++y) {
    trunk.conv3_until(2 * y + 2);
    downsample_row(trunk.rows3, branches, y, task, args.weights->branches.numbers(),
                   args.weights->branches_bias);
    store_branches(branches, args.low, args.high, task, y);
  }
}

}  // namespace wae::WAE_ISA
