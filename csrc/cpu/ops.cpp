// The ops on the CPU: check the arguments, find the packed weights, divide the work into tasks, run them.
//
// Calls for which there is no kernel (float64, widths other than 16, the backend "reference") are passed on to
// wae::_<op>_reference, which wae_kernels/fallback.py implements.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/sizes.h"
#include "common/tensors.h"
#include "cpu/dispatch.h"
#include "cpu/elements.h"
#include "cpu/helpers.h"
#include "cpu/kernels.h"
#include "cpu/pack_cache.h"
#include "cpu/tasks.h"

namespace wae {
namespace {

using checks::Checker, checks::Table;

// The kernels for such parameters; null if the reference has to run.
const Kernels* kernels_for(const Tensor& conv1_weight) {
  const bool fits = conv1_weight.scalar_type() != ScalarType::Double && conv1_weight.size(0) == kKernelWidth;
  return fits ? selected_kernels() : nullptr;
}

// ------------------------------------------------------------------------------- tensors to plain structs

Element element_of(ScalarType dtype) {
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

Images images_of(const Tensor& tensor) {
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

// Copies the numbers of a tensor with elements T and any strides, in logical order, converting floats of any width.
template <class T, class To>
void copy_numbers(const Tensor& tensor, To* to) {
  const T* data = static_cast<const T*>(tensor.const_data_ptr());
  int64_t sizes[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
  for (int64_t i = 0, skip = 4 - tensor.dim(); i < tensor.dim(); ++i) {
    sizes[skip + i] = tensor.size(i);
    strides[skip + i] = tensor.stride(i);
  }
  for (int64_t a = 0; a < sizes[0]; ++a) {
    for (int64_t b = 0; b < sizes[1]; ++b) {
      for (int64_t c = 0; c < sizes[2]; ++c) {
        const T* row = data + a * strides[0] + b * strides[1] + c * strides[2];
        for (int64_t d = 0; d < sizes[3]; ++d) {
          if constexpr (std::is_same_v<T, To> || std::is_same_v<T, double>) {
            *to++ = static_cast<To>(row[d * strides[3]]);
          } else {
            *to++ = to_float(row[d * strides[3]]);
          }
        }
      }
    }
  }
}

void copy_floats(const Tensor& tensor, float* to) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return copy_numbers<Half>(tensor, to);
    case ScalarType::BFloat16:
      return copy_numbers<BFloat16>(tensor, to);
    case ScalarType::Double:
      return copy_numbers<double>(tensor, to);
    default:
      if (!tensor.is_contiguous()) return copy_numbers<float>(tensor, to);
      std::copy_n(static_cast<const float*>(tensor.const_data_ptr()), tensor.numel(), to);
  }
}

Affine affine_of(const std::optional<Tensor>& image_scale, const std::optional<Tensor>& image_shift) {
  Affine affine;
  if (image_scale) copy_floats(*image_scale, affine.scale);
  if (image_shift) copy_floats(*image_shift, affine.shift);
  return affine;
}

template <class Weights>
WeightNumbers<Weights> numbers_of(const Parameters& parameters) {
  WeightNumbers<Weights> numbers;
  float* to = numbers.data();
  for (const Tensor& parameter : parameters) {
    copy_floats(parameter, to);
    to += parameter.numel();
  }
  return numbers;
}

// Whether the parameters are bit-identical to these numbers. Contiguous float32 is compared in place.
template <class Weights>
bool same_numbers(const WeightNumbers<Weights>& numbers, const Parameters& parameters) {
  std::array<float, std::ranges::max(kWeightSizes<Weights>)> copy;
  const bool is_float = parameters[0].scalar_type() == ScalarType::Float;  // all have the same dtype
  const float* known = numbers.data();
  for (int p = 0; p < kParameters; ++p) {
    const bool in_place = is_float && parameters[p].is_contiguous();
    if (!in_place) copy_floats(parameters[p], copy.data());
    const void* own = in_place ? parameters[p].const_data_ptr() : copy.data();
    const int size = kWeightSizes<Weights>[p];
    if (std::memcmp(own, known, size * sizeof(float)) != 0) return false;
    known += size;
  }
  return true;
}

// The pack of these numbers, from a cache. Caches are never destroyed: a thread may use one while the process exits.
template <class Pack, class Numbers>
std::shared_ptr<const Pack> packed(const Numbers& numbers) {
  static auto& cache = *new PackCache<Pack, Numbers>;
  return cache.find([&](const Numbers& known) { return std::memcmp(&known, &numbers, sizeof numbers) == 0; },
                    [&] { return numbers; });
}

template <class Pack, class Weights>
std::shared_ptr<const Pack> packed(const Parameters& parameters) {
  using Numbers = WeightNumbers<Weights>;
  static auto& cache = *new PackCache<Pack, Numbers>;
  return cache.find([&](const Numbers& known) { return same_numbers<Weights>(known, parameters); },
                    [&] { return numbers_of<Weights>(parameters); });
}

// ---------------------------------------------------------------------------------------------- forward

int64_t threads_for_tasks() { return sleeping_threads ? sleeping_threads : torch::stable::get_num_threads(); }

template <class Task, class F>
void run_tasks(const std::vector<Task>& tasks, const F& run) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  if (sleeping_threads) {
    run_with_helpers(sleeping_threads, count, [&](int64_t i) { run(tasks[i]); });
    return;
  }
  if (count == 1) return run(tasks[0]);  // parallel_for would do the same, but take longer
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(tasks[i]);
  });
}

