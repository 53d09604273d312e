"""The derivatives of the ops, and the autograd kernels that call them.

``torch.library.register_autograd`` is not used, for two reasons: it silently drops the tangents of
forward-mode derivatives, so that they come out as zeros, and it takes twice as long (105 against 51 us for a
call on an 8 x 8 image with gradients). The kernels here raise in the first case and do only what is
necessary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame
from torch.autograd import forward_ad

from . import backends
from .checks import IN_16_BITS
from .parameters import EncoderParameters, one_by_one
from .reference import cast

_Gradients = tuple[Tensor | None, ...]


def _forward_backend(backend: str) -> contextlib.AbstractContextManager[None]:
    """Restores the forward pass's choice of a backend: autograd may run gradients in other threads."""
    return contextlib.nullcontext() if backend == backends.selected() else backends.restored(backend)


@one_by_one
def _encode_groups(
    image: bool, parameters: EncoderParameters, image_scale: bool, image_shift: bool
) -> tuple[bool, bool, bool]:
    """The three flags of ``wae::encode_backward``, from whether each input needs a gradient."""
    return image, any(parameters), image_scale or image_shift


def _encode_backward(inputs: Sequence[Any], needs: Sequence[bool], *given: Tensor | None) -> _Gradients:
    count = 3 + len(EncoderParameters._fields)  # tensors; dtype and memory_format follow
    *tensors, scale, shift = [*inputs, None, None][:count]  # scale and shift may be left out
    needs = _of_used(given, *[*needs, False, False][:count])
    some = next(grad for grad in given if grad is not None)
    grads = [torch.zeros_like(some) if grad is None else grad for grad in given]
    own = tensors[1].dtype  # also the image's, if it has a gradient
    compute_dtype = _compute_dtype(tensors[1], grads[0])
    *gradients, grad_scale, grad_shift = torch.ops.wae.encode_backward(
        *(grad.to(compute_dtype) for grad in grads),
        *(cast(tensor, compute_dtype) for tensor in tensors),
        *(scale, shift),
        *_encode_groups(*needs),
    )
    gradients = [cast(gradient, own) for gradient in gradients]
    return (*_only([*gradients, grad_scale, grad_shift], needs), None, None)


@one_by_one
def _of_used(
    grads: Sequence[Tensor | None],
    image: bool,
    parameters: EncoderParameters,
    image_scale: bool,
    image_shift: bool,
) -> list[bool]:
    """Which inputs need a gradient: not the layer of a result that nothing used, which has no gradient.

    A gradient of zero would not do: an optimizer applies weight decay and momentum to it.
    """
    needs: dict[str, Any] = parameters._asdict()
    for branch, grad in zip(("low", "high"), grads, strict=True):
        if grad is None:
            needs |= {f"{branch}_weight": False, f"{branch}_bias": False}
    return [image, *needs.values(), image_scale, image_shift]


def _compute_dtype(parameter: Tensor, grad: Tensor) -> torch.dtype:
    """The dtype in which ``wae::encode_backward`` computes, given that of the results' gradients.

    With float32 parameters and 16-bit results a GPU computes in 16 bits, as in the forward pass. The CPU
    kernels compute in float32 anyway.
    """
    in_16_bits = parameter.dtype == torch.float32 and grad.dtype in IN_16_BITS
    return grad.dtype if parameter.is_cuda and in_16_bits else parameter.dtype


def _decoder_backward(name: str) -> Callable[..., _Gradients]:
    """The derivative of a decoder, computed by the backward op ``name``.

    On a GPU float32 parameters are cast to the dtype of 16-bit images, because its backward kernels read one
    dtype.
    """

    def backward(inputs: Sequence[Any], needs: Sequence[bool], grad: Tensor) -> _Gradients:
        *tensors, _output_size = inputs
        low, high, *parameters = needs = needs[: len(tensors)]
        read = [cast(t, grad.dtype) for t in tensors] if grad.is_cuda else tensors
        gradients = getattr(torch.ops.wae, name)(grad, *read, low or high, any(parameters))
        gradients = [cast(g, t.dtype) for g, t in zip(gradients, tensors, strict=True)]
        return (*_only(gradients, needs), None)

    return backward


