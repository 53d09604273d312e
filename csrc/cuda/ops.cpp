// The ops on a GPU: check the arguments, choose the mode, plan the launch, launch on the current stream.
//
// Calls for which there is no kernel (float64, unsupported combinations of dtypes, widths other than 16, more than 2^30
// images or pixels a side, GPUs before compute capability 7.5, the backend "reference") are passed on to
// wae::_<op>_reference, which wae_kernels/fallback.py implements.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace wae::cuda {
namespace {

using checks::Checker, checks::Table;

// The most images, and pixels a side: the coordinates of the kernels, including the halo, are 32-bit.
constexpr int64_t kLargest = 1 << 30;

constexpr int kOldestChip = 75;

std::atomic<bool> selected{true};
std::atomic<int (*)()> callback{nullptr};
std::atomic<int (*)()> tf32_callback{nullptr};

// Whether these kernels run, and not the reference (or Triton).
bool runs() {
  if (const auto ask = callback.load()) return ask() != 0;
  return selected;
}

void check_cuda(cudaError_t error, const char* op, const char* doing) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // clears the error, which is reported here, for the next call
  const bool is_for_other_chips =
      error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  checks::require(
      false, op, doing, " failed: ", cudaGetErrorString(error),
      is_for_other_chips ? "; build wae-kernels with this GPU's architecture in TORCH_CUDA_ARCH_LIST" : "");
}

// ------------------------------------------------------------------------------------------ device and mode

int attribute(cudaDeviceAttr which, int device, const char* op) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), op, "reading the GPU's properties");
  return value;
}

// What the launch plan of a kernel needs to know of the chip. The first call for a device, kernel and size of shared
// memory queries it, and raises the kernel's limit of shared memory to the maximum, because a later call may need more.
// The device must be the current one.
const Chip& prepared_chip(const char* op, const void* kernel, int device, int threads, int shared_bytes) {
  static std::mutex mutex;
  // Never destroyed: another thread may use it while the process exits.
  static auto& chips = *new std::map<std::tuple<int, const void*, int>, Chip>;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = chips.try_emplace({device, kernel, shared_bytes});
  if (!is_new) return found->second;
  try {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), op, "preparing the kernel");
    // The kernels have no static memory of their own, but the compiler lists what it reserves for the system.
    const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, op) -
                      static_cast<int>(attributes.sharedSizeBytes);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), op,
               "preparing the kernel");
    int blocks_each = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, threads, shared_bytes), op,
               "reading the kernel's occupancy");
    found->second = {attribute(cudaDevAttrMultiProcessorCount, device, op),
                     blocks_each > 0 ? blocks_each : 1};
  } catch (...) {
    chips.erase(found);
    throw;
  }
  return found->second;
}

// Whether torch's settings allow float32 convolutions to round their operands to tf32. The stable ABI cannot query
// this, so Python sets a function that does; without one, tf32 is not allowed.
bool tf32_allowed() {
  const auto ask = tf32_callback.load();
  return ask != nullptr && ask() != 0;
}

// The compute capability of the device: 75 is 7.5.
int capability(int device, const char* op) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, op) +
         attribute(cudaDevAttrComputeCapabilityMinor, device, op);
}

// The compute capability for which the kernels on this device were compiled. It is lower than the device's own if the
// driver compiles the kernels' PTX; then the modes of newer chips are empty kernels (WAE_RUNS_HERE in pipeline.cuh).
// The device must be the current one.
int compiled_capability(int device, const char* op) {
  static std::mutex mutex;
  static auto& capabilities = *new std::map<int, int>;  // as above
  const std::lock_guard lock(mutex);
  if (const auto found = capabilities.find(device); found != capabilities.end()) return found->second;
  cudaFuncAttributes attributes{};  // of any kernel: all are compiled for the same chips
  check_cuda(cudaFuncGetAttributes(&attributes, encode_kernel_of(Mode::kFloat16)), op,
             "reading the kernels' properties");
  return capabilities[device] = attributes.ptxVersion;
}

