"""torch's operators on the GPUs of the stand-in runtime, for programs that have preloaded it and import this.

Each of torch's CUDA kernels is replaced by the operator's CPU kernel, which computes in the stand-in's
memory. Tensors on two devices, and generators of the CPU, are refused as on a GPU. A CUDA graph is the list
of the calls between its begin and its end, and nothing may wait for the GPU meanwhile. What needs a compiler
for GPUs does not run.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_KEPT = (
    "_pin_memory", "_reshape_alias", "alias", "as_strided", "empty.memory_format", "empty_strided",
    "is_pinned", "is_set_to", "record_stream", "resize_", "set_", "set_.source_Storage",
    "set_.source_Storage_storage_offset", "set_.source_Tensor", "unfold", "view", "view.dtype",
    "view_as_complex", "view_as_real",
)  # fmt: skip
"""Operators that allocate, or change what a tensor refers to. Their own kernels need no GPU."""

_COMPOSITE = ("convolution", "convolution_backward", "copy_")
"""Operators with one kernel for all devices, which itself chooses what to call on a GPU."""

_MIXED = ("copy_", "index.Tensor", "_index_put_impl_")
"""Operators that take tensors of the CPU beside those of a GPU."""

_random = torch.Generator()
_captured: list[Callable[[], None]] | None = None
"""The calls of the CUDA graph that is being captured."""


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor of the CPU in the memory of ``tensor``."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    held = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype, device="cpu").set_(held, *place)


def _on_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    _on_cpu(copy).copy_(tensor)
    return copy


class _Call:
    """A call of an operator's CUDA kernel: its arguments by name, on the GPU and on the CPU."""

    def __init__(self, op: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.op, self.name, self.schema = op, name, op._schema
        names = [argument.name for argument in self.schema.arguments]
        self.given = {**dict(zip(names, args, strict=False)), **kwargs}
        tensors = [value for value in tree_leaves(self.given) if isinstance(value, Tensor)]
        self.device = next(tensor.device for tensor in tensors if tensor.is_cuda)
        self.moved: list[tuple[Tensor, Tensor]] = []
        arguments = [argument for argument in self.schema.arguments if argument.name in self.given]
        self.on_cpu = {argument.name: self._argument(argument) for argument in arguments}
        if "generator" in names:
            self.on_cpu["generator"] = _random

    def _argument(self, argument: Any) -> Any:
        value = self.given[argument.name]
        if str(argument.type) == "Tensor" and not isinstance(value, Tensor):
            return torch.tensor(value, device="cpu")  # a number in the place of a tensor
        return tree_map(self._moved, value)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Generator) and value.device != self.device:
            raise RuntimeError(f"{self.name}: the generator is on {value.device}, not on {self.device}")
        if not isinstance(value, Tensor):
            return value
        if value.device != self.device and self.name not in _MIXED and (value.is_cuda or value.dim()):
            raise RuntimeError(f"{self.name}: tensors on {self.device} and on {value.device}")
        if value.is_cuda:
            self.moved.append((value, _on_cpu(value)))
            return self.moved[-1][1]
        _wait(self.name)
        return value

    def run(self) -> Any:
        results = self.op(**self.on_cpu)
        for ours, theirs in self.moved:
            if ours.shape != theirs.shape:  # the result of an operator with out=
                ours.resize_(theirs.shape)
                _on_cpu(ours).copy_(theirs)
        if len(self.schema.returns) < 2:
            return self._returned(results, *self.schema.returns)
        return tuple(map(self._returned, results, self.schema.returns))

    def _returned(self, result: Any, described: Any = None) -> Any:
        """A result on the GPU. One that the schema says is an argument is that argument."""
        if described is not None and described.alias_info is not None:
            aliases = described.alias_info.before_set
            for argument in self.schema.arguments:
                if argument.alias_info is not None and argument.alias_info.before_set & aliases:
                    return self.given[argument.name]
        return tree_map(lambda x: _on_gpu(x, self.device) if isinstance(x, Tensor) else x, result)

    def repeat(self, returned: Any) -> None:
        """Run again, with the results of the first time in place."""
        inputs = [ours for ours, _ in self.moved]
        for old, new in zip(tree_leaves(returned), tree_leaves(self.run()), strict=True):
            if isinstance(old, Tensor) and not any(old is tensor for tensor in inputs):
                _on_cpu(old).copy_(_on_cpu(new))


def _wait(what: str) -> None:
    """Wait for the GPU: not while a graph is captured, and with a warning in torch's debug mode."""
    if _captured is not None:
        raise RuntimeError(f"{what}: not permitted when a stream is capturing")
    if torch.cuda.get_sync_debug_mode():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)


def _kernel(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        call = _Call(op, name, args, kwargs)
        returned = call.run()
        if _captured is not None:
            _captured.append(lambda: call.repeat(returned))
        return returned

    return kernel


def _number(tensor: Tensor) -> Any:
    _wait("item")
    return _on_cpu(tensor).item()


class _Graph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@contextmanager
def _capture(graph: _Graph, stream: torch.cuda.Stream, capture_error_mode: str) -> Iterator[None]:
    """Stands in for ``torch.cuda.graph``, which leaves ``stream`` the current one if the capture fails."""
    global _captured
    before = torch.cuda.current_stream()
    _captured = graph.calls
    try:
        torch.cuda.set_stream(stream)
        yield
    finally:
        _captured = None
    torch.cuda.set_stream(before)


def _replace() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if has_kernel(name, "CUDA")]
    aten = {name.removeprefix("aten::") for name in names if name.startswith("aten::")}
    for name in {*aten, *_COMPOSITE} - {*_KEPT, "_local_scalar_dense"}:
        library.impl(name, _kernel(name), "CUDA", allow_override=True)
    library.impl("_local_scalar_dense", _number, "CUDA", allow_override=True)
    torch.cuda.CUDAGraph, torch.cuda.graph = _Graph, _capture
    torch.backends.cudnn.enabled = False
    return library


_library = _replace()
