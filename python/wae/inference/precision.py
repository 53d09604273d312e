"""The precisions a network can compute in: their names, which a CPU supports, and their tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The floating-point precisions. "int8", the other one, needs scales from calibration."""

NAMES = (*DTYPES, "int8")
"""All precisions."""

IMAGES = {"uint8": torch.uint8, **DTYPES}
"""The dtypes of images that a deployed network takes, by name: those of the ops, so not float8."""

_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith", "asimdhp"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "asimddp", "i8mm"),
}
"""The instruction sets that compute in each precision, by the names of torch and of Linux; one is enough."""

_CPUINFO = Path("/proc/cpuinfo")
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TF32_TOLERANCE = 2e-3  # 10 bits of mantissa, as float16 has, but the range of float32
_MANTISSAS = {"none": torch.float32, "ieee": torch.float32, "bf16": torch.bfloat16}


def name_of(dtype: torch.dtype) -> str:
    """The precision that computes in ``dtype``."""
    return str(dtype).removeprefix("torch.")


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative difference, in the norm, that scores computed in ``dtype`` may have.

    For float32 it depends on the formats that torch's settings for convolutions and matrix products allow on
    ``device`` (docs/network.md).
    """
    if dtype != torch.float32:
        return _TOLERANCES[dtype]
    allowed = _allowed(device)
    exact = max(_TOLERANCES[_MANTISSAS.get(setting, dtype)] for setting in allowed)
    return max(exact, _TF32_TOLERANCE) if "tf32" in allowed else exact


def _allowed(device: torch.device) -> set[str]:
    """torch's settings of the formats to which convolutions and matrix products may round float32."""
    backends: Any = torch.backends
    if device.type == "cuda":
        return {backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision}
    return {backends.mkldnn.conv.fp32_precision, backends.mkldnn.matmul.fp32_precision}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype whose tolerance is that of ``precision``.

    For int8 it is bfloat16, because another order of summation moves some values to the next of 256 numbers.
    """
    return DTYPES.get(precision, torch.bfloat16)


def native(precision: str, device: torch.device) -> bool:
    """Whether ``device`` has instructions for ``precision``, so that it need not be emulated."""
    wanted = _INSTRUCTIONS.get(precision)
    if device.type != "cpu" or wanted is None:
        return True
    capabilities = _capabilities()
    return any(capabilities.get(name, False) for name in wanted)


def _capabilities() -> Mapping[str, Any]:
    """The CPU's instruction sets, by the names of torch or, if that is too old (2.10), of Linux."""
    if hasattr(torch.cpu, "get_capabilities"):
        known: Mapping[str, Any] = torch.cpu.get_capabilities()
        return known
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return {}
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return dict.fromkeys(next(flags, ()), True)
