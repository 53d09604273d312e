"""``encode``, ``encode_int8``, ``decode``, ``decode_scores``: the documented face of ``torch.ops.wae``.

Inside a torch.func transform (grad, jvp, jacrev, vmap, ...) and with dual numbers they run the
reference, which every transform understands. The ops themselves raise there. (``encode_int8``, which has no
gradients, is its op everywhere.)
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
    """A reference that takes tensors of several dtypes inside autocast, as the op in whose place it runs.

    All become float32, which loses nothing; autocast casts what the layers compute with.
    """

    def call(*inputs: Any) -> Any:
        device = inputs[0].device.type
        if device in registration.AUTOCAST and torch.is_autocast_enabled(device):
            return function(*(reference.cast(value, torch.float32) for value in inputs))
        return function(*inputs)

    return call


def _runner(op: torch._ops.OpOverload, in_transform: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
    """A function that takes the inputs of ``op`` and runs it, or what takes its place in a transform.

    A call that records nothing goes around autograd's kernel, which is Python: that is a fifth of its time.
    Not so where others' code runs inside the call (a mode, a tensor's ``__torch_function__``): it may record.
    """

    peek, guard = torch._C._functorch.peek_interpreter_stack, torch._C._AutoDispatchBelowAutograd

    def call(inputs: Sequence[Any]) -> Any:
        if torch.compiler.is_compiling():  # it takes the op, always, and leaves a transform to Python
            return op(*inputs)
        if peek() is not None or forward_ad._current_level >= 0:
            return in_transform(*inputs)  # of torch.func, or a level of dual numbers
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
    """The same for ``decode_scores``.

    Only processors have a kernel: elsewhere torch fuses and differentiates the reference's operators itself.
    """
    low = inputs[0]  # if torch.fx only traces it, it is on no device
    return _scores_by_reference(*inputs) if low.is_cpu is False else _run_decode_scores(inputs)


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
    """Split an image into two half-resolution images, in one pass (docs/network.md).

    Three 3x3 convolutions with ReLU, then two with stride 2: one gives ``low``, one ``high``.

    Args:
        image: (N, 3, H, W), any strides. uint8, or the dtype of the parameters (float32, float16,
            bfloat16, float64). N may be 0; H and W at least 1.
        conv1_weight: (width, 3, 3, 3), laid out as ``torch.nn.Conv2d`` does; conv1_bias: (width,).
        conv2_weight, conv3_weight: (width, width, 3, 3); their biases: (width,).
            Width 16 has the compiled kernels, any other runs the reference.
        low_weight, high_weight: (3, width, 3, 3); their biases: (3,).
        image_scale, image_shift: (3,) floating point, or None for 1 and 0. The image becomes
            ``image * image_scale + image_shift`` before conv1; the zero padding is added after that.
        dtype: of the results, floating point; None for the parameters'. They are as accurate as the coarser
            of the two dtypes allows: with float32 parameters and results of 16 bits a GPU's kernels compute
            as they do with parameters of 16 bits.
        memory_format: of the results, contiguous or channels_last; None for the image's.

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
    """:func:`encode` in integers: bytes for pixels and activations, int8 for weights (docs/network.md).

    Every result is exact to the bit, on any backend. The compiled kernel needs width 16 and a processor with
    VNNI (:func:`wae_kernels.backends.int8_runs`); without, the reference runs. For inference: no gradients.

    Args:
        image: (N, 3, H, W), uint8, any strides. N may be 0; H and W at least 1.
        conv1_weight, ..., high_weight: shapes as for :func:`encode`; int8.
        conv1_bias, ..., high_bias: int32, from -2**30 to 2**30: added to the sums of products.
        image_padding: (3,), uint8: the pixel around the image.
        shift, multiplier: (3, width), int32 from 0 to 30 and int16 from 0: take the sums of conv1, conv2 and
            conv3 to bytes.
        scale: (2, 3), float32, finite: takes the sums of ``low`` and ``high`` to the results.
        low_zero_point, high_zero_point: (3,), uint8 or int8: the bytes that stand for 0 in ``low`` and in
            ``high``, by channel; None for a result in float32.

    Returns:
        ``(low, high)``, each (N, 3, ceil(H/2), ceil(W/2)), in the image's memory format and in the dtype of
        its zero point, or float32 where that is None.

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
    """Put an image back together from ``low`` and ``high``, in one pass (docs/network.md).

    Two stride-2 transposed convolutions, summed, with ReLU; two 3x3 convolutions with ReLU; a last one
    without.

    Args:
        low, high: (N, 3, h, w) of one dtype (float32, float16, bfloat16, float64), any strides.
        low_weight, high_weight: (3, width, 3, 3), laid out as ``torch.nn.ConvTranspose2d`` does; their
            biases: (width,). All parameters have the dtype of ``low``; beside float16 and bfloat16 they may
            be float32, where a GPU's kernels compute as they do with parameters of 16 bits.
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
    """Bring class scores to full resolution with the help of features, in one pass (docs/network.md).

    The form of :func:`decode`: two stride-2 transposed convolutions, summed, with ReLU; a 3x3 convolution
    with ReLU; a last one to the classes. The compiled kernels, of gradients too, run on processors, for up to
    32 classes and features and width 16. The reference runs for anything else.

    Args:
        low: (N, classes, h, w), the scores at half the resolution, float32, float16, bfloat16 or float64, any
            strides.
        high: (N, features, h, w) of the same dtype, any strides.
        low_weight: (classes, width, 3, 3), laid out as ``torch.nn.ConvTranspose2d`` does; high_weight:
            (features, width, 3, 3); their biases: (width,). All parameters have the dtype of ``low``; beside
            float16 and bfloat16 they may be float32.
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
