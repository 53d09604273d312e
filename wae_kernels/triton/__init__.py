"""``wae::encode`` and ``wae::decode`` for every GPU that Triton supports: docs/triton.md.

Importing this package needs Triton, and registers ``torch.ops.wae.encode_triton`` and ``decode_triton``.
"""

from .ops import decode, encode
from .tuning import tune

__all__ = ["decode", "encode", "tune"]
