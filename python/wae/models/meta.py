"""Networks on "meta": their tensors have shapes but take no memory, and nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _WithoutMemory(TorchFunctionMode):
    """Allocates on "meta" what layers make their weights with, and nothing else, unlike
    ``torch.device("meta")``: RegNet's constructor computes its widths with ``torch.arange`` and ``tolist``.

    It also skips the initialisation of meta tensors, for which PyTorch would import its compiler, which takes
    a second.
    """

    _FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    _FILLS = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in self._FILLS and args[0].is_meta:
            return args[0]
        if func in self._FACTORIES and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on "meta" in the block: their weights have shapes but take no memory."""
    with _WithoutMemory():
        yield


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` makes, on "meta" and in evaluation mode, to be counted."""
    with without_memory():
        return build().to("meta").eval()


def empty_copy(body: nn.Module, device: str = "meta") -> nn.Module:
    """A copy of ``body`` with uninitialised tensors on ``device``; on "meta" they take no memory."""
    tensors: dict[int, Any] = {}  # deepcopy takes these instead of copying the body's
    for tensor in chain(body.parameters(), body.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        tensors[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(body, tensors)
