// The gradients of the encoder in one pass, from its inputs and the gradients of low and high.
//
// A task recomputes the trunk's layers as far ahead as the gradients need them. The gradients follow through the layers
// in the opposite order. All of them are windows of rows, as in encode.h:
//
//     trunk:      image -> conv1 -> conv2 -> conv3
//     gradients:  image <- conv1 <- conv2 <- conv3 <- grad_low, grad_high      (of each layer's sums, before ReLU)
//
// A layer's weight gradient is summed when the gradient of its output is known, over the pixels that belong to the
// task. Pixels of neighbouring tasks are computed only as far as these depend on them.
//
// Arithmetic per pixel, in vectors of 16: the trunk 127, the gradients of layers 2 * 50 + 13.5 + 27, those of weights 2
// * (36 + 7.5 + 5) + 27 + 13.5, sums over lanes ~10: about 415, against 985 by the definition.

#pragma once

#include "cpu/isa/encode.h"
#include "cpu/isa/gradients.h"

namespace wae::WAE_ISA {

class EncodeBackward {
 public:
  EncodeBackward(const EncodeBackwardArgs& args, const Task& task, Collected<EncoderSums>& collected)
      : args_(args),
        task_(task),
        collected_(collected),
        sums_(collected.floats()),
        height_(args.image.height),
        width_(args.image.width),
        begin_(2 * task.x0),
        end_(std::min(2 * task.x1, width_)),
        top_(2 * task.y0),
        bottom_(std::min(2 * task.y1, height_)),
        halo_(args.need_image || args.need_scale ? 1 : 0),
        span1_(tiled_span(begin_ - halo_, end_ + halo_, width_)),
        span2_(tiled_span(span1_.begin - 1, span1_.tiles_end() + 1, width_)),
        span3_(pixel_span(span2_.begin - 1, span2_.tiles_end() + 1, width_)),
        next1_(floor4(std::max<int64_t>(top_ - halo_, 0))),
        next2_(floor4(std::max<int64_t>(next1_ - 1, 0))),
        next3_(next2_ - 1),
        next_half_(std::max<int64_t>(next3_, 0) / 2),
        workspace_(task),
        scratch_(workspace_.winograd()),
        scratch_gradient_(workspace_.winograd()),
        trunk_(args.image, args.affine, *args.weights, task, workspace_, scratch_, {19, 18, 13, 8},
               std::min(span3_.begin, begin_ - 1), span3_.end, std::max<int64_t>(next3_, 0)),
        branches_(workspace_.half_planes(3, 6)),
        gradient3_(workspace_.rows(6)),
        gradient2_(workspace_.rows(9)),
        gradient1_(workspace_.rows(6)),
        gradient_image_(workspace_.planes(1, 3)),
        image_(workspace_.planes(1, 3)) {
    if (next1_ == 0) clear_row(gradient1_, -1, span1_);
    if (next2_ == 0) clear_row(gradient2_, -1, span2_);
  }

  void run() {
    const int64_t collect_rows = rows_until_collected(end_ - begin_);
    for (int64_t y = top_; y < bottom_; ++y) {
      gradient1_until(y + 1 + halo_);
      if (halo_ > 0) image_row(y);
      if ((y + 1) % collect_rows == 0) collected_.collect();
    }
    collected_.collect();
  }

 private:
  bool owns(int64_t y) const { return args_.need_parameters && top_ <= y && y < bottom_; }

