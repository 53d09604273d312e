// What the ops accept, for the compiled kernels. wae_kernels/checks.py says the same, in the same words,
// for the fake kernels and the reference; tests/kernels/test_bad_input.py holds the two to each other.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace wae {

using torch::headeronly::Layout;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int kParameters = 10;
using Parameters = std::array<Tensor, kParameters>;

inline constexpr int64_t kWidth = -1;  // stands for the network's width: conv1_weight's first size

struct ParameterShape {
  const char* name;
  int dim;
  int64_t sizes[4];
};
using ParameterShapes = std::array<ParameterShape, kParameters>;

inline constexpr ParameterShapes kEncoderShapes{{
    {"conv1_weight", 4, {kWidth, 3, 3, 3}},
    {"conv1_bias", 1, {kWidth}},
    {"conv2_weight", 4, {kWidth, kWidth, 3, 3}},
    {"conv2_bias", 1, {kWidth}},
    {"conv3_weight", 4, {kWidth, kWidth, 3, 3}},
    {"conv3_bias", 1, {kWidth}},
    {"low_weight", 4, {3, kWidth, 3, 3}},
    {"low_bias", 1, {3}},
    {"high_weight", 4, {3, kWidth, 3, 3}},
    {"high_bias", 1, {3}},
}};
inline constexpr int kEncoderConv1 = 0;

inline constexpr ParameterShapes kDecoderShapes{{
    {"low_weight", 4, {3, kWidth, 3, 3}},
    {"low_bias", 1, {kWidth}},
    {"high_weight", 4, {3, kWidth, 3, 3}},
    {"high_bias", 1, {kWidth}},
    {"conv1_weight", 4, {kWidth, kWidth, 3, 3}},
    {"conv1_bias", 1, {kWidth}},
    {"conv2_weight", 4, {kWidth, kWidth, 3, 3}},
    {"conv2_bias", 1, {kWidth}},
    {"conv3_weight", 4, {3, kWidth, 3, 3}},
    {"conv3_bias", 1, {3}},
}};
inline constexpr int kDecoderConv1 = 4;

