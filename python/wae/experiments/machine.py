"""The machine of a measurement: its CPU, the installed versions, and the load of other programs during it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import wae_kernels
from wae.inference.timing import Timing, interleaved, synchronize_for
from wae_kernels import backends

QUIET = 0.1
"""CPU cores that other programs may use during a timing."""

LIMITS = ("WAE_BACKEND", "WAE_AMX", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
"""Environment variables that keep libraries from using some instructions or cores."""

_PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "torchao")
_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx512_fp16")


def limits() -> dict[str, str]:
    """The variables of :data:`LIMITS` that are set, and their values."""
    return {name: os.environ[name] for name in LIMITS if name in os.environ}


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Everything about this machine and its software that times depend on, for times of work on ``device``.

    None stands for the CPU; for a GPU there is an entry ``gpu``, its name.
    """
    on_gpu = device is not None and device.type == "cuda"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": processor(),
        **({"gpu": torch.cuda.get_device_name(device)} if on_gpu else {}),
        "instructions": [name for name in _INSTRUCTIONS if known.get(name)],
        "threads": torch.get_num_threads(),
        "backend": backends.backend_for("cpu"),
        "limits": limits(),
        "versions": {"wae-kernels": wae_kernels.__version__}
        | {name: _version(name) for name in _PACKAGES if find_spec(name)},
    }


def _version(package: str) -> str:
    """The version of what is imported as ``package``. onnxruntime, say, may come from onnxruntime-gpu."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, ())
        return ", ".join(f"{name} {version(name)}" for name in others) or "not known"


def processor() -> str:
    """The model name of the CPU on Linux; elsewhere, or if Linux knows none, the name of its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def disturbance(others: float | None) -> str:
    """A warning, if other programs used this many cores during a timing; "" if they used none to speak of."""
    if (others or 0.0) <= QUIET:
        return ""
    return f"other programs used {others:.1f} cores meanwhile: do not rely on these times"


def timed(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float,
    device: torch.device,
    settle: int = 0,
    min_rounds: int = 3,
) -> tuple[dict[str, Timing], float | None]:
    """The times of ``functions``, and the CPU cores that other programs used meanwhile, None if not known.

    Args:
        functions, seconds, settle, min_rounds: see :func:`wae.inference.timing.interleaved`.
        device: where the functions compute.
    """
    others = OtherPrograms()
    timings = interleaved(
        functions, seconds, min_rounds=min_rounds, settle=settle, synchronize=synchronize_for(device)
    )
    return timings, others.cores()


class OtherPrograms:
    """The CPU time that other programs use from now on."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), self._seconds()

    def cores(self) -> float | None:
        """How many cores they have used on average; None if the system does not tell."""
        now = self._seconds()
        if now is None or self._before is None:
            return None
        return (now - self._before) / (time.perf_counter() - self._start)

    def _seconds(self) -> float | None:
        """Seconds that other programs have computed since the system started, summed over all cores."""
        try:
            first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        except OSError:  # only Linux has this file
            return None
        user, nice, system, _, _, interrupts, soft = map(int, first.split()[1:8])
        mine = os.times()
        every = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
        return every - mine.user - mine.system
