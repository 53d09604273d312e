// wae::decode_backward: the gradients of wae::decode from its inputs, in one launch, and a second one that adds the
// sums of the blocks (reduce.cu). backward.cuh explains what a block computes, its steps, arithmetic and memory. Its
// names mean:
//
//     half                    low and high
//     first, second, third    the outputs of the transposed convolutions, of conv1 and of conv2
//     full                    the gradient of the image: d third is its convolution with conv3's filter, rotated

#include "cuda/backward.cuh"
#include "cuda/launch.h"

namespace wae::cuda {

template <Mode kMode>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    decode_backward_kernel(const __grid_constant__ BackwardParameters parameters) {
  if constexpr (WAE_RUNS_HERE(kMode)) run_backward<Op::kDecode, kMode>(parameters);
}

const void* decode_backward_kernel_of(Mode mode) {
  switch (mode) {
    case Mode::kFloat16:
      return reinterpret_cast<const void*>(decode_backward_kernel<Mode::kFloat16>);
    case Mode::kBFloat16:
      return reinterpret_cast<const void*>(decode_backward_kernel<Mode::kBFloat16>);
    case Mode::kTf32:
      return reinterpret_cast<const void*>(decode_backward_kernel<Mode::kTf32>);
    case Mode::kFloat32:
      return reinterpret_cast<const void*>(decode_backward_kernel<Mode::kFloat32>);
    default:
      return reinterpret_cast<const void*>(decode_backward_kernel<Mode::kBFloat16Plain>);
  }
}

}  // namespace wae::cuda
