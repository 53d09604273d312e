// The encoder's int8 weights as its kernels read them (csrc/cpu/isa/encode_int8.h).

#pragma once

#include <cstdint>

namespace wae {

// In place of the least byte that a result can be, which is 0 or -128: the results are float32.
inline constexpr int32_t kNoByte = 1;

// The arguments of wae::encode_int8 besides the image, as they come. Nothing between the members, so that two
// of them can be compared as bytes.
struct EncoderInt8Numbers {
  int8_t conv1_weight[16][3][9];
  int8_t conv2_weight[16][16][9];
  int8_t conv3_weight[16][16][9];
  int8_t branches_weight[6][16][9];  // low's 3, high's 3
  int32_t bias[3][16];
  int32_t branches_bias[6];
  int32_t shift[3][16];
  float scale[6];
  int32_t zero_point[6];
  int32_t least_byte[2];  // of low and high: -128, 0, or kNoByte for results in float32
  int16_t multiplier[3][16];
  uint8_t padding[4];  // the fourth is 0: no gap that a comparison of bytes would see
};

// A layer of the trunk, kGroups groups of 4 input channels. A group's 4 weights are what one lane of a dot
// product takes.
template <int kGroups>
struct alignas(64) Int8Layer {
  int8_t w[4][3][kGroups][3][4][4];  // [4 outputs][ky][group][kx][output][input channel]
  int16_t multiplier[4][2][8];       // [4 outputs][2 of them][4 times each]
  int32_t start[16];                 // bias, and half of what the shift drops
  int32_t shift[16];
};

// A row of weights for AMX (csrc/cpu/isa/encode_int8_amx.h). 4 taps are a tile: those from the second on, and those
// from the first on, which are for the pixel to the right.
struct alignas(64) Int8TileRow {
  int8_t taps[5][4][16][4];  // [kx + 1, the first and the last zero][group][output][input channel]
};

// A layer for AMX. conv1 has a single row, whose groups of 4 inputs are the rows of its weights.
template <int kRows>
struct alignas(64) Int8Tiles {
  Int8TileRow rows[kRows];
  int32_t start[16];
  int32_t shift[16];
  int16_t multiplier[4][2][4];  // [4 outputs][twice][output]
};

struct alignas(64) EncoderInt8Pack {
  Int8Layer<1> conv1;  // the fourth input channel's weights are zero
  Int8Layer<4> conv2, conv3;
  int8_t branches[3][4][3][6][4];  // [ky][group][kx][output][input channel]
  Int8Tiles<1> conv1_tiles;
  Int8Tiles<3> conv2_tiles, conv3_tiles, branch_tiles;  // of the last rows and start
  int32_t branches_start[6];
  float scale[6], zero_point[6];
  float least_byte[6];  // -128 or 0, and 255 more is the largest; kNoByte for results in float32
  uint32_t padding;     // a pixel's 4 bytes
};

void pack(EncoderInt8Pack& packed, const EncoderInt8Numbers& numbers);

}  // namespace wae
