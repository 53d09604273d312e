// The ops' tensors as the plain structs that the kernels take, and the kernels' gradients as tensors.
//
// These functions have internal linkage, as those of elements.h that they call.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>

#include "common/checks.h"
#include "common/tensors.h"
#include "cpu/dispatch.h"
#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "cpu/pack_cache.h"

namespace wae {
namespace {

using ScoreParameters = std::array<Tensor, 8>;

// The kernels for such parameters; null if the reference has to run.
inline const Kernels* kernels_for(const Tensor& conv1_weight) {
  const bool fits = conv1_weight.scalar_type() != ScalarType::Double && conv1_weight.size(0) == kKernelWidth;
  return fits ? selected_kernels() : nullptr;
}

// ---------------------------------------------------------------------------------------------- images

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Byte:
      return Element::kUInt8;
    case ScalarType::Char:
      return Element::kInt8;
    default:
      return Element::kFloat32;  // the checks accept nothing else
  }
}

inline Images images_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  return {const_cast<void*>(tensor.const_data_ptr()),
          element_of(tensor.scalar_type()),
          sizes[0],
          sizes[2],
          sizes[3],
          strides[0],
          strides[1],
          strides[2],
          strides[3],
          sizes[1]};
}

// --------------------------------------------------------------------------------------- small tensors

template <class To, class From>
To converted(From number) {
  if constexpr (std::is_arithmetic_v<From>) {
    return static_cast<To>(number);
  } else {
    return to_float(number);
  }
}

// Copies the numbers of a tensor with elements From, at most four dimensions and any strides, in logical order.
template <class From, class To>
void copy_numbers(const Tensor& tensor, To* to) {
  const From* data = static_cast<const From*>(tensor.const_data_ptr());
  if (tensor.is_contiguous()) {  // most are, and the loops below would take several times as long
    std::transform(data, data + tensor.numel(), to, converted<To, From>);
    return;
  }
  int64_t sizes[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
  for (int64_t i = 0, skip = 4 - tensor.dim(); i < tensor.dim(); ++i) {
    sizes[skip + i] = tensor.size(i);
    strides[skip + i] = tensor.stride(i);
  }
  for (int64_t a = 0; a < sizes[0]; ++a) {
    for (int64_t b = 0; b < sizes[1]; ++b) {
      for (int64_t c = 0; c < sizes[2]; ++c) {
        const From* row = data + a * strides[0] + b * strides[1] + c * strides[2];
        for (int64_t d = 0; d < sizes[3]; ++d) *to++ = converted<To>(row[d * strides[3]]);
      }
    }
  }
}

inline void copy_floats(const Tensor& tensor, float* to) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return copy_numbers<Half>(tensor, to);
    case ScalarType::BFloat16:
      return copy_numbers<BFloat16>(tensor, to);
    case ScalarType::Double:
      return copy_numbers<double>(tensor, to);
    default:
      return copy_numbers<float>(tensor, to);
  }
}

inline Affine affine_of(const std::optional<Tensor>& image_scale, const std::optional<Tensor>& image_shift) {
  Affine affine;
  if (image_scale) copy_floats(*image_scale, affine.scale);
  if (image_shift) copy_floats(*image_shift, affine.shift);
  return affine;
}

// `numbers`, as many as `like` has, as a new tensor of its shape and dtype.
inline Tensor tensor_of(const float* numbers, const Tensor& like) {
  Tensor tensor = new_like(like);
  const ScalarType dtype = like.scalar_type();
  void* data = tensor.mutable_data_ptr();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    if (dtype == ScalarType::Double) {
      static_cast<double*>(data)[i] = numbers[i];
    } else {
      write_float(data, element_of(dtype), i, numbers[i]);
    }
  }
  return tensor;
}

// ------------------------------------------------------------------------------------------- parameters