Mode mode_of(ScalarType dtype, int device, const char* op) {
  if (dtype == ScalarType::Half) return Mode::kFloat16;
  const bool ampere = compiled_capability(device, op) >= 80;
  if (dtype == ScalarType::BFloat16) return ampere ? Mode::kBFloat16 : Mode::kBFloat16Plain;
  return ampere && tf32_allowed() ? Mode::kTf32 : Mode::kFloat32;
}

bool has_kernel(const char* op, const Tensor& conv1_weight, int64_t batch, int64_t height, int64_t width) {
  return conv1_weight.scalar_type() != ScalarType::Double && conv1_weight.size(0) == kKernelWidth &&
         std::max({batch, height, width}) <= kLargest &&
         capability(conv1_weight.get_device_index(), op) >= kOldestChip && runs();
}

// ------------------------------------------------------------------------------ tensors to parameter structs

TensorView view_of(const Tensor& tensor) {
  TensorView view{tensor.const_data_ptr(), {1, 1, 1, 1}, {1, 1, 1, 1}};
  for (int64_t i = 0; i < tensor.dim(); ++i)
    view.sizes[i] = tensor.size(i), view.strides[i] = tensor.stride(i);
  return view;
}

int bytes_of(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

std::array<TensorView, kParameters> views_of(const Parameters& parameters) {
  std::array<TensorView, kParameters> views;
  for (int i = 0; i < kParameters; ++i) views[i] = view_of(parameters[i]);
  return views;
}

NumberType number_type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return NumberType::kFloat16;
    case ScalarType::BFloat16:
      return NumberType::kBFloat16;
    case ScalarType::Float:
      return NumberType::kFloat32;
    default:
      return NumberType::kFloat64;  // the checks accept no other type
  }
}

ChannelVector channel_vector_of(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, 0, NumberType::kNone, 0};
  return {tensor->const_data_ptr(), tensor->stride(0), number_type_of(tensor->scalar_type()), 0};
}

// ----------------------------------------------------------------------------------------------------- ops

template <class Struct>
void launch(const char* op, const void* kernel, int grid, int block, int shared_bytes, Struct& parameters,
            int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  void* arguments[] = {&parameters};
  check_cuda(cudaLaunchKernel(kernel, dim3(grid), dim3(block), arguments, shared_bytes,
                              static_cast<cudaStream_t>(stream)),
             op, "launching the kernel");
}

template <class Struct>
void launch(const char* op, const void* kernel, const LaunchPlan& plan, Struct& parameters, int device) {
  launch(op, kernel, plan.grid, plan.block, plan.shared_bytes, parameters, device);
}

// Whether the encoder's kernels can write results of this dtype if the parameters have dtype `own`.
bool can_write(ScalarType results, ScalarType own) {
  return results == own || (own == ScalarType::Float && checks::is_in_16_bits(results));
}

std::tuple<Tensor, Tensor> encode(Tensor image, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
                                  Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                                  Tensor low_weight, Tensor low_bias, Tensor high_weight, Tensor high_bias,
                                  std::optional<Tensor> image_scale, std::optional<Tensor> image_shift,
                                  std::optional<ScalarType> dtype,
                                  std::optional<MemoryFormat> memory_format) {
  constexpr const char* kOp = "encode";
  const Parameters parameters{conv1_weight, conv1_bias, conv2_weight, conv2_bias,  conv3_weight,
                              conv3_bias,   low_weight, low_bias,     high_weight, high_bias};
  Checker(kOp).check(Table::encoder, image, parameters, image_scale, image_shift);
  checks::check_results(kOp, dtype, memory_format);
  const ScalarType own = conv1_weight.scalar_type(), results = dtype ? *dtype : own;
  if (!can_write(results, own) ||
      !has_kernel(kOp, conv1_weight, image.size(0), image.size(2), image.size(3))) {
    return call_reference<std::tuple<Tensor, Tensor>>(kOp, image, parameters, image_scale, image_shift, dtype,
                                                      memory_format);
  }
  const int device = image.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t height = half_of(image.size(2)), width = half_of(image.size(3));
  Tensor low = new_images(image, height, width, results, 3, memory_format);
  Tensor high = new_images(image, height, width, results, 3, memory_format);
  if (image.size(0) == 0) return {low, high};

  const Mode mode = mode_of(results, device, kOp);
  const void* kernel = encode_kernel_of(mode);
  const SharedLayout layout = encode_layout(mode);
  const LaunchPlan planned =
      plan(image.size(0), height, width, prepared_chip(kOp, kernel, device, kThreads, layout.bytes),
           kForwardTile, kThreads, layout.bytes);
  EncodeParameters params =
      encode_parameters(view_of(image), image.scalar_type() == ScalarType::Byte, view_of(low), view_of(high),
                        views_of(parameters), bytes_of(own), channel_vector_of(image_scale),
                        channel_vector_of(image_shift), planned.tiling);
  launch(kOp, kernel, planned, params, device);
  return {low, high};
}

