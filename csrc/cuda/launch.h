// The host's interface to the kernels. It separates the .cu files, which nvcc compiles, from cuda/ops.cpp, which uses
// torch.

#pragma once

#include "cuda/parameters.h"

namespace wae::cuda {

// The kernel of a mode, for cudaLaunchKernel. Its only argument is an EncodeParameters or a DecodeParameters.
const void* encode_kernel_of(Mode mode);
const void* decode_kernel_of(Mode mode);

// The backward kernels take a BackwardParameters; the kernel that adds their partial sums takes a ReduceParameters.
const void* encode_backward_kernel_of(Mode mode);
const void* decode_backward_kernel_of(Mode mode);
const void* reduce_kernel();

}  // namespace wae::cuda
