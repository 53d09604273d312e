"""The host side of a launch: makes a kernel's arguments and outputs from an op's checked arguments."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from wae_kernels.backends import tf32_allowed
from wae_kernels.parameters import DecoderParameters, EncoderParameters, Parameters
from wae_kernels.reference import empty_decoded, empty_halves

from . import stored
from .plan import CHANNELS, Device, Plan, Tile, plan

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether the kernels run in Triton's interpreter on the CPU: TRITON_INTERPRET=1 when this was imported."""

THREAD_REGISTERS = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 256
"""Triton before 3.8 gives a thread up to 255 registers, and may spill up to 64 bytes on top of that."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernels run parameters of this device, dtype and width; the reference runs the others."""
    return dtype in DTYPES and width == CHANNELS and device.type == ("cpu" if INTERPRETED else "cuda")


@functools.cache
def device_of(device: torch.device) -> Device:
    """What a plan needs to know of ``device``; for the interpreter, a device that two programs fill."""
    if device.type != "cuda":
        return Device("interpreter", 80, 2, 1 << 17, 1 << 20, THREAD_REGISTERS)
    p = torch.cuda.get_device_properties(device)
    capability, shared = 10 * p.major + p.minor, p.shared_memory_per_multiprocessor
    return Device(p.name, capability, p.multi_processor_count, shared, p.L2_cache_size, THREAD_REGISTERS)


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel: its outputs, plan, arguments in order, and compile-time arguments by name."""

    outputs: tuple[Tensor, ...]
    plan: Plan
    arguments: list[Any]
    options: dict[str, Any]


def compute_dtype(own: torch.dtype, results: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels compute, for parameters of dtype ``own``.

    If the results have 16 bits, as inside autocast, the kernels read float32 parameters and compute in 16
    bits: casting ten parameters would take ten launches.
    """
    return results if own == torch.float32 else own


def precision_of(dtype: torch.dtype) -> str:
    """How products are computed: "half" in 16 bits; "tf32" if torch's convolutions may; else "ieee"."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if torch.version.hip is None and tf32_allowed() else "ieee"


def _dense(parameters: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """The parameters, dense in one of two layouts, and whether that layout is channels_last.

    Nothing is copied if all are contiguous, or if all convolution weights are channels_last, as
    ``Module.to(memory_format=...)`` makes them. Otherwise those in another layout are copied.
    """
    convolutions = [p for p in parameters if p.dim() == 4]
    channels_last = all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dense = [p.contiguous(memory_format=layout) if p.dim() == 4 else p.contiguous() for p in parameters]
    return dense, channels_last


def _launch(
    op: str,
    inputs: Sequence[Tensor],
    parameters: Parameters,
    affine: Sequence[Tensor | None],
    outputs: tuple[Tensor, ...],
    shape: Sequence[int],
    device: Device | None,
    tile: Tile | None,
) -> Launch:
    dense, channels_last = _dense(parameters)
    like = dense[0]
    device = device or device_of(like.device)
    computed = compute_dtype(like.dtype, outputs[0].dtype)
    precision = precision_of(computed)
    tile = tile or stored.choice(op, device, precision, shape)
    chosen = plan(shape[0], shape[2], shape[3], precision, device, [tile] if tile else ())
    slab = like.new_empty(chosen.slab_elements, dtype=computed)
    strides = [stride for tensor in (*inputs, outputs[0]) for stride in tensor.stride()]
    options = {
        "HALF_ROWS": chosen.tile.half_rows,
        "PITCH": chosen.tile.pitch,
        "GROUP": chosen.tile.group,
        "SLAB": chosen.tile.slab,
        "TRUNK": chosen.tile.trunk,
        "CHANNELS_LAST": channels_last,
        "TF32": precision == "tf32",
        "num_warps": chosen.tile.warps,
        "num_stages": chosen.tile.stages,
    }
    tiling = (chosen.tiles, chosen.tiles_down, chosen.tiles_across)
    arguments = [*inputs, *dense, *affine, *outputs, slab, *shape[2:], *tiling, *strides]
    return Launch(outputs, chosen, arguments, options)


def launch_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    device: Device | None = None,
    tile: Tile | None = None,
) -> Launch:
    """The launch of ``encode_kernel`` for checked arguments with at least one image.

    ``tile`` overrides the tile that :func:`wae_kernels.triton.tune` stored and those of the short list;
    ``device`` overrides that of the arguments. Both are for tests and for tuning.
    """
    affine = [None if t is None else t.contiguous() for t in (image_scale, image_shift)]
    return _launch(
        "encode",
        [image],
        parameters,
        affine,
        empty_halves(image, dtype or parameters.conv1_weight.dtype, memory_format),
        image.shape,
        device,
        tile,
    )


def launch_decode(
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    output_size: Sequence[int],
    device: Device | None = None,
    tile: Tile | None = None,
) -> Launch:
    """The launch of ``decode_kernel``; see :func:`launch_encode`."""
    out = empty_decoded(low, output_size)
    return _launch("decode", [low, high], parameters, [], (out,), out.shape, device, tile)
