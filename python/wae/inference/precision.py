"""The numbers that a network computes with: their names, what a processor can, and how exact they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The floating-point precisions. Beside them there is "int8", whose scales come from calibration."""

NAMES = (*DTYPES, "int8")

_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "arm_fp16", "fp16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "i8mm"),
}
"""By precision, the processor's instructions that compute in it, of which one is enough."""

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TF32_TOLERANCE = 2e-3  # 10 bits of mantissa, as float16 has, but float32's range
_MANTISSAS = {"none": torch.float32, "ieee": torch.float32, "bf16": torch.bfloat16}


def name_of(dtype: torch.dtype) -> str:
    """The precision that computes in ``dtype``."""
    return str(dtype).removeprefix("torch.")


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """How far scores computed in ``dtype`` may be from the model's, relative, in the norm.

    float32 is what torch's settings for convolutions and matrix products allow there (docs/network.md).
    """
    if dtype != torch.float32:
        return _TOLERANCES[dtype]
    allowed = _allowed(device)
    exact = max(_TOLERANCES[_MANTISSAS.get(setting, dtype)] for setting in allowed)
    return max(exact, _TF32_TOLERANCE) if "tf32" in allowed else exact


def _allowed(device: torch.device) -> set[str]:
    """The formats to which float32 may be rounded, in convolutions and in matrix products."""
    backends: Any = torch.backends
    if device.type == "cuda":
        return {backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision}
    return {backends.mkldnn.conv.fp32_precision, backends.mkldnn.matmul.fp32_precision}


def native(precision: str, device: torch.device) -> bool:
    """Whether ``device`` has instructions for ``precision``, and does not emulate it with others."""
    wanted = _INSTRUCTIONS.get(precision)
    if device.type != "cpu" or wanted is None:
        return True
    capabilities = _capabilities()
    return any(capabilities.get(name, False) for name in wanted)


def _capabilities() -> Mapping[str, Any]:
    """The processor's sets of instructions."""
    if hasattr(torch.cpu, "get_capabilities"):
        known: Mapping[str, Any] = torch.cpu.get_capabilities()
        return known
    return {  # torch 2.10
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
        "avx512_vnni": torch.cpu._is_vnni_supported(),
    }
