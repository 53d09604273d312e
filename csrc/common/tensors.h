// Every backend's dealings with torch's tensors besides checking them: outputs, and the way to the reference.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
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

// Calls wae::_<op>_reference, which wae_kernels/fallback.py implements, with the same arguments.
template <class Result, class... Args>
Result call_reference(const char* op, const Args&... args) {
  constexpr size_t kSlots = std::max(sizeof...(Args), std::tuple_size_v<Result>);
  std::array<StableIValue, kSlots> stack{torch::stable::detail::from(args)...};
  const std::string name = std::string("wae::_") + op + "_reference";
  if (torch_call_dispatcher(name.c_str(), "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS) {
    const auto get_what = torch_exception_get_what_without_backtrace;
    throw std::runtime_error(get_what != nullptr ? get_what() : name + " failed");
  }
  return [&]<size_t... kI>(std::index_sequence<kI...>) {
    return Result{torch::stable::detail::to<Tensor>(stack[kI])...};
  }(std::make_index_sequence<std::tuple_size_v<Result>>{});
}

// The rule of wae_kernels/reference.py, is_channels_last.
inline torch::headeronly::MemoryFormat format_of(const Tensor& tensor) {
  using torch::headeronly::MemoryFormat;
  const auto strides = tensor.strides();
  return 0 < strides[1] && strides[1] < strides[3] ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// A fresh (N, channels, height, width) tensor on the device and in the memory format of `like`.
inline Tensor new_images(const Tensor& like, int64_t height, int64_t width, ScalarType dtype,
                         int64_t channels = 3) {
  const std::array<int64_t, 4> sizes{like.size(0), channels, height, width};
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt, like.device(), std::nullopt,
                              format_of(like));
}

}  // namespace wae