std::tuple<Tensor, Tensor> encode(Tensor image, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
                                  Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                                  Tensor low_weight, Tensor low_bias, Tensor high_weight, Tensor high_bias,
                                  std::optional<Tensor> image_scale, std::optional<Tensor> image_shift,
                                  std::optional<ScalarType> dtype,
                                  std::optional<MemoryFormat> memory_format) {
  const Parameters parameters{std::move(conv1_weight), std::move(conv1_bias),   std::move(conv2_weight),
                              std::move(conv2_bias),   std::move(conv3_weight), std::move(conv3_bias),
                              std::move(low_weight),   std::move(low_bias),     std::move(high_weight),
                              std::move(high_bias)};
  Checker("encode").check(Table::encoder, image, parameters, image_scale, image_shift);
  checks::check_results("encode", dtype, memory_format);
  const ScalarType results = dtype ? *dtype : parameters[0].scalar_type();
  const Kernels* kernels = results == ScalarType::Double ? nullptr : kernels_for(parameters[0]);
  if (kernels == nullptr) {
    return call_reference<std::tuple<Tensor, Tensor>>("encode", image, parameters, image_scale, image_shift,
                                                      dtype, memory_format);
  }
  const int64_t half_height = half_size(image.size(2)), half_width = half_size(image.size(3));
  Tensor low = new_images(image, half_height, half_width, results, 3, memory_format);
  Tensor high = new_images(image, half_height, half_width, results, 3, memory_format);
  const auto weights = packed<EncoderPack, EncoderWeights>(parameters);
  const EncodeArgs args{images_of(image), images_of(low), images_of(high),
                        affine_of(image_scale, image_shift), weights.get()};
  run_tasks(plan_tasks(image.size(0), half_height, half_width, threads_for_tasks(), kForwardWarmUp),
            [&](const Task& task) { kernels->encode(args, task); });
  return {std::move(low), std::move(high)};
}

Tensor decode(Tensor low, Tensor high, Tensor low_weight, Tensor low_bias, Tensor high_weight,
              Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
              Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias, std::vector<int64_t> output_size) {
  const Parameters parameters{low_weight, low_bias,     high_weight, high_bias,    conv1_weight,
                              conv1_bias, conv2_weight, conv2_bias,  conv3_weight, conv3_bias};
  Checker checker("decode");
  checker.check(Table::decoder, low, high, parameters);
  checker.check(Table::decode, output_size);
  const Kernels* kernels = kernels_for(conv1_weight);
  if (kernels == nullptr) {
    return std::get<0>(call_reference<std::tuple<Tensor>>("decode", low, high, parameters, output_size));
  }
  Tensor image = new_images(low, output_size[0], output_size[1], low.scalar_type());
  const auto weights = packed<DecoderPack, DecoderWeights>(parameters);
  const DecodeArgs args{images_of(low), images_of(high), images_of(image), weights.get()};
  run_tasks(plan_tasks(low.size(0), low.size(2), low.size(3), threads_for_tasks(), kForwardWarmUp),
            [&](const Task& task) { kernels->decode(args, task); });
  return image;
}

inline constexpr int kScoreParameters = 8;
using ScoreParameters = std::array<Tensor, kScoreParameters>;

// Pointers to the numbers of each parameter, in the order of the op's arguments.
std::array<float*, kScoreParameters> parts_of(ScoreDecoderNumbers& numbers) {
  return {numbers.low_weight[0][0],   numbers.low_bias,   numbers.high_weight[0][0],  numbers.high_bias,
          numbers.conv1_weight[0][0], numbers.conv1_bias, numbers.conv2_weight[0][0], numbers.conv2_bias};
}

