"""A pytest plugin: the CUDA library on the stand-in's GPUs, with its kernels executed by the PTX machine.

For processes that have preloaded the runtime.
"""

from __future__ import annotations

import ctypes

import torch

from wae_kernels import _load, backends

from . import libraries, operators, start  # noqa: F401  (importing operators replaces torch's own)

_built = libraries()
torch.cuda.init()
start(_built)
_load.CUDA = _load.Loaded(ctypes.CDLL(str(_built.ops)), "")
_load.CUDA.library.wae_cuda_ask_tf32(backends._TF32_CALLBACK)
backends._LIBRARIES = backends._libraries()
