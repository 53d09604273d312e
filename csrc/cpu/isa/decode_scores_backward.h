// The gradients of the decoder of class scores in one pass: the plan of decode_backward.h, with a layer less and
// any number of channels, up to kMaxScoreChannels, in low, high and the scores.
//
//     trunk:      low, high -> upsampled -> conv1
//     gradients:  low, high <- upsampled <- conv1 <- grad_scores
//
// The scores' gradients become rows of 16 classes a pixel, so that the last layer's are Winograd layers as well.
//
// Arithmetic per pixel, in vectors of 16: the trunk 2.25 a channel of low and high + 50, gradients of layers 50 +
// 50 for every 16 classes + 2.25 a channel, of weights 49 + 49 for every 16 classes + 2.25 a channel: about 430 for
// 11 classes and 16 features.

#pragma once

#include "cpu/isa/decode.h"
#include "cpu/isa/gradients.h"

namespace wae::WAE_ISA {

// A sum of what the rows hold and the convolution's sums, through a ReLU's derivative.
struct AddedReluGradient {
  ReluGradient there, masked;
  WAE_INLINE Vec operator()(Vec sum, int row, int64_t offset) const {
    return masked(load(there.rows[row] + offset) + sum, row, offset);
  }
};

class DecodeScoresBackward {
 public:
  DecodeScoresBackward(const DecodeScoresBackwardArgs& args, const Task& task,
                       Collected<ScoreDecoderSums>& collected)
      : args_(args),
        task_(task),
        collected_(collected),
        sums_(collected.floats()),
        height_(args.grad_scores.height),
        width_(args.grad_scores.width),
        begin_(2 * task.x0),
        end_(std::min(2 * task.x1, width_)),
        top_(2 * task.y0),
        bottom_(std::min(2 * task.y1, height_)),
        panels_(static_cast<int>(panels_of(args.grad_scores.channels))),
        span_up_(tiled_span(begin_ - 1, end_, width_)),
        span1_(tiled_span(span_up_.begin - 1, span_up_.tiles_end() + 1, width_)),
        next_up_(floor4(std::max<int64_t>(top_ - 1, 0))),
        next1_(floor4(std::max<int64_t>(next_up_ - 1, 0))),
        next_scores_(next1_ - 1),
        workspace_(task),
        scratch_(workspace_.winograd()),
        scratch_gradient_(workspace_.winograd()),
        start_(args.low, args.high, start_of(*args.weights), task, height_, width_, workspace_, scratch_,
               {7, 14, 9}, span1_.begin, span1_.tiles_end(), next1_ - 1),
        planes_(workspace_.planes(1, panels_ * kChannels)),
        gradient1_(workspace_.rows(9)),
        gradient_up_(workspace_.rows(6)),
        gradient_branches_(workspace_.half_planes(1, start_.branches.planes)) {
    for (int panel = 0; panel < panels_; ++panel) gradient_scores_[panel] = workspace_.rows(6);
    std::fill_n(planes_.data, planes_.planes * planes_.plane_size, 0.0f);  // those beyond the classes stay so
    if (next_up_ == 0) clear_row(gradient_up_, -1, span_up_);
    if (next1_ == 0) clear_row(gradient1_, -1, span1_);
  }

  void run() {
    const int64_t collect_rows = rows_until_collected(end_ - begin_);
    for (int64_t y = task_.y0; y < task_.y1; ++y) {
      gradient_up_until(2 * y + 2);
      if (args_.need_parameters) {
        half_weight_gradient(start_.branches, gradient_up_, y, task_, sums_.up.numbers());
        for (int64_t row = 2 * y; row < std::min(2 * y + 2, height_); ++row) {
          add_row(gradient_up_, row, begin_, end_, sums_.up_bias);
        }
      }
      if (args_.need_input) {
        downsample_row(gradient_up_, gradient_branches_, y, task_, args_.weights->up.numbers(), nullptr);
        store_branches(gradient_branches_, args_.grad_low, args_.grad_high, task_, y);
      }
      if (2 * (y + 1) % collect_rows == 0) collected_.collect();
    }
    collected_.collect();
  }

 private:
  bool owns(int64_t y) const { return args_.need_parameters && top_ <= y && y < bottom_; }

  // gradient<l>_: of the sums of trunk layer l, before its ReLU.
  void gradient_up_until(int64_t end) {
    for (; next_up_ < end; next_up_ += kTile) {
      gradient1_until(next_up_ + kTile + 1);
      conv16_rows(gradient1_, gradient_up_, next_up_, span_up_, height_, width_, args_.transposed->conv1,
                  nullptr, scratch_, mask(start_.rows_up, next_up_, span_up_.begin));
      if (!owns(next_up_)) continue;
      conv16_weight_gradient(start_.rows_up, gradient1_, next_up_, begin_, end_, sums_.conv1,
                             sums_.conv1_bias, scratch_, scratch_gradient_);
    }
  }
  void gradient1_until(int64_t end) {
    for (; next1_ < end; next1_ += kTile) {
      gradient_scores_until(next1_ + kTile + 1);
      start_.conv1_until(next1_ + kTile + 1);
      const ReluGradient masked = mask(start_.rows1, next1_, span1_.begin);
      gradient1_rows(0, masked);
      if (panels_ == 2) gradient1_rows(1, AddedReluGradient{mask(gradient1_, next1_, span1_.begin), masked});
      if (!owns(next1_)) continue;
      for (int panel = 0; panel < panels_; ++panel) {
        conv16_weight_gradient(start_.rows1, gradient_scores_[panel], next1_, begin_, end_,
                               sums_.conv2[panel], sums_.conv2_bias[panel], scratch_, scratch_gradient_);
      }
    }
  }
  template <class Epilogue>
  void gradient1_rows(int panel, const Epilogue& epilogue) {
    conv16_rows(gradient_scores_[panel], gradient1_, next1_, span1_, height_, width_,
                args_.transposed->conv2[panel], nullptr, scratch_, epilogue);
  }
  void gradient_scores_until(int64_t end) {
    // Tiles of weight gradients begin elsewhere, and may reach further than those of gradient1.
    const int64_t first = span1_.begin - 1, last = span1_.tiles_end() + kOvershoot;
    for (; next_scores_ < end; ++next_scores_) {
      load_planes(args_.grad_scores, nullptr, task_.n, next_scores_, first, last, planes_);
      for (int panel = 0; panel < panels_; ++panel) {
        planes_to_pixels(planes_, panel * kChannels, gradient_scores_[panel], next_scores_, first, last);
      }
    }
  }

  static_assert(kMaxScoreChannels == 2 * kChannels);  // at most two panels
  const DecodeScoresBackwardArgs& args_;
  const Task& task_;
  Collected<ScoreDecoderSums>& collected_;
  ScoreDecoderSums& sums_;
  const int64_t height_, width_, begin_, end_, top_, bottom_;
  const int panels_;
  const Span span_up_, span1_;
  int64_t next_up_, next1_, next_scores_;
  Workspace workspace_;
  WinogradScratch &scratch_, &scratch_gradient_;
  DecoderStart start_;
  const Planes planes_;  // of a row of grad_scores
  Rows gradient_scores_[2];
  const Rows gradient1_, gradient_up_;
  const Planes gradient_branches_;
};

inline void decode_scores_backward(const DecodeScoresBackwardArgs& args, const Task& task,
                                   Collected<ScoreDecoderSums>& sums) {
  DecodeScoresBackward(args, task, sums).run();
}

}  // namespace wae::WAE_ISA