ScoreDecoderNumbers score_numbers_of(const ScoreParameters& parameters) {
  ScoreDecoderNumbers numbers{};
  numbers.classes = parameters[0].size(0);
  numbers.features = parameters[2].size(0);
  const auto parts = parts_of(numbers);
  for (int p = 0; p < kScoreParameters; ++p) copy_floats(parameters[p], parts[p]);
  return numbers;
}

// The kernels for such low, high and parameters; null if the reference has to run.
const Kernels* score_kernels_for(const Tensor& low, const Tensor& high, const Tensor& conv1_weight) {
  const bool fits = low.size(1) <= kMaxScoreChannels && high.size(1) <= kMaxScoreChannels;
  return fits ? kernels_for(conv1_weight) : nullptr;
}

Tensor decode_scores(Tensor low, Tensor high, Tensor low_weight, Tensor low_bias, Tensor high_weight,
                     Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
                     Tensor conv2_bias, std::vector<int64_t> output_size) {
  const ScoreParameters parameters{low_weight,   low_bias,   high_weight,  high_bias,
                                   conv1_weight, conv1_bias, conv2_weight, conv2_bias};
  Checker checker("decode_scores");
  checker.check(Table::score_decoder, low, high, parameters);
  checker.check(Table::decode, output_size);
  const Kernels* kernels = score_kernels_for(low, high, conv1_weight);
  if (kernels == nullptr) {
    return std::get<0>(
        call_reference<std::tuple<Tensor>>("decode_scores", low, high, parameters, output_size));
  }
  Tensor scores = new_images(low, output_size[0], output_size[1], low.scalar_type(), low.size(1));
  const auto weights = packed<ScoreDecoderPack>(score_numbers_of(parameters));
  const DecodeScoresArgs args{images_of(low), images_of(high), images_of(scores), weights.get()};
  run_tasks(plan_tasks(low.size(0), low.size(2), low.size(3), threads_for_tasks(), kScoresWarmUp),
            [&](const Task& task) { kernels->decode_scores(args, task); });
  return scores;
}

// -------------------------------------------------------------------------------------------------- int8

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

EncoderInt8Numbers int8_numbers_of(const Parameters& parameters, const Tensor& image_padding,
                                   const Tensor& shift, const Tensor& multiplier, const Tensor& scale,
                                   const std::optional<Tensor>& low_zero_point,
                                   const std::optional<Tensor>& high_zero_point) {
  EncoderInt8Numbers numbers{};
  const std::array<int8_t*, 5> weights{&numbers.conv1_weight[0][0][0], &numbers.conv2_weight[0][0][0],
                                       &numbers.conv3_weight[0][0][0], &numbers.branches_weight[0][0][0],
                                       &numbers.branches_weight[3][0][0]};
  const std::array<int32_t*, 5> biases{numbers.bias[0], numbers.bias[1], numbers.bias[2],
                                       numbers.branches_bias, numbers.branches_bias + 3};
  for (int layer = 0; layer < 5; ++layer) {
    copy_numbers<int8_t>(parameters[2 * layer], weights[layer]);
    copy_numbers<int32_t>(parameters[2 * layer + 1], biases[layer]);
  }
  copy_numbers<uint8_t>(image_padding, numbers.padding);
  copy_numbers<int32_t>(shift, numbers.shift[0]);
  copy_numbers<int16_t>(multiplier, numbers.multiplier[0]);
  copy_numbers<float>(scale, numbers.scale);
  numbers.least_byte[0] = copy_zero_points(low_zero_point, numbers.zero_point);
  numbers.least_byte[1] = copy_zero_points(high_zero_point, numbers.zero_point + 3);
  return numbers;
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
  const auto weights = packed<EncoderInt8Pack>(
      int8_numbers_of(parameters, image_padding, shift, multiplier, scale, low_zero_point, high_zero_point));
  const int64_t half_height = half_size(image.size(2)), half_width = half_size(image.size(3));
  const auto dtype_of = [](const auto& zero) { return zero ? zero->scalar_type() : ScalarType::Float; };
  Tensor low = new_images(image, half_height, half_width, dtype_of(low_zero_point));
  Tensor high = new_images(image, half_height, half_width, dtype_of(high_zero_point));
  const EncodeInt8Args args{images_of(image), images_of(low), images_of(high), weights.get()};
  run_tasks(
      plan_tasks(image.size(0), half_height, half_width, threads_for_tasks(), kInt8WarmUp, kMaxInt8TaskWidth),
      [&](const Task& task) { kernel(args, task); });
  return {low, high};
}

