// The schemas of torch.ops.wae.*. Kernels are registered where they are: cpu/ops.cpp, cuda/, and from
// Python (wae_kernels/registration.py) fakes, autograd, autocast and the reference.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(wae, library) {
#define WAE_SCHEMA(schema) library.def(schema);
#include "schemas.inc"
#undef WAE_SCHEMA
}
