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

void pack(EncoderInt8Pack& packed, const EncoderInt8Numbers& n) {
  pack_layer(packed.conv1, n.conv1_weight, n.bias[0], n.shift[0], n.multiplier[0]);
  pack_layer(packed.conv2, n.conv2_weight, n.bias[1], n.shift[1], n.multiplier[1]);
  pack_layer(packed.conv3, n.conv3_weight, n.bias[2], n.shift[2], n.multiplier[2]);
  pack_tiles(packed.conv1_tiles, packed.conv1, n.conv1_weight, n.multiplier[0]);
  pack_tiles(packed.conv2_tiles, packed.conv2, n.conv2_weight, n.multiplier[1]);
  pack_tiles(packed.conv3_tiles, packed.conv3, n.conv3_weight, n.multiplier[2]);
  pack_tiles(packed.branch_tiles, n.branches_weight);
  std::copy_n(n.branches_bias, 6, packed.branch_tiles.start);
  for (int o = 0; o < 6; ++o) {
    for (int c = 0; c < 16; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        packed.branches[tap / 3][c / 4][tap % 3][o][c % 4] = n.branches_weight[o][c][tap];
      }
    }
    packed.branches_start[o] = n.branches_bias[o];
    packed.scale[o] = n.scale[o];
    packed.zero_point[o] = static_cast<float>(n.zero_point[o]);
    packed.least_byte[o] = static_cast<float>(n.least_byte[o / 3]);
  }
  packed.padding = n.padding[0] | n.padding[1] << 8 | n.padding[2] << 16;
}

}  // namespace wae
