#include "cpu/sums.h"

#include "cpu/winograd_filter.h"

namespace wae {
namespace {

// weight: (16, 16, 3, 3), as in Conv2d; dg = G^T dU G
void unpack_conv16(const Winograd16& sums, float* weight) {
  for (int i = 0; i < 16; ++i) {
    for (int o = 0; o < 16; ++o) {
      float rows[3][6] = {};
      for (int ky = 0; ky < 3; ++ky) {
        for (int x = 0; x < 6; ++x) {
          for (int y = 0; y < 6; ++y) rows[ky][x] += kG[y][ky] * sums.u[6 * y + x][i][o];
        }
      }
      for (int ky = 0; ky < 3; ++ky) {
        for (int kx = 0; kx < 3; ++kx) {
          float sum = 0;
          for (int x = 0; x < 6; ++x) sum += kG[x][kx] * rows[ky][x];
          weight[((o * 16 + i) * 3 + ky) * 3 + kx] = sum;
        }
      }
    }
  }
}

// The counterpart of pack_direct3.
void unpack_direct3(const Direct3& sums, float* weight, int stride16, int stride3, bool rotated) {
  for (int ky = 0; ky < 3; ++ky) {
    for (int c = 0; c < 3; ++c) {
      for (int kx = 0; kx < 3; ++kx) {
        const int tap = rotated ? (2 - ky) * 3 + 2 - kx : ky * 3 + kx;
        for (int j = 0; j < 16; ++j) weight[j * stride16 + c * stride3 + tap] = sums.w[ky][c][kx][j];
      }
    }
  }
}

void unpack_direct6(const Direct6& sums, float* low, float* high) {
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < 6; ++c) {
      float* weight = c < 3 ? low + c * 16 * 9 : high + (c - 3) * 16 * 9;
      for (int j = 0; j < 16; ++j) weight[j * 9 + tap] = sums.w[tap / 3][tap % 3][c][j];
    }
  }
}

template <int kSize>
void copy(const float (&from)[kSize], float* to) {
  for (int i = 0; i < kSize; ++i) to[i] = from[i];
}

}  // namespace

void unpack(const EncoderSums& sums, const EncoderGradients& to) {
  unpack_direct3(sums.conv1, to.conv1_weight, 27, 9, false);
  unpack_conv16(sums.conv2, to.conv2_weight);
  unpack_conv16(sums.conv3, to.conv3_weight);
  unpack_direct6(sums.branches, to.low_weight, to.high_weight);
  copy(sums.conv1_bias.b, to.conv1_bias);
  copy(sums.conv2_bias.b, to.conv2_bias);
  copy(sums.conv3_bias.b, to.conv3_bias);
  for (int c = 0; c < 6; ++c) (c < 3 ? to.low_bias[c] : to.high_bias[c - 3]) = sums.branches_bias[c];
}

void unpack(const DecoderSums& sums, const DecoderGradients& to) {
  unpack_direct6(sums.up, to.low_weight, to.high_weight);
  unpack_conv16(sums.conv1, to.conv1_weight);
  unpack_conv16(sums.conv2, to.conv2_weight);
  unpack_direct3(sums.conv3, to.conv3_weight, 9, 144, true);
  copy(sums.up_bias.b, to.low_bias);  // both biases are added to every pixel
  copy(sums.up_bias.b, to.high_bias);
  copy(sums.conv1_bias.b, to.conv1_bias);
  copy(sums.conv2_bias.b, to.conv2_bias);
  copy(sums.conv3_bias, to.conv3_bias);
}

void unpack(const ScoreDecoderSums& sums, ScoreDecoderNumbers& to) {
  const float* up = sums.up.numbers();
  for (int tap = 0; tap < 9; ++tap) {
    for (int64_t c = 0; c < to.classes + to.features; ++c) {
      auto& filters = c < to.classes ? to.low_weight[c] : to.high_weight[c - to.classes];
      for (int j = 0; j < 16; ++j) filters[j][tap] = *up++;
    }
  }
  unpack_conv16(sums.conv1, to.conv1_weight[0][0]);
  copy(sums.up_bias.b, to.low_bias);  // both biases are added to every pixel
  copy(sums.up_bias.b, to.high_bias);
  copy(sums.conv1_bias.b, to.conv1_bias);
  for (int panel = 0; panel < kMaxScoreChannels / 16; ++panel) {
    unpack_conv16(sums.conv2[panel], to.conv2_weight[16 * panel][0]);
    copy(sums.conv2_bias[panel].b, to.conv2_bias + 16 * panel);
  }
}

template class Collected<EncoderSums>;
template class Collected<DecoderSums>;
template class Collected<ScoreDecoderSums>;

}  // namespace wae
