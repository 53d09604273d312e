// Sizes that all backends share, including device code. Does not need torch.

#pragma once

namespace wae {

#ifdef __CUDACC__
#define WAE_HOST_DEVICE __host__ __device__
#else
#define WAE_HOST_DEVICE
#endif

// The number of rows (or columns) of low and high for an image with `size` rows (or columns).
template <typename Integer>
WAE_HOST_DEVICE constexpr Integer half_size(Integer size) {
  return (size + 1) / 2;
}

}  // namespace wae
