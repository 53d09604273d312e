// encode and the decoders on the CPU: check the arguments, find the packed weights, divide the work into tasks, run them.
//
// Calls for which there is no kernel (float64, widths other than 16, more than 32 classes or features, the backend
// "reference") are passed on to wae::_<op>_reference, which wae_kernels/fallback.py implements.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"
#include "cpu/arguments.h"
#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/tasks.h"

namespace wae {
namespace {

using checks::Checker, checks::Table;

// ---------------------------------------------------------------------------------------------- forward

std::tuple<Tensor, Tensor> encode(Tensor image, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
                                  Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                                  Tensor low_weight, Tensor low_bias, Tensor high_weight, Tensor high_bias,
                                  std::optional<Tensor> image_scale, std::optional<Tensor> image_shift,
                                  std::optional<ScalarType> dtype,
                                  std::optional<MemoryFormat> memory_format) {
  // Moved, because counting references takes time in calls on small images.
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
  const int64_t half_height = half_of(image.size(2)), half_width = half_of(image.size(3));
  Tensor low = new_images(image, half_height, half_width, results, 3, memory_format);
  Tensor high = new_images(image, half_height, half_width, results, 3, memory_format);
  const auto weights = packed<EncoderPack>(parameters);
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
  const auto weights = packed<DecoderPack>(parameters);
  const DecodeArgs args{images_of(low), images_of(high), images_of(image), weights.get()};
  run_tasks(plan_tasks(low.size(0), low.size(2), low.size(3), threads_for_tasks(), kForwardWarmUp),
            [&](const Task& task) { kernels->decode(args, task); });
  return image;
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
  const auto weights = packed<ScoreDecoderPack>(parameters);
  const DecodeScoresArgs args{images_of(low), images_of(high), images_of(scores), weights.get()};
  run_tasks(plan_tasks(low.size(0), low.size(2), low.size(3), threads_for_tasks(), kScoresWarmUp),
            [&](const Task& task) { kernels->decode_scores(args, task); });
  return scores;
}

// --------------------------------------------------------------------------------------------- backward

Tensors<13> encode_backward(Tensor grad_low, Tensor grad_high, Tensor image, Tensor conv1_weight,
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
  const int64_t half_height = half_of(image.size(2)), half_width = half_of(image.size(3));
  const Kernels* kernels = kernels_for(conv1_weight);
  if (kernels == nullptr) {
    return call_reference<Tensors<13>>(op, grad_low, grad_high, image, parameters, image_scale, image_shift,
                                       need_image, need_parameters, need_scale);
  }
  need_image = need_image && image.scalar_type() != ScalarType::Byte;
  need_scale = need_scale && (image_scale || image_shift);

  const auto weights = packed<EncoderPack>(parameters);
  const auto transposed = packed<EncoderBackwardPack>(parameters);
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
  return std::tuple_cat(std::tuple{grad_image},
                        parameter_gradients<EncoderWeights>(total, parameters, need_parameters),
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

Tensors<12> decode_backward(Tensor grad_image, Tensor low, Tensor high, Tensor low_weight, Tensor low_bias,
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
    return call_reference<Tensors<12>>(op, grad_image, low, high, parameters, need_input, need_parameters);
  }
  const auto weights = packed<DecoderPack>(parameters);
  const auto transposed = packed<DecoderBackwardPack>(parameters);
  const auto [grad_low, grad_high, sums] =
      decoder_gradients(kernels->decode_backward, grad_image, low, high, weights.get(), transposed.get(),
                        need_input, need_parameters);
  return std::tuple_cat(std::tuple{grad_low, grad_high},
                        parameter_gradients<DecoderWeights>(sums->result(), parameters, need_parameters));
}

Tensors<10> decode_scores_backward(Tensor grad_scores, Tensor low, Tensor high, Tensor low_weight,
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
    return call_reference<Tensors<10>>(op, grad_scores, low, high, parameters, need_input, need_parameters);
  }
  const auto weights = packed<ScoreDecoderPack>(parameters);
  const auto transposed = packed<ScoreDecoderBackwardPack>(parameters);
  const auto [grad_low, grad_high, sums] =
      decoder_gradients(kernels->decode_scores_backward, grad_scores, low, high, weights.get(),
                        transposed.get(), need_input, need_parameters);
  return std::tuple_cat(std::tuple{grad_low, grad_high}, parameter_gradients<ScoreDecoderWeights>(
                                                             sums->result(), parameters, need_parameters));
}

}  // namespace
}  // namespace wae

STABLE_TORCH_LIBRARY_IMPL(wae, CPU, library) {
  library.impl("encode", TORCH_BOX(&wae::encode));
  library.impl("decode", TORCH_BOX(&wae::decode));
  library.impl("decode_scores", TORCH_BOX(&wae::decode_scores));
  library.impl("encode_backward", TORCH_BOX(&wae::encode_backward));
  library.impl("decode_backward", TORCH_BOX(&wae::decode_backward));
  library.impl("decode_scores_backward", TORCH_BOX(&wae::decode_scores_backward));
}

// For tests: sets whether new tensors are filled with NaN.
extern "C" __attribute__((visibility("default"))) void wae_cpu_poison(int poisons) {
  wae::poisons_fresh_tensors = poisons != 0;
}
