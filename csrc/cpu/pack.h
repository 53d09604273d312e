// The networks' weights in the layout that the kernels read, which is the same for all instruction sets.

#pragma once

#include <cstdint>

namespace wae {

// The raw weights of a network, or gradients of them: float32, in the layout of torch.nn.Conv2d and ConvTranspose2d (the
// last dimension is the 9 taps) and in the order of the op's arguments.
struct EncoderWeights {
  float conv1_weight[16][3][9], conv1_bias[16];
  float conv2_weight[16][16][9], conv2_bias[16];
  float conv3_weight[16][16][9], conv3_bias[16];
  float low_weight[3][16][9], low_bias[3];
  float high_weight[3][16][9], high_bias[3];
};
struct DecoderWeights {
  float low_weight[3][16][9], low_bias[16];
  float high_weight[3][16][9], high_bias[16];
  float conv1_weight[16][16][9], conv1_bias[16];
  float conv2_weight[16][16][9], conv2_bias[16];
  float conv3_weight[3][16][9], conv3_bias[3];
};

// The decoder of class scores has up to this many channels in low, in high and in the scores. The scores are computed in
// panels of 16.
inline constexpr int kMaxScoreChannels = 32, kScorePanels = kMaxScoreChannels / 16;

struct ScoreDecoderWeights {  // zero beyond its channels
  int64_t classes, features;  // channels of low, of high
  float low_weight[kMaxScoreChannels][16][9], low_bias[16];
  float high_weight[kMaxScoreChannels][16][9], high_bias[16];
  float conv1_weight[16][16][9], conv1_bias[16];
  float conv2_weight[kScorePanels][16][16][9], conv2_bias[kScorePanels][16];
};

// 16 channels are innermost and aligned to 64 bytes, so that a vector of weights is one load.
struct alignas(64) Winograd16 {  // 16 -> 16 channels, 3x3, stride 1, in the Winograd domain
  float u[36][16][16];           // [position][input channel][output channel]
};
struct alignas(64) Direct3 {  // between 3 and 16 channels, 3x3, stride 1
  float w[3][3][3][16];       // [ky][the 3 channels][kx][the 16 channels]
};
struct alignas(64) Direct6 {  // between 6 channels (3 of low, 3 of high) at half resolution and 16 at full
  float w[3][3][6][16];       // [ky][kx][the 6 channels][the 16 channels]
  const float* numbers() const { return &w[0][0][0][0]; }
  float* numbers() { return &w[0][0][0][0]; }
};
struct alignas(64) Bias16 {
  float b[16];
};

struct alignas(64) DirectScores {  // between the channels of low and high at half resolution and 16 at full
  float w[9 * 2 * kMaxScoreChannels * 16];  // [ky][kx][the classes, then the features][the 16 channels]
  const float* numbers() const { return w; }
  float* numbers() { return w; }
};

struct EncoderPack {
  using Weights = EncoderWeights;
  Direct3 conv1;
  Winograd16 conv2, conv3;
  Direct6 branches;
  Bias16 conv1_bias, conv2_bias, conv3_bias;
  float branches_bias[6];
};
struct DecoderPack {
  using Weights = DecoderWeights;
  Direct6 up;
  Winograd16 conv1, conv2;
  Direct3 conv3;
  Bias16 up_bias, conv1_bias, conv2_bias;
  float conv3_bias[3];
};
struct ScoreDecoderPack {
  using Weights = ScoreDecoderWeights;
  DirectScores up;
  Winograd16 conv1, conv2[kScorePanels];
  Bias16 up_bias, conv1_bias, conv2_bias[kScorePanels];
};

// The filters that the backward passes use in addition: those of the layers from output to input gradients.
struct EncoderBackwardPack {
  using Weights = EncoderWeights;
  Direct3 conv1;
  Winograd16 conv2, conv3;
};
struct DecoderBackwardPack {
  using Weights = DecoderWeights;
  Winograd16 conv1, conv2;
  Direct3 conv3;
};
struct ScoreDecoderBackwardPack {
  using Weights = ScoreDecoderWeights;
  Winograd16 conv1, conv2[kScorePanels];  // conv2: 16 classes each
};

void pack(EncoderPack& packed, const EncoderWeights& weights);
void pack(DecoderPack& packed, const DecoderWeights& weights);
void pack(ScoreDecoderPack& packed, const ScoreDecoderWeights& weights);
void pack(EncoderBackwardPack& packed, const EncoderWeights& weights);
void pack(DecoderBackwardPack& packed, const DecoderWeights& weights);
void pack(ScoreDecoderBackwardPack& packed, const ScoreDecoderWeights& weights);

// ------------------------------------------------------------------------- a 3x3 layer of any channels

// One input channel's filters for a panel of 16 output channels: [ky][kx][16].
inline constexpr int64_t kPanelChannels = 16, kPackedFilter = 9 * kPanelChannels;

inline int64_t panels_of(int64_t out_channels) {
  return (out_channels - 1) / kPanelChannels + 1;  // out_channels >= 1
}

// The input channels whose filters are packed together, because the kernel reads them one after the other.
inline constexpr int64_t kPackedDepth = 32;

// Packs a Conv2d's weight (out_channels, channels, 3, 3) as [block of 32 input channels][panel][input
// channel][ky][kx][16 output channels], with each tap divided by kFilterScale[ky] * kFilterScale[kx], and zeros beyond
// out_channels.
void pack_conv3x3(float* packed, const float* weight, int64_t out_channels, int64_t channels);

}  // namespace wae