// --------------------------------------------------------------------------------------------- backward

// Runs the tasks in one group for each thread. Each group has its own sums, which are then added in the order of the
// groups, so that results are deterministic for a given number of threads.
template <class Sums, class F>
std::unique_ptr<Collected<Sums>> run_summing_tasks(const std::vector<Task>& tasks, int64_t threads,
                                                   const F& run) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t groups = std::clamp<int64_t>(count, 1, std::max<int64_t>(threads, 1));
  std::vector<std::unique_ptr<Collected<Sums>>> sums(groups);
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      sums[g] = std::make_unique<Collected<Sums>>();
      for (int64_t i = g * count / groups; i < (g + 1) * count / groups; ++i) run(tasks[i], *sums[g]);
    }
  });
  for (int64_t g = 1; g < groups; ++g) sums[0]->add(*sums[g]);
  return std::move(sums[0]);
}

// `count` numbers as a new tensor of the shape and dtype of `like`.
Tensor tensor_of(const float* numbers, const Tensor& like) {
  Tensor tensor = new_like(like);
  void* data = tensor.mutable_data_ptr();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    if (like.scalar_type() == ScalarType::Double) {
      static_cast<double*>(data)[i] = numbers[i];
    } else {
      write_float(data, element_of(like.scalar_type()), i, numbers[i]);
    }
  }
  return tensor;
}

// The gradients of the ten parameters, each with the shape and dtype of its parameter.
template <class Weights, class Gradients, class Sums>
std::array<Tensor, kParameters> parameter_gradients(const Sums& sums, const Parameters& parameters,
                                                    bool needed) {
  WeightNumbers<Weights> numbers;
  if (needed) unpack(sums, weights_in<Gradients>(numbers.data()));
  const float* from = numbers.data();
  std::array<Tensor, kParameters> gradients;
  for (int p = 0; p < kParameters; ++p) {
    gradients[p] = needed ? tensor_of(from, parameters[p]) : no_gradient(parameters[p]);
    from += parameters[p].numel();
  }
  return gradients;
}

using Tensors12 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor>;
using Tensors13 = decltype(std::tuple_cat(std::declval<Tensors12>(), std::tuple<Tensor>{}));

Tensors13 encode_backward(Tensor grad_low, Tensor grad_high, Tensor image, Tensor conv1_weight,
                          Tensor conv1_bias, Tensor conv2_weight, Tensor conv2_bias, Tensor conv3_weight,
                          Tensor conv3_bias, Tensor low_weight, Tensor low_bias, Tensor high_weight,
                          Tensor high_bias, std::optional<Tensor> image_scale,
                          std::optional<Tensor> image_shift, bool need_image, bool need_parameters,
                          bool need_scale) {
  const char* op = "encode_backward";
  const Parameters parameters{conv1_weight, conv1_bias, conv2_weight, conv2_bias,  conv3_weight,
                              conv3_bias,   low_weight, low_bias,     high_weight, high_bias};
  Checker checker(op);
  checker.check(Table::encoder, image, parameters, image_scale, image_shift);
  checker.check(Table::encode_backward, grad_low, grad_high);
  const int64_t half_height = half_size(image.size(2)), half_width = half_size(image.size(3));
  const Kernels* kernels = kernels_for(conv1_weight);
  if (kernels == nullptr) {
    return call_reference<Tensors13>(op, grad_low, grad_high, image, parameters, image_scale, image_shift,
                                     need_image, need_parameters, need_scale);
  }
  need_image = need_image && image.scalar_type() != ScalarType::Byte;
  need_scale = need_scale && (image_scale || image_shift);

  const auto weights = packed<EncoderPack, EncoderWeights>(parameters);
  const auto transposed = packed<EncoderBackwardPack, EncoderWeights>(parameters);
  Tensor grad_image = need_image ? new_images(image, image.size(2), image.size(3), image.scalar_type())
                                 : no_gradient(conv1_weight);
  const EncodeBackwardArgs args{images_of(grad_low),
                                images_of(grad_high),
                                images_of(image),
                                need_image ? images_of(grad_image) : Images{},
                                affine_of(image_scale, image_shift),
                                weights.get(),
                                transposed.get(),
                                need_image,
                                need_parameters,
                                need_scale};
  const int64_t threads = torch::stable::get_num_threads();
  const auto sums = run_summing_tasks<EncoderSums>(
      plan_tasks(image.size(0), half_height, half_width, threads, kBackwardWarmUp), threads,
      [&](const Task& task, Collected<EncoderSums>& to) { kernels->encode_backward(args, task, to); });
  const EncoderSums& total = sums->result();

  const auto affine_gradient = [&](const std::optional<Tensor>& affine, const float* numbers3) {
    if (!affine) return no_gradient(conv1_weight);
    return need_scale ? tensor_of(numbers3, *affine) : no_gradient(*affine);
  };
  return std::tuple_cat(
      std::tuple{grad_image},
      parameter_gradients<EncoderWeights, EncoderGradients>(total, parameters, need_parameters),
      std::tuple{affine_gradient(image_scale, total.image_scale),
                 affine_gradient(image_shift, total.image_shift)});
}

