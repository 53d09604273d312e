"""``wae::encode_triton`` and ``wae::decode_triton``: the kernels as ops that torch.compile can trace into.

They take the tensors of ``wae::encode`` and ``wae::decode``, check them in the same way and give the same
results. They have no gradients and no autocast; ``wae::encode`` and ``wae::decode``, which can run the same
kernels on a GPU, have both.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from wae_kernels import flops, reference
from wae_kernels.checks import check_decode, check_encode, check_memory
from wae_kernels.parameters import DecoderParameters, EncoderParameters, one_by_one, width_of
from wae_kernels.reference import empty_decoded, empty_halves

from .kernels import decode_kernel, encode_kernel
from .launch import DTYPES, INTERPRETED, Launch, has_kernel, launch_decode, launch_encode
from .plan import Tile


def _start(kernel: Any, launch: Launch, device: torch.device) -> None:
    # Triton launches on the current device, whatever the device of the arguments.
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on:
        kernel[(launch.plan.programs,)](*launch.arguments, **launch.options)


@one_by_one
def encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    *,
    op: str = "encode",
    kernel: Any = encode_kernel,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """``wae::encode`` through Triton, or through the reference if the kernels do not run such parameters.

    ``op`` is the name that error messages begin with. ``kernel`` is what is launched: tracers need a wrapped
    one. ``tile`` overrides that of the plan, for tests and for tuning.
    """
    check_encode(image, parameters, image_scale, image_shift, dtype, memory_format, op)
    own = parameters.conv1_weight.dtype
    dtype = dtype or own
    if not has_kernel(image.device, own, width_of(parameters)) or dtype not in DTYPES:
        return reference.encode(  # type: ignore[no-any-return]
            image, *parameters, image_scale, image_shift, dtype, memory_format
        )
    if image.shape[0] == 0:
        return empty_halves(image, dtype, memory_format)
    check_memory(op, "encoder", image, *parameters, image_scale, image_shift)
    launch = launch_encode(image, parameters, image_scale, image_shift, dtype, memory_format, tile=tile)
    _start(kernel, launch, image.device)
    low, high = launch.outputs
    return low, high


@one_by_one
def decode(
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    output_size: Sequence[int],
    *,
    op: str = "decode",
    kernel: Any = decode_kernel,
    tile: Tile | None = None,
) -> Tensor:
    """``wae::decode`` through Triton; see :func:`encode`."""
    check_decode(low, high, parameters, output_size, op=op)
    if not has_kernel(low.device, low.dtype, width_of(parameters)):
        return reference.decode(low, high, *parameters, output_size)  # type: ignore[no-any-return]
    if low.shape[0] == 0:
        return empty_decoded(low, output_size)
    check_memory(op, "decoder", low, high, *parameters)
    launch = launch_decode(low, high, parameters, output_size, tile=tile)
    _start(kernel, launch, low.device)
    return launch.outputs[0]


# The same as ops. torch's tracers decompose them and must see the launch, so it goes through wrap_triton.
# That costs a call half a millisecond and an entry in a table that is never emptied, so nothing else uses it.


def _encode_op(*args: Any) -> tuple[Tensor, Tensor]:
    kernel = encode_kernel if INTERPRETED else wrap_triton(encode_kernel)
    return encode(*args, op="encode_triton", kernel=kernel)  # type: ignore[no-any-return]


def _decode_op(*args: Any) -> Tensor:
    kernel = decode_kernel if INTERPRETED else wrap_triton(decode_kernel)
    return decode(*args, op="decode_triton", kernel=kernel)  # type: ignore[no-any-return]


# Fake kernels. Without them triton_op would trace the functions above, which query the device's properties.


@one_by_one
def _fake_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_encode(image, parameters, image_scale, image_shift, op="encode_triton")
    return empty_halves(image, parameters.conv1_weight.dtype)


@one_by_one
def _fake_decode(
    low: Tensor, high: Tensor, parameters: DecoderParameters, output_size: Sequence[int]
) -> Tensor:
    check_decode(low, high, parameters, output_size, op="decode_triton")
    return empty_decoded(low, output_size)


def _register() -> None:
    """Define the ops, with schemas inferred from the signatures of the fakes."""
    ops: list[tuple[str, Any, Any, Any]] = [
        ("encode", _encode_op, _fake_encode, flops.encode),
        ("decode", _decode_op, _fake_decode, flops.decode),
    ]
    for name, function, fake, formula in ops:
        function.__signature__ = inspect.signature(fake)
        op: Any = triton_op(f"wae::{name}_triton", function, mutates_args=())
        op.register_fake(fake)
        counted = getattr(torch.ops.wae, f"{name}_triton")
        register_flop_formula(counted, get_raw=True)(formula)  # raw: it already takes tensors


_register()