def _only(gradients: Sequence[Tensor], needs: Sequence[bool]) -> _Gradients:
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def _without(why: str) -> Callable[..., _Gradients]:
    def backward(inputs: Sequence[Any], needs: Sequence[bool], *grads: Tensor | None) -> _Gradients:
        raise RuntimeError(why)

    return backward


_BACKWARD: dict[str, Callable[..., _Gradients]] = {
    "encode": _encode_backward,
    "decode": _decoder_backward("decode_backward"),
    "decode_scores": _decoder_backward("decode_scores_backward"),
}
"""For each op a function of its inputs, of which of them need a gradient, and of the outputs' gradients.

The gradient of an output that nothing used is None, but not those of all outputs.
"""

_SECOND = "second derivatives through the fused ops are not supported. Use wae_kernels.reference"
_INFERENCE = "it is for inference. Call it under torch.no_grad()"

_NO_DERIVATIVE = {
    "encode_backward": f"{_SECOND}.encode for them.",
    "decode_backward": f"{_SECOND}.decode for them.",
    "decode_scores_backward": f"{_SECOND}.decode_scores for them.",
    "encode_int8": f"{_INFERENCE}; wae_kernels.encode has one.",
    "conv3x3_pack": f"{_INFERENCE}; torch.nn.functional.conv2d has one.",
    "conv3x3": f"{_INFERENCE}; torch.nn.functional.conv2d has one.",
}
"""Why the other ops have no derivative, and what has one."""


def register(library: torch.library.Library) -> None:
    """Register the derivatives of all ops."""
    for name, backward in _BACKWARD.items():
        why = (
            f"wae::{name} has no forward-mode derivative and none in transforms of torch.func; "
            f"wae_kernels.{name} and the modules of wae_kernels.nn have both"
        )
        library.impl(name, _kernel(name, backward, why), "Autograd", with_keyset=True)
    for name, why in _NO_DERIVATIVE.items():
        why = f"wae::{name} has no derivative: {why}"
        library.impl(name, _kernel(name, _without(why), why), "Autograd", with_keyset=True)


def _kernel(name: str, backward: Callable[..., _Gradients], no_transform: str) -> Callable[..., Any]:
    """The kernel for the dispatch key Autograd, which every call of the op goes through.

    ``no_transform`` is the error for tangents, and for gradients inside a transform of torch.func.
    """
    op = getattr(torch.ops.wae, name).default
    below = torch._C._after_autograd_keyset

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
            is_tensor = [isinstance(value, Tensor) for value in inputs]
            ctx.save_for_backward(*(v if t else None for v, t in zip(inputs, is_tensor, strict=True)))
            ctx.others = [None if t else v for v, t in zip(inputs, is_tensor, strict=True)]
            ctx.backend = backends.selected()
            ctx.set_materialize_grads(False)  # an output that nothing used has no gradient, instead of zeros
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & below, *inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            inputs = [o if t is None else t for t, o in zip(ctx.saved_tensors, ctx.others, strict=True)]
            with _forward_backend(ctx.backend):
                gradients = backward(inputs, ctx.needs_input_grad[1:], *grads)
            return (None, *gradients[: len(inputs)])

    named: Any = type(f"wae_{name}", (Function,), {})  # the class's name at creation is what grad_fn shows

    def kernel(keyset: Any, *inputs: Any) -> Any:
        if forward_ad._current_level >= 0 and _has_tangents(inputs):
            raise RuntimeError(no_transform)
        if torch._C.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(no_transform)
            return named.apply(keyset, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & below, *inputs)

    _hide_from_dynamo(kernel)
    return kernel


def _hide_from_dynamo(function: Callable[..., Any]) -> None:
    """Keep torch.compile from compiling ``function`` and what it calls.

    It would do so when the op is called by a function that it failed to compile, below one that it did
    compile. Torch skips its own kernels by a list of files. ``torch.compiler.disable`` is not used because it
    would import the compiler and take time in every call.
    """
    never = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    eval_frame.set_code_exec_strategy(function.__code__, never)


def _has_tangents(inputs: Sequence[Any]) -> bool:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
