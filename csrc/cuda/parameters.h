// Kernel parameters: pointers, strides and sizes, in structs that host and device share. They need no CUDA headers, so
// that the tests can fill them too.

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

// The weight and bias of a 3x3 convolution. The strides are in elements, in the order output channel, input channel,
// row, column, however torch stores the weight.
struct Filter {
  const void* weight;
  const void* bias;
  int64_t stride[4];
  int64_t bias_stride;
  // Whether the elements fill one contiguous range, aligned to 16 bytes, in any order: then 16-byte loads read them.
  int32_t is_dense;
  int32_t unused;  // instead of padding, so that equal values have equal bytes
};

enum class NumberType : int32_t { kNone, kFloat16, kBFloat16, kFloat32, kFloat64 };

// One number in device memory for each of an image's three channels; its type is kNone if it is absent.
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
  int32_t are_floats;  // filters, and pixels that are not bytes, are float32, whatever the mode's Number is
};

struct DecodeParameters {
  Images low, high, image;
  Filter filters[kFilters];  // low, high, conv1, conv2, conv3
  Tiling tiling;
  int32_t height, width;  // of the image
  int32_t are_floats;     // filters are float32, whatever the mode's Number is
  int32_t unused;
};

// The parameters of both backward kernels; backward_plan.h explains how the two ops correspond.
struct BackwardParameters {
  Images full, low, high;  // encode: image, grad_low, grad_high; decode: grad_image, low, high
  // encode: grad_full is grad_image; decode: grad_low, grad_high. Those that are not needed are not accessed.
  Images grad_full, grad_low, grad_high;
  // encode: conv1, conv2, conv3, low, high; decode: conv3, conv1, conv2, low, high. For the full-resolution filter (the
  // first one) and the two branches, stride[0] is that of the 16 channels.
  Filter filters[kFilters];
  ChannelVector scale, shift;
  float* partials;  // partials_of_grid() floats; unused if nothing is summed
  Tiling tiling;
  BackwardLayout layout;
  int32_t height, width;  // at full resolution
  int32_t image_is_bytes;
  int32_t need_input, need_parameters, need_scale;
};

struct ReduceParameters {
  struct Result {
    void* data;  // contiguous; nullptr if not needed
    int32_t offset, size;
    NumberType type;
    int32_t unused;
  };
  const float* partials;
  Result results[kResults];
  int32_t blocks, partial_floats;
};

}  // namespace wae::cuda
