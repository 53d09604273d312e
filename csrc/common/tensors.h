// What every compiled backend needs of torch besides the checks: allocating outputs, and calling the reference.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "common/checks.h"

// Defined by libtorch from 2.13 on; null in older versions.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace wae {

// The number of trunk channels that the compiled kernels are written for: that of the paper.
inline constexpr int64_t kKernelWidth = 16;

// A tuple of kCount tensors: the results of an op.
template <size_t kCount>
using Tensors = decltype(std::tuple_cat(std::array<Tensor, kCount>{}));

// torch's message for a call of its C API that has just failed.
inline std::string what_torch_said() {
  const auto get_what = torch_exception_get_what_without_backtrace;
  return get_what != nullptr ? get_what() : "this version of torch says why on stderr alone";
}

// The error message for a failed call of wae::_<op>_reference. wae_kernels in Python defines that op, so in a program
// without Python the message says what is missing, and not only the name of the op.
inline std::string why_failed(const char* op) {
  const std::string lacking =
      "without wae_kernels in Python only what has a compiled kernel runs "
      "(width 16, at most 32 classes and features, not float64)";
  const std::string name = std::string("wae::") + op + ": ", what = what_torch_said();
  if (torch_exception_get_what_without_backtrace == nullptr) {
    return name + "its fallback failed (" + what + "); " + lacking;
  }
  return what.find("Could not find schema") == std::string::npos ? what : name + lacking;
}

// An argument of an op, or the arguments in an array of tensors, as a tuple of references.
template <class T>
std::tuple<const T&> one_by_one(const T& argument) {
  return {argument};
}
template <size_t kCount>
auto one_by_one(const std::array<Tensor, kCount>& arguments) {
  return std::apply([](const auto&... each) { return std::tie(each...); }, arguments);
}

// Calls wae::_<op>_reference, which wae_kernels/fallback.py implements, with the op's arguments in the op's order.
template <class Result, class... Args>
Result call_reference(const char* op, const Args&... args) {
  const auto stack_of = [](const auto&... each) {
    constexpr size_t kSlots = std::max(sizeof...(each), std::tuple_size_v<Result>);
    return std::array<StableIValue, kSlots>{torch::stable::detail::from(each)...};
  };
  auto stack = std::apply(stack_of, std::tuple_cat(one_by_one(args)...));
  const std::string name = std::string("wae::_") + op + "_reference";
  if (torch_call_dispatcher(name.c_str(), "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS) {
    throw std::runtime_error(why_failed(op));
  }
  return [&]<size_t... kI>(std::index_sequence<kI...>) {
    return Result{torch::stable::detail::to<Tensor>(stack[kI])...};
  }(std::make_index_sequence<std::tuple_size_v<Result>>{});
}

// The memory format of an op's outputs, given its input: the same rule as format_of in wae_kernels/reference.py.
inline MemoryFormat format_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return 0 < strides[1] && strides[1] < strides[3] ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Whether new_tensor fills tensors with NaN (bytes: 85), so that tests notice what a kernel does not write.
// torch.utils.deterministic.fill_uninitialized_memory does not apply to them, because no operator allocates them.
inline std::atomic<bool> poisons_fresh_tensors{false};

// An uninitialised tensor of at most four dimensions on the device of `like`. torch::stable::empty would look up its
// operator by name, which takes longer than everything else here.
inline Tensor new_tensor(const Tensor& like, std::span<const int64_t> sizes, ScalarType dtype,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  std::array<int64_t, 4> strides{};
  int64_t next = 1;
  const auto innermost = [&](size_t dim) {
    strides[dim] = next;
    if (__builtin_mul_overflow(next, std::max<int64_t>(sizes[dim], 1), &next)) {  // even if a size is 0
      throw std::runtime_error("wae: a result cannot be allocated: its strides overflow");
    }
  };
  if (format == MemoryFormat::ChannelsLast) {
    for (const size_t dim : {1, 3, 2, 0}) innermost(dim);
  } else {
    for (size_t dim = sizes.size(); dim > 0; --dim) innermost(dim - 1);
  }
  const auto [device_type, device_index] = checks::device_number(like);
  const int32_t dtype_number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype_number,
                               device_type, device_index, &made) != TORCH_SUCCESS) {
    throw std::runtime_error("wae: a result cannot be allocated: " + what_torch_said());
  }
  if (poisons_fresh_tensors) {
    const bool is_byte = dtype == ScalarType::Byte || dtype == ScalarType::Char;
    // for bytes a value that both uint8 and int8 have, and that is not 0 or a limit, which results often are
    const double poison = is_byte ? 85 : std::numeric_limits<double>::quiet_NaN();
    TORCH_ERROR_CODE_CHECK(aoti_torch_aten_fill__Scalar(made, poison));
  }
  return Tensor(made);
}

// An uninitialised contiguous tensor of the shape and dtype of `like`.
inline Tensor new_like(const Tensor& like) {
  return new_tensor(like, {like.sizes().data(), static_cast<size_t>(like.dim())}, like.scalar_type());
}

// A tensor without elements, returned for a gradient that was not requested.
inline Tensor no_gradient(const Tensor& like) {
  const int64_t none = 0;
  return new_tensor(like, {&none, 1}, like.scalar_type());
}

// An uninitialised (N, channels, height, width) tensor, with N, the device and, by default, the memory format of
// `like`.
inline Tensor new_images(const Tensor& like, int64_t height, int64_t width, ScalarType dtype,
                         int64_t channels = 3, std::optional<MemoryFormat> format = std::nullopt) {
  const std::array<int64_t, 4> sizes{like.size(0), channels, height, width};
  return new_tensor(like, sizes, dtype, format ? *format : format_of(like));
}

}  // namespace wae
