// Sizes that every backend shares. No torch, no CUDA.

#pragma once

#include <cstdint>

namespace wae {

// The rows or columns of low and high for an image with `size` of them.
constexpr int64_t half_size(int64_t size) { return (size + 1) / 2; }

}  // namespace wae
