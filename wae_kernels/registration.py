"""Everything torch wants to know about the ops besides their kernels.

Fake kernels (shapes for ``torch.compile`` and ``torch.export``), autograd and autocast. The schemas and the
processor's kernels come from the compiled library (``csrc/ops.cpp``), the kernels of every other device from
``fallback.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends, fallback, reference
from .checks import (
    check_conv3x3,
    check_conv3x3_pack,
    check_decode,
    check_decode_backward,
    check_encode,
    check_encode_backward,
    half_size,
    packed_shape,
)
from .parameters import DecoderParameters, EncoderParameters, one_by_one

_library = torch.library.Library("wae", "FRAGMENT")


# -------------------------------------------------------------------------------------------------- fakes


def _empty(
    like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _gradients(wanted: bool, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape if wanted else 0) for t in tensors]


@one_by_one
def _fake_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_encode(image, parameters, image_scale, image_shift)
    shape = (image.shape[0], 3, *half_size(image))
    memory_format = reference.format_of(image)
    dtype = parameters.conv1_weight.dtype
    return _empty(image, shape, dtype, memory_format), _empty(image, shape, dtype, memory_format)


@one_by_one
def _fake_decode(
    low: Tensor, high: Tensor, parameters: DecoderParameters, output_size: Sequence[int]
) -> Tensor:
    check_decode(low, high, parameters, output_size)
    return _empty(low, (low.shape[0], 3, *output_size), low.dtype, reference.format_of(low))


@one_by_one
def _fake_encode_backward(
    grad_low: Tensor,
    grad_high: Tensor,
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
    need_image: bool,
    need_parameters: bool,
    need_scale: bool,
) -> tuple[Tensor, ...]:
    check_encode_backward(grad_low, grad_high, image, parameters, image_scale, image_shift)
    like = parameters.conv1_weight
    if need_image and image.is_floating_point():
        grad_image = _empty(image, tuple(image.shape), image.dtype, reference.format_of(image))
    else:
        grad_image = like.new_empty(0)
    affine = [
        like.new_empty(0) if t is None else t.new_empty(t.shape if need_scale else 0)
        for t in (image_scale, image_shift)
    ]
    return (grad_image, *_gradients(need_parameters, parameters), *affine)


@one_by_one
def _fake_decode_backward(
    grad_image: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    check_decode_backward(grad_image, low, high, parameters)
    if need_input:
        memory_format = reference.format_of(low)
        inputs = [_empty(low, tuple(low.shape), low.dtype, memory_format) for _ in range(2)]
    else:
        inputs = [low.new_empty(0) for _ in range(2)]
    return (*inputs, *_gradients(need_parameters, parameters))


def _fake_conv3x3_pack(weight: Tensor) -> Tensor:
    check_conv3x3_pack(weight)
    return weight.new_empty(packed_shape(*weight.shape[:2]))


def _fake_conv3x3(
    input: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int, relu: bool = False
) -> Tensor:
    check_conv3x3(input, packed, bias, out_channels)
    shape = (input.shape[0], out_channels, *input.shape[2:])
    return _empty(input, shape, input.dtype, torch.channels_last)


# ----------------------------------------------------------------------------------------------- autograd


def _as_forward(ctx: Any) -> contextlib.AbstractContextManager[None]:
    """The forward pass's choice of a backend. Gradients on a GPU run in threads of autograd's own."""
    same = ctx.backend == backends.selected()
    return contextlib.nullcontext() if same else backends.restored(ctx.backend)


def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.backend = backends.selected()


@one_by_one
def _encode_groups(
    image: bool, parameters: EncoderParameters, image_scale: bool, image_shift: bool
) -> tuple[bool, bool, bool]:
    """The three flags of ``wae::encode_backward``, from what each input needs."""
    return image, any(parameters), image_scale or image_shift


def _encode_autograd(ctx: Any, grad_low: Tensor, grad_high: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # all inputs, those left out as None
    needs = [*ctx.needs_input_grad, False, False][: len(saved)]  # which does not count those left out
    with _as_forward(ctx):
        gradients = torch.ops.wae.encode_backward(grad_low, grad_high, *saved, *_encode_groups(*needs))
    return _only(gradients, needs)


def _save_decode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, _output_size = inputs
    ctx.save_for_backward(*tensors)
    ctx.backend = backends.selected()


@one_by_one
def _decode_groups(low: bool, high: bool, parameters: DecoderParameters) -> tuple[bool, bool]:
    """The two flags of ``wae::decode_backward``, from what each input needs."""
    return low or high, any(parameters)


def _decode_autograd(ctx: Any, grad_image: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    needs = ctx.needs_input_grad[: len(saved)]
    with _as_forward(ctx):
        gradients = torch.ops.wae.decode_backward(grad_image, *saved, *_decode_groups(*needs))
    return (*_only(gradients, needs), None)  # output_size has none


def _only(gradients: tuple[Tensor, ...], needs: Any) -> tuple[Tensor | None, ...]:
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def _no_derivative(name: str, why: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"wae::{name} has no derivative: {why}")

    return backward


# ----------------------------------------------------------------------------------------------- autocast


def _register_autocast(name: str, device_type: str) -> None:
    """Inside ``torch.autocast`` the op runs in autocast's dtype, as a convolution does.

    Scale and shift stay as they are: the kernels apply them in float32 at least, whatever the image is.
    ``torch.library.register_autocast`` fixes the dtype when it is called; a user may choose another.
    """
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    op = getattr(torch.ops.wae, name).default
    names = [argument.name for argument in op._schema.arguments]

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)

        def cast(argument: str, value: Any) -> Any:
            casts = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if casts and argument not in ("image_scale", "image_shift") else value

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*map(cast, names, args), **{k: cast(k, v) for k, v in kwargs.items()})

    _library.impl(name, kernel, key.name, with_keyset=True)


def _register() -> None:
    fallback.define(_library)
    _library.define("_tf32_allowed() -> bool")  # which the CUDA kernels ask
    _library.impl("_tf32_allowed", backends.tf32_allowed, "CompositeExplicitAutograd")
    fakes: dict[str, Callable[..., Any]] = {
        "encode": _fake_encode,
        "decode": _fake_decode,
        "encode_backward": _fake_encode_backward,
        "decode_backward": _fake_decode_backward,
        "conv3x3_pack": _fake_conv3x3_pack,
        "conv3x3": _fake_conv3x3,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"wae::{name}", fake, lib=_library)
        torch.library.register_fake(f"wae::_{name}_reference", fake, lib=_library)
    second = "second derivatives through the fused encoder and decoder are not supported. Use "
    inference = "it is for inference. Call it under torch.no_grad(); torch.nn.functional.conv2d has one."
    underived = {
        "encode_backward": f"{second}wae_kernels.reference.encode for them.",
        "decode_backward": f"{second}wae_kernels.reference.decode for them.",
        "conv3x3_pack": inference,
        "conv3x3": inference,
    }
    for name, why in underived.items():
        torch.library.register_autograd(f"wae::{name}", _no_derivative(name, why), lib=_library)
    autograd: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "encode": (_encode_autograd, _save_encode),
        "decode": (_decode_autograd, _save_decode),
    }
    for name, (backward, save) in autograd.items():
        torch.library.register_autograd(f"wae::{name}", backward, setup_context=save, lib=_library)
        for device_type in ("cpu", "cuda"):
            _register_autocast(name, device_type)


_register()
