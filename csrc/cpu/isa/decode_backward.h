// The gradients of the decoder in one pass: as encode_backward.h, for the layers of decode.h.
//
//     trunk:      low, high -> upsampled -> conv1 -> conv2
//     gradients:  low, high <- upsampled <- conv1 <- conv2 <- grad_image

#pragma once

#include "cpu/isa/decode.h"
#include "cpu/isa/encode_backward.h"
#include "cpu/isa/gradients.h"

namespace wae::WAE_ISA {

// What the gradients of both decoders have in common: the layers from conv1 back to low and high.
//
// gradient<l>_ is the gradient of the sums of trunk layer l, before its ReLU. Self (the derived class) has
// gradient1_until(end), which computes rows of gradient1_, and start(), the DecoderStart with the outputs of these
// layers.
template <class Self, class Args, class Sums>
class DecoderBackward {
 public:
  void run() {
    const int64_t collect_rows = rows_until_collected(end_ - begin_);
    for (int64_t y = task_.y0; y < task_.y1; ++y) {
      gradient_up_until(2 * y + 2);
      if (args_.need_parameters) {
        half_weight_gradient(self().start().branches, gradient_up_, y, task_, sums_.up.numbers());
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

 protected:
  // `grad` is the gradient of the decoder's result.
  DecoderBackward(const Args& args, const Images& grad, const Task& task, Collected<Sums>& collected)
      : args_(args),
        task_(task),
        collected_(collected),
        sums_(collected.floats()),
        height_(grad.height),
        width_(grad.width),
        begin_(2 * task.x0),
        end_(std::min(2 * task.x1, width_)),
        top_(2 * task.y0),
        bottom_(std::min(2 * task.y1, height_)),
        span_up_(tiled_span(begin_ - 1, end_, width_)),
        span1_(tiled_span(span_up_.begin - 1, span_up_.tiles_end() + 1, width_)),
        next_up_(floor4(std::max<int64_t>(top_ - 1, 0))),
        next1_(floor4(std::max<int64_t>(next_up_ - 1, 0))),
        workspace_(task),
        scratch_(workspace_.winograd()),
        scratch_gradient_(workspace_.winograd()),
        gradient1_(workspace_.rows(9)),
        gradient_up_(workspace_.rows(6)),
        gradient_branches_(
            workspace_.half_planes(1, static_cast<int>(args.low.channels + args.high.channels))) {
    if (next_up_ == 0) clear_row(gradient_up_, -1, span_up_);
    if (next1_ == 0) clear_row(gradient1_, -1, span1_);
  }

  bool owns(int64_t y) const { return args_.need_parameters && top_ <= y && y < bottom_; }

  const Args& args_;
  const Task& task_;
  Collected<Sums>& collected_;
  Sums& sums_;
  const int64_t height_, width_, begin_, end_, top_, bottom_;
  const Span span_up_, span1_;
  int64_t next_up_, next1_;
  Workspace workspace_;
  WinogradScratch &scratch_, &scratch_gradient_;
  const Rows gradient1_, gradient_up_;
  const Planes gradient_branches_;

 private:
  Self& self() { return static_cast<Self&>(*this); }

  void gradient_up_until(int64_t end) {
    for (; next_up_ < end; next_up_ += kTile) {
      self().gradient1_until(next_up_ + kTile + 1);
      conv16_rows(gradient1_, gradient_up_, next_up_, span_up_, height_, width_, args_.transposed->conv1,
                  nullptr, scratch_, mask(self().start().rows_up, next_up_, span_up_.begin));
      if (!owns(next_up_)) continue;
      conv16_weight_gradient(self().start().rows_up, gradient1_, next_up_, begin_, end_, sums_.conv1,
                             sums_.conv1_bias, scratch_, scratch_gradient_);
    }
  }
};

class DecodeBackward : public DecoderBackward<DecodeBackward, DecodeBackwardArgs, DecoderSums> {
 public:
  DecodeBackward(const DecodeBackwardArgs& args, const Task& task, Collected<DecoderSums>& collected)
      : DecoderBackward(args, args.grad_image, task, collected),
        span2_(pixel_span(span1_.begin - 1, span1_.tiles_end() + 1, width_)),
        next2_(next1_ - 1),
        next_image_(next2_ - 1),
        trunk_(args.low, args.high, *args.weights, task, height_, width_, workspace_, scratch_,
               {{12, 18, 13}, 8}, span2_.begin, span2_.end, std::max<int64_t>(next2_, 0)),
        gradient_image_(workspace_.planes(3, 3)),
        gradient2_(workspace_.rows(6)) {}

  const DecoderStart& start() const { return trunk_.start; }

  void gradient1_until(int64_t end) {
    for (; next1_ < end; next1_ += kTile) {
      gradient2_until(next1_ + kTile + 1);
      conv16_rows(gradient2_, gradient1_, next1_, span1_, height_, width_, args_.transposed->conv2, nullptr,
                  scratch_, mask(trunk_.start.rows1, next1_, span1_.begin));
      if (!owns(next1_)) continue;
      conv16_weight_gradient(trunk_.start.rows1, gradient2_, next1_, begin_, end_, sums_.conv2,
                             sums_.conv2_bias, scratch_, scratch_gradient_);
    }
  }

 private:
  void gradient2_until(int64_t end) {
    for (; next2_ < end; ++next2_) {
      trunk_.conv2_until(next2_ + 1);
      for (; next_image_ < next2_ + 2; ++next_image_) {
        load_planes(args_.grad_image, nullptr, task_.n, next_image_, span2_.begin - 1, span2_.end + 1,
                    gradient_image_);
      }
      conv3to16_row(gradient_image_, gradient2_, next2_, span2_, height_, width_, args_.transposed->conv3,
                    nullptr, mask(trunk_.rows2, next2_, span2_.begin));
      if (!owns(next2_)) continue;
      conv3_weight_gradient(gradient_image_, trunk_.rows2, next2_, begin_, end_, sums_.conv3);
      add_planes<3>(gradient_image_, next2_, begin_, end_, sums_.conv3_bias);
    }
  }

  const Span span2_;
  int64_t next2_, next_image_;
  DecoderTrunk trunk_;
  const Planes gradient_image_;
  const Rows gradient2_;
};

inline void decode_backward(const DecodeBackwardArgs& args, const Task& task, Collected<DecoderSums>& sums) {
  DecodeBackward(args, task, sums).run();
}

}  // namespace wae::WAE_ISA
