"""Registers with torch what the ops need besides their kernels: fake kernels and autocast.

Fake kernels tell ``torch.compile`` and ``torch.export`` the shapes of the results. Autograd is in
``autograd.py``. The schemas and the CPU kernels come from the compiled library (``csrc/ops.cpp`` and
``csrc/cpu/ops*.cpp``); ``fallback.py`` registers what runs on devices without compiled kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import autograd, backends, fallback, reference
from .checks import (
    check_conv3x3,
    check_conv3x3_pack,
    check_decode,
    check_decode_backward,
    check_decode_scores,
    check_decode_scores_backward,
    check_encode,
    check_encode_backward,
    check_encode_int8,
    packed_shape,
)
from .parameters import (
    KERNEL_CHANNELS,
    KERNEL_WIDTH,
    DecoderParameters,
    EncoderParameters,
    ScoreDecoderParameters,
    one_by_one,
)
from .reference import cast

_library = torch.library.Library("wae", "FRAGMENT")


# -------------------------------------------------------------------------------------------------- fakes


def _gradients(wanted: bool, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape if wanted else 0) for t in tensors]


@one_by_one
def _fake_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor, Tensor]:
    check_encode(image, parameters, image_scale, image_shift, dtype, memory_format)
    return reference.empty_halves(image, dtype or parameters.conv1_weight.dtype, memory_format)


@one_by_one
def _fake_decode(
    low: Tensor, high: Tensor, parameters: DecoderParameters, output_size: Sequence[int]
) -> Tensor:
    check_decode(low, high, parameters, output_size)
    return reference.empty_decoded(low, output_size)


@one_by_one
def _fake_decode_scores(
    low: Tensor, high: Tensor, parameters: ScoreDecoderParameters, output_size: Sequence[int]
) -> Tensor:
    check_decode_scores(low, high, parameters, output_size)
    return reference.empty_decoded(low, output_size)


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
        grad_image = torch.empty_like(image, memory_format=reference.format_of(image))
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
    return (*_halves(need_input, low, high), *_gradients(need_parameters, parameters))


@one_by_one
def _fake_decode_scores_backward(
    grad_scores: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: ScoreDecoderParameters,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    check_decode_scores_backward(grad_scores, low, high, parameters)
    return (*_halves(need_input, low, high), *_gradients(need_parameters, parameters))


def _halves(wanted: bool, low: Tensor, high: Tensor) -> list[Tensor]:
    if not wanted:
        return [low.new_empty(0) for _ in range(2)]
    return [torch.empty_like(t, memory_format=reference.format_of(low)) for t in (low, high)]


@one_by_one
def _fake_encode_int8(
    image: Tensor,
    parameters: EncoderParameters,
    image_padding: Tensor,
    shift: Tensor,
    multiplier: Tensor,
    scale: Tensor,
    low_zero_point: Tensor | None = None,
    high_zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    zero_points = low_zero_point, high_zero_point
    check_encode_int8(image, parameters, image_padding, shift, multiplier, scale, *zero_points)
    halves = reference.empty_halves(image, torch.float32)
    low, high = (x if zero is None else x.to(zero.dtype) for x, zero in zip(halves, zero_points, strict=True))
    return low, high


def _fake_conv3x3_pack(weight: Tensor) -> Tensor:
    check_conv3x3_pack(weight)
    return weight.new_empty(packed_shape(*weight.shape[:2]))


def _fake_conv3x3(
    input: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int, relu: bool = False
) -> Tensor:
    check_conv3x3(input, packed, bias, out_channels)
    shape = (input.shape[0], out_channels, *input.shape[2:])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------- autocast

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""The device types on which ``torch.autocast`` applies to torch's convolutions."""


