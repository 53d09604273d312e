// Fills the kernels' parameter structs from tensor views. It needs neither CUDA nor torch, because the extension uses
// it as well as the tests that run the kernels without a GPU.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/parameters.h"

namespace wae::cuda {

struct TensorView {
  const void* data;
  std::array<int64_t, 4> sizes, strides;  // a vector uses only the first
};

inline Images images_of(const TensorView& view) {
  Images images{const_cast<void*>(view.data), {}};
  std::copy(view.strides.begin(), view.strides.end(), images.stride);
  return images;
}

// Whether the elements fill one contiguous range of memory, in any order of the dimensions.
inline bool is_dense_view(const TensorView& view) {
  std::array<int, 4> order{0, 1, 2, 3};
  std::sort(order.begin(), order.end(), [&](int a, int b) { return view.strides[a] < view.strides[b]; });
  int64_t next = 1;
  for (const int dim : order) {
    if (view.sizes[dim] == 1) continue;
    if (view.strides[dim] != next) return false;
    next *= view.sizes[dim];
  }
  return true;
}

// transposed: the weight has its input channels first, as torch.nn.ConvTranspose2d has.
inline Filter filter_of(const TensorView& weight, const TensorView& bias, int element_bytes,
                        bool transposed) {
  const bool aligned = reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
  const int64_t bytes = element_bytes * weight.sizes[0] * weight.sizes[1] * weight.sizes[2] * weight.sizes[3];
  const auto& stride = weight.strides;
  return {weight.data,
          bias.data,
          {stride[transposed ? 1 : 0], stride[transposed ? 0 : 1], stride[2], stride[3]},
          bias.strides[0],
          aligned && bytes % 16 == 0 && is_dense_view(weight),
          0};
}

// parameters: the ten of wae::encode, in the op's order (weight, bias, weight, ...); element_bytes: the size of their
// elements.
inline EncodeParameters encode_parameters(const TensorView& image, bool image_is_bytes, const TensorView& low,
                                          const TensorView& high,
                                          const std::array<TensorView, 2 * kFilters>& parameters,
                                          int element_bytes, const ChannelVector& scale,
                                          const ChannelVector& shift, const Tiling& tiling) {
  EncodeParameters p{};
  p.image = images_of(image), p.low = images_of(low), p.high = images_of(high);
  for (int i = 0; i < kFilters; ++i) {
    p.filters[i] = filter_of(parameters[2 * i], parameters[2 * i + 1], element_bytes, false);
  }
  p.scale = scale, p.shift = shift, p.tiling = tiling;
  p.height = static_cast<int32_t>(image.sizes[2]), p.width = static_cast<int32_t>(image.sizes[3]);
  p.image_is_bytes = image_is_bytes, p.are_floats = element_bytes == sizeof(float);
  return p;
}

// parameters: the ten of wae::decode, in the op's order; element_bytes: the size of their elements.
inline DecodeParameters decode_parameters(const TensorView& low, const TensorView& high,
                                          const TensorView& image,
                                          const std::array<TensorView, 2 * kFilters>& parameters,
                                          int element_bytes, const Tiling& tiling) {
  DecodeParameters p{};
  p.low = images_of(low), p.high = images_of(high), p.image = images_of(image);
  for (int i = 0; i < kFilters; ++i) {
    p.filters[i] = filter_of(parameters[2 * i], parameters[2 * i + 1], element_bytes, i < 2);
  }
  p.tiling = tiling;
  p.height = static_cast<int32_t>(image.sizes[2]), p.width = static_cast<int32_t>(image.sizes[3]);
  p.are_floats = element_bytes == sizeof(float);
  return p;
}

// The backward parameters, except the input gradients, scale, shift, partials and the need_ flags. parameters: the ten
// of the op, in its order.
inline BackwardParameters backward_parameters(Op op, const TensorView& full, bool image_is_bytes,
                                              const TensorView& low, const TensorView& high,
                                              const std::array<TensorView, 2 * kFilters>& parameters,
                                              int element_bytes, const Tiling& tiling,
                                              const BackwardLayout& layout) {
  BackwardParameters p{};
  p.full = images_of(full), p.low = images_of(low), p.high = images_of(high);
  const bool encodes = op == Op::kEncode;
  // The op's indices of the full-resolution filter, the two of the trunk, and the two branches.
  const std::array<int, kFilters> order =
      encodes ? std::array<int, kFilters>{0, 1, 2, 3, 4} : std::array<int, kFilters>{4, 2, 3, 0, 1};
  for (int i = 0; i < kFilters; ++i) {
    const bool sixteen_second = i > 2 || (i == 0 && !encodes);
    p.filters[i] =
        filter_of(parameters[2 * order[i]], parameters[2 * order[i] + 1], element_bytes, sixteen_second);
  }
  p.tiling = tiling, p.layout = layout;
  p.height = static_cast<int32_t>(full.sizes[2]), p.width = static_cast<int32_t>(full.sizes[3]);
  p.image_is_bytes = image_is_bytes;
  return p;
}

// Where a parameter's gradient is written: contiguous, or nullptr if it is not needed.
struct ResultView {
  void* data;
  NumberType type;
};

inline ReduceParameters reduce_parameters(Op op, const float* partials, int32_t blocks,
                                          const std::array<ResultView, kResults>& results) {
  ReduceParameters p{};
  p.partials = partials, p.blocks = blocks, p.partial_floats = partial_floats(op);
  for (int i = 0; i < kResults; ++i) {
    p.results[i] = {results[i].data, result_offset(op, i), result_sizes(op)[i], results[i].type, 0};
  }
  return p;
}

}  // namespace wae::cuda
