// Every backend's dealings with torch's tensors besides checking them: outputs, and the way to the reference.

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

// In libtorch from 2.13 on, and null before.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace wae {

// The trunk channels that the compiled kernels are written for (the published number).
inline constexpr int64_t kKernelWidth = 16;

// What torch said of the call into it that has just failed.
inline std::string what_torch_said() {
  const auto get_what = torch_exception_get_what_without_backtrace;
  return get_what != nullptr ? get_what() : "this version of torch says why on stderr alone";
}

// Why the call of wae::_<op>_reference failed. Python defines that op; a program without Python, to which its
// name says nothing, is told what it lacks.
inline std::string why_failed(const char* op) {
  const std::string lacking =
      "without wae_kernels in Python only what has a compiled kernel runs (width 16, not float64)";
  const std::string name = std::string("wae::") + op + ": ", what = what_torch_said();
  if (torch_exception_get_what_without_backtrace == nullptr) {
    return name + "its fallback failed (" + what + "); " + lacking;
  }
  return what.find("Could not find schema") == std::string::npos ? what : name + lacking;
}

// An argument of an op, or those that an array holds.
template <class T>
std::tuple<const T&> one_by_one(const T& argument) {
  return {argument};
}
template <size_t kCount>
auto one_by_one(const std::array<Tensor, kCount>& arguments) {
  return std::apply([](const auto&... each) { return std::tie(each...); }, arguments);
}

// Calls wae::_<op>_reference, which wae_kernels/fallback.py implements, with the op's arguments in their order.
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

// The rule of wae_kernels/reference.py, is_channels_last.
inline MemoryFormat format_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return 0 < strides[1] && strides[1] < strides[3] ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Whether fresh tensors hold NaN (bytes: 85), so that tests see what a kernel forgets to write. On the processor
// they do not come from an operator, and torch.utils.deterministic.fill_uninitialized_memory does not reach them.
inline std::atomic<bool> poisons_fresh_tensors{false};

// A fresh tensor of at most four dimensions on the device of `like`. Not torch::stable::empty: that looks its
// operator up by name, which takes longer than everything else here.
inline Tensor new_tensor(const Tensor& like, std::span<const int64_t> sizes, ScalarType dtype,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  std::array<int64_t, 4> strides{};
  int64_t next = 1;
  const auto innermost = [&](size_t dim) {
    strides[dim] = next;
    next *= std::max<int64_t>(sizes[dim], 1);
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
    // of bytes a number that uint8 and int8 have, and that is neither 0 nor a limit, as results often are
    const double poison = is_byte ? 85 : std::numeric_limits<double>::quiet_NaN();
    TORCH_ERROR_CODE_CHECK(aoti_torch_aten_fill__Scalar(made, poison));
  }
  return Tensor(made);
}

// A fresh tensor of the shape and dtype of `like`.
inline Tensor new_like(const Tensor& like) {
  return new_tensor(like, {like.sizes().data(), static_cast<size_t>(like.dim())}, like.scalar_type());
}

// An empty tensor in place of a gradient that was not asked for.
inline Tensor no_gradient(const Tensor& like) {
  const int64_t none = 0;
  return new_tensor(like, {&none, 1}, like.scalar_type());
}

// A fresh (N, channels, height, width) tensor on the device of `like`, in `format` or else its memory format.
inline Tensor new_images(const Tensor& like, int64_t height, int64_t width, ScalarType dtype,
                         int64_t channels = 3, std::optional<MemoryFormat> format = std::nullopt) {
  const std::array<int64_t, 4> sizes{like.size(0), channels, height, width};
  return new_tensor(like, sizes, dtype, format ? *format : format_of(like));
}

}  // namespace wae
