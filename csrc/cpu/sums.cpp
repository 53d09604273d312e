#include "cpu/sums.h"

#include <algorithm>
#include <cstddef>

#include "cpu/winograd_filter.h"

namespace wae {
namespace {

// dg = G^T dU G
void unpack_conv16(const Winograd16& sums, float (&weight)[16][16][9]) {
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
          weight[o][i][3 * ky + kx] = sum;
        }
      }
    }
  }
}

// The counterpart of pack_direct3: filter(c, j, tap) is a reference to the weight.
template <class Filter>
void unpack_direct3(const Direct3& sums, const Filter& filter) {
  for (int ky = 0; ky < 3; ++ky) {
    for (int c = 0; c < 3; ++c) {
      for (int kx = 0; kx < 3; ++kx) {
        for (int j = 0; j < 16; ++j) filter(c, j, 3 * ky + kx) = sums.w[ky][c][kx][j];
      }
    }
  }
}

void unpack_direct6(const Direct6& sums, float (&low)[3][16][9], float (&high)[3][16][9]) {
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < 6; ++c) {
      auto& filters = c < 3 ? low[c] : high[c - 3];
      for (int j = 0; j < 16; ++j) filters[j][tap] = sums.w[tap / 3][tap % 3][c][j];
    }
  }
}

template <size_t kSize>
void copy(const float (&from)[kSize], float (&to)[kSize]) {
  std::copy_n(from, kSize, to);
}

}  // namespace

void unpack(const EncoderSums& sums, EncoderWeights& to) {
  unpack_direct3(sums.conv1, [&](int c, int j, int tap) -> float& { return to.conv1_weight[j][c][tap]; });
  unpack_conv16(sums.conv2, to.conv2_weight);
  unpack_conv16(sums.conv3, to.conv3_weight);
  unpack_direct6(sums.branches, to.low_weight, to.high_weight);
  copy(sums.conv1_bias.b, to.conv1_bias);
  copy(sums.conv2_bias.b, to.conv2_bias);
  copy(sums.conv3_bias.b, to.conv3_bias);
  for (int c = 0; c < 6; ++c) (c < 3 ? to.low_bias[c] : to.high_bias[c - 3]) = sums.branches_bias[c];
}

void unpack(const DecoderSums& sums, DecoderWeights& to) {
  unpack_direct6(sums.up, to.low_weight, to.high_weight);
  unpack_conv16(sums.conv1, to.conv1_weight);
  unpack_conv16(sums.conv2, to.conv2_weight);
  // The kernel takes the 3 channels for the layer's inputs. Here they are its outputs, so the taps are rotated.
  unpack_direct3(sums.conv3, [&](int c, int j, int tap) -> float& { return to.conv3_weight[c][j][8 - tap]; });
  copy(sums.up_bias.b, to.low_bias);  // both biases are added to every pixel
  copy(sums.up_bias.b, to.high_bias);
  copy(sums.conv1_bias.b, to.conv1_bias);
  copy(sums.conv2_bias.b, to.conv2_bias);
  copy(sums.conv3_bias, to.conv3_bias);
}

void unpack(const ScoreDecoderSums& sums, ScoreDecoderWeights& to) {
  const float* up = sums.up.numbers();
  for (int tap = 0; tap < 9; ++tap) {
    for (int64_t c = 0; c < to.classes + to.features; ++c) {
      auto& filters = c < to.classes ? to.low_weight[c] : to.high_weight[c - to.classes];
      for (int j = 0; j < 16; ++j) filters[j][tap] = *up++;
    }
  }
  unpack_conv16(sums.conv1, to.conv1_weight);
  copy(sums.up_bias.b, to.low_bias);  // both biases are added to every pixel
  copy(sums.up_bias.b, to.high_bias);
  copy(sums.conv1_bias.b, to.conv1_bias);
  for (int panel = 0; panel < kScorePanels; ++panel) {
    unpack_conv16(sums.conv2[panel], to.conv2_weight[panel]);
    copy(sums.conv2_bias[panel].b, to.conv2_bias[panel]);
  }
}

template class Collected<EncoderSums>;
template class Collected<DecoderSums>;
template class Collected<ScoreDecoderSums>;

}  // namespace wae
