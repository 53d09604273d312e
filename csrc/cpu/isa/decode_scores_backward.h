// The gradients of the decoder of class scores in one pass: as decode_backward.h, with one layer fewer, and with any
// number of channels up to kMaxScoreChannels in low, in high and in the scores.
//
//     trunk:      low, high -> upsampled -> conv1
//     gradients:  low, high <- upsampled <- conv1 <- grad_scores
//
// The gradients of the scores are converted to rows with 16 classes per pixel, so that the gradients of the last layer
// are Winograd layers as well.
//
// Arithmetic per pixel, in vectors of 16: the trunk 2.25 for each channel of low and high + 50, the gradients of layers
// 50 + 50 for every 16 classes + 2.25 for each channel, those of weights 49 + 49 for every 16 classes + 2.25 for each
// channel, sums over lanes 0.8 for each channel: about 450 for 11 classes and 16 features.

#pragma once

#include "cpu/isa/decode_backward.h"

namespace wae::WAE_ISA {

// An epilogue that adds what these rows hold to the convolution's sums, and multiplies by a ReLU's derivative.
struct AddedReluGradient {
  const float* rows[kTile];
  ReluGradient masked;
  WAE_INLINE Vec operator()(Vec sum, int row, int64_t offset) const {
    return masked(load(rows[row] + offset) + sum, row, offset);
  }
};

class DecodeScoresBackward
    : public DecoderBackward<DecodeScoresBackward, DecodeScoresBackwardArgs, ScoreDecoderSums> {
 public:
  DecodeScoresBackward(const DecodeScoresBackwardArgs& args, const Task& task,
                       Collected<ScoreDecoderSums>& collected)
      : DecoderBackward(args, args.grad_scores, task, collected),
        panels_(static_cast<int>(panels_of(args.grad_scores.channels))),
        next_scores_(next1_ - 1),
        start_(args.low, args.high, start_of(*args.weights), task, height_, width_, workspace_, scratch_,
               {7, 14, 9}, span1_.begin, span1_.tiles_end(), next1_ - 1),
        planes_(workspace_.planes(1, panels_ * kChannels)) {
    for (int panel = 0; panel < panels_; ++panel) gradient_scores_[panel] = workspace_.rows(6);
    std::fill_n(planes_.data, planes_.planes * planes_.plane_size, 0.0f);  // stays 0 beyond the classes
  }

  const DecoderStart& start() const { return start_; }

  void gradient1_until(int64_t end) {
    for (; next1_ < end; next1_ += kTile) {
      gradient_scores_until(next1_ + kTile + 1);
      start_.conv1_until(next1_ + kTile + 1);
      const ReluGradient masked = mask(start_.rows1, next1_, span1_.begin);
      gradient1_rows(0, masked);
      if (panels_ == 2) {
        AddedReluGradient added{{}, masked};
        gradient1_.at(next1_, span1_.begin, added.rows);
        gradient1_rows(1, added);
      }
      if (!owns(next1_)) continue;
      for (int panel = 0; panel < panels_; ++panel) {
        conv16_weight_gradient(start_.rows1, gradient_scores_[panel], next1_, begin_, end_,
                               sums_.conv2[panel], sums_.conv2_bias[panel], scratch_, scratch_gradient_);
      }
    }
  }

 private:
  template <class Epilogue>
  void gradient1_rows(int panel, const Epilogue& epilogue) {
    conv16_rows(gradient_scores_[panel], gradient1_, next1_, span1_, height_, width_,
                args_.transposed->conv2[panel], nullptr, scratch_, epilogue);
  }
  void gradient_scores_until(int64_t end) {
    // The tiles of weight gradients begin at other columns than those of gradient1, and may reach further.
    const int64_t first = span1_.begin - 1, last = span1_.tiles_end() + kOvershoot;
    for (; next_scores_ < end; ++next_scores_) {
      load_planes(args_.grad_scores, nullptr, task_.n, next_scores_, first, last, planes_);
      for (int panel = 0; panel < panels_; ++panel) {
        planes_to_pixels(planes_, panel * kChannels, gradient_scores_[panel], next_scores_, first, last);
      }
    }
  }

  static_assert(kMaxScoreChannels == 2 * kChannels);  // at most two panels
  const int panels_;
  int64_t next_scores_;
  DecoderStart start_;
  const Planes planes_;  // a row of grad_scores
  Rows gradient_scores_[2];
};

inline void decode_scores_backward(const DecodeScoresBackwardArgs& args, const Task& task,
                                   Collected<ScoreDecoderSums>& sums) {
  DecodeScoresBackward(args, task, sums).run();
}

}  // namespace wae::WAE_ISA