Tensor decode(Tensor low, Tensor high, Tensor low_weight, Tensor low_bias, Tensor high_weight,
              Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
              Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias, std::vector<int64_t> output_size) {
  constexpr const char* kOp = "decode";
  const Parameters parameters{low_weight, low_bias,     high_weight, high_bias,    conv1_weight,
                              conv1_bias, conv2_weight, conv2_bias,  conv3_weight, conv3_bias};
  Checker checker(kOp);
  checker.check(Table::decoder, low, high, parameters);
  checker.check(Table::decode, output_size);
  if (!has_kernel(kOp, conv1_weight, low.size(0), output_size[0], output_size[1])) {
    return std::get<0>(call_reference<std::tuple<Tensor>>(kOp, low, high, parameters, output_size));
  }
  const int device = low.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor image = new_images(low, output_size[0], output_size[1], low.scalar_type());
  if (low.size(0) == 0) return image;

  const Mode mode = mode_of(low.scalar_type(), device, kOp);
  const void* kernel = decode_kernel_of(mode);
  const SharedLayout layout = decode_layout(mode);
  const LaunchPlan planned =
      plan(low.size(0), low.size(2), low.size(3), prepared_chip(kOp, kernel, device, kThreads, layout.bytes),
           kForwardTile, kThreads, layout.bytes);
  DecodeParameters params =
      decode_parameters(view_of(low), view_of(high), view_of(image), views_of(parameters),
                        bytes_of(conv1_weight.scalar_type()), planned.tiling);
  launch(kOp, kernel, planned, params, device);
  return image;
}

// ------------------------------------------------------------------------------------------------ backward

// An uninitialised gradient of `like`, contiguous as reduce.cu writes it; without elements if it is not needed.
Tensor gradient_of(const Tensor& like, bool needed) { return needed ? new_like(like) : no_gradient(like); }

// The gradients that are sums over pixels: those of the ten parameters, then of scale and shift.
using Results = std::array<Tensor, kResults>;

