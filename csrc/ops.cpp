// Defines the ops torch.ops.wae.* from their schemas. Each backend registers its own kernels: cpu/ops*.cpp, cuda/ops.cpp
// and, from Python, wae_kernels/fallback.py. Python also registers fakes, autocast and autograd
// (wae_kernels/registration.py, autograd.py).

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(wae, library) {
#define WAE_SCHEMA(schema) library.def(schema);
#include "schemas.inc"
#undef WAE_SCHEMA
}