  // gradient<l>_ is the gradient of the sums of trunk layer l, before its ReLU.
  void gradient1_until(int64_t end) {
    for (; next1_ < end; next1_ += kTile) {
      gradient2_until(next1_ + kTile + 1);
      conv16_rows(gradient2_, gradient1_, next1_, span1_, height_, width_, args_.transposed->conv2, nullptr,
                  scratch_, mask(trunk_.rows1, next1_, span1_.begin));
      if (!owns(next1_)) continue;
      conv16_weight_gradient(trunk_.rows1, gradient2_, next1_, begin_, end_, sums_.conv2, sums_.conv2_bias,
                             scratch_, scratch_gradient_);
      for (int64_t y = next1_; y < std::min(next1_ + kTile, bottom_); ++y) {
        conv3_weight_gradient(trunk_.planes, gradient1_, y, begin_, end_, sums_.conv1);
        add_row(gradient1_, y, begin_, end_, sums_.conv1_bias);
      }
    }
  }
  void gradient2_until(int64_t end) {
    for (; next2_ < end; next2_ += kTile) {
      gradient3_until(next2_ + kTile + 1);
      conv16_rows(gradient3_, gradient2_, next2_, span2_, height_, width_, args_.transposed->conv3, nullptr,
                  scratch_, mask(trunk_.rows2, next2_, span2_.begin));
      if (!owns(next2_)) continue;
      conv16_weight_gradient(trunk_.rows2, gradient3_, next2_, begin_, end_, sums_.conv3, sums_.conv3_bias,
                             scratch_, scratch_gradient_);
    }
  }
  void gradient3_until(int64_t end) {
    const int64_t begin_half = span3_.begin / 2, end_half = half_size(span3_.end) + 1;
    for (; next3_ < end; ++next3_) {
      trunk_.conv3_until(next3_ + 1);
      for (; next_half_ < half_size(next3_) + 1; ++next_half_) {
        load_planes(args_.grad_low, nullptr, task_.n, next_half_, begin_half, end_half, branches_);
        load_planes(args_.grad_high, nullptr, task_.n, next_half_, begin_half, end_half, branches_, 3);
      }
      upsample_row(branches_, gradient3_, next3_, span3_, height_, width_, args_.weights->branches.numbers(),
                   nullptr, mask(trunk_.rows3, next3_, span3_.begin / 2 * 2));
      // Half-resolution row y is complete when row 2y + 1, or the last row of the image, is known.
      if (owns(next3_) && (next3_ % 2 == 1 || next3_ + 1 == height_)) branches_row(next3_ / 2);
    }
  }
  void branches_row(int64_t y) {
    trunk_.conv3_until(2 * y + 2);
    half_weight_gradient(branches_, trunk_.rows3, y, task_, sums_.branches.numbers());
    add_planes<6>(branches_, y, task_.x0, task_.x1, sums_.branches_bias);
  }
  void image_row(int64_t y) {
    conv16to3_row(gradient1_, gradient_image_, y, begin_, end_, args_.transposed->conv1, nullptr);
    if (args_.need_scale) {
      load_planes(args_.image, nullptr, task_.n, y, begin_, end_, image_);
      add_planes<3>(gradient_image_, y, begin_, end_, sums_.image_shift);
      for (int c = 0; c < 3; ++c) {
        float* image = image_.at(y, c, begin_);
        const float* gradient = gradient_image_.at(y, c, begin_);
        for (int64_t i = 0; i < end_ - begin_; ++i) image[i] *= gradient[i];
      }
      add_planes<3>(image_, y, begin_, end_, sums_.image_scale);
    }
    if (!args_.need_image) return;
    for (int c = 0; c < 3; ++c) {
      float* gradient = gradient_image_.at(y, c, begin_);
      for (int64_t i = 0; i < end_ - begin_; ++i) gradient[i] *= args_.affine.scale[c];
    }
    store_planes(gradient_image_, args_.grad_image, task_.n, y, begin_, end_);
  }

  const EncodeBackwardArgs& args_;
  const Task& task_;
  Collected<EncoderSums>& collected_;
  EncoderSums& sums_;
  const int64_t height_, width_, begin_, end_, top_, bottom_, halo_;
  const Span span1_, span2_, span3_;
  int64_t next1_, next2_, next3_, next_half_;
  Workspace workspace_;
  WinogradScratch &scratch_, &scratch_gradient_;
  EncoderTrunk trunk_;
  const Planes branches_;
  const Rows gradient3_, gradient2_, gradient1_;
  const Planes gradient_image_, image_;
};

inline void encode_backward(const EncodeBackwardArgs& args, const Task& task, Collected<EncoderSums>& sums) {
  EncodeBackward(args, task, sums).run();
}

}  // namespace wae::WAE_ISA