// Launches the kernel that computes the gradients of the inputs and the blocks' sums, and the one that adds these sums
// to `results`. For encode `inputs` is the gradient of the image, for decode those of low and high; those that are not
// needed have no elements.
template <size_t kInputs>
void run_backward(const char* name, Op op, const Tensor& full, const Tensor& low, const Tensor& high,
                  const Parameters& parameters, const std::array<Tensor, kInputs>& inputs,
                  const Results& results, const std::optional<Tensor>& scale,
                  const std::optional<Tensor>& shift, bool need_input, bool need_parameters,
                  bool need_scale) {
  const int device = full.get_device_index(), compiled_for = compiled_capability(device, name);
  const ScalarType dtype = parameters[0].scalar_type();
  const Mode mode = mode_of(dtype, device, name);
  const void* kernel = op == Op::kEncode ? encode_backward_kernel_of(mode) : decode_backward_kernel_of(mode);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, name);
  const int strips = backward_strips(op, mode, compiled_for, limit, low.size(0), low.size(2), low.size(3),
                                     attribute(cudaDevAttrMultiProcessorCount, device, name));
  const BackwardLayout layout = backward_layout(op, mode, strips, compiled_for);
  const LaunchPlan planned = plan(low.size(0), low.size(2), low.size(3),
                                  prepared_chip(name, kernel, device, kBackwardThreads, layout.bytes),
                                  backward_tile(layout.strips), kBackwardThreads, layout.bytes);
  BackwardParameters params =
      backward_parameters(op, view_of(full), full.scalar_type() == ScalarType::Byte, view_of(low),
                          view_of(high), views_of(parameters), bytes_of(dtype), planned.tiling, layout);
  if (need_input && op == Op::kEncode) params.grad_full = images_of(view_of(inputs[0]));
  if (need_input && op == Op::kDecode) {
    params.grad_low = images_of(view_of(inputs[0])), params.grad_high = images_of(view_of(inputs[1]));
  }
  params.scale = channel_vector_of(scale), params.shift = channel_vector_of(shift);
  params.need_input = need_input, params.need_parameters = need_parameters, params.need_scale = need_scale;
  const bool sums = need_parameters || need_scale;
  const int64_t floats = sums ? partials_of_grid(op, planned.grid) : 0;
  Tensor partials = new_tensor(full, {&floats, 1}, ScalarType::Float);
  params.partials = static_cast<float*>(partials.mutable_data_ptr());
  launch(name, kernel, planned, params, device);
  if (!sums) return;

  std::array<ResultView, kResults> views{};
  for (int i = 0; i < kResults; ++i) {
    const bool needed = i < kParameters ? need_parameters : need_scale && (i == kParameters ? scale : shift);
    if (needed) views[i] = {results[i].mutable_data_ptr(), number_type_of(results[i].scalar_type())};
  }
  ReduceParameters reduced = reduce_parameters(op, params.partials, planned.grid, views);
  launch(name, reduce_kernel(), static_cast<int>(ceil_div(partial_floats(op), kReduceColumns)),
         kReduceThreads, 0, reduced, device);
}

// The results for an empty batch: without pixels every sum is zero.
void zero(const Results& results) {
  for (Tensor result : results) torch::stable::zero_(result);
}

Tensors<13> encode_backward(Tensor grad_low, Tensor grad_high, Tensor image, Tensor conv1_weight,
                            Tensor conv1_bias, Tensor conv2_weight, Tensor conv2_bias, Tensor conv3_weight,
                            Tensor conv3_bias, Tensor low_weight, Tensor low_bias, Tensor high_weight,
                            Tensor high_bias, std::optional<Tensor> image_scale,
                            std::optional<Tensor> image_shift, bool need_image, bool need_parameters,
                            bool need_scale) {
  constexpr const char* kOp = "encode_backward";
  const Parameters parameters{conv1_weight, conv1_bias, conv2_weight, conv2_bias,  conv3_weight,
                              conv3_bias,   low_weight, low_bias,     high_weight, high_bias};
  Checker checker(kOp);
  checker.check(Table::encoder, image, parameters, image_scale, image_shift);
  checker.check(Table::encode_backward, grad_low, grad_high);
  const int64_t batch = image.size(0);
  if (!has_kernel(kOp, conv1_weight, batch, image.size(2), image.size(3))) {
    return call_reference<Tensors<13>>(kOp, grad_low, grad_high, image, parameters, image_scale, image_shift,
                                       need_image, need_parameters, need_scale);
  }
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  need_image = need_image && image.scalar_type() != ScalarType::Byte;
  need_scale = need_scale && (image_scale || image_shift);
  const std::array<Tensor, 1> inputs{
      need_image ? new_images(image, image.size(2), image.size(3), image.scalar_type())
                 : no_gradient(conv1_weight)};
  Results results;
  for (int i = 0; i < kParameters; ++i) results[i] = gradient_of(parameters[i], need_parameters);
  results[kParameters] = image_scale ? gradient_of(*image_scale, need_scale) : no_gradient(conv1_weight);
  results[kParameters + 1] = image_shift ? gradient_of(*image_shift, need_scale) : no_gradient(conv1_weight);
  if (batch == 0) {
    zero(results);
  } else if (need_image || need_parameters || need_scale) {
    run_backward(kOp, Op::kEncode, image, grad_low, grad_high, parameters, inputs, results, image_scale,
                 image_shift, need_image, need_parameters, need_scale);
  }
  return std::tuple_cat(inputs, results);
}

