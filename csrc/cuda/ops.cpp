// The ops on a GPU: check, choose the mode, plan, launch on the current stream.
//
// Inputs without a kernel (float64, widths other than 16, more than 2^30 images or pixels a side, GPUs
// before compute capability 7.5, the backend "reference") go to the ops wae::_<op>_reference, which
// wae_kernels/fallback.py implements.

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
#include <string>
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

// Images and pixels a side: the kernels' coordinates are 32-bit, the halo included.
constexpr int64_t kLargest = 1 << 30;

constexpr int kOldestChip = 75;

std::atomic<bool> selected{true};
std::atomic<int (*)()> callback{nullptr};

// Whether the kernels here run, and not the reference (or Triton).
bool runs() {
  if (const auto ask = callback.load()) return ask() != 0;
  return selected;
}

void check_cuda(cudaError_t error, const char* op, const char* doing) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // it is reported here; the next call starts clean
  checks::require(false, op, doing, " failed: ", cudaGetErrorString(error),
                  error == cudaErrorNoKernelImageForDevice
                      ? "; build wae-kernels with this GPU's architecture in TORCH_CUDA_ARCH_LIST"
                      : "");
}

// ------------------------------------------------------------------------------------------ device and mode

int attribute(cudaDeviceAttr which, int device, const char* op) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), op, "reading the GPU's properties");
  return value;
}

// The chip's figures for a kernel's launch plan. The first call per device and kernel queries them and raises
// the kernel's shared-memory limit. The device must be the current one.
const Chip& prepared_chip(const char* op, const void* kernel, int device, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, Chip> chips;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = chips.try_emplace({device, kernel});
  if (!is_new) return found->second;
  try {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), op,
               "preparing the kernel");
    int blocks_each = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, kThreads, shared_bytes),
               op, "reading the kernel's occupancy");
    found->second = {attribute(cudaDevAttrMultiProcessorCount, device, op),
                     blocks_each > 0 ? blocks_each : 1};
  } catch (...) {
    chips.erase(found);
    throw;
  }
  return found->second;
}

// Whether torch's settings allow float32 convolutions to round their operands to tf32.
bool tf32_allowed() {
  std::array<StableIValue, 1> stack{};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("wae::_tf32_allowed", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
}

// Compute capability: 75 is 7.5.
int capability(int device, const char* op) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, op) +
         attribute(cudaDevAttrComputeCapabilityMinor, device, op);
}

Mode mode_of(ScalarType dtype, int device, const char* op) {
  if (dtype == ScalarType::Half) return Mode::kFloat16;
  const bool ampere = capability(device, op) >= 80;
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

ChannelVector channel_vector_of(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, 0, NumberType::kNone, 0};
  const auto type = [&] {
    switch (tensor->scalar_type()) {
      case ScalarType::Half:
        return NumberType::kFloat16;
      case ScalarType::BFloat16:
        return NumberType::kBFloat16;
      case ScalarType::Float:
        return NumberType::kFloat32;
      default:
        return NumberType::kFloat64;  // by the checks, no other type is possible
    }
  }();
  return {tensor->const_data_ptr(), tensor->stride(0), type, 0};
}

// ----------------------------------------------------------------------------------------------------- ops

template <class Struct>
void launch(const char* op, const void* kernel, const LaunchPlan& plan, Struct& parameters, int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  void* arguments[] = {&parameters};
  check_cuda(cudaLaunchKernel(kernel, dim3(plan.grid), dim3(plan.block), arguments, plan.shared_bytes,
                              static_cast<cudaStream_t>(stream)),
             op, "launching the kernel");
}