// A decoder's gradients, computed by `kernel`: those of low and high (empty if not needed), and the parameters' sums.
template <class Args, class Sums, class Weights, class Transposed>
std::tuple<Tensor, Tensor, std::unique_ptr<Collected<Sums>>> decoder_gradients(
    void (*kernel)(const Args&, const Task&, Collected<Sums>&), const Tensor& grad, const Tensor& low,
    const Tensor& high, const Weights* weights, const Transposed* transposed, bool need_input,
    bool need_parameters) {
  const auto input_gradient = [&](const Tensor& input) {
    return need_input ? new_images(low, low.size(2), low.size(3), low.scalar_type(), input.size(1))
                      : no_gradient(input);
  };
  Tensor grad_low = input_gradient(low), grad_high = input_gradient(high);
  const Args args{images_of(grad),
                  images_of(low),
                  images_of(high),
                  need_input ? images_of(grad_low) : Images{},
                  need_input ? images_of(grad_high) : Images{},
                  weights,
                  transposed,
                  need_input,
                  need_parameters};
  const int64_t threads = torch::stable::get_num_threads();
  auto sums = run_summing_tasks<Sums>(
      plan_tasks(low.size(0), low.size(2), low.size(3), threads, kBackwardWarmUp), threads,
      [&](const Task& task, Collected<Sums>& to) { kernel(args, task, to); });
  return {std::move(grad_low), std::move(grad_high), std::move(sums)};
}

Tensors12 decode_backward(Tensor grad_image, Tensor low, Tensor high, Tensor low_weight, Tensor low_bias,
                          Tensor high_weight, Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias,
                          Tensor conv2_weight, Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                          bool need_input, bool need_parameters) {
  const char* op = "decode_backward";
  const Parameters parameters{low_weight, low_bias,     high_weight, high_bias,    conv1_weight,
                              conv1_bias, conv2_weight, conv2_bias,  conv3_weight, conv3_bias};
  Checker checker(op);
  checker.check(Table::decoder, low, high, parameters);
  checker.check(Table::decode_backward, grad_image);
  const Kernels* kernels = kernels_for(conv1_weight);
  if (kernels == nullptr) {
    return call_reference<Tensors12>(op, grad_image, low, high, parameters, need_input, need_parameters);
  }
  const auto weights = packed<DecoderPack, DecoderWeights>(parameters);
  const auto transposed = packed<DecoderBackwardPack, DecoderWeights>(parameters);
  const auto [grad_low, grad_high, sums] =
      decoder_gradients(kernels->decode_backward, grad_image, low, high, weights.get(), transposed.get(),
                        need_input, need_parameters);
  return std::tuple_cat(
      std::tuple{grad_low, grad_high},
      parameter_gradients<DecoderWeights, DecoderGradients>(sums->result(), parameters, need_parameters));
}

