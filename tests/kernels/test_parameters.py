"""Parameters of an op as one value, and as the op's separate arguments."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import OPS, decoder, encoder
from torch import Tensor

from wae_kernels import nn, reference
from wae_kernels.parameters import (
    DecoderParameters,
    EncoderParameters,
    ScoreDecoderParameters,
    one_by_one,
    width_of,
)


def test_fields_have_the_order_of_the_schemas() -> None:
    kinds = {
        "encode": EncoderParameters,
        "decode": DecoderParameters,
        "decode_scores": ScoreDecoderParameters,
    }
    for op, kind in kinds.items():
        for schema in (op, f"{op}_backward"):
            names = [a.name for a in getattr(torch.ops.wae, schema).default._schema.arguments]
            first = names.index(kind._fields[0])
            assert tuple(names[first : first + len(kind._fields)]) == kind._fields


def test_trunk_is_the_consecutive_layers_of_the_module() -> None:
    kinds = {
        EncoderParameters: (nn.Encoder(), ("conv1", "conv2", "conv3")),
        DecoderParameters: (nn.Decoder(), ("conv1", "conv2")),
        ScoreDecoderParameters: (nn.ScoreDecoder(5, 7), ("conv1",)),
    }
    for kind, (module, names) in kinds.items():
        parameters = kind(**{name.replace(".", "_"): tensor for name, tensor in module.named_parameters()})
        tensors = [t for name in names for t in module.get_submodule(name).parameters()]
        assert all(a is b for a, b in zip(parameters.trunk, tensors, strict=True))
    for module, last in ((nn.Decoder(), "conv3"), (nn.ScoreDecoder(5, 7), "conv2")):
        kind = DecoderParameters if last == "conv3" else ScoreDecoderParameters
        parameters = kind(**{name.replace(".", "_"): tensor for name, tensor in module.named_parameters()})
        layer = module.get_submodule(last)
        assert parameters.last[0] is layer.weight
        assert parameters.last[1] is layer.bias


@pytest.mark.parametrize("width", [1, 16])
def test_width(width: int) -> None:
    assert width_of(EncoderParameters(*encoder(width=width))) == width
    assert width_of(DecoderParameters(*decoder(width=width))) == width
    assert width_of(EncoderParameters(torch.tensor(1.0), *encoder()[1:])) == 0


@one_by_one
def example(image: Tensor, parameters: EncoderParameters, scale: int = 1, *, bias: bool = False) -> object:
    """An example."""
    return image, parameters, scale, bias


def test_parameters_may_be_positional_or_named() -> None:
    tensors = encoder()
    image, parameters = torch.zeros(1), EncoderParameters(*tensors)
    named = dict(zip(EncoderParameters._fields, tensors, strict=True))
    calls = [
        example(image, *tensors, 2, bias=True),
        example(image, *tensors, scale=2, bias=True),
        example(image, *tensors[:4], **dict(list(named.items())[4:]), scale=2, bias=True),
        example(image=image, **named, scale=2, bias=True),
    ]
    for got in calls:
        assert got[0] is image
        assert all(a is b for a, b in zip(got[1], parameters, strict=True))
        assert got[2:] == (2, True)


def test_missing_parameter_is_an_error() -> None:
    with pytest.raises(TypeError, match="high_bias"):
        example(torch.zeros(1), *encoder()[:9])


def test_signature_names_the_parameters() -> None:
    names = list(inspect.signature(example).parameters)
    assert names == ["image", *EncoderParameters._fields, "scale", "bias"]
    for op in OPS:
        schema = [a.name for a in getattr(torch.ops.wae, op).default._schema.arguments]
        assert list(inspect.signature(getattr(reference, op)).parameters) == schema
