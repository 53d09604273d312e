// The kernels, for the host: encode.cu and decode.cu know CUDA's syntax, cuda/ops.cpp knows torch.

#pragma once

#include "cuda/parameters.h"

namespace wae::cuda {

// The kernel of a mode, as the CUDA runtime wants it. Its one argument is EncodeParameters or
// DecodeParameters.
const void* encode_kernel_of(Mode mode);
const void* decode_kernel_of(Mode mode);

}  // namespace wae::cuda
