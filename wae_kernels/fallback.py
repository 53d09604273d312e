"""Runs the ops without a compiled kernel: by the Triton kernels where they run, else by the reference.

The compiled kernels pass on to ``wae::_<op>_reference`` what they do not run: float64, widths other than 16,
more than 32 classes or features, and everything while another backend is selected. The same function is the
op's own kernel on every device that has no compiled one.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _load, backends, reference
from .parameters import DecoderParameters, EncoderParameters, one_by_one, width_of


def _triton_runs(like: Tensor, parameters: EncoderParameters | DecoderParameters) -> bool:
    dtype = parameters.conv1_weight.dtype
    return backends.backend_for(like.device, dtype, width_of(parameters)) == "triton"


@one_by_one
def encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> Any:
    """``wae::encode`` without a compiled kernel."""
    function = reference.encode
    if _triton_runs(image, parameters):
        from . import triton

        function = triton.encode
    return function(image, *parameters, image_scale, image_shift, dtype, memory_format)


@one_by_one
def decode(low: Tensor, high: Tensor, parameters: DecoderParameters, output_size: Sequence[int]) -> Any:
    """``wae::decode`` without a compiled kernel."""
    function = reference.decode
    if _triton_runs(low, parameters):
        from . import triton

        function = triton.decode
    return function(low, high, *parameters, output_size)


def _without_autocast(gradients: Callable[..., Any]) -> Callable[..., Any]:
    """``gradients`` with autocast disabled, as torch's own gradients run."""

    @functools.wraps(gradients)
    def computed(*args: Any) -> Any:
        with torch._C._DisableAutocast():
            return gradients(*args)

    return computed


KERNELS: dict[str, Callable[..., Any]] = {
    "encode": encode,
    "decode": decode,
    "decode_scores": reference.decode_scores,
    "encode_backward": _without_autocast(reference.encode_backward),
    "decode_backward": _without_autocast(reference.decode_backward),
    "decode_scores_backward": _without_autocast(reference.decode_scores_backward),
    "encode_int8": reference.encode_int8,
    "conv3x3_pack": reference.conv3x3_pack,
    "conv3x3": reference.conv3x3,
}


def _warn_first(function: Callable[..., Any], pending: list[str]) -> Callable[..., Any]:
    """``function``; the first call of any function with the same ``pending`` reports the message in it."""

    def warned(*args: Any, **kwargs: Any) -> Any:
        if pending:
            with contextlib.suppress(IndexError):  # another thread may have reported it by now
                warnings.warn(pending.pop(), RuntimeWarning, stacklevel=3)
        return function(*args, **kwargs)

    return warned


def define(library: torch.library.Library) -> None:
    """Define ``wae::_<op>_reference`` for every op, and register it for devices without a compiled kernel.

    If the compiled library is missing, define the ops themselves too; the first call warns of it.
    """
    missing = _load.CPU.library is None
    why = (
        f"wae_kernels runs on plain PyTorch operators: the compiled library is missing, because "
        f"{_load.CPU.why_not}. `wae info` tells more."
    )
    pending = [why]
    for schema in _load.schemas():
        name = schema.partition("(")[0]
        if missing:
            library.define(schema)
        kernel = KERNELS[name]
        library.define(f"_{name}_reference{schema[len(name) :]}")
        library.impl(f"_{name}_reference", kernel, "CompositeExplicitAutograd")
        library.impl(name, _warn_first(kernel, pending) if missing else kernel, "CompositeExplicitAutograd")