namespace checks {

// Throws when `condition` does not hold. The parts of the message are only put together then.
template <class... Parts>
void require(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "wae::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

inline std::string layout_name(Layout layout) {
  switch (layout) {
    case Layout::Sparse:
      return "torch.sparse_coo";
    case Layout::SparseCsr:
      return "torch.sparse_csr";
    case Layout::SparseCsc:
      return "torch.sparse_csc";
    case Layout::SparseBsr:
      return "torch.sparse_bsr";
    case Layout::SparseBsc:
      return "torch.sparse_bsc";
    case Layout::Mkldnn:
      return "torch._mkldnn";
    default:
      return "another layout";
  }
}

template <class Sizes>
std::string shape_name(const Sizes& sizes, int64_t dim) {
  std::string text = "(";
  for (int64_t i = 0; i < dim; ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         a.get_device_index() == b.get_device_index();
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Double;
}

inline void check_dense(const char* op, const char* name, const Tensor& tensor) {
  int32_t layout = 0;  // torch 2.10's headers have no Tensor::layout()
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  if (layout != aoti_torch_layout_strided()) {
    require(false, op, name, " must be a dense tensor, got ", layout_name(static_cast<Layout>(layout)));
  }
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  if (!is_floating(tensor.scalar_type())) {
    require(false, op, name, " must be float32, float16, bfloat16 or float64, got ",
            dtype_name(tensor.scalar_type()));
  }
}

inline void check_float32(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.scalar_type() != ScalarType::Float) {
    require(false, op, name, " must be float32, got ", dtype_name(tensor.scalar_type()));
  }
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                         const Tensor& like) {
  if (!same_device(tensor, like)) {
    require(false, op, name, " must be on ", like_name, "'s device ", device_name(like), ", got ",
            device_name(tensor));
  }
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like) {
  check_device(op, name, tensor, like_name, like);
  if (tensor.scalar_type() != like.scalar_type()) {
    require(false, op, name, " must be ", dtype_name(like.scalar_type()), " like ", like_name, ", got ",
            dtype_name(tensor.scalar_type()));
  }
}

template <class Sizes>
void check_shape(const char* op, const char* name, const Tensor& tensor, const Sizes& wanted, int64_t dim) {
  const auto sizes = tensor.sizes();
  bool same = tensor.dim() == dim;
  for (int64_t i = 0; same && i < dim; ++i) same = sizes[i] == wanted[i];
  if (!same) {
    require(false, op, name, " must have shape ", shape_name(wanted, dim), ", got ",
            shape_name(sizes, tensor.dim()));
  }
}

// A batch of pictures: dense, rank 4, 3 channels, at least one pixel.
inline void check_pictures(const char* op, const char* name, const Tensor& tensor) {
  check_dense(op, name, tensor);
  require(tensor.dim() == 4, op, name, " must have 4 dimensions (batch, 3, height, width), got ",
          tensor.dim());
  const auto sizes = tensor.sizes();
  require(sizes[1] == 3, op, name, " must have 3 channels, got ", sizes[1]);
  require(sizes[2] >= 1 && sizes[3] >= 1, op, name, " must be at least 1 x 1 pixels, got ", sizes[2], " x ",
          sizes[3]);
}

inline void check_parameters(const char* op, const ParameterShapes& shapes, int conv1,
                             const Parameters& parameters, const char* like_name, const Tensor& like) {
  const Tensor& first = parameters[conv1];
  const int64_t width = first.dim() == 4 ? first.size(0) : 0;
  if (width < 1) {
    require(false, op, "conv1_weight must have shape (width, ..., 3, 3), got ",
            shape_name(first.sizes(), first.dim()));
  }
  for (int p = 0; p < kParameters; ++p) {
    int64_t wanted[4];
    for (int i = 0; i < 4; ++i) wanted[i] = shapes[p].sizes[i] == kWidth ? width : shapes[p].sizes[i];
    check_dense(op, shapes[p].name, parameters[p]);
    check_shape(op, shapes[p].name, parameters[p], wanted, shapes[p].dim);
    check_like(op, shapes[p].name, parameters[p], like_name, like);
  }
}

}  // namespace checks

inline void check_encode(const char* op, const Tensor& image, const Parameters& parameters,
                         const std::optional<Tensor>& image_scale, const std::optional<Tensor>& image_shift) {
  using namespace checks;
  check_pictures(op, "image", image);
  const Tensor& first = parameters[kEncoderConv1];
  if (image.scalar_type() == ScalarType::Byte) {
    check_floating(op, "conv1_weight", first);
    check_device(op, "conv1_weight", first, "image", image);
    check_parameters(op, kEncoderShapes, kEncoderConv1, parameters, "conv1_weight", first);
  } else {
    require(is_floating(image.scalar_type()), op,
            "image must be uint8, float32, float16, bfloat16 or float64, got ",
            dtype_name(image.scalar_type()));
    check_parameters(op, kEncoderShapes, kEncoderConv1, parameters, "image", image);
  }
  for (const auto& [name, tensor] :
       {std::pair{"image_scale", &image_scale}, std::pair{"image_shift", &image_shift}}) {
    if (!tensor->has_value()) continue;
    constexpr int64_t wanted[1] = {3};
    check_shape(op, name, **tensor, wanted, 1);
    check_floating(op, name, **tensor);
    check_device(op, name, **tensor, "image", image);
  }
}

inline void check_decode(const char* op, const Tensor& low, const Tensor& high, const Parameters& parameters,
                         const std::vector<int64_t>& output_size, const char* size_name = "output_size") {
  using namespace checks;
  check_pictures(op, "low", low);
  check_floating(op, "low", low);
  check_pictures(op, "high", high);
  check_shape(op, "high", high, low.sizes(), 4);
  check_like(op, "high", high, "low", low);
  check_parameters(op, kDecoderShapes, kDecoderConv1, parameters, "low", low);
  require(output_size.size() == 2, op, "output_size must be (height, width), got ", output_size.size(),
          " numbers");
  for (int i = 0; i < 2; ++i) {
    const int64_t half = low.size(2 + i);
    const char* name = i == 0 ? "height" : "width";
    require(output_size[i] == 2 * half || output_size[i] == 2 * half - 1, op, size_name, "'s ", name,
            " must be ", 2 * half - 1, " or ", 2 * half, " for a low of ", name, " ", half, ", got ",
            output_size[i]);
  }
}

// The weight of a 3x3 layer before it is packed.
inline void check_conv3x3_pack(const Tensor& weight) {
  using namespace checks;
  const char* op = "conv3x3_pack";
  check_dense(op, "weight", weight);
  const auto sizes = weight.sizes();
  if (weight.dim() != 4 || sizes[0] < 1 || sizes[1] < 1 || sizes[2] != 3 || sizes[3] != 3) {
    require(false, op, "weight must have shape (out_channels, channels, 3, 3), got ",
            shape_name(sizes, weight.dim()));
  }
  check_float32(op, "weight", weight);
}

// `panels` is the number of panels of out_channels, `filter` the numbers of one packed filter.
inline void check_conv3x3(const Tensor& input, const Tensor& packed, const std::optional<Tensor>& bias,
                          int64_t out_channels, int64_t panels, int64_t filter) {
  using namespace checks;
  const char* op = "conv3x3";
  check_dense(op, "input", input);
  require(input.dim() == 4, op, "input must have 4 dimensions (batch, channels, height, width), got ",
          input.dim());
  const auto sizes = input.sizes();
  require(sizes[1] >= 1, op, "input must have at least 1 channel, got ", sizes[1]);
  require(sizes[2] >= 1 && sizes[3] >= 1, op, "input must be at least 1 x 1 pixels, got ", sizes[2], " x ",
          sizes[3]);
  check_float32(op, "input", input);
  require(out_channels >= 1, op, "out_channels must be at least 1, got ", out_channels);
  const int64_t wanted[3] = {panels, sizes[1], filter};
  check_dense(op, "packed", packed);
  check_shape(op, "packed", packed, wanted, 3);
  check_like(op, "packed", packed, "input", input);
  require(packed.is_contiguous(), op, "packed must be contiguous, as conv3x3_pack returns it");
  if (!bias) return;
  check_dense(op, "bias", *bias);
  check_shape(op, "bias", *bias, &out_channels, 1);
  check_like(op, "bias", *bias, "input", input);
}

inline void check_gradient(const char* op, const char* name, const Tensor& gradient,
                           std::initializer_list<int64_t> shape, const Tensor& like) {
  checks::check_shape(op, name, gradient, shape.begin(), static_cast<int64_t>(shape.size()));
  checks::check_like(op, name, gradient, "conv1_weight", like);
}

}  // namespace wae
