// The interface between the ops (csrc/cpu/ops*.cpp, which use torch) and the kernels (which do not): plain structs, and
// for each instruction set one struct of function pointers.

#pragma once

#include <cstdint>

#include "common/sizes.h"
#include "cpu/pack.h"
#include "cpu/pack_int8.h"
#include "cpu/sums.h"

namespace wae {

enum class Element : int { kFloat32, kFloat16, kBFloat16, kUInt8, kInt8 };

// A batch of images with any strides (in elements).
struct Images {
  void* data = nullptr;
  Element element = Element::kFloat32;
  int64_t batch = 0, height = 0, width = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
  int64_t channels = 3;
};

// image * scale + shift, per channel.
struct Affine {
  float scale[3] = {1, 1, 1};
  float shift[3] = {0, 0, 0};
};

// A piece of work: a rectangle of one image, in half-resolution pixels. x0 and y0 are even, so that no tile of 4 x 4
// full-resolution pixels belongs to two tasks.
struct Task {
  int64_t n, y0, y1, x0, x1;
};

struct EncodeArgs {
  Images image, low, high;
  Affine affine;
  const EncoderPack* weights;
};

struct EncodeInt8Args {
  Images image, low, high;
  const EncoderInt8Pack* weights;
};

struct DecodeArgs {
  Images low, high, image;
  const DecoderPack* weights;
};

struct DecodeScoresArgs {
  Images low, high, scores;
  const ScoreDecoderPack* weights;
};

struct EncodeBackwardArgs {
  Images grad_low, grad_high, image, grad_image;  // grad_image is used only if need_image
  Affine affine;
  const EncoderPack* weights;
  const EncoderBackwardPack* transposed;
  bool need_image, need_parameters, need_scale;
};

struct DecodeBackwardArgs {
  Images grad_image, low, high, grad_low, grad_high;  // the last two are used only if need_input
  const DecoderPack* weights;
  const DecoderBackwardPack* transposed;
  bool need_input, need_parameters;
};

struct DecodeScoresBackwardArgs {
  Images grad_scores, low, high, grad_low, grad_high;  // the last two are used only if need_input
  const ScoreDecoderPack* weights;
  const ScoreDecoderBackwardPack* transposed;
  bool need_input, need_parameters;
};

// A batch of feature maps with any strides (in elements), and a 3x3 layer with padding 1 to apply to it.
struct Conv3x3Args {
  const float* input;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
  const float* packed;  // from pack_conv3x3
  const float* bias;    // null for zeros
  float* output;        // (batch, out_channels, height, width) in channels_last
  int64_t out_channels;
  bool relu;
};

// The number of tiles of 4 outputs that cover `size` outputs, at least 1 of them. No sum overflows.
constexpr int64_t tiles_along(int64_t size) { return (size - 1) / 4 + 1; }

// A piece of work of a 3x3 layer: a range of tiles of 4x4 outputs, and a range of panels of 16 output channels.
struct Conv3x3Task {
  int64_t tile0, tile1, panel0, panel1;
};

struct Kernels {
  void (*encode)(const EncodeArgs&, const Task&);
  void (*decode)(const DecodeArgs&, const Task&);
  void (*decode_scores)(const DecodeScoresArgs&, const Task&);
  // The backward kernels add the task's share of the parameters' gradients to the sums.
  void (*encode_backward)(const EncodeBackwardArgs&, const Task&, Collected<EncoderSums>&);
  void (*decode_backward)(const DecodeBackwardArgs&, const Task&, Collected<DecoderSums>&);
  void (*decode_scores_backward)(const DecodeScoresBackwardArgs&, const Task&, Collected<ScoreDecoderSums>&);
  void (*conv3x3)(const Conv3x3Args&, const Conv3x3Task&);
};

const Kernels& kernels_portable();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

// The int8 encoder, for CPUs with AMX, and with VNNI on vectors of 64 and of 32 bytes.
using EncodeInt8 = void(const EncodeInt8Args&, const Task&);
namespace avx512amx {
EncodeInt8 encode_int8;
}
namespace avx512vnni {
EncodeInt8 encode_int8;
}
namespace avxvnni {
EncodeInt8 encode_int8;
}

// The widest task that a kernel takes, in half-resolution pixels, so that its rows stay in the second-level cache.
inline constexpr int64_t kMaxTaskWidth = 128;

// The widest task of the int8 encoder: with 2 columns on each side it is 8 vectors of AVX-512 wide.
inline constexpr int64_t kMaxInt8TaskWidth = 124;

// Limits of a Conv3x3Task: its tiles; the panels whose filters are transformed together; its tiles times panels.
inline constexpr int64_t kConvTiles = 56, kConvPanels = 4, kConvSums = kConvTiles * kConvPanels;

}  // namespace wae
