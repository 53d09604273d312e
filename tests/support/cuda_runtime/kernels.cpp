// The kernels of csrc/cuda/launch.h as addresses in a table, which say what is launched: kModes for each op, then the
// one of reduce.cu.

#include "cuda/launch.h"

extern "C" __attribute__((visibility("default"))) char fake_kernels[4 * wae::cuda::kModes + 1];
char fake_kernels[4 * wae::cuda::kModes + 1];

namespace wae::cuda {

static const void* of(int op, Mode mode) { return fake_kernels + op * kModes + static_cast<int>(mode); }

const void* encode_kernel_of(Mode mode) { return of(0, mode); }
const void* decode_kernel_of(Mode mode) { return of(1, mode); }
const void* encode_backward_kernel_of(Mode mode) { return of(2, mode); }
const void* decode_backward_kernel_of(Mode mode) { return of(3, mode); }
const void* reduce_kernel() { return of(4, Mode{}); }

}  // namespace wae::cuda