using Tensors10 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensors10 decode_scores_backward(Tensor grad_scores, Tensor low, Tensor high, Tensor low_weight,
                                 Tensor low_bias, Tensor high_weight, Tensor high_bias, Tensor conv1_weight,
                                 Tensor conv1_bias, Tensor conv2_weight, Tensor conv2_bias, bool need_input,
                                 bool need_parameters) {
  const char* op = "decode_scores_backward";
  const ScoreParameters parameters{low_weight,   low_bias,   high_weight,  high_bias,
                                   conv1_weight, conv1_bias, conv2_weight, conv2_bias};
  Checker checker(op);
  checker.check(Table::score_decoder, low, high, parameters);
  checker.check(Table::decode_scores_backward, grad_scores);
  const Kernels* kernels = score_kernels_for(low, high, conv1_weight);
  if (kernels == nullptr) {
    return call_reference<Tensors10>(op, grad_scores, low, high, parameters, need_input, need_parameters);
  }
  ScoreDecoderNumbers numbers = score_numbers_of(parameters);
  const auto weights = packed<ScoreDecoderPack>(numbers);
  const auto transposed = packed<ScoreDecoderBackwardPack>(numbers);
  const auto [grad_low, grad_high, sums] =
      decoder_gradients(kernels->decode_scores_backward, grad_scores, low, high, weights.get(),
                        transposed.get(), need_input, need_parameters);
  if (need_parameters) unpack(sums->result(), numbers);
  const auto parts = parts_of(numbers);
  const auto gradient = [&](int p) {
    return need_parameters ? tensor_of(parts[p], parameters[p]) : no_gradient(parameters[p]);
  };
  return {grad_low,    grad_high,   gradient(0), gradient(1), gradient(2),
          gradient(3), gradient(4), gradient(5), gradient(6), gradient(7)};
}

// ------------------------------------------------------------------------------------------ a 3x3 layer

Tensor conv3x3_pack(Tensor weight) {
  Checker("conv3x3_pack").check(Table::conv3x3_pack, weight);
  const std::array<int64_t, 3> sizes{panels_of(weight.size(0)), weight.size(1), kPackedFilter};
  Tensor result = new_tensor(weight, sizes, weight.scalar_type());
  std::vector<float> numbers(weight.numel());
  copy_floats(weight, numbers.data());
  pack_conv3x3(static_cast<float*>(result.mutable_data_ptr()), numbers.data(), weight.size(0),
               weight.size(1));
  return result;
}

Tensor conv3x3(Tensor input, Tensor packed, std::optional<Tensor> bias, int64_t out_channels, bool relu) {
  Checker("conv3x3").check(Table::conv3x3, std::array{out_channels}, input, packed, bias);
  checks::require(packed.is_contiguous(), "conv3x3",
                  "packed must be contiguous, as conv3x3_pack returns it, got other strides");
  const Kernels* kernels = selected_kernels();
  if (kernels == nullptr) {
    return std::get<0>(
        call_reference<std::tuple<Tensor>>("conv3x3", input, packed, bias, out_channels, relu));
  }
  const std::array<int64_t, 4> sizes{input.size(0), out_channels, input.size(2), input.size(3)};
  Tensor output =
      new_tensor(input, sizes, input.scalar_type(), torch::headeronly::MemoryFormat::ChannelsLast);
  std::vector<float> bias_numbers(bias ? out_channels : 0);
  if (bias) copy_floats(*bias, bias_numbers.data());
  const Conv3x3Args args{static_cast<const float*>(input.const_data_ptr()),
                         input.size(0),
                         input.size(1),
                         input.size(2),
                         input.size(3),
                         input.stride(0),
                         input.stride(1),
                         input.stride(2),
                         input.stride(3),
                         static_cast<const float*>(packed.const_data_ptr()),
                         bias ? bias_numbers.data() : nullptr,
                         static_cast<float*>(output.mutable_data_ptr()),
                         out_channels,
                         relu};
  run_tasks(plan_conv3x3(args, threads_for_tasks()),
            [&](const Conv3x3Task& task) { kernels->conv3x3(args, task); });
  return output;
}

}  // namespace
}  // namespace wae

STABLE_TORCH_LIBRARY_IMPL(wae, CPU, library) {
  library.impl("encode", TORCH_BOX(&wae::encode));
  library.impl("encode_int8", TORCH_BOX(&wae::encode_int8));
  library.impl("decode", TORCH_BOX(&wae::decode));
  library.impl("decode_scores", TORCH_BOX(&wae::decode_scores));
  library.impl("encode_backward", TORCH_BOX(&wae::encode_backward));
  library.impl("decode_backward", TORCH_BOX(&wae::decode_backward));
  library.impl("decode_scores_backward", TORCH_BOX(&wae::decode_scores_backward));
  library.impl("conv3x3_pack", TORCH_BOX(&wae::conv3x3_pack));
  library.impl("conv3x3", TORCH_BOX(&wae::conv3x3));
}

// For tests: sets whether new tensors are filled with NaN.
extern "C" __attribute__((visibility("default"))) void wae_cpu_poison(int poisons) {
  wae::poisons_fresh_tensors = poisons != 0;
}
