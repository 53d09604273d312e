"""Everything torch wants to know about the ops besides their kernels.

Fake kernels (shapes for ``torch.compile`` and ``torch.export``), autograd, autocast, and the reference
implementation as the kernel of every device that has no better one. The schemas and the processor's
kernels come from the compiled library (``csrc/ops.cpp``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _load, backends, reference
from .checks import (
    DECODER_SHAPES,
    ENCODER_SHAPES,
    check_conv3x3,
    check_conv3x3_pack,
    check_decode,
    check_decode_backward,
    check_encode,
    check_encode_backward,
    packed_shape,
)

_N_PARAMETERS = len(ENCODER_SHAPES)
assert len(DECODER_SHAPES) == _N_PARAMETERS

_library = torch.library.Library("wae", "FRAGMENT")

_REFERENCE: dict[str, Callable[..., Any]] = {
    "encode": reference.encode,
    "decode": reference.decode,
    "encode_backward": reference.encode_backward,
    "decode_backward": reference.decode_backward,
    "conv3x3_pack": reference.conv3x3_pack,
    "conv3x3": reference.conv3x3,
}
_CONV1_WEIGHT = {
    "encode": list(ENCODER_SHAPES).index("conv1_weight"),
    "decode": list(DECODER_SHAPES).index("conv1_weight") + 1,
}
"""Where it is among the arguments after the first."""


# ---------------------------------------------------------------------------------- schemas and fallback


def _warn_once(why: str) -> Callable[[], None]:
    pending = [why]

    def warn() -> None:
        if pending:
            warnings.warn(
                f"wae_kernels runs on plain PyTorch operators: the compiled library is missing, because "
                f"{pending.pop()}. `wae info` tells more.",
                RuntimeWarning,
                stacklevel=3,
            )

    return warn


def _define_reference() -> None:
    """Define ``wae::_<op>_reference`` for every op, and make it the op's kernel where there is no other.

    The compiled kernels hand over to ``_<op>_reference`` what they have no fast path for (float64,
    widths other than 16), and everything while another backend is selected. On a GPU that may be Triton.
    """
    warn = _warn_once(_load.CPU.why_not) if _load.CPU.library is None else (lambda: None)
    for schema in _load.schemas():
        name = schema.partition("(")[0]
        if _load.CPU.library is None:
            _library.define(schema)
        _library.define(f"_{name}_reference{schema[len(name) :]}")

        def fallback(*args: Any, function: Callable[..., Any] = _REFERENCE[name], **kwargs: Any) -> Any:
            warn()
            return function(*args, **kwargs)

        _library.impl(name, _on_gpu_triton(name, fallback), "CompositeExplicitAutograd")
        _library.impl(
            f"_{name}_reference", _on_gpu_triton(name, _REFERENCE[name]), "CompositeExplicitAutograd"
        )


def _on_gpu_triton(name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The op ``name`` through Triton where that is to run it (and is then imported), else ``otherwise``."""
    if name not in _CONV1_WEIGHT:
        return otherwise

    def function(image: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = args[_CONV1_WEIGHT[name]]
        width = weight.shape[0] if weight.dim() > 0 else 0
        if backends.backend_for(image.device, weight.dtype, width) == "triton":
            from . import triton

            return getattr(triton, name)(image, *args, **kwargs)
        return otherwise(image, *args, **kwargs)

    return function


def tf32_allowed() -> bool:
    """Whether convolutions of float32 may round to tf32, as torch's own setting has it."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set at run time
    return bool(convolutions.fp32_precision == "tf32")


def _define_tf32_allowed() -> None:
    """``wae::_tf32_allowed``, which the CUDA kernels ask."""
    _library.define("_tf32_allowed() -> bool")
    _library.impl("_tf32_allowed", tf32_allowed, "CompositeExplicitAutograd")


# -------------------------------------------------------------------------------------------------- fakes


def _empty(
    like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _gradients(wanted: bool, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.new_empty(t.shape if wanted else 0) for t in tensors]


def _fake_encode(image: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    parameters, scale, shift = args[:_N_PARAMETERS], *_optional(args[_N_PARAMETERS:])
    check_encode(image, parameters, scale, shift)
    shape = (image.shape[0], 3, (image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2)
    memory_format = reference.format_of(image)
    dtype = parameters[0].dtype
    return _empty(image, shape, dtype, memory_format), _empty(image, shape, dtype, memory_format)


def _optional(rest: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
    """image_scale and image_shift from the end of an argument list that may leave them out."""
    return (rest[0] if rest else None, rest[1] if len(rest) > 1 else None)


def _fake_decode(low: Tensor, high: Tensor, *args: Any) -> Tensor:
    parameters, output_size = args[:_N_PARAMETERS], args[_N_PARAMETERS]
    check_decode(low, high, parameters, output_size)
    return _empty(low, (low.shape[0], 3, *output_size), low.dtype, reference.format_of(low))


def _fake_encode_backward(
    grad_low: Tensor, grad_high: Tensor, image: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    parameters = args[:_N_PARAMETERS]
    scale, shift, need_image, need_parameters, need_scale = args[_N_PARAMETERS:]
    check_encode_backward(grad_low, grad_high, image, parameters, scale, shift)
    like = parameters[0]
    if need_image and image.is_floating_point():
        grad_image = _empty(image, tuple(image.shape), image.dtype, reference.format_of(image))
    else:
        grad_image = like.new_empty(0)
    affine = [
        like.new_empty(0) if t is None else t.new_empty(t.shape if need_scale else 0) for t in (scale, shift)
    ]
    return (grad_image, *_gradients(need_parameters, parameters), *affine)


def _fake_decode_backward(grad_image: Tensor, low: Tensor, high: Tensor, *args: Any) -> tuple[Tensor, ...]:
    parameters = args[:_N_PARAMETERS]
    need_input, need_parameters = args[_N_PARAMETERS:]
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


def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    scale, shift = _optional(inputs[1 + _N_PARAMETERS :])
    ctx.save_for_backward(*inputs[: 1 + _N_PARAMETERS], scale, shift)
    ctx.n_inputs = len(inputs)


def _encode_autograd(ctx: Any, grad_low: Tensor, grad_high: Tensor) -> tuple[Tensor | None, ...]:
    needs = [*ctx.needs_input_grad, False, False][: 3 + _N_PARAMETERS]
    groups = (needs[0], any(needs[1 : 1 + _N_PARAMETERS]), any(needs[1 + _N_PARAMETERS :]))
    gradients = torch.ops.wae.encode_backward(grad_low, grad_high, *ctx.saved_tensors, *groups)
    return _only(gradients, needs)[: ctx.n_inputs]


def _save_decode(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: 2 + _N_PARAMETERS])


def _decode_autograd(ctx: Any, grad_image: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[: 2 + _N_PARAMETERS]
    groups = (any(needs[:2]), any(needs[2:]))
    gradients = torch.ops.wae.decode_backward(grad_image, *ctx.saved_tensors, *groups)
    return (*_only(gradients, needs), None)


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
    _define_reference()
    _define_tf32_allowed()
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
