"""``encode``, ``encode_int8``, ``decode``, ``decode_scores``: the documented interface of ``torch.ops.wae``.

Inside a torch.func transform (grad, jvp, jacrev, vmap, ...) and with dual numbers these functions run the
reference, whose operators every transform supports, also when they are compiled; the ops themselves have no
derivatives there and raise. ``encode_int8`` has no gradients and always calls its op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from . import reference, registration  # importing the latter registers the ops


def _as_an_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """The reference ``function``, taking tensors of several dtypes inside autocast as the op itself does.

    It casts all of them to float32, which loses nothing; autocast then casts what each layer reads.
    """

    def call(*inputs: Any) -> Any:
        # The reference refuses what is no tensor.
        device = inputs[0].device.type if isinstance(inputs[0], Tensor) else None
        if device in registration.AUTOCAST and torch.is_autocast_enabled(device):
            return function(*(reference.cast(value, torch.float32) for value in inputs))
        return function(*inputs)

    return call


def _runner(op: torch._ops.OpOverload, in_transform: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
    """A function that runs ``op`` on a sequence of inputs or, inside a transform, ``in_transform``.

    A call that records no gradients skips the autograd kernel, which is written in Python and takes a fifth
    of the call's time. It is not skipped if a mode or a tensor's ``__torch_function__`` runs inside the call,
    because that code may record gradients.
    """
    guard = torch._C._AutoDispatchBelowAutograd

    def call(inputs: Sequence[Any]) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return in_transform(*inputs)  # a transform of torch.func, or a level of dual numbers
        if torch.compiler.is_compiling():
            return op(*inputs)
        records = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        if records or has_torch_function(inputs):
            return op(*inputs)
        with guard():
            return op(*inputs)

    return call


run_encode = _runner(torch.ops.wae.encode.default, _as_an_op(reference.encode))
run_decode = _runner(torch.ops.wae.decode.default, _as_an_op(reference.decode))
_scores_by_reference = _as_an_op(reference.decode_scores)
_run_decode_scores = _runner(torch.ops.wae.decode_scores.default, _scores_by_reference)


def run_decode_scores(inputs: Sequence[Any]) -> Any:
    """As ``run_decode``, for ``decode_scores``.

    Only CPUs have a kernel of it. On other devices the reference is called directly, so that torch can fuse
    and differentiate its operators.
    """
    # No bool if torch.fx is tracing; None for what is no tensor, which the op refuses.
    is_cpu = getattr(inputs[0], "is_cpu", None)
    return _scores_by_reference(*inputs) if is_cpu is False else _run_decode_scores(inputs)


def encode(
    image: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    conv3_weight: Tensor,
    conv3_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor, Tensor]:
    """Split an image into two half-resolution images, in one fused pass (docs/network.md).

    Three 3x3 convolutions with ReLU, then two with stride 2, which give ``low`` and ``high``.

    Args:
        image: (N, 3, H, W), any strides. uint8, or the dtype of the parameters (float32, float16,
            bfloat16, float64). N may be 0; H and W at least 1.
        conv1_weight: (width, 3, 3, 3), the layout of ``torch.nn.Conv2d``; conv1_bias: (width,).
        conv2_weight, conv3_weight: (width, width, 3, 3); their biases: (width,).
            The compiled kernels need width 16; the reference runs any other width.
        low_weight, high_weight: (3, width, 3, 3); their biases: (3,).
        image_scale, image_shift: (3,) floating point, or None for 1 and 0. The image becomes
            ``image * image_scale + image_shift`` before conv1; the zero padding is added after that.
        dtype: of the results, floating point; None for that of the parameters. The results are as accurate as
            the coarser of the two dtypes allows: with float32 parameters and 16-bit results the GPU kernels
            compute as they do with 16-bit parameters.
        memory_format: of the results, contiguous or channels_last; None for that of the image.

    Returns:
        ``(low, high)``, each (N, 3, ceil(H/2), ceil(W/2)).

    Raises:
        RuntimeError: an argument does not fit; the message names it. Also on a second derivative, outside of
            torch.func.
    """
    inputs = (
        image,
        conv1_weight,
        conv1_bias,
        conv2_weight,
        conv2_bias,
        conv3_weight,
        conv3_bias,
        low_weight,
        low_bias,
        high_weight,
        high_bias,
        image_scale,
        image_shift,
        dtype,
        memory_format,
    )
    low, high = run_encode(inputs)
    return low, high


def encode_int8(
    image: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    conv3_weight: Tensor,
    conv3_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    image_padding: Tensor,
    shift: Tensor,
    multiplier: Tensor,
    scale: Tensor,
    low_zero_point: Tensor | None = None,
    high_zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`encode` in integer arithmetic: uint8 pixels and activations, int8 weights (docs/network.md).

    All backends give bit-identical results. The compiled kernel needs width 16 and a CPU with VNNI
    (:func:`wae_kernels.backends.int8_runs`); otherwise the reference runs. For inference: no gradients.

    Args:
        image: (N, 3, H, W), uint8, any strides. N may be 0; H and W at least 1.
        conv1_weight, ..., high_weight: shapes as for :func:`encode`; int8.
        conv1_bias, ..., high_bias: int32, from -2**30 to 2**30: added to the sums of products.
        image_padding: (3,), uint8: the pixel that pads the image.
        shift, multiplier: (3, width), int32 from 0 to 30 and non-negative int16: requantize the sums of
            conv1, conv2 and conv3 to bytes.
        scale: (2, 3), float32, finite: converts the sums of ``low`` and ``high`` to the results.
        low_zero_point, high_zero_point: (3,), uint8 or int8: the bytes that stand for 0 in ``low`` and in
            ``high``, by channel; None for a float32 result.

    Returns:
        ``(low, high)``, each (N, 3, ceil(H/2), ceil(W/2)), in the image's memory format and in the dtype of
        its zero point, or float32 if that is None.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    low, high = torch.ops.wae.encode_int8.default(
        image,
        conv1_weight,
        conv1_bias,
        conv2_weight,
        conv2_bias,
        conv3_weight,
        conv3_bias,
        low_weight,
        low_bias,
        high_weight,
        high_bias,
        image_padding,
        shift,
        multiplier,
        scale,
        low_zero_point,
        high_zero_point,
    )
    return low, high


def decode(
    low: Tensor,
    high: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    conv3_weight: Tensor,
    conv3_bias: Tensor,
    output_size: Sequence[int],
) -> Tensor:
    """Reconstruct an image from ``low`` and ``high``, in one fused pass (docs/network.md).

    Two stride-2 transposed convolutions whose outputs are added, and ReLU; two 3x3 convolutions with ReLU; a
    last 3x3 convolution without.

    Args:
        low, high: (N, 3, h, w) of one dtype (float32, float16, bfloat16, float64), any strides.
        low_weight, high_weight: (3, width, 3, 3), the layout of ``torch.nn.ConvTranspose2d``; their biases:
            (width,). All parameters have the dtype of ``low``. If that is float16 or bfloat16, they may also
            be float32; the GPU kernels then compute as they do with 16-bit parameters.
        conv1_weight, conv2_weight: (width, width, 3, 3); their biases: (width,).
        conv3_weight: (3, width, 3, 3); conv3_bias: (3,).
        output_size: (H, W) with ceil(H/2) = h and ceil(W/2) = w.

    Returns:
        The image, (N, 3, H, W), in the dtype and memory format of ``low``.

    Raises:
        RuntimeError: an argument does not fit; the message names it. Also on a second derivative, outside of
            torch.func.
    """
    inputs = (
        low,
        high,
        low_weight,
        low_bias,
        high_weight,
        high_bias,
        conv1_weight,
        conv1_bias,
        conv2_weight,
        conv2_bias,
        conv3_weight,
        conv3_bias,
        output_size,
    )
    image: Tensor = run_decode(inputs)
    return image


def decode_scores(
    low: Tensor,
    high: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
    output_size: Sequence[int],
) -> Tensor:
    """Upsample class scores to full resolution, guided by features, in one fused pass (docs/network.md).

    Built like :func:`decode`: two stride-2 transposed convolutions whose outputs are added, and ReLU; a 3x3
    convolution with ReLU; a last 3x3 convolution to the classes. The compiled kernels, including that of the
    gradients, run on CPUs, for width 16, up to 32 classes and up to 32 features. The reference runs the rest.

    Args:
        low: (N, classes, h, w), the scores at half the resolution, float32, float16, bfloat16 or float64, any
            strides.
        high: (N, features, h, w) of the same dtype, any strides.
        low_weight: (classes, width, 3, 3), the layout of ``torch.nn.ConvTranspose2d``; high_weight:
            (features, width, 3, 3); their biases: (width,). All parameters have the dtype of ``low``; if that
            is float16 or bfloat16, they may also be float32.
        conv1_weight: (width, width, 3, 3); conv1_bias: (width,).
        conv2_weight: (classes, width, 3, 3); conv2_bias: (classes,).
        output_size: (H, W) with ceil(H/2) = h and ceil(W/2) = w.

    Returns:
        The scores, (N, classes, H, W), in the dtype and memory format of ``low``.

    Raises:
        RuntimeError: an argument does not fit; the message names it. Also on a second derivative, outside of
            torch.func.
    """
    inputs = (
        low,
        high,
        low_weight,
        low_bias,
        high_weight,
        high_bias,
        conv1_weight,
        conv1_bias,
        conv2_weight,
        conv2_bias,
        output_size,
    )
    scores: Tensor = run_decode_scores(inputs)
    return scores
