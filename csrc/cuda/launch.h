// The kernels' host interface. encode.cu and decode.cu contain CUDA syntax, cuda/ops.cpp contains torch.

#pragma once

#include "cuda/parameters.h"

namespace wae::cuda {

// The kernel of a mode, for cudaLaunchKernel. It takes one argument: EncodeParameters or DecodeParameters.
const void* encode_kernel_of(Mode mode);
const void* decode_kernel_of(Mode mode);

// The backward kernels take BackwardParameters; the kernel that adds their partial sums, ReduceParameters.
const void* encode_backward_kernel_of(Mode mode);
const void* decode_backward_kernel_of(Mode mode);
const void* reduce_kernel();

}  // namespace wae::cuda
