// Kernel parameters: pointers, strides and sizes, the same structs on host and device. No CUDA headers are
// needed, so that the tests can fill these structs too.

#pragma once

#include <cstdint>

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

inline constexpr int kFilters = 5;

struct EncodeParameters {
  Images image, low, high;
  Filter filters[kFilters];  // conv1, conv2, conv3, low, high
  ChannelVector scale, shift;
  Tiling tiling;
  int32_t height, width;  // of the image
  int32_t image_is_bytes;
  int32_t unused;
};

struct DecodeParameters {
  Images low, high, image;
  Filter filters[kFilters];  // low, high, conv1, conv2, conv3
  Tiling tiling;
  int32_t height, width;  // of the image
};

}  // namespace wae::cuda
