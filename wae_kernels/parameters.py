"""The tensors of an encoder or a decoder as one named tuple.

The ops take these tensors as separate arguments, because a schema has no structures. :func:`one_by_one`
converts between the two, so that no other function has to count arguments.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

KERNEL_WIDTH = 16
"""The number of trunk channels that the compiled kernels are written for: that of the paper."""

KERNEL_CHANNELS = 32
"""The largest number of classes, and of features, that the compiled kernel of ``decode_scores`` takes."""


class EncoderParameters(NamedTuple):
    """An encoder's tensors, in the order of ``wae::encode``. docs/network.md has the layers."""

    conv1_weight: Tensor
    conv1_bias: Tensor
    conv2_weight: Tensor
    conv2_bias: Tensor
    conv3_weight: Tensor
    conv3_bias: Tensor
    low_weight: Tensor
    low_bias: Tensor
    high_weight: Tensor
    high_bias: Tensor

    @property
    def trunk(self) -> tuple[Tensor, ...]:
        """Weight, bias, weight, ... of the layers with ReLU."""
        return (
            *(self.conv1_weight, self.conv1_bias),
            *(self.conv2_weight, self.conv2_bias),
            *(self.conv3_weight, self.conv3_bias),
        )


class DecoderParameters(NamedTuple):
    """A decoder's tensors, in the order of ``wae::decode``. docs/network.md has the layers."""

    low_weight: Tensor
    low_bias: Tensor
    high_weight: Tensor
    high_bias: Tensor
    conv1_weight: Tensor
    conv1_bias: Tensor
    conv2_weight: Tensor
    conv2_bias: Tensor
    conv3_weight: Tensor
    conv3_bias: Tensor

    @property
    def trunk(self) -> tuple[Tensor, ...]:
        """Weight, bias, weight, ... of the layers with ReLU that follow the transposed ones."""
        return (self.conv1_weight, self.conv1_bias, self.conv2_weight, self.conv2_bias)

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the last layer, which has no ReLU."""
        return self.conv3_weight, self.conv3_bias


class ScoreDecoderParameters(NamedTuple):
    """A score decoder's tensors, in the order of ``wae::decode_scores``. docs/network.md has the layers."""

    low_weight: Tensor
    low_bias: Tensor
    high_weight: Tensor
    high_bias: Tensor
    conv1_weight: Tensor
    conv1_bias: Tensor
    conv2_weight: Tensor
    conv2_bias: Tensor

    @property
    def trunk(self) -> tuple[Tensor, ...]:
        """As :attr:`DecoderParameters.trunk`."""
        return (self.conv1_weight, self.conv1_bias)

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """As :attr:`DecoderParameters.last`."""
        return self.conv2_weight, self.conv2_bias


Parameters = EncoderParameters | DecoderParameters


def width_of(parameters: Parameters) -> int:
    """The number of trunk channels; 0 if ``conv1_weight`` has no dimensions."""
    weight = parameters.conv1_weight
    return weight.shape[0] if weight.dim() > 0 else 0


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its argument ``parameters`` replaced by the tensors in it, as in the op's schema.

    The tensors have the names and the order of the fields of the argument's type, also in the signature.
    """
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    kind = hints["parameters"]
    names = list(signature.parameters)
    at, count = names.index("parameters"), len(kind._fields)

    @functools.wraps(function)
    def flat(*args: Any, **kwargs: Any) -> Any:
        named = {name: kwargs.pop(name) for name in kind._fields if name in kwargs} if kwargs else {}
        if named and len(args) < at:  # arguments before the tensors are named, too
            args = (*args, *(kwargs.pop(name) for name in names[len(args) : at]))
        parameters = kind(*args[at : at + count], **named)
        return function(*args[:at], parameters, *args[at + count :], **kwargs)

    tensors = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor)
        for name in kind._fields
    ]
    own = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own[:at], *tensors, *own[at + 1 :]], return_annotation=hints.get("return", Any)
    )
    return flat
