"""Tuning on request: time all candidate tiles on one call, and store the fastest for later calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton

from wae_kernels.parameters import DecoderParameters, EncoderParameters, Parameters, one_by_one, width_of

from . import launch, ops, stored
from .plan import Tile


@one_by_one
def _encode_subject(
    image: Any,
    parameters: EncoderParameters,
    image_scale: Any = None,
    image_shift: Any = None,
    dtype: torch.dtype | None = None,
    memory_format: Any = None,
) -> tuple[Any, Parameters, torch.dtype]:
    """The full-resolution shape, the parameters and the dtype of the results of a call of ``wae::encode``."""
    return image.shape, parameters, dtype or parameters.conv1_weight.dtype


@one_by_one
def _decode_subject(
    low: Any, high: Any, parameters: DecoderParameters, output_size: Any
) -> tuple[Any, Parameters, torch.dtype]:
    return (low.shape[0], 3, *output_size), parameters, low.dtype


_OPS = {"encode": (ops.encode, _encode_subject), "decode": (ops.decode, _decode_subject)}


def tune(op: str, *args: Any, measure: Callable[[Callable[[], object]], float] | None = None) -> Tile:
    """Time every candidate on one call of ``wae::encode`` or ``wae::decode``; store and return the fastest.

    This compiles all candidates, which takes minutes. From then on every process uses the stored tile for
    launches of that op with the same precision, on a device of the same name, for images whose sizes round up
    to the same powers of two.

    Args:
        op: "encode" or "decode".
        args: the op's arguments, with at least one image.
        measure: takes a function without arguments and returns its time; by default Triton's ``do_bench``.

    Raises:
        ValueError: ``op`` is neither, or there is nothing to tune: no image, or no kernel for these
            parameters and results.
    """
    if op not in _OPS:
        raise ValueError(f"op must be encode or decode, got {op!r}")
    function, subject = _OPS[op]
    function(*args)  # checks them
    shape, parameters, results = subject(*args)
    weight, width = parameters.conv1_weight, width_of(parameters)
    has_kernel = launch.has_kernel(weight.device, weight.dtype, width) and results in launch.DTYPES
    if shape[0] == 0 or not has_kernel:
        raise ValueError(
            f"tune needs at least one image, and parameters and results that {op} has a kernel for; got "
            f"{shape[0]} images, {weight.dtype} parameters of width {width} on {weight.device}, and results "
            f"in {results}"
        )
    time = measure or triton.testing.do_bench
    precision = launch.precision_of(launch.compute_dtype(weight.dtype, results))
    with torch.cuda.device_of(weight):  # do_bench times the current device
        best = min(
            stored.candidates(precision), key=lambda tile: time(functools.partial(function, *args, tile=tile))
        )
    stored.store(stored.key(op, launch.device_of(weight.device), precision, shape), best)
    return best
