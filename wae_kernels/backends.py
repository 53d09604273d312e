"""Which backend runs, why, and how to choose.

Selection is automatic. The environment variable ``WAE_BACKEND``, or :func:`use`, overrides it for the
process:

========================  ==========================================================================
``auto``                  the best kernel for the tensor's device (the default)
``reference``             plain PyTorch operators
``cpu``                   the compiled kernels, with the best instructions this processor has
``cpu:avx512``            the compiled kernels, with these instructions
``cpu:avx2``
``cpu:portable``
``cuda``                  the compiled kernels for NVIDIA GPUs; tensors on the processor as with ``auto``
``triton``                Triton's kernels for any GPU; tensors on the processor as with ``auto``
========================  ==========================================================================
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import _load
from .parameters import KERNEL_WIDTH

CPU_CAPABILITIES = ("avx512", "avx2", "portable")

OLDEST_GPU = (7, 5)
"""The compute capability from which the CUDA kernels run."""

OLDEST_TRITON_GPU = (8, 0)
"""The compute capability from which Triton compiles for NVIDIA's GPUs."""

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_lock = threading.Lock()


@dataclass(frozen=True)
class Backend:
    """One way to run the ops: its name, whether it can run here, and the reason."""

    name: str
    available: bool
    reason: str


def _capability_works(capability: str) -> bool:
    library = _load.CPU.library
    return library is not None and bool(library.wae_cpu_supports(capability.encode()))


def _cuda() -> Backend:
    if _load.CUDA.library is None:
        return Backend("cuda", False, f"the compiled library is missing: {_load.CUDA.why_not}")
    if not torch.cuda.is_available():
        return Backend("cuda", False, "there is no GPU here")
    if torch.cuda.get_device_capability() < OLDEST_GPU:
        return Backend("cuda", False, "the GPU is older than compute capability 7.5")
    return Backend("cuda", True, f"built, and {torch.cuda.get_device_name()} runs it")


def _triton() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend("triton", False, "the package triton is not installed")
    if not torch.cuda.is_available():
        why = "there is no GPU here; TRITON_INTERPRET=1 runs torch.ops.wae.encode_triton on the processor"
        return Backend("triton", False, why)
    if torch.version.hip is None and torch.cuda.get_device_capability() < OLDEST_TRITON_GPU:
        return Backend("triton", False, "the GPU is older than compute capability 8.0")
    return Backend("triton", True, f"compiled at first use for {torch.cuda.get_device_name()}")


@functools.cache
def _triton_works() -> bool:
    return _triton().available


def available() -> list[Backend]:
    """All backends, best first, with the reason why each is or is not available here."""
    found = []
    for capability in CPU_CAPABILITIES:
        name = f"cpu:{capability}"
        if _load.CPU.library is None:
            found.append(Backend(name, False, f"the compiled library is missing: {_load.CPU.why_not}"))
        elif _capability_works(capability):
            found.append(Backend(name, True, "built, and this processor runs it"))
        else:
            found.append(Backend(name, False, "this processor does not have the instructions"))
    found += [_cuda(), _triton()]
    found.append(Backend("reference", True, "plain PyTorch operators, on any device"))
    return found


def select(name: str) -> None:
    """Run every following op through the backend ``name`` (see the module's table).

    Raises:
        ValueError: no backend has this name, or it cannot run here; the message says which can.
    """
    usable = ["auto", *(b.name for b in available() if b.available)]
    if _load.CPU.library is not None:
        usable.insert(1, "cpu")
    if name not in usable:
        raise ValueError(f"backend must be one of {', '.join(usable)} on this machine, got {name!r}")
    global _selected
    with _lock:
        _selected = name
        if _load.CPU.library is not None:
            choice = "auto" if name in ("cuda", "triton") else name.removeprefix("cpu:")
            _load.CPU.library.wae_cpu_select(choice.encode())
        if _load.CUDA.library is not None:
            # The reference's ops, to which the library then hands over, run Triton where it is selected.
            _load.CUDA.library.wae_cuda_select(b"reference" if name == "triton" else name.encode())


def selected() -> str:
    """The name last given to :func:`select` (or ``WAE_BACKEND``); ``auto`` if none was."""
    return _selected


@contextmanager
def use(name: str) -> Iterator[None]:
    """``with use("reference"): ...`` selects a backend and puts the former choice back."""
    before = selected()
    select(name)
    try:
        yield
    finally:
        select(before)


def backend_for(
    device: torch.device | str, dtype: torch.dtype = torch.float32, width: int = KERNEL_WIDTH
) -> str:
    """The backend that runs an op now, for parameters of this device, dtype and width."""
    device = torch.device(device)
    if _selected == "reference" or dtype not in _KERNEL_DTYPES or width != KERNEL_WIDTH:
        return "reference"
    if device.type == "cuda" and _load.CUDA.library is not None and _selected != "triton":
        return "cuda"
    if device.type == "cuda" and _triton_works():
        return "triton"
    if device.type != "cpu" or _load.CPU.library is None:
        return "reference"
    if _selected not in ("auto", "cpu", "cuda", "triton"):
        return _selected
    return next(f"cpu:{c}" for c in CPU_CAPABILITIES if _capability_works(c))


def tf32_allowed() -> bool:
    """Whether convolutions of float32 may round to tf32 on a GPU, as torch's own setting has it."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set at run time
    return bool(convolutions.fp32_precision == "tf32")


def __getattr__(name: str) -> int:
    """``WIDTH``, the former name of :data:`wae_kernels.parameters.KERNEL_WIDTH`."""
    if name != "WIDTH":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = "wae_kernels.backends.WIDTH is wae_kernels.parameters.KERNEL_WIDTH now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return KERNEL_WIDTH


_selected = "auto"
select(os.environ.get("WAE_BACKEND", "auto"))
