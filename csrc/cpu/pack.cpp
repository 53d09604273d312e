#include "cpu/pack.h"

#include <algorithm>

#include "cpu/winograd_filter.h"

namespace wae {
namespace {

// U = G g G^T, 16 output channels at a time; tap(i, o, ky, kx) is the filter of input channel i, output channel o.
template <class Tap>
void pack_winograd(Winograd16& packed, const Tap& tap) {
  for (int i = 0; i < 16; ++i) {
    float g[3][3][16], gg[6][3][16];
    for (int ky = 0; ky < 3; ++ky) {
      for (int kx = 0; kx < 3; ++kx) {
        for (int o = 0; o < 16; ++o) g[ky][kx][o] = tap(i, o, ky, kx);
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

// weight: (16, 16, 3, 3), as in Conv2d
void pack_conv16(Winograd16& packed, const float* weight) {
  pack_winograd(packed,
                [=](int i, int o, int ky, int kx) { return weight[((o * 16 + i) * 3 + ky) * 3 + kx]; });
}

// The filter that computes the gradient of the layer's input: channels swapped, taps rotated by 180 degrees.
void pack_conv16_transposed(Winograd16& packed, const float* weight) {
  pack_winograd(
      packed, [=](int i, int o, int ky, int kx) { return weight[((i * 16 + o) * 3 + 2 - ky) * 3 + 2 - kx]; });
}

// In the weight the 16 channels are `stride16` numbers apart, and the 3 channels `stride3`.
void pack_direct3(Direct3& packed, const float* weight, int stride16, int stride3, bool rotated) {
  for (int ky = 0; ky < 3; ++ky) {
    for (int c = 0; c < 3; ++c) {
      for (int kx = 0; kx < 3; ++kx) {
        const int tap = rotated ? (2 - ky) * 3 + 2 - kx : ky * 3 + kx;
        for (int j = 0; j < 16; ++j) packed.w[ky][c][kx][j] = weight[j * stride16 + c * stride3 + tap];
      }
    }
  }
}

// low and high: (3, 16, 3, 3), the layout of both Conv2d's 16 -> 3 and ConvTranspose2d's 3 -> 16.
void pack_direct6(Direct6& packed, const float* low, const float* high) {
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < 6; ++c) {
      const float* weight = c < 3 ? low + c * 16 * 9 : high + (c - 3) * 16 * 9;
      for (int j = 0; j < 16; ++j) packed.w[tap / 3][tap % 3][c][j] = weight[j * 9 + tap];
    }
  }
}

template <int kSize>
void copy(float (&to)[kSize], const float* from) {
  for (int i = 0; i < kSize; ++i) to[i] = from[i];
}

}  // namespace

void pack(EncoderPack& packed, const EncoderWeights& w) {
  pack_direct3(packed.conv1, w.conv1_weight, 27, 9, false);
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
  pack_direct3(packed.conv3, w.conv3_weight, 9, 144, false);
  for (int j = 0; j < 16; ++j) packed.up_bias.b[j] = w.low_bias[j] + w.high_bias[j];
  copy(packed.conv1_bias.b, w.conv1_bias);
  copy(packed.conv2_bias.b, w.conv2_bias);
  copy(packed.conv3_bias, w.conv3_bias);
}

void pack(ScoreDecoderPack& packed, const ScoreDecoderNumbers& n) {
  float* up = packed.up.w;
  for (int tap = 0; tap < 9; ++tap) {
    for (int64_t c = 0; c < n.classes + n.features; ++c) {
      const auto& filters = c < n.classes ? n.low_weight[c] : n.high_weight[c - n.classes];
      for (int j = 0; j < 16; ++j) *up++ = filters[j][tap];
    }
  }
  pack_conv16(packed.conv1, n.conv1_weight[0][0]);
  for (int j = 0; j < 16; ++j) packed.up_bias.b[j] = n.low_bias[j] + n.high_bias[j];
  copy(packed.conv1_bias.b, n.conv1_bias);
  for (int panel = 0; panel < kMaxScoreChannels / 16; ++panel) {
    pack_conv16(packed.conv2[panel], n.conv2_weight[16 * panel][0]);
    copy(packed.conv2_bias[panel].b, n.conv2_bias + 16 * panel);
  }
}

void pack(EncoderBackwardPack& packed, const EncoderWeights& w) {
  pack_direct3(packed.conv1, w.conv1_weight, 27, 9, true);
  pack_conv16_transposed(packed.conv2, w.conv2_weight);
  pack_conv16_transposed(packed.conv3, w.conv3_weight);
}

void pack(DecoderBackwardPack& packed, const DecoderWeights& w) {
  pack_conv16_transposed(packed.conv1, w.conv1_weight);
  pack_conv16_transposed(packed.conv2, w.conv2_weight);
  pack_direct3(packed.conv3, w.conv3_weight, 9, 144, true);
}

void pack(ScoreDecoderBackwardPack& packed, const ScoreDecoderNumbers& n) {
  pack_conv16_transposed(packed.conv1, n.conv1_weight[0][0]);
  for (int panel = 0; panel < kMaxScoreChannels / 16; ++panel) {
    pack_conv16_transposed(packed.conv2[panel], n.conv2_weight[16 * panel][0]);
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
