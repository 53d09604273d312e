// What a kernel is told: plain pointers, strides and sizes, the same struct for host and device. Nothing here
// needs CUDA's headers, so that the tests can fill these structs too.

#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace wae::cuda {

// A (N, 3, H, W) tensor of any strides, in elements.
struct Pictures {
  void* data;
  int64_t stride[4];
};

// A 3x3 convolution's weight and bias. The strides are in elements and in the order output channel, input
// channel, row, column, whichever way torch stores the weight.
struct Filter {
  const void* weight;
  const void* bias;
  int64_t stride[4];
  int64_t bias_stride;
  // Whether the weight's elements fill one stretch of memory that begins at a multiple of 16 bytes (in any
  // order): then it is read in pieces of 16 bytes.
  int32_t in_one_piece;
  int32_t unused;  // no hole, so that the same values are the same bytes
};

enum class NumberType : int32_t { kNone, kFloat16, kBFloat16, kFloat32, kFloat64 };

// Three numbers in device memory, or none of them.
struct Triple {
  const void* data;
  int64_t stride;
  NumberType type;
  int32_t unused;
};

inline constexpr int kFilters = 5;

struct EncodeParameters {
  Pictures image, low, high;
  Filter filters[kFilters];  // conv1, conv2, conv3, low, high
  Triple scale, shift;
  Tiling tiling;
  int32_t height, width;  // of the image
  int32_t image_is_bytes;
  int32_t unused;
};

struct DecodeParameters {
  Pictures low, high, image;
  Filter filters[kFilters];  // low, high, conv1, conv2, conv3
  Tiling tiling;
  int32_t height, width;  // of the image
};

}  // namespace wae::cuda
