// wae::encode_backward: the gradients of wae::encode from its inputs, in one launch, and a second one that adds the
// sums of the blocks (reduce.cu). backward.cuh explains what a block computes, its steps, arithmetic and memory. Its
// names mean:
//
//     full                    the image, scaled and shifted
//     first, second, third    the outputs of conv1, conv2, conv3
//     half                    the gradients of low and high: d third is their transposed convolution

#include "cuda/backward.cuh"
#include "cuda/launch.h"

namespace wae::cuda {

template <Mode kMode>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    encode_backward_kernel(const __grid_constant__ BackwardParameters parameters) {
  if constexpr (WAE_RUNS_HERE(kMode)) run_backward<Op::kEncode, kMode>(parameters);
}

const void* encode_backward_kernel_of(Mode mode) {
  switch (mode) {
    case Mode::kFloat16:
      return reinterpret_cast<const void*>(encode_backward_kernel<Mode::kFloat16>);
    case Mode::kBFloat16:
      return reinterpret_cast<const void*>(encode_backward_kernel<Mode::kBFloat16>);
    case Mode::kTf32:
      return reinterpret_cast<const void*>(encode_backward_kernel<Mode::kTf32>);
    case Mode::kFloat32:
      return reinterpret_cast<const void*>(encode_backward_kernel<Mode::kFloat32>);
    default:
      return reinterpret_cast<const void*>(encode_backward_kernel<Mode::kBFloat16Plain>);
  }
}

}  // namespace wae::cuda
