// The schemas of torch.ops.wae.*. Kernels are registered where they are: cpu/ops.cpp, cuda/, and from
// Python the fallback (wae_kernels/fallback.py), fakes, autograd and autocast (wae_kernels/registration.py).

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(wae, library) {
#define WAE_SCHEMA(schema) library.def(schema);
#include "schemas.inc"
#undef WAE_SCHEMA
}
