// The sums over pixels that become the gradients of the parameters.
//
// Adding millions of floats to one float loses digits. So a task adds to floats, and after every few thousand pixels
// (isa/gradients.h) adds these to doubles and starts again at zero.

#pragma once

#include <cstdint>

#include "cpu/pack.h"

namespace wae {

struct EncoderSums {
  Winograd16 conv2, conv3;
  Direct3 conv1;
  Direct6 branches;
  Bias16 conv1_bias, conv2_bias, conv3_bias;
  float branches_bias[6];
  float image_scale[3], image_shift[3];
};

struct DecoderSums {
  Winograd16 conv1, conv2;
  Direct3 conv3;
  Direct6 up;
  Bias16 up_bias, conv1_bias, conv2_bias;
  float conv3_bias[3];
};

struct ScoreDecoderSums {
  Winograd16 conv1, conv2[kScorePanels];  // conv2: 16 classes each
  DirectScores up;
  Bias16 up_bias, conv1_bias, conv2_bias[kScorePanels];
};

// Sums in floats, which a task adds to, and the doubles that collect them. The members of Sums are all floats.
template <class Sums>
class Collected {
 public:
  static constexpr int64_t kCount = sizeof(Sums) / sizeof(float);

  Sums& floats() { return sums_; }

  void collect() {
    float* from = reinterpret_cast<float*>(&sums_);
    for (int64_t i = 0; i < kCount; ++i) {
      totals_[i] += from[i];
      from[i] = 0;
    }
  }
  void add(const Collected& other) {
    for (int64_t i = 0; i < kCount; ++i) totals_[i] += other.totals_[i];
  }
  // The totals, rounded once.
  const Sums& result() {
    float* to = reinterpret_cast<float*>(&sums_);
    for (int64_t i = 0; i < kCount; ++i) to[i] = static_cast<float>(totals_[i]);
    return sums_;
  }

 private:
  Sums sums_{};
  double totals_[kCount]{};
};

extern template class Collected<EncoderSums>;  // never compiled with the instruction set of a kernel file
extern template class Collected<DecoderSums>;
extern template class Collected<ScoreDecoderSums>;

void unpack(const EncoderSums& sums, EncoderWeights& gradients);
void unpack(const DecoderSums& sums, DecoderWeights& gradients);
// `gradients` has its classes and features already.
void unpack(const ScoreDecoderSums& sums, ScoreDecoderWeights& gradients);

}  // namespace wae
