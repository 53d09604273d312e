// encode_int8 on the CPU; see ops.cpp.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"
#include "cpu/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/pack_cache.h"
#include "cpu/run.h"
#include "cpu/tasks.h"

namespace wae {
namespace {

using checks::Checker, checks::Table;

template <class T>
void require_within(const char* name, const Tensor& tensor, int64_t least, int64_t most) {
  std::vector<T> numbers(tensor.numel());
  copy_numbers<T>(tensor, numbers.data());
  for (const T number : numbers) {
    checks::require(least <= number && number <= most, "encode_int8", name, " must have numbers from ", least,
                    " to ", most, ", got ", number);
  }
}

// As check_int8_numbers in wae_kernels/checks.py.
void check_int8_numbers(const Parameters& parameters, const Tensor& shift, const Tensor& multiplier,
                        const Tensor& scale) {
  constexpr std::array<const char*, 5> kBiases{"conv1_bias", "conv2_bias", "conv3_bias", "low_bias",
                                               "high_bias"};
  constexpr int64_t kMostBias = 1 << 30;
  for (int layer = 0; layer < 5; ++layer) {
    require_within<int32_t>(kBiases[layer], parameters[2 * layer + 1], -kMostBias, kMostBias);
  }
  require_within<int32_t>("shift", shift, 0, 30);
  require_within<int16_t>("multiplier", multiplier, 0, INT16_MAX);
  std::array<float, 6> scales;
  copy_numbers<float>(scale, scales.data());
  for (const float number : scales) {
    checks::require(std::isfinite(number), "encode_int8", "scale must have finite numbers, got ", number);
  }
}

// Copies a branch's zero points. Returns the smallest value of its results' dtype, or kNoByte for float32.
int32_t copy_zero_points(const std::optional<Tensor>& from, int32_t* to) {
  if (!from) return kNoByte;
  if (from->scalar_type() == ScalarType::Byte) {
    copy_numbers<uint8_t>(*from, to);
    return 0;
  }
  copy_numbers<int8_t>(*from, to);
  return INT8_MIN;
}

EncoderInt8Weights weights_of(const Parameters& parameters, const Tensor& image_padding, const Tensor& shift,
                              const Tensor& multiplier, const Tensor& scale,
                              const std::optional<Tensor>& low_zero_point,
                              const std::optional<Tensor>& high_zero_point) {
  EncoderInt8Weights w{};
  const std::array<int8_t*, 5> weights{&w.conv1_weight[0][0][0], &w.conv2_weight[0][0][0],
                                       &w.conv3_weight[0][0][0], &w.branches_weight[0][0][0],
                                       &w.branches_weight[3][0][0]};
  const std::array<int32_t*, 5> biases{w.bias[0], w.bias[1], w.bias[2], w.branches_bias, w.branches_bias + 3};
  for (int layer = 0; layer < 5; ++layer) {
    copy_numbers<int8_t>(parameters[2 * layer], weights[layer]);
    copy_numbers<int32_t>(parameters[2 * layer + 1], biases[layer]);
  }
  copy_numbers<uint8_t>(image_padding, w.padding);
  copy_numbers<int32_t>(shift, w.shift[0]);
  copy_numbers<int16_t>(multiplier, w.multiplier[0]);
  copy_numbers<float>(scale, w.scale);
  w.least_byte[0] = copy_zero_points(low_zero_point, w.zero_point);
  w.least_byte[1] = copy_zero_points(high_zero_point, w.zero_point + 3);
  return w;
}

// The pack of these weights, from a cache that is never destroyed, as in arguments.h.
std::shared_ptr<const EncoderInt8Pack> packed(const EncoderInt8Weights& weights) {
  static auto& cache = *new PackCache<EncoderInt8Pack>;
  const auto same = [&](const EncoderInt8Weights& known) {
    return std::memcmp(&known, &weights, sizeof weights) == 0;
  };
  return cache.find(same, [&] { return weights; });
}

std::tuple<Tensor, Tensor> encode_int8(Tensor image, Tensor conv1_weight, Tensor conv1_bias,
                                       Tensor conv2_weight, Tensor conv2_bias, Tensor conv3_weight,
                                       Tensor conv3_bias, Tensor low_weight, Tensor low_bias,
                                       Tensor high_weight, Tensor high_bias, Tensor image_padding,
                                       Tensor shift, Tensor multiplier, Tensor scale,
                                       std::optional<Tensor> low_zero_point,
                                       std::optional<Tensor> high_zero_point) {
  const Parameters parameters{conv1_weight, conv1_bias, conv2_weight, conv2_bias,  conv3_weight,
                              conv3_bias,   low_weight, low_bias,     high_weight, high_bias};
  Checker("encode_int8")
      .check(Table::encode_int8, image, parameters, image_padding, shift, multiplier, scale, low_zero_point,
             high_zero_point);
  check_int8_numbers(parameters, shift, multiplier, scale);
  EncodeInt8* const kernel = int8_encoder(kernels_for(conv1_weight));
  if (kernel == nullptr) {
    return call_reference<std::tuple<Tensor, Tensor>>("encode_int8", image, parameters, image_padding, shift,
                                                      multiplier, scale, low_zero_point, high_zero_point);
  }
  const auto weights = packed(
      weights_of(parameters, image_padding, shift, multiplier, scale, low_zero_point, high_zero_point));
  const int64_t half_height = half_of(image.size(2)), half_width = half_of(image.size(3));
  const auto dtype_of = [](const auto& zero) { return zero ? zero->scalar_type() : ScalarType::Float; };
  Tensor low = new_images(image, half_height, half_width, dtype_of(low_zero_point));
  Tensor high = new_images(image, half_height, half_width, dtype_of(high_zero_point));
  const EncodeInt8Args args{images_of(image), images_of(low), images_of(high), weights.get()};
  run_tasks(
      plan_tasks(image.size(0), half_height, half_width, threads_for_tasks(), kInt8WarmUp, kMaxInt8TaskWidth),
      [&](const Task& task) { kernel(args, task); });
  return {low, high};
}

}  // namespace
}  // namespace wae

STABLE_TORCH_LIBRARY_IMPL(wae, CPU, library) { library.impl("encode_int8", TORCH_BOX(&wae::encode_int8)); }
