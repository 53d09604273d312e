"""Runs the kernels of csrc/cuda on the CPU: their PTX, their launch plans, tensors of any layout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ptx_machine
import torch
from torch import Tensor

from wae_kernels.reference import format_of

from . import load

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = ("--expt-relaxed-constexpr",)

DTYPE = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "bfloat16_plain": torch.bfloat16,
}
"""Modes of the kernels, and the dtype of their parameters and outputs."""
LIMIT = {"float16": 2e-3, "bfloat16": 1.5e-2, "tf32": 1e-3, "float32": 1e-6, "bfloat16_plain": 1.5e-2}
"""docs/network.md."""


@dataclass(frozen=True)
class Chip:
    """What a launch plan is made for. Two multiprocessors: few blocks, several tiles for each."""

    capability: int = 80
    multiprocessors: int = 2


@functools.cache
def kernel(op: str, mode: str, capability: int) -> Any:
    """The compiled kernel, translated for the CPU."""
    text = ptx_machine.compile_cuda(ROOT / f"csrc/cuda/{op}.cu", capability, [ROOT / "csrc"], options=OPTIONS)
    number = int(getattr(load().Mode, mode))
    return ptx_machine.load(text)[f"{op}_kernelILNS0_4ModeE{number}"]


def _view(memory: ptx_machine.Memory, tensor: Tensor, name: str) -> tuple[int, list[int], list[int]]:
    padding = 4 - tensor.dim()
    return (
        memory.address_of(tensor, name),
        [*tensor.shape, *[1] * padding],
        [*tensor.stride(), *[1] * padding],
    )


def _output(like: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    empty: Tensor = ptx_machine.poisoned((like.shape[0], 3, height, width), dtype)
    return empty.contiguous(memory_format=format_of(like))


def _triple(memory: ptx_machine.Memory, tensor: Tensor | None, name: str) -> tuple[int, int, Any]:
    types = load().NumberType
    if tensor is None:
        return 0, 0, types.none
    return (
        memory.address_of(tensor, name),
        tensor.stride(0),
        getattr(types, str(tensor.dtype).removeprefix("torch.")),
    )


def _launch(
    op: str, mode: str, chip: Chip, plan: Any, params: bytes, memory: ptx_machine.Memory, seed: int
) -> ptx_machine.Counts:
    launchable = kernel(op, mode, chip.capability)
    return launchable.launch(
        plan.grid, plan.block, [params], shared_bytes=plan.shared_bytes, memory=memory, seed=seed
    )


def encode(
    mode: str,
    image: Tensor,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    chip: Chip = Chip(),
    seed: int = 0,
) -> tuple[Tensor, Tensor, ptx_machine.Counts]:
    """low, high and what the launch did."""
    bindings, memory = load(), ptx_machine.Memory()
    height, width = (image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2
    plan = bindings.plan(
        "encode", getattr(bindings.Mode, mode), len(image), height, width, chip.multiprocessors
    )
    low, high = (_output(image, height, width, parameters[0].dtype) for _ in range(2))
    params = bindings.encode_parameters(
        _view(memory, image, "image"),
        image.dtype == torch.uint8,
        _view(memory, low, "low"),
        _view(memory, high, "high"),
        [_view(memory, p, f"parameter {i}") for i, p in enumerate(parameters)],
        parameters[0].element_size(),
        _triple(memory, scale, "scale"),
        _triple(memory, shift, "shift"),
        plan,
    )
    return low, high, _launch("encode", mode, chip, plan, params, memory, seed)


def decode(
    mode: str,
    low: Tensor,
    high: Tensor,
    parameters: Sequence[Tensor],
    size: Sequence[int],
    *,
    chip: Chip = Chip(),
    seed: int = 0,
) -> tuple[Tensor, ptx_machine.Counts]:
    """The image and what the launch did."""
    bindings, memory = load(), ptx_machine.Memory()
    plan = bindings.plan(
        "decode", getattr(bindings.Mode, mode), len(low), *low.shape[2:], chip.multiprocessors
    )
    image = _output(low, size[0], size[1], low.dtype)
    params = bindings.decode_parameters(
        _view(memory, low, "low"),
        _view(memory, high, "high"),
        _view(memory, image, "image"),
        [_view(memory, p, f"parameter {i}") for i, p in enumerate(parameters)],
        low.element_size(),
        plan,
    )
    return image, _launch("decode", mode, chip, plan, params, memory, seed)
