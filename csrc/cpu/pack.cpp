#include "cpu/pack.h"

#include <algorithm>
#include <cstddef>

#include "cpu/winograd_filter.h"

namespace wae {
namespace {

// U = G g G^T, 16 output channels at a time; filter(o, i, tap) is the weight from input channel i to output channel o.
template <class Filter>
void pack_winograd(Winograd16& packed, const Filter& filter) {
  for (int i = 0; i < 16; ++i) {
    float g[3][3][16], gg[6][3][16];
    for (int ky = 0; ky < 3; ++ky) {
      for (int kx = 0; kx < 3; ++kx) {
        for (int o = 0; o < 16; ++o) g[ky][kx][o] = filter(o, i, 3 * ky + kx);
      }
    }
    for (int y = 0; y < 6; ++y) {
      for (int kx = 0; kx < 3; ++kx) {
        for (int o = 0; o < 16; ++o) {
          gg[y][kx][o] = kG[y][0] * g[0][kx][o] + kG[y][1] * g[1][kx][o] + kG[y][2] * g[2][kx][o];
        }
      }
    }
    for (int y = 0; y < 6; ++y) {
      for (int x = 0; x < 6; ++x) {
        for (int o = 0; o < 16; ++o) {
          packed.u[6 * y + x][i][o] =
              kG[x][0] * gg[y][0][o] + kG[x][1] * gg[y][1][o] + kG[x][2] * gg[y][2][o];
        }
      }
    }
  }
}

void pack_conv16(Winograd16& packed, const float (&weight)[16][16][9]) {
  pack_winograd(packed, [&](int o, int i, int tap) { return weight[o][i][tap]; });
}

// The filter that computes the gradient of the layer's input: channels swapped, taps rotated by 180 degrees.
void pack_conv16_transposed(Winograd16& packed, const float (&weight)[16][16][9]) {
  pack_winograd(packed, [&](int o, int i, int tap) { return weight[i][o][8 - tap]; });
}

// filter(c, j, tap) is the weight between channel c of the 3 and channel j of the 16.
template <class Filter>
void pack_direct3(Direct3& packed, const Filter& filter) {
  for (int ky = 0; ky < 3; ++ky) {
    for (int c = 0; c < 3; ++c) {
      for (int kx = 0; kx < 3; ++kx) {
        for (int j = 0; j < 16; ++j) packed.w[ky][c][kx][j] = filter(c, j, 3 * ky + kx);
      }
    }
  }
}

// low and high: the layout of both Conv2d's 16 -> 3 and ConvTranspose2d's 3 -> 16.
void pack_direct6(Direct6& packed, const float (&low)[3][16][9], const float (&high)[3][16][9]) {
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < 6; ++c) {
      const auto& filters = c < 3 ? low[c] : high[c - 3];
      for (int j = 0; j < 16; ++j) packed.w[tap / 3][tap % 3][c][j] = filters[j][tap];
    }
  }
}

template <size_t kSize>
void copy(float (&to)[kSize], const float (&from)[kSize]) {
  std::copy_n(from, kSize, to);
}

}  // namespace

void pack(EncoderPack& packed, const EncoderWeights& w) {
  pack_direct3(packed.conv1, [&](int c, int j, int tap) { return w.conv1_weight[j][c][tap]; });
  pack_conv16(packed.conv2, w.conv2_weight);
  pack_conv16(packed.conv3, w.conv3_weight);
  pack_direct6(packed.branches, w.low_weight, w.high_weight);
  copy(packed.conv1_bias.b, w.conv1_bias);
  copy(packed.conv2_bias.b, w.conv2_bias);
  copy(packed.conv3_bias.b, w.conv3_bias);
  for (int c = 0; c < 6; ++c) packed.branches_bias[c] = c < 3 ? w.low_bias[c] : w.high_bias[c - 3];
}

void pack(DecoderPack& packed, const DecoderWeights& w) {
  pack_direct6(packed.up, w.low_weight, w.high_weight);
  pack_conv16(packed.conv1, w.conv1_weight);
  pack_conv16(packed.conv2, w.conv2_weight);
  pack_direct3(packed.conv3, [&](int c, int j, int tap) { return w.conv3_weight[c][j][tap]; });
  for (int j = 0; j < 16; ++j) packed.up_bias.b[j] = w.low_bias[j] + w.high_bias[j];
  copy(packed.conv1_bias.b, w.conv1_bias);
  copy(packed.conv2_bias.b, w.conv2_bias);
  copy(packed.conv3_bias, w.conv3_bias);
}

void pack(ScoreDecoderPack& packed, const ScoreDecoderWeights& w) {
  float* up = packed.up.w;
  for (int tap = 0; tap < 9; ++tap) {
    for (int64_t c = 0; c < w.classes + w.features; ++c) {
      const auto& filters = c < w.classes ? w.low_weight[c] : w.high_weight[c - w.classes];
      for (int j = 0; j < 16; ++j) *up++ = filters[j][tap];
    }
  }
  pack_conv16(packed.conv1, w.conv1_weight);
  for (int j = 0; j < 16; ++j) packed.up_bias.b[j] = w.low_bias[j] + w.high_bias[j];
  copy(packed.conv1_bias.b, w.conv1_bias);
  for (int panel = 0; panel < kScorePanels; ++panel) {
    pack_conv16(packed.conv2[panel], w.conv2_weight[panel]);
    copy(packed.conv2_bias[panel].b, w.conv2_bias[panel]);
  }
}

void pack(EncoderBackwardPack& packed, const EncoderWeights& w) {
  pack_direct3(packed.conv1, [&](int c, int j, int tap) { return w.conv1_weight[j][c][8 - tap]; });
  pack_conv16_transposed(packed.conv2, w.conv2_weight);
  pack_conv16_transposed(packed.conv3, w.conv3_weight);
}

void pack(DecoderBackwardPack& packed, const DecoderWeights& w) {
  pack_conv16_transposed(packed.conv1, w.conv1_weight);
  pack_conv16_transposed(packed.conv2, w.conv2_weight);
  pack_direct3(packed.conv3, [&](int c, int j, int tap) { return w.conv3_weight[c][j][8 - tap]; });
}

void pack(ScoreDecoderBackwardPack& packed, const ScoreDecoderWeights& w) {
  pack_conv16_transposed(packed.conv1, w.conv1_weight);
  for (int panel = 0; panel < kScorePanels; ++panel) {
    pack_conv16_transposed(packed.conv2[panel], w.conv2_weight[panel]);
  }
}

void pack_conv3x3(float* packed, const float* weight, int64_t out_channels, int64_t channels) {
  for (int64_t first = 0; first < channels; first += kPackedDepth) {
    for (int64_t panel = 0; panel < panels_of(out_channels); ++panel) {
      for (int64_t c = first; c < std::min(first + kPackedDepth, channels); ++c) {
        for (int tap = 0; tap < 9; ++tap) {
          const float scale = kFilterScale[tap / 3] * kFilterScale[tap % 3];
          for (int64_t k = panel * kPanelChannels; k < (panel + 1) * kPanelChannels; ++k) {
            *packed++ = k < out_channels ? weight[(k * channels + c) * 9 + tap] / scale : 0.0f;
          }
        }
      }
    }
  }
}

}  // namespace wae
