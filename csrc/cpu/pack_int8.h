// The int8 encoder's weights in the layouts that its kernels read (csrc/cpu/isa/encode_int8.h, encode_int8_amx.h).

#pragma once

#include <cstdint>

namespace wae {

// Stands in `least_byte`, which else is 0 or -128, for results in float32.
inline constexpr int32_t kNoByte = 1;

// The arguments of wae::encode_int8 besides the image. There is no padding between the members, so that two of these
// structs can be compared as bytes.
struct EncoderInt8Weights {
  int8_t conv1_weight[16][3][9];
  int8_t conv2_weight[16][16][9];
  int8_t conv3_weight[16][16][9];
  int8_t branches_weight[6][16][9];  // low's 3, high's 3
  int32_t bias[3][16];
  int32_t branches_bias[6];
  int32_t shift[3][16];
  float scale[6];
  int32_t zero_point[6];
  int32_t least_byte[2];  // of low and high: -128, 0, or kNoByte for float32 results
  int16_t multiplier[3][16];
  uint8_t padding[4];  // the pixel around the image; the fourth byte is 0
};

// A layer of the trunk with kGroups groups of 4 input channels. A lane of a dot product takes the 4 weights of a group.
template <int kGroups>
struct alignas(64) Int8Layer {
  int8_t w[4][3][kGroups][3][4][4];  // [4 outputs][ky][group][kx][output][input channel]
  int16_t multiplier[4][2][8];       // [4 outputs][2 of them][each of these repeated 4 times]
  int32_t start[16];                 // bias, plus half of the shift's divisor for rounding
  int32_t shift[16];
};

// A row of weights for AMX (csrc/cpu/isa/encode_int8_amx.h). A tile of weights is 4 taps: taps[1..4] for one pixel, and
// taps[0..3] for the pixel to its right.
struct alignas(64) Int8TileRow {
  int8_t taps[5][4][16][4];  // [kx + 1; the first and the last are zero][group][output][input channel]
};

// A layer for AMX. conv1 has one row of weights, whose groups are its three filter rows (3 input channels each).
template <int kRows>
struct alignas(64) Int8Tiles {
  Int8TileRow rows[kRows];
  int32_t start[16];
  int32_t shift[16];
  int16_t multiplier[4][2][4];  // [4 outputs][repeated twice][output]
};

struct alignas(64) EncoderInt8Pack {
  using Weights = EncoderInt8Weights;
  Int8Layer<1> conv1;  // the fourth input channel's weights are zero
  Int8Layer<4> conv2, conv3;
  int8_t branches[3][4][3][6][4];  // [ky][group][kx][output][input channel]
  Int8Tiles<1> conv1_tiles;
  Int8Tiles<3> conv2_tiles, conv3_tiles, branch_tiles;  // branch_tiles has only rows and start
  int32_t branches_start[6];
  float scale[6], zero_point[6];
  float least_byte[6];  // -128 or 0 (the largest byte is 255 more), or kNoByte for float32 results
  uint32_t padding;     // the 4 bytes of a pixel around the image
};

void pack(EncoderInt8Pack& packed, const EncoderInt8Weights& weights);

}  // namespace wae
