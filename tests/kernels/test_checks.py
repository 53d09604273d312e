"""The rules for arguments. test_bad_input.py tests that every way to call an op applies them alike."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, OPS, RESULT_OPTIONS, affine, arguments_of, decoder, encoder, image_of, names_of
from torch._subclasses.fake_tensor import FakeTensorMode

from wae_kernels import nn as wae_nn
from wae_kernels.checks import (
    DECODER_SHAPES,
    ENCODER_SHAPES,
    FLOATING,
    IN_16_BITS,
    SCORE_DECODER_SHAPES,
    TABLES,
    TRUNK_WIDTH,
    check_decode,
    check_decode_backward,
    check_encode,
    check_encode_backward,
    packed_shape,
)
from wae_kernels.parameters import DecoderParameters, EncoderParameters


def test_shape_tables_have_the_order_of_the_schemas() -> None:
    tables_of_ops = {
        "encode": ENCODER_SHAPES,
        "decode": DECODER_SHAPES,
        "decode_scores": SCORE_DECODER_SHAPES,
    }
    for op, shapes in tables_of_ops.items():
        for schema in (op, f"{op}_backward"):
            arguments = [a.name for a in getattr(torch.ops.wae, schema).default._schema.arguments]
            first = arguments.index(next(iter(shapes)))
            assert arguments[first : first + len(shapes)] == list(shapes)


def test_rules_cover_all_arguments_of_the_schemas() -> None:
    """Every argument has a row in the op's tables, except for flags and the options of results."""
    tables_of_ops = {
        "encode": ["encoder"],
        "encode_backward": ["encode_backward", "encoder"],
        "decode": ["decoder", "decode"],
        "decode_backward": ["decode_backward", "decoder"],
        "decode_scores": ["score_decoder", "decode"],
        "decode_scores_backward": ["decode_scores_backward", "score_decoder"],
        "encode_int8": ["encode_int8"],
        "conv3x3_pack": ["conv3x3_pack"],
        "conv3x3": ["conv3x3"],
    }
    assert {table for tables in tables_of_ops.values() for table in tables} == set(TABLES)
    for op, tables in tables_of_ops.items():
        schema = getattr(torch.ops.wae, op).default._schema.arguments
        rows = [row.name for table in tables for row in TABLES[table]]
        expected = (a.name for a in schema if str(a.type) != "bool" and a.name not in RESULT_OPTIONS)
        assert sorted(rows) == sorted(expected)


def test_packed_weight_has_the_shape_of_its_rule() -> None:
    weight = torch.randn(20, 5, 3, 3)
    packed = torch.ops.wae.conv3x3_pack(weight)
    assert packed_shape(20, 5) == packed.shape
    (row,) = (row for row in TABLES["conv3x3"] if row.name == "packed")
    assert row.sizes[2] == packed.shape[2]


@pytest.mark.parametrize("width", [1, 8, 16])
def test_shape_tables_agree_with_the_modules(width: int) -> None:
    tables = {wae_nn.Encoder: ENCODER_SHAPES, wae_nn.Decoder: DECODER_SHAPES}
    for module, shapes in tables.items():
        state = {k.replace(".", "_"): tuple(v.shape) for k, v in module(width).state_dict().items()}
        wanted = {
            k: tuple(width if size == TRUNK_WIDTH else size for size in shape) for k, shape in shapes.items()
        }
        assert state == wanted
    decoder = wae_nn.ScoreDecoder(5, 7, width)
    sizes = {TRUNK_WIDTH: width, "classes": 5, "features": 7}
    assert {k.replace(".", "_"): tuple(v.shape) for k, v in decoder.state_dict().items()} == {
        k: tuple(sizes.get(size, size) for size in shape) for k, shape in SCORE_DECODER_SHAPES.items()
    }


def test_multiply_adds_of_the_published_encoder() -> None:
    """docs/network.md: 263.7 million for an image of 224 x 224."""
    sizes = [
        tuple(16 if s == TRUNK_WIDTH else s for s in shape)
        for shape in ENCODER_SHAPES.values()
        if len(shape) == 4
    ]
    pixels = [224 * 224] * 3 + [112 * 112] * 2
    total = sum(n * torch.Size(size).numel() for n, size in zip(pixels, sizes, strict=True))
    assert round(total / 1e6, 1) == 263.7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_valid_arguments_are_accepted(batch: int, dtype: torch.dtype) -> None:
    assert dtype in FLOATING
    for height, width in ((1, 1), (2, 1), (7, 10)):
        low = image_of(batch, (height + 1) // 2, (width + 1) // 2, dtype)
        image, scale_shift = image_of(batch, height, width, dtype), affine(torch.float64)
        parameters = EncoderParameters(*encoder(dtype))
        check_encode(image, parameters, *scale_shift)
        check_encode(image.byte(), parameters, None, scale_shift[1])
        check_encode_backward(low, low, image, parameters, None, None)
        check_decode(low, low, DecoderParameters(*decoder(dtype)), (height, width))
        check_decode_backward(image, low, low, DecoderParameters(*decoder(dtype)))
        if dtype in IN_16_BITS:
            check_decode(low, low, DecoderParameters(*decoder()), (height, width))
            check_decode_backward(image, low, low, DecoderParameters(*decoder()))


def test_tensors_on_two_gpus_are_refused() -> None:
    with FakeTensorMode():
        image = torch.empty(1, 3, 4, 4, device="cuda:0")
        parameters = EncoderParameters(*(torch.empty(p.shape, device="cuda:1") for p in encoder()))
        with pytest.raises(RuntimeError, match="conv1_weight must be on image's device cuda:0, got cuda:1"):
            check_encode(image, parameters, None, None)


def test_message_starts_with_the_op() -> None:
    for op in ("encode", "encode_backward"):
        with pytest.raises(
            RuntimeError,
            match=rf"^wae::{op}: image must have shape \(batch, 3, .*\), got \(1, 1, 4, 4\)$",
        ):
            check_encode(torch.zeros(1, 1, 4, 4), EncoderParameters(*encoder()), None, None, op=op)


@pytest.mark.parametrize("op", OPS)
def test_arguments_may_be_named(op: str) -> None:
    named = dict(zip(names_of(op), arguments_of(op), strict=True))
    positional = getattr(torch.ops.wae, op)(*named.values())
    for a, b in zip(positional, getattr(torch.ops.wae, op)(**named), strict=True):
        assert torch.equal(a, b)
