"""Which backend runs the ops, why, and how to select another.

Selection is automatic. The environment variable ``WAE_BACKEND``, or :func:`select`, overrides it for the
process, and :func:`use` for the current thread or task. ``WAE_AMX=0`` keeps ``encode_int8`` from using AMX.

========================  ==========================================================================
``auto``                  the best kernel for the tensor's device (the default)
``reference``             plain PyTorch operators
``cpu``                   the compiled CPU kernels, with the best instruction set of this CPU
``cpu:avx512``            the compiled CPU kernels, with this instruction set
``cpu:avx2``
``cpu:portable``
``cuda``                  the compiled kernels for NVIDIA GPUs; CPU tensors as with ``auto``
``triton``                the Triton kernels for any GPU; CPU tensors as with ``auto``
========================  ==========================================================================

Nothing here initialises the CUDA driver before the program does: that would create a context on the first GPU
and make a later ``fork`` unsafe. Until then it is only known that there is a GPU, not its compute capability.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _load
from .parameters import KERNEL_WIDTH

CPU_CAPABILITIES = ("avx512", "avx2", "portable")

OLDEST_GPU = (7, 5)
"""The lowest compute capability that the CUDA kernels run on."""

OLDEST_TRITON_GPU = (8, 0)
"""The lowest compute capability of NVIDIA GPUs that Triton compiles for."""

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """A way to run the ops: its name, whether it can run here, and why or why not."""

    name: str
    available: bool
    reason: str


def _capability_works(capability: str) -> bool:
    library = _load.CPU.library
    return library is not None and bool(library.wae_cpu_supports(capability.encode()))


def _sees_gpu() -> bool:
    """Whether torch would find a GPU, found out without initialising the CUDA driver."""
    if torch.cuda.is_initialized():
        return True
    if not torch.backends.cuda.is_built():
        return False
    amd = torch.version.hip is not None
    count = torch.cuda._device_count_amdsmi() if amd else torch.cuda._device_count_nvml()
    if count >= 0:
        return count > 0
    # The management library is missing, or the GPU is a MIG slice, which it does not count.
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def _too_old(oldest: tuple[int, int], device: torch.device | None) -> bool:
    """Whether ``device``, or the current GPU, is known to have a lower compute capability than ``oldest``."""
    known = torch.cuda.is_initialized() and torch.version.hip is None
    return known and torch.cuda.get_device_capability(device) < oldest


def gpu() -> str | None:
    """The name of a GPU that torch would find, or None. Asks the CUDA driver only if it is initialised."""
    if not _sees_gpu():
        return None
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        if model := re.search(r"Model:\s*(.+)", file.read_text(encoding="utf-8")):
            return model[1].strip()
    return "the GPU"


def _cuda(device: torch.device | None = None) -> Backend:
    if _load.CUDA.library is None:
        return Backend("cuda", False, f"the compiled library is missing: {_load.CUDA.why_not}")
    if not _sees_gpu():
        return Backend("cuda", False, "there is no GPU here")
    if _too_old(OLDEST_GPU, device):
        return Backend("cuda", False, "the GPU is older than compute capability 7.5")
    return Backend("cuda", True, f"built, and {gpu()} runs it")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton(device: torch.device | None = None) -> Backend:
    if not _has_triton():
        return Backend("triton", False, "the package triton is not installed")
    if not _sees_gpu():
        why = "there is no GPU here; TRITON_INTERPRET=1 runs torch.ops.wae.encode_triton on the CPU"
        return Backend("triton", False, why)
    if _too_old(OLDEST_TRITON_GPU, device):
        return Backend("triton", False, "the GPU is older than compute capability 8.0")
    return Backend("triton", True, f"compiled at first use for {gpu()}")


def available() -> list[Backend]:
    """All backends, best first, and why each is or is not available here."""
    found = []
    for capability in CPU_CAPABILITIES:
        name = f"cpu:{capability}"
        if _load.CPU.library is None:
            found.append(Backend(name, False, f"the compiled library is missing: {_load.CPU.why_not}"))
        elif _capability_works(capability):
            found.append(Backend(name, True, "built, and this CPU runs it"))
        else:
            found.append(Backend(name, False, "this CPU does not have the instructions"))
    found += [_cuda(), _triton()]
    found.append(Backend("reference", True, "plain PyTorch operators, on any device"))
    return found


def _check(name: str) -> None:
    usable = ["auto", *(b.name for b in available() if b.available)]
    if _load.CPU.library is not None:
        usable.insert(1, "cpu")
    if name not in usable:
        raise ValueError(f"backend must be one of {', '.join(usable)} on this machine, got {name!r}")


# ------------------------------------------------------------------------------------------------- choosing
#
# The libraries know the choice of the process. The choice of a context (a thread or task) is kept in Python:
# as long as any exists, the libraries call back at each op to ask for the choice that applies. What they call
# executes no Python code, in which Ctrl-C could raise KeyboardInterrupt: ctypes would only print that this is
# ignored, and the library would take a number from nowhere for the address of its kernels.


class _Choice:
    """The choice of a context. It may outlive the block that made it, because tasks copy their context."""

    def __init__(self, name: str) -> None:
        self.name = name


_default = "auto"
_chosen: ContextVar[_Choice | None] = ContextVar("wae_backend", default=None)
_alive: list[weakref.ref[_Choice]] = []  # a WeakSet would lose a Ctrl-C while it removes a choice
_lock = threading.RLock()  # reentrant: a signal handler may call an op while its own thread holds the lock
if hasattr(os, "register_at_fork"):  # else a thread that does not exist in the child might hold it for ever
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True, eq=False)
class _Asking:
    """How a library asks for the choice that applies."""

    ask: Callable[[object], object]
    """Sets the function that each op calls; None for none."""
    kind: Callable[[Callable[[], object]], object]
    """Makes such a function from a callable."""
    answer: Callable[[str], object]
    """What it returns for a choice."""
    here: ContextVar[object]
    """The answer in a context that has a choice."""

    @functools.cache  # noqa: B019 (the library stores the address)
    def function(self, default: str) -> object:
        """The function to call if ``default`` is the choice of the process."""
        return self.kind(functools.partial(self.here.get, self.answer(default)))


def _let_libraries_ask() -> None:
    """Let the libraries ask as long as any context has a choice, and only then."""
    with _lock:
        _alive[:] = [choice for choice in _alive if choice() is not None]
        for library in _LIBRARIES:
            library.ask(library.function(_default) if _alive else None)


def _cpu_name(name: str) -> bytes:
    """The choice in the terms of the CPU library."""
    return b"auto" if name in ("cuda", "triton") else name.removeprefix("cpu:").encode()


def _cuda_runs(name: str) -> bool:
    """Whether the CUDA library runs its kernels, or the ``_reference`` ops, which in turn may run Triton."""
    return name not in ("reference", "triton")


def select(name: str) -> None:
    """Select the backend ``name`` (see the table of the module) for all ops of the process from now on.

    Inside a block of :func:`use` the choice of that block takes precedence.

    Raises:
        ValueError: no backend has this name, or it cannot run here; the message lists those that can.
    """
    _check(name)
    global _default
    _default = name
    if _load.CPU.library is not None:
        _load.CPU.library.wae_cpu_select(_cpu_name(name))
    if _load.CUDA.library is not None:
        _load.CUDA.library.wae_cuda_select(_cuda_runs(name))
    _let_libraries_ask()  # with another default


def selected() -> str:
    """The choice that applies here: that of :func:`use`, else of :func:`select` or ``WAE_BACKEND``."""
    choice = _chosen.get()
    return _default if choice is None else choice.name


@contextmanager
def use(name: str) -> Iterator[None]:
    """``with use("reference"): ...`` selects a backend for the current thread or asyncio task, in the block.

    Tasks that are created in the block inherit the choice, threads do not (``contextvars``). A backward pass
    uses the choice of its forward pass, whatever thread it runs in. But one that ``torch.compile`` traced,
    and what activation checkpointing computes again, run on a GPU in threads of their own, with the choice of
    the process.

    Raises:
        ValueError: as for :func:`select`.
    """
    _check(name)
    with restored(name):
        yield


@contextmanager
def restored(name: str) -> Iterator[None]:
    """As :func:`use`, for a name that :func:`selected` returned (a backward pass restores its forward's)."""
    choice = _Choice(name)
    with _lock:
        _alive.append(weakref.ref(choice))
        _let_libraries_ask()
    variables: list[ContextVar[Any]] = [*(library.here for library in _LIBRARIES), _chosen]
    values = [*(library.answer(name) for library in _LIBRARIES), choice]
    del choice  # the context will have it, and so will the tasks that copy the context
    tokens: list[Token[Any]] = []
    try:
        # Each in one call that executes no Python code: Ctrl-C cannot set some of the variables only.
        tokens.extend(map(ContextVar.set, variables, values))
        del values
        yield
    finally:
        list(map(ContextVar.reset, variables, tokens))
        _let_libraries_ask()


def backend_for(
    device: torch.device | str, dtype: torch.dtype = torch.float32, width: int = KERNEL_WIDTH
) -> str:
    """The backend that would run an op now, for parameters of this device, dtype and width."""
    device = torch.device(device)
    name = selected()
    if name == "reference" or dtype not in _KERNEL_DTYPES or width != KERNEL_WIDTH:
        return "reference"
    if device.type == "cuda" and name != "triton" and _cuda(device).available:
        return "cuda"
    if device.type == "cuda" and _triton(device).available:
        return "triton"
    if device.type != "cpu" or _load.CPU.library is None:
        return "reference"
    if name not in ("auto", "cpu", "cuda", "triton"):
        return name
    return next(f"cpu:{c}" for c in CPU_CAPABILITIES if _capability_works(c))


def kernels_run(*, on_processor: bool) -> bool:
    """Whether ops on the CPU (``on_processor``) or a GPU run kernels, if these take their dtypes and width.

    Kernels are the compiled ones or, on a GPU, Triton's. Every call inside autocast asks this, so if the CUDA
    library is selected the device is not looked at: the answer is True for a GPU that is too old as well,
    where the reference runs.
    """
    name = selected()
    if on_processor:
        return _load.CPU.library is not None and name != "reference"
    if _load.CUDA.library is not None and _cuda_runs(name):
        return True
    return name != "reference" and _triton().available


def int8_runs(device: torch.device | str = "cpu") -> bool:
    """Whether ``wae::encode_int8`` would run a compiled kernel now, for width 16, and not the reference."""
    library = _load.CPU.library
    return torch.device(device).type == "cpu" and library is not None and bool(library.wae_cpu_int8())


def tf32_allowed() -> bool:
    """Whether torch's setting allows float32 convolutions on a GPU to round to tf32."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set at run time
    return bool(convolutions.fp32_precision == "tf32")


def _tf32_callback() -> Callable[[], int]:
    """:func:`tf32_allowed` for the CUDA library, called at each float32 op; no Python code, as above."""
    function = ctypes.CFUNCTYPE(ctypes.c_int)
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)
    if getter is None:  # a torch that has renamed it; the package must still import
        return function(tf32_allowed)
    setting = functools.partial(getter, "cuda", "conv")
    answers = map("tf32".__eq__, iter(setting, None))  # one for each call, without end: no setting is None
    return function(functools.partial(next, answers))


def __getattr__(name: str) -> int:
    """``WIDTH``, the former name of :data:`wae_kernels.parameters.KERNEL_WIDTH`."""
    if name != "WIDTH":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = "wae_kernels.backends.WIDTH is wae_kernels.parameters.KERNEL_WIDTH now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return KERNEL_WIDTH


def _libraries() -> list[_Asking]:
    """The libraries that are loaded."""
    found = []
    if (cpu := _load.CPU.library) is not None:
        cpu.wae_cpu_kernels.restype = ctypes.c_void_p
        kernels: ContextVar[object] = ContextVar("wae_cpu_kernels")
        address = ctypes.CFUNCTYPE(ctypes.c_void_p)
        found.append(
            _Asking(cpu.wae_cpu_ask, address, lambda name: cpu.wae_cpu_kernels(_cpu_name(name)), kernels)
        )
    if (cuda := _load.CUDA.library) is not None:
        runs: ContextVar[object] = ContextVar("wae_cuda_runs")
        found.append(_Asking(cuda.wae_cuda_ask, ctypes.CFUNCTYPE(ctypes.c_int), _cuda_runs, runs))
    return found


def _select_from_environment() -> None:
    """Apply ``WAE_AMX`` and ``WAE_BACKEND``. Raises ValueError, which names the variable."""
    amx = os.environ.get("WAE_AMX") or "1"
    if amx not in ("0", "1"):
        raise ValueError(f"WAE_AMX must be 0 or 1, got {amx!r}")
    if _load.CPU.library is not None and amx == "0":
        _load.CPU.library.wae_cpu_amx(0)
    try:
        select(os.environ.get("WAE_BACKEND") or "auto")
    except ValueError as error:
        raise ValueError(f"WAE_BACKEND: {error}") from None


_LIBRARIES = _libraries()
_TF32_CALLBACK = _tf32_callback()  # kept alive: the library stores its address
if _load.CUDA.library is not None:
    _load.CUDA.library.wae_cuda_ask_tf32(_TF32_CALLBACK)
_select_from_environment()
