"""``wae::encode_triton`` and ``wae::decode_triton``: the kernels as ops that torch.compile sees through.

They take the arguments of ``wae::encode`` and ``wae::decode``, check them alike and give the same results.
They are forward passes and nothing else. ``wae::encode`` and ``wae::decode``, which run the same kernels on a
GPU, are what has gradients and autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from wae_kernels import _load, reference
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES, check_decode, check_encode

from .kernels import decode_kernel, encode_kernel
from .launch import INTERPRETED, halves, has_kernel, launch_decode, launch_encode, picture
from .plan import Tile

_CONV1 = list(DECODER_SHAPES).index("conv1_weight")


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the arguments'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _split_encode(args: Sequence[Any]) -> tuple[Sequence[Tensor], Tensor | None, Tensor | None]:
    """The parameters, image_scale and image_shift, out of what follows the image."""
    scale, shift = (*args[len(ENCODER_SHAPES) :], None, None)[:2]
    return args[: len(ENCODER_SHAPES)], scale, shift


def encode(image: Tensor, *args: Any, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """``wae::encode`` through Triton; through the reference where the kernels do not run such parameters.

    ``tile`` overrides the plan's, for tests and for tuning.
    """
    parameters, scale, shift = _split_encode(args)
    check_encode(image, parameters, scale, shift, op="encode_triton")
    if not has_kernel(image.device, parameters[0].dtype, parameters[0].shape[0]):
        return reference.encode(image, *args)
    if image.shape[0] == 0:
        return halves(image, parameters[0])
    launch = launch_encode(image, parameters, scale, shift, tile=tile)
    kernel = encode_kernel if INTERPRETED else wrap_triton(encode_kernel)
    with _on(image.device):
        kernel[(launch.plan.programs,)](*launch.arguments, **launch.options)
    low, high = launch.outputs
    return low, high


def decode(low: Tensor, high: Tensor, *args: Any, tile: Tile | None = None) -> Tensor:
    """``wae::decode``, as :func:`encode` is ``wae::encode``."""
    *parameters, output_size = args
    check_decode(low, high, parameters, output_size, op="decode_triton")
    if not has_kernel(low.device, low.dtype, parameters[_CONV1].shape[0]):
        return reference.decode(low, high, *args)
    if low.shape[0] == 0:
        return picture(low, output_size)
    launch = launch_decode(low, high, parameters, output_size, tile=tile)
    kernel = decode_kernel if INTERPRETED else wrap_triton(decode_kernel)
    with _on(low.device):
        kernel[(launch.plan.programs,)](*launch.arguments, **launch.options)
    return launch.outputs[0]


# Without these, triton_op would trace the functions above, which ask the device for its properties.


def _fake_encode(image: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    parameters, scale, shift = _split_encode(args)
    check_encode(image, parameters, scale, shift, op="encode_triton")
    return halves(image, parameters[0])


def _fake_decode(low: Tensor, high: Tensor, *args: Any) -> Tensor:
    *parameters, output_size = args
    check_decode(low, high, parameters, output_size, op="decode_triton")
    return picture(low, output_size)


def _register() -> None:
    """Define the ops, with the schemas of ``wae::encode`` and ``wae::decode``."""
    schemas = {name: rest for name, _, rest in (s.partition("(") for s in _load.schemas())}
    for name, function, fake in (("encode", encode, _fake_encode), ("decode", decode, _fake_decode)):
        op: Any = triton_op(f"wae::{name}_triton", function, mutates_args=(), schema=f"({schemas[name]}")
        op.register_fake(fake)


_register()