// Pointers to the numbers of each parameter, in the order of the op's arguments. Constant if the weights are.
template <class Weights>
auto parts_of(Weights& w) {
  if constexpr (std::is_same_v<const Weights, const EncoderWeights>) {
    return std::array{w.conv1_weight[0][0], w.conv1_bias, w.conv2_weight[0][0], w.conv2_bias,
                      w.conv3_weight[0][0], w.conv3_bias, w.low_weight[0][0],   w.low_bias,
                      w.high_weight[0][0],  w.high_bias};
  } else if constexpr (std::is_same_v<const Weights, const DecoderWeights>) {
    return std::array{w.low_weight[0][0],   w.low_bias,   w.high_weight[0][0],  w.high_bias,
                      w.conv1_weight[0][0], w.conv1_bias, w.conv2_weight[0][0], w.conv2_bias,
                      w.conv3_weight[0][0], w.conv3_bias};
  } else {
    static_assert(std::is_same_v<const Weights, const ScoreDecoderWeights>);
    return std::array{w.low_weight[0][0],   w.low_bias,   w.high_weight[0][0],     w.high_bias,
                      w.conv1_weight[0][0], w.conv1_bias, w.conv2_weight[0][0][0], w.conv2_bias[0]};
  }
}

// Weights of the parameters' sizes, all zero.
template <class Weights, size_t kCount>
Weights zeros_for(const std::array<Tensor, kCount>& parameters) {
  Weights weights{};
  if constexpr (std::is_same_v<Weights, ScoreDecoderWeights>) {
    weights.classes = parameters[0].size(0);
    weights.features = parameters[2].size(0);
  }
  return weights;
}

template <class Weights, size_t kCount>
Weights weights_of(const std::array<Tensor, kCount>& parameters) {
  auto weights = zeros_for<Weights>(parameters);
  const auto parts = parts_of(weights);
  for (size_t p = 0; p < kCount; ++p) copy_floats(parameters[p], parts[p]);
  return weights;
}

// Whether the weights are bit-identical to the parameters. Contiguous float32 is compared in place.
template <class Weights, size_t kCount>
bool are_same(const Weights& weights, const std::array<Tensor, kCount>& parameters) {
  if constexpr (std::is_same_v<Weights, ScoreDecoderWeights>) {
    if (weights.classes != parameters[0].size(0) || weights.features != parameters[2].size(0)) return false;
  }
  float copy[kMaxScoreChannels * 16 * 9];                                  // the largest parameter of any op
  const bool is_float = parameters[0].scalar_type() == ScalarType::Float;  // all have the same dtype
  const auto parts = parts_of(weights);
  for (size_t p = 0; p < kCount; ++p) {
    const bool in_place = is_float && parameters[p].is_contiguous();
    if (!in_place) copy_floats(parameters[p], copy);
    const void* own = in_place ? parameters[p].const_data_ptr() : copy;
    if (std::memcmp(own, parts[p], parameters[p].numel() * sizeof(float)) != 0) return false;
  }
  return true;
}

// The pack of these parameters, from a cache. Caches are never destroyed: a thread may use one while the process exits.
template <class Pack, size_t kCount>
std::shared_ptr<const Pack> packed(const std::array<Tensor, kCount>& parameters) {
  using Weights = typename Pack::Weights;
  static auto& cache = *new PackCache<Pack>;
  return cache.find([&](const Weights& known) { return are_same(known, parameters); },
                    [&] { return weights_of<Weights>(parameters); });
}

// The gradients of the parameters, each with the shape and dtype of its parameter; without elements if not needed.
template <class Weights, class Sums, size_t kCount>
std::array<Tensor, kCount> parameter_gradients(const Sums& sums, const std::array<Tensor, kCount>& parameters,
                                               bool needed) {
  auto gradients = zeros_for<Weights>(parameters);
  if (needed) unpack(sums, gradients);
  const auto parts = parts_of(gradients);
  std::array<Tensor, kCount> tensors;
  for (size_t p = 0; p < kCount; ++p) {
    tensors[p] = needed ? tensor_of(parts[p], parameters[p]) : no_gradient(parameters[p]);
  }
  return tensors;
}

}  // namespace
}  // namespace wae