Tensors<12> decode_backward(Tensor grad_image, Tensor low, Tensor high, Tensor low_weight, Tensor low_bias,
                            Tensor high_weight, Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias,
                            Tensor conv2_weight, Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                            bool need_input, bool need_parameters) {
  constexpr const char* kOp = "decode_backward";
  const Parameters parameters{low_weight, low_bias,     high_weight, high_bias,    conv1_weight,
                              conv1_bias, conv2_weight, conv2_bias,  conv3_weight, conv3_bias};
  Checker checker(kOp);
  checker.check(Table::decoder, low, high, parameters);
  checker.check(Table::decode_backward, grad_image);
  const int64_t batch = low.size(0), height = grad_image.size(2), width = grad_image.size(3);
  const bool of_one_dtype = conv1_weight.scalar_type() == low.scalar_type();  // the kernel needs one dtype
  if (!of_one_dtype || !has_kernel(kOp, conv1_weight, batch, height, width)) {
    return call_reference<Tensors<12>>(kOp, grad_image, low, high, parameters, need_input, need_parameters);
  }
  const torch::stable::accelerator::DeviceGuard guard(low.get_device_index());
  const auto input_gradient = [&] {
    return need_input ? new_images(low, low.size(2), low.size(3), low.scalar_type()) : no_gradient(low);
  };
  const std::array<Tensor, 2> inputs{input_gradient(), input_gradient()};
  Results results;
  for (int i = 0; i < kResults; ++i) {
    results[i] = i < kParameters ? gradient_of(parameters[i], need_parameters) : no_gradient(low);
  }
  if (batch == 0) {
    zero(results);
  } else if (need_input || need_parameters) {
    run_backward(kOp, Op::kDecode, grad_image, low, high, parameters, inputs, results, std::nullopt,
                 std::nullopt, need_input, need_parameters, false);
  }
  const auto parameter_gradients = [&]<size_t... kI>(std::index_sequence<kI...>) {
    return std::tuple{results[kI]...};
  }(std::make_index_sequence<kParameters>{});
  return std::tuple_cat(inputs, parameter_gradients);
}

}  // namespace
}  // namespace wae::cuda

// For wae_kernels/backends.py. The first function sets whether these kernels run, as the choice of the process. The
// second sets a function that each op calls instead to find out; null for none. Python sets it while threads or tasks
// have their own choices.
extern "C" {
__attribute__((visibility("default"))) void wae_cuda_select(int runs) { wae::cuda::selected = runs != 0; }
__attribute__((visibility("default"))) void wae_cuda_ask(int (*ask)()) { wae::cuda::callback = ask; }

// Sets a function that each float32 op calls to find out whether tf32 is allowed. Without one, the default, it is not.
__attribute__((visibility("default"))) void wae_cuda_ask_tf32(int (*ask)()) {
  wae::cuda::tf32_callback = ask;
}

// For wae_kernels/_load.py: the ops' schemas at the time of compilation, each followed by a semicolon. This library
// does not define the ops, and its kernels would misread the arguments of another schema.
__attribute__((visibility("default"))) const char* wae_cuda_schemas() {
#define WAE_SCHEMA(schema) schema ";"
  return
#include "schemas.inc"
      ;
#undef WAE_SCHEMA
}
}

STABLE_TORCH_LIBRARY_IMPL(wae, CUDA, library) {
  library.impl("encode", TORCH_BOX(&wae::cuda::encode));
  library.impl("decode", TORCH_BOX(&wae::cuda::decode));
  library.impl("encode_backward", TORCH_BOX(&wae::cuda::encode_backward));
  library.impl("decode_backward", TORCH_BOX(&wae::cuda::decode_backward));
}
