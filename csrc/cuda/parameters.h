// Kernel parameters: pointers, strides and sizes, the same structs on host and device. No CUDA headers are
// needed, so that the tests can fill these structs too.

#pragma once

#include <cstdint>

#include "cuda/backward_plan.h"
#include "cuda/plan.h"

namespace wae::cuda {

// A (N, 3, H, W) tensor with any strides, in elements.
struct Images {
  void* data;
  int64_t stride[4];
};

// A 3x3 convolution's weight and bias. The strides are in elements and in the order output channel, input
// channel, row, column, however torch stores the weight.
struct Filter {
  const void* weight;
  const void* bias;
  int64_t stride[4];
  int64_t bias_stride;
  // The elements fill one contiguous range, aligned to 16 bytes, in any order: read with 16-byte loads.
  int32_t is_dense;
  int32_t unused;  // no padding bytes: equal values have equal bytes
};

enum class NumberType : int32_t { kNone, kFloat16, kBFloat16, kFloat32, kFloat64 };

// One number for each of an image's three channels, in device memory; kNone if absent.
struct ChannelVector {
  const void* data;
  int64_t stride;
  NumberType type;
  int32_t unused;
};

struct EncodeParameters {
  Images image, low, high;
  Filter filters[kFilters];  // conv1, conv2, conv3, low, high
  ChannelVector scale, shift;
  Tiling tiling;
  int32_t height, width;  // of the image
  int32_t image_is_bytes;
  int32_t are_floats;  // filters, and pixels that are not bytes, are float32 whatever the mode's numbers are
};

struct DecodeParameters {
  Images low, high, image;
  Filter filters[kFilters];  // low, high, conv1, conv2, conv3
  Tiling tiling;
  int32_t height, width;  // of the image
  int32_t are_floats;     // filters are float32 whatever the mode's numbers are
  int32_t unused;
};

// Of both backward kernels; backward_plan.h says how the two ops correspond.
struct BackwardParameters {
  Images full, low, high;  // encode: image, grad_low, grad_high; decode: grad_image, low, high
  // encode: grad_image (as grad_full); decode: grad_low, grad_high. Unused ones are not read.
  Images grad_full, grad_low, grad_high;
  // conv1, conv2, conv3, low, high of encode; conv3, conv1, conv2, low, high of decode. In the strides of the
  // full-resolution filter and the two branches, the first is the one of the 16 channels.
  Filter filters[kFilters];
  ChannelVector scale, shift;
  float* partials;  // partials_of_grid(); unused where nothing is summed
  Tiling tiling;
  BackwardLayout layout;
  int32_t height, width;  // at full resolution
  int32_t image_is_bytes;
  int32_t need_input, need_parameters, need_scale;
};

struct ReduceParameters {
  struct Result {
    void* data;  // contiguous; nullptr if not wanted
    int32_t offset, size;
    NumberType type;
    int32_t unused;
  };
  const float* partials;
  Result results[kResults];
  int32_t blocks, partial_floats;
};

}  // namespace wae::cuda
