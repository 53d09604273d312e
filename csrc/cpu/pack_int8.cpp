#include "cpu/pack_int8.h"

#include <algorithm>

namespace wae {
namespace {

template <int kGroups, int kInputs>
void pack_layer(Int8Layer<kGroups>& packed, const int8_t (&weight)[16][kInputs][9], const int32_t (&bias)[16],
                const int32_t (&shift)[16], const int16_t (&multiplier)[16]) {
  packed = {};
  for (int o = 0; o < 16; ++o) {
    for (int c = 0; c < kInputs; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        packed.w[o / 4][tap / 3][c / 4][tap % 3][o % 4][c % 4] = weight[o][c][tap];
      }
    }
    std::fill_n(packed.multiplier[o / 4][o % 4 / 2] + o % 2 * 4, 4, multiplier[o]);
    packed.start[o] = bias[o] + (shift[o] > 0 ? 1 << (shift[o] - 1) : 0);
    packed.shift[o] = shift[o];
  }
}

template <int kRows, int kOutputs, int kInputs>
void pack_tiles(Int8Tiles<kRows>& packed, const int8_t (&weight)[kOutputs][kInputs][9]) {
  packed = {};
  for (int o = 0; o < kOutputs; ++o) {
    for (int c = 0; c < kInputs; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        const int ky = tap / 3;
        Int8TileRow& row = packed.rows[kRows == 1 ? 0 : ky];
        row.taps[tap % 3 + 1][kRows == 1 ? ky : c / 4][o][c % 4] = weight[o][c][tap];
      }
    }
  }
}

template <int kRows, int kGroups, int kInputs>
void pack_tiles(Int8Tiles<kRows>& packed, const Int8Layer<kGroups>& layer,
                const int8_t (&weight)[16][kInputs][9], const int16_t (&multiplier)[16]) {
  pack_tiles(packed, weight);
  std::copy_n(layer.start, 16, packed.start);
  std::copy_n(layer.shift, 16, packed.shift);
  for (int o = 0; o < 16; ++o) {
    packed.multiplier[o / 4][0][o % 4] = packed.multiplier[o / 4][1][o % 4] = multiplier[o];
  }
}

}  // namespace

void pack(EncoderInt8Pack& packed, const EncoderInt8Weights& w) {
  pack_layer(packed.conv1, w.conv1_weight, w.bias[0], w.shift[0], w.multiplier[0]);
  pack_layer(packed.conv2, w.conv2_weight, w.bias[1], w.shift[1], w.multiplier[1]);
  pack_layer(packed.conv3, w.conv3_weight, w.bias[2], w.shift[2], w.multiplier[2]);
  pack_tiles(packed.conv1_tiles, packed.conv1, w.conv1_weight, w.multiplier[0]);
  pack_tiles(packed.conv2_tiles, packed.conv2, w.conv2_weight, w.multiplier[1]);
  pack_tiles(packed.conv3_tiles, packed.conv3, w.conv3_weight, w.multiplier[2]);
  pack_tiles(packed.branch_tiles, w.branches_weight);
  std::copy_n(w.branches_bias, 6, packed.branch_tiles.start);
  for (int o = 0; o < 6; ++o) {
    for (int c = 0; c < 16; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        packed.branches[tap / 3][c / 4][tap % 3][o][c % 4] = w.branches_weight[o][c][tap];
      }
    }
    packed.branches_start[o] = w.branches_bias[o];
    packed.scale[o] = w.scale[o];
    packed.zero_point[o] = static_cast<float>(w.zero_point[o]);
    packed.least_byte[o] = static_cast<float>(w.least_byte[o / 3]);
  }
  packed.padding = w.padding[0] | w.padding[1] << 8 | w.padding[2] << 16;
}

}  // namespace wae
