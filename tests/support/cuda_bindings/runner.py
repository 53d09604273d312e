"""Runs the PTX of the kernels of csrc/cuda on the CPU, with their launch plans and tensors of any layout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chips
import ptx_machine
import pytest
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
"""The dtype of parameters and outputs by the kernel's mode."""
LIMIT = {"float16": 2e-3, "bfloat16": 1.5e-2, "tf32": 1e-3, "float32": 1e-6, "bfloat16_plain": 1.5e-2}
"""The tolerances of docs/network.md, by mode."""


@dataclass(frozen=True)
class Chip:
    """The chip for which launches are planned. With two multiprocessors, each block has several tiles."""

    capability: int = 80
    multiprocessors: int = 2


def require_nvcc() -> None:
    """Skip the test module that calls this if there is no nvcc."""
    try:
        ptx_machine.find_nvcc()
    except ptx_machine.CompilerMissing as missing:
        pytest.skip(str(missing), allow_module_level=True)


@functools.cache
def kernel(op: str, mode: str, capability: int) -> Any:
    """The compiled kernel, translated for the CPU. With an empty mode, the only kernel of its file."""
    text = ptx_machine.compile_cuda(ROOT / f"csrc/cuda/{op}.cu", capability, [ROOT / "csrc"], options=OPTIONS)
    return ptx_machine.load(text)[f"{op}_kernelILNS0_4ModeE{int(getattr(load().Mode, mode))}" if mode else op]


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


def _channel_vector(memory: ptx_machine.Memory, tensor: Tensor | None, name: str) -> tuple[int, int, Any]:
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
    dtype: torch.dtype | None = None,
    chip: Chip = Chip(),
    seed: int = 0,
) -> tuple[Tensor, Tensor, ptx_machine.Counts]:
    """low and high, by default in the parameters' dtype, and the counts of the launch."""
    bindings, memory = load(), ptx_machine.Memory()
    height, width = (image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2
    plan = bindings.plan(
        "encode", getattr(bindings.Mode, mode), len(image), height, width, chip.multiprocessors
    )
    low, high = (_output(image, height, width, dtype or parameters[0].dtype) for _ in range(2))
    params = bindings.encode_parameters(
        _view(memory, image, "image"),
        image.dtype == torch.uint8,
        _view(memory, low, "low"),
        _view(memory, high, "high"),
        [_view(memory, p, f"parameter {i}") for i, p in enumerate(parameters)],
        parameters[0].element_size(),
        _channel_vector(memory, scale, "scale"),
        _channel_vector(memory, shift, "shift"),
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
    """The image and the counts of the launch."""
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
        parameters[0].element_size(),
        plan,
    )
    return image, _launch("decode", mode, chip, plan, params, memory, seed)


# --------------------------------------------------------------------------------------------------- backward


@dataclass(frozen=True)
class Backward:
    """The results of a backward kernel and the reduction, as the op returns them; None if not requested."""

    inputs: list[Tensor | None]
    parameters: list[Tensor | None]
    scale: Tensor | None
    shift: Tensor | None
    counts: ptx_machine.Counts


def _backward(
    op: str,
    mode: str,
    full: Tensor,
    halves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    scale: Tensor | None,
    shift: Tensor | None,
    needs: tuple[bool, bool, bool],
    chip: Chip,
    seed: int,
    shared_limit: int | None,
) -> Backward:
    bindings, memory = load(), ptx_machine.Memory()
    which, (need_input, need_parameters, need_scale) = getattr(bindings.Mode, mode), needs
    limit = 1024 * chips.OF_BLOCK[chip.capability] if shared_limit is None else shared_limit
    size = len(full), *halves[0].shape[2:], chip.multiprocessors
    layout = bindings.backward_layout(op, which, chip.capability, limit, *size)
    assert layout.bytes <= limit
    plan = bindings.backward_plan(layout, *size, 1)
    nothing = (0, [0] * 4, [0] * 4)
    gradients = [_output(x, *x.shape[2:], parameters[0].dtype) if need_input else None for x in inputs]
    views = [nothing if g is None else _view(memory, g, f"gradient {i}") for i, g in enumerate(gradients)]
    views = [views[0], nothing, nothing] if op == "encode" else [nothing, *views]
    partials = ptx_machine.poisoned((bindings.partials_of_grid(op, plan.grid),), torch.float32)
    params = bindings.backward_parameters(
        op,
        _view(memory, full, "full"),
        full.dtype == torch.uint8,
        *(_view(memory, x, name) for x, name in zip(halves, ("low", "high"), strict=True)),
        [_view(memory, p, f"parameter {i}") for i, p in enumerate(parameters)],
        parameters[0].element_size(),
        plan,
        layout,
        *views,
        _channel_vector(memory, scale, "scale"),
        _channel_vector(memory, shift, "shift"),
        memory.address_of(partials, "partials"),
        need_input,
        need_parameters,
        need_scale,
    )
    counts = _launch(f"{op}_backward", mode, chip, plan, params, memory, seed)

    types = bindings.NumberType
    wanted = [*([need_parameters] * 10), need_scale and scale is not None, need_scale and shift is not None]
    results = [
        ptx_machine.poisoned(like.shape, like.dtype) if want and like is not None else None
        for want, like in zip(wanted, [*parameters, scale, shift], strict=True)
    ]
    if any(want is not None for want in results):
        memory = ptx_machine.Memory()
        params = bindings.reduce_parameters(
            op,
            memory.address_of(partials, "partials"),
            plan.grid,
            [
                (0, types.none)
                if r is None
                else (
                    memory.address_of(r, f"result {i}"),
                    getattr(types, str(r.dtype).removeprefix("torch.")),
                )
                for i, r in enumerate(results)
            ],
        )
        grid = -(-bindings.partial_floats(op) // bindings.REDUCE_COLUMNS)
        kernel("reduce", "", chip.capability).launch(
            grid, bindings.REDUCE_THREADS, [params], memory=memory, seed=seed
        )
    return Backward(gradients, results[:10], *results[10:], counts)


def encode_backward(
    mode: str,
    grad_low: Tensor,
    grad_high: Tensor,
    image: Tensor,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    needs: tuple[bool, bool, bool] = (True, True, True),
    chip: Chip = Chip(),
    seed: int = 0,
    shared_limit: int | None = None,
) -> Backward:
    """``needs`` says which gradients to compute: of the image, of the parameters, of scale and shift.

    ``shared_limit`` in bytes forces narrow tiles.
    """
    return _backward(
        "encode", mode, image, [grad_low, grad_high], [image], parameters, scale, shift, needs, chip, seed,
        shared_limit,
    )  # fmt: skip


def decode_backward(
    mode: str,
    grad_image: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: Sequence[Tensor],
    *,
    needs: tuple[bool, bool] = (True, True),
    chip: Chip = Chip(),
    seed: int = 0,
    shared_limit: int | None = None,
) -> Backward:
    """``needs`` says which gradients to compute: of low and high, of the parameters."""
    return _backward(
        "decode", mode, grad_image, [low, high], [low, high], parameters, None, None, (*needs, False), chip,
        seed, shared_limit,
    )  # fmt: skip