std::tuple<Tensor, Tensor> encode(Tensor image, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
                                  Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias,
                                  Tensor low_weight, Tensor low_bias, Tensor high_weight, Tensor high_bias,
                                  std::optional<Tensor> image_scale, std::optional<Tensor> image_shift) {
  constexpr const char* kOp = "encode";
  const Parameters parameters{conv1_weight, conv1_bias, conv2_weight, conv2_bias,  conv3_weight,
                              conv3_bias,   low_weight, low_bias,     high_weight, high_bias};
  check_encode(kOp, image, parameters, image_scale, image_shift);
  if (!has_kernel(kOp, conv1_weight, image.size(0), image.size(2), image.size(3))) {
    return call_reference<std::tuple<Tensor, Tensor>>(
        kOp, image, conv1_weight, conv1_bias, conv2_weight, conv2_bias, conv3_weight, conv3_bias, low_weight,
        low_bias, high_weight, high_bias, image_scale, image_shift);
  }
  const int device = image.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t height = (image.size(2) + 1) / 2, width = (image.size(3) + 1) / 2;
  Tensor low = new_pictures(image, height, width, conv1_weight.scalar_type());
  Tensor high = new_pictures(image, height, width, conv1_weight.scalar_type());
  if (image.size(0) == 0) return {low, high};

  const Mode mode = mode_of(conv1_weight.scalar_type(), device, kOp);
  const void* kernel = encode_kernel_of(mode);
  const SharedLayout layout = encode_layout(mode);
  const LaunchPlan planned =
      plan(image.size(0), height, width, prepared_chip(kOp, kernel, device, layout.bytes), layout);
  EncodeParameters params =
      encode_parameters(view_of(image), image.scalar_type() == ScalarType::Byte, view_of(low), view_of(high),
                        views_of(parameters), bytes_of(conv1_weight.scalar_type()),
                        channel_vector_of(image_scale), channel_vector_of(image_shift), planned.tiling);
  launch(kOp, kernel, planned, params, device);
  return {low, high};
}

Tensor decode(Tensor low, Tensor high, Tensor low_weight, Tensor low_bias, Tensor high_weight,
              Tensor high_bias, Tensor conv1_weight, Tensor conv1_bias, Tensor conv2_weight,
              Tensor conv2_bias, Tensor conv3_weight, Tensor conv3_bias, std::vector<int64_t> output_size) {
  constexpr const char* kOp = "decode";
  const Parameters parameters{low_weight, low_bias,     high_weight, high_bias,    conv1_weight,
                              conv1_bias, conv2_weight, conv2_bias,  conv3_weight, conv3_bias};
  check_decode(kOp, low, high, parameters, output_size);
  if (!has_kernel(kOp, conv1_weight, low.size(0), output_size[0], output_size[1])) {
    return std::get<0>(call_reference<std::tuple<Tensor>>(kOp, low, high, low_weight, low_bias, high_weight,
                                                          high_bias, conv1_weight, conv1_bias, conv2_weight,
                                                          conv2_bias, conv3_weight, conv3_bias, output_size));
  }
  const int device = low.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor image = new_pictures(low, output_size[0], output_size[1], low.scalar_type());
  if (low.size(0) == 0) return image;

  const Mode mode = mode_of(low.scalar_type(), device, kOp);
  const void* kernel = decode_kernel_of(mode);
  const SharedLayout layout = decode_layout(mode);
  const LaunchPlan planned =
      plan(low.size(0), low.size(2), low.size(3), prepared_chip(kOp, kernel, device, layout.bytes), layout);
  DecodeParameters params =
      decode_parameters(view_of(low), view_of(high), view_of(image), views_of(parameters),
                        bytes_of(low.scalar_type()), planned.tiling);
  launch(kOp, kernel, planned, params, device);
  return image;
}

}  // namespace
}  // namespace wae::cuda

// For wae_kernels/backends.py: whether the kernels here run, as the process's choice, and a function that is
// asked at each op instead (null for none). Python sets that while threads or tasks have choices of their own.
extern "C" {
__attribute__((visibility("default"))) void wae_cuda_select(int runs) { wae::cuda::selected = runs != 0; }
__attribute__((visibility("default"))) void wae_cuda_ask(int (*ask)()) { wae::cuda::callback = ask; }
}

STABLE_TORCH_LIBRARY_IMPL(wae, CUDA, library) {
  library.impl("encode", TORCH_BOX(&wae::cuda::encode));
  library.impl("decode", TORCH_BOX(&wae::cuda::decode));
}
