"""Fused kernels for a Wavelet-like Auto-Encoder, as torch ops.

``import wae_kernels`` registers ``torch.ops.wae.encode``, ``torch.ops.wae.decode`` and the other ops on every
machine; :mod:`wae_kernels.backends` tells which kernels run them.
"""

from . import backends, nn, reference, threads
from .ops import decode, decode_scores, encode, encode_int8

__version__ = "0.2.0.dev0"
__all__ = [
    "__version__",
    "backends",
    "decode",
    "decode_scores",
    "encode",
    "encode_int8",
    "nn",
    "reference",
    "threads",
]
