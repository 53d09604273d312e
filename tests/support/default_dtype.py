"""PyTorch's default dtype, which must not change what is loaded, exported or computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def with_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As ``torch.set_default_dtype``, in the block."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