def _register_autocast(name: str, device_type: str, dtype: torch.dtype | None = None) -> None:
    """Register the op's autocast kernel: its results have ``dtype`` or, by default, autocast's dtype.

    The kernel casts the op's tensors to that dtype. If the kernel below reads float32 (``_reads_float32``),
    it casts only a decoder's ``low`` and ``high``, which determine the dtype of the result, or instead of
    both the result. It never casts scale and shift, because kernels apply them in float32 or wider.

    ``torch.library.register_autocast`` is not used: it fixes the dtype at registration, but a user may choose
    autocast's dtype later.
    """
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    op = getattr(torch.ops.wae, name).default
    names = [argument.name for argument in op._schema.arguments]
    weight_at = next(i for i, name in enumerate(names) if name in ("conv1_weight", "weight", "packed"))
    dtype_at = names.index("dtype") if "dtype" in names else None  # an op with it casts its results itself
    kinds = {"low": "part", "high": "part", "image_scale": "affine", "image_shift": "affine"}
    kind_at = [kinds.get(name, "other") for name in names]
    within = torch._C.DispatchKeySet(key)

    def kernel(keyset: Any, *args: Any) -> Any:
        wanted = dtype or torch.get_autocast_dtype(device_type)
        in_float32 = dtype is None and _reads_float32(name, args[weight_at], args[:2])
        compute_dtype = torch.float32 if in_float32 else wanted
        # On a CPU one cast of a decoder's result takes less time than two, of low and of high.
        stay = in_float32 and args[0].is_cpu and args[0].dtype == args[1].dtype == torch.float32
        dtypes = {"part": compute_dtype if stay else wanted, "other": compute_dtype}
        inputs = [
            a if kind == "affine" else cast(a, dtypes[kind]) for a, kind in zip(args, kind_at, strict=False)
        ]
        if dtype_at is not None:
            inputs += [None] * (dtype_at + 1 - len(inputs))  # arguments that the caller left out
            if inputs[dtype_at] is None and inputs[weight_at].dtype != torch.float64:
                inputs[dtype_at] = wanted
        with torch._C._ExcludeDispatchKeyGuard(within):
            outputs = op(*inputs)
            return cast(outputs, wanted) if stay and dtype_at is None else outputs

    _library.impl(name, kernel, key.name, with_keyset=True)


def _reads_float32(op: str, weight: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether ``op`` runs a kernel that takes float32 parameters as they are inside autocast.

    The CPU kernels compute in float32 whatever they are given, and the GPU kernels of ``encode`` and
    ``decode`` round what they read. Casting ten parameters would take most of a small call's time, and cached
    casts would miss writes through ``.data``, as torch's own autocast cache does.

    Args:
        op: the name of the op.
        weight: the weight of conv1.
        inputs: the op's first two arguments. The kernel of ``decode_scores`` takes up to KERNEL_CHANNELS of
            their channels; those of the other ops have fewer.
    """
    return (
        weight.dtype == torch.float32
        and weight.shape[:1] == (KERNEL_WIDTH,)
        and all(x.shape[1:2] <= (KERNEL_CHANNELS,) for x in inputs)
        and (weight.is_cpu or op in ("encode", "decode"))
        and backends.kernels_run(on_processor=weight.is_cpu)
    )


def _register() -> None:
    fallback.define(_library)
    fakes: dict[str, Callable[..., Any]] = {
        "encode": _fake_encode,
        "decode": _fake_decode,
        "decode_scores": _fake_decode_scores,
        "encode_backward": _fake_encode_backward,
        "decode_backward": _fake_decode_backward,
        "decode_scores_backward": _fake_decode_scores_backward,
        "encode_int8": _fake_encode_int8,
        "conv3x3_pack": _fake_conv3x3_pack,
        "conv3x3": _fake_conv3x3,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"wae::{name}", fake, lib=_library)
    autograd.register(_library)
    for name, device_type in product(("encode", "decode", "decode_scores"), AUTOCAST):
        _register_autocast(name, device_type)
    for name, device_type in product(("conv3x3_pack", "conv3x3"), AUTOCAST):
        _register_autocast(name, device_type, torch.float32)  # the only dtype of these ops


_register()
