"""Arguments that do not fit: one exception that says which, what it got and what it needs.

The rules stand twice, in csrc/common/checks.h for the compiled kernels and in wae_kernels/checks.py for the
reference and the fake kernels. Every case here goes all ways and must be refused in the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OPS, Cell, arguments_of, as_tuple
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Change = Callable[[Any], Any]
HEIGHT, WIDTH = 13, 18


def names_of(op: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.wae, op).default._schema.arguments]


def arguments(op: str, **changes: Change) -> list[Any]:
    """Arguments that fit, some of them changed."""
    named = dict(zip(names_of(op), arguments_of(op, size=(HEIGHT, WIDTH)), strict=True))
    return list({**named, **{name: change(named[name]) for name, change in changes.items()}}.values())


# ------------------------------------------------------------------------------------------- ways to call


def kernel(op: str, values: list[Any]) -> Any:
    return getattr(torch.ops.wae, op)(*values)


def by_reference(op: str, values: list[Any]) -> Any:
    return getattr(torch.ops.wae, f"_{op}_reference")(*values)


def fake(op: str, values: list[Any]) -> Any:
    with FakeTensorMode() as mode:
        return kernel(op, [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in values])


def meta(op: str, values: list[Any]) -> Any:
    return kernel(op, [v.to("meta") if isinstance(v, Tensor) else v for v in values])


def outcome(way: Callable[[str, list[Any]], Any], op: str, values: list[Any]) -> str | list[torch.Size]:
    """The first line of the refusal, or the shapes of what was computed."""
    try:
        return [out.shape for out in as_tuple(way(op, values))]
    except RuntimeError as error:
        return str(error).partition("\n")[0]


def check(op: str, changes: dict[str, Change], message: str, *ways: Callable[[str, list[Any]], Any]) -> None:
    for way in ways:
        assert outcome(way, op, arguments(op, **changes)) == f"wae::{op}: {message}", way.__name__


# -------------------------------------------------------------------------------------- changes to a tensor


def to(dtype: torch.dtype) -> Change:
    return lambda t: t.to(dtype)


def of_shape(*shape: int) -> Change:
    return lambda t: t.new_zeros(shape)


def number(value: Any) -> Change:
    return lambda _: value


PICTURES = {
    "encode": ["image"],
    "decode": ["low", "high"],
    "encode_backward": ["image"],
    "decode_backward": ["low", "high"],
}
PICTURE_CASES: list[tuple[Change, str]] = [
    (lambda t: t[0], "must have 4 dimensions (batch, 3, height, width), got 3"),
    (lambda t: t[None], "must have 4 dimensions (batch, 3, height, width), got 5"),
    (lambda t: t.sum(), "must have 4 dimensions (batch, 3, height, width), got 0"),
    (lambda t: t[:, :1], "must have 3 channels, got 1"),
    (lambda t: t[:, :0], "must have 3 channels, got 0"),
    (lambda t: torch.cat([t, t], 1), "must have 3 channels, got 6"),
    (of_shape(2, 3, 0, 18), "must be at least 1 x 1 pixels, got 0 x 18"),
    (of_shape(2, 3, 13, 0), "must be at least 1 x 1 pixels, got 13 x 0"),
    (of_shape(0, 3, 0, 0), "must be at least 1 x 1 pixels, got 0 x 0"),
]
OPS_AND_PICTURES = [(op, name) for op in OPS for name in PICTURES[op]]


@pytest.mark.parametrize(("change", "message"), PICTURE_CASES, ids=[m for _, m in PICTURE_CASES])
@pytest.mark.parametrize(("op", "name"), OPS_AND_PICTURES)
def test_pictures_of_a_wrong_shape(op: str, name: str, change: Change, message: str) -> None:
    check(op, {name: change}, f"{name} {message}", kernel, by_reference, fake, meta)


INTEGERS = {torch.int64: "int64", torch.int8: "int8", torch.bool: "bool", torch.complex64: "complex64"}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_pictures_of_a_dtype_without_a_kernel(op: str, dtype: torch.dtype) -> None:
    name = PICTURES[op][0]
    kinds = "uint8, float32, float16, bfloat16 or float64"
    wanted = f"{name} must be {kinds if name == 'image' else kinds.removeprefix('uint8, ')}"
    check(op, {name: to(dtype)}, f"{wanted}, got {INTEGERS[dtype]}", kernel, by_reference, fake, meta)


def test_only_the_encoder_takes_bytes() -> None:
    message = "low must be float32, float16, bfloat16 or float64, got uint8"
    check("decode", {"low": to(torch.uint8)}, message, kernel, by_reference, fake, meta)


@pytest.mark.parametrize("op", ["decode", "decode_backward"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1], "shape (2, 3, 7, 9), got (1, 3, 7, 9)"),
        (lambda t: t[..., 1:], "shape (2, 3, 7, 9), got (2, 3, 7, 8)"),
        (to(torch.float64), "float32 like low, got float64"),
        (to(torch.uint8), "float32 like low, got uint8"),
    ],
)
def test_a_high_that_is_not_like_low(op: str, change: Change, message: str) -> None:
    verb = "have " if message.startswith("shape") else "be "
    check(op, {"high": change}, f"high must {verb}{message}", kernel, by_reference, fake, meta)


# ------------------------------------------------------------------------------------------- parameters


def shape_of(op: str, name: str) -> tuple[int, ...]:
    shapes = ENCODER_SHAPES if op.startswith("encode") else DECODER_SHAPES
    return tuple(16 if size < 0 else size for size in shapes[name])


def text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


OPS_AND_PARAMETERS = [
    (op, name) for op in OPS for name in (ENCODER_SHAPES if op.startswith("encode") else DECODER_SHAPES)
]


@pytest.mark.parametrize(("op", "name"), OPS_AND_PARAMETERS)
def test_parameters_of_a_wrong_shape(op: str, name: str) -> None:
    shape = shape_of(op, name)
    for wrong in ((*shape[:-1], shape[-1] + 1), (*shape[:-1], 0), (*shape, 1), shape[1:], ()):
        wanted = text(shape)
        if name == "conv1_weight" and len(wrong) != 4:
            wanted = "(width, ..., 3, 3)"
        message = f"{name} must have shape {wanted}, got {text(wrong)}"
        check(op, {name: of_shape(*wrong)}, message, kernel, by_reference, fake, meta)


@pytest.mark.parametrize("op", OPS)
def test_a_network_of_no_width(op: str) -> None:
    message = "conv1_weight must have shape (width, ..., 3, 3), got (0, 3, 3, 3)"
    check(op, {"conv1_weight": of_shape(0, 3, 3, 3)}, message, kernel, by_reference, fake, meta)


@pytest.mark.parametrize("op", OPS)
def test_conv1_weight_decides_the_width(op: str) -> None:
    if op.startswith("encode"):
        message = "conv1_bias must have shape (8), got (16)"
    else:
        message = "low_weight must have shape (3, 8, 3, 3), got (3, 16, 3, 3)"
    check(op, {"conv1_weight": lambda t: t[:8]}, message, kernel, by_reference, fake, meta)


@pytest.mark.parametrize(("op", "name"), OPS_AND_PARAMETERS)
def test_parameters_of_another_dtype(op: str, name: str) -> None:
    picture = PICTURES[op][0]
    for dtype, dtype_name in {torch.float64: "float64", torch.bfloat16: "bfloat16", **INTEGERS}.items():
        message = f"{name} must be float32 like {picture}, got {dtype_name}"
        check(op, {name: to(dtype)}, message, kernel, by_reference, fake, meta)


@pytest.mark.parametrize("op", ["encode", "encode_backward"])
def test_parameters_beside_bytes(op: str) -> None:
    ways = (kernel, by_reference, fake, meta)
    image = {"image": to(torch.uint8)}
    message = "conv1_weight must be float32, float16, bfloat16 or float64, got int32"
    check(op, {**image, "conv1_weight": to(torch.int32)}, message, *ways)
    message = "low_bias must be float32 like conv1_weight, got float16"
    check(op, {**image, "low_bias": to(torch.float16)}, message, *ways)


@pytest.mark.parametrize("name", ["image_scale", "image_shift"])
@pytest.mark.parametrize("op", ["encode", "encode_backward"])
def test_scale_and_shift(op: str, name: str) -> None:
    ways = (kernel, by_reference, fake, meta)
    for wrong in ((), (1,), (4,), (0,), (3, 1), (1, 3, 1, 1)):
        check(op, {name: of_shape(*wrong)}, f"{name} must have shape (3), got {text(wrong)}", *ways)
    for dtype, dtype_name in INTEGERS.items():
        message = f"{name} must be float32, float16, bfloat16 or float64, got {dtype_name}"
        check(op, {name: to(dtype)}, message, *ways)


# ------------------------------------------------------------------------------------------- output_size


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([12, 18], "output_size's height must be 13 or 14 for a low of height 7, got 12"),
        ([15, 18], "output_size's height must be 13 or 14 for a low of height 7, got 15"),
        ([13, 16], "output_size's width must be 17 or 18 for a low of width 9, got 16"),
        ([13, 19], "output_size's width must be 17 or 18 for a low of width 9, got 19"),
        ([7, 9], "output_size's height must be 13 or 14 for a low of height 7, got 7"),
        ([0, 0], "output_size's height must be 13 or 14 for a low of height 7, got 0"),
        ([13, -18], "output_size's width must be 17 or 18 for a low of width 9, got -18"),
        ([-(2**63), 18], f"output_size's height must be 13 or 14 for a low of height 7, got {-(2**63)}"),
        ([2**63 - 1, 18], f"output_size's height must be 13 or 14 for a low of height 7, got {2**63 - 1}"),
        ([], "output_size must be (height, width), got 0 numbers"),
        ([13], "output_size must be (height, width), got 1 numbers"),
        ([13, 18, 3], "output_size must be (height, width), got 3 numbers"),
    ],
    ids=str,
)
def test_output_size(size: list[int], message: str) -> None:
    check("decode", {"output_size": number(size)}, message, kernel, by_reference, fake, meta)


def test_a_low_of_one_pixel_makes_no_empty_picture() -> None:
    message = "output_size's height must be 1 or 2 for a low of height 1, got 0"
    pixel = {"low": lambda t: t[..., :1, :1], "high": lambda t: t[..., :1, :1]}
    check("decode", {**pixel, "output_size": number([0, 0])}, message, kernel, by_reference, fake, meta)


# --------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", ["grad_low", "grad_high"])
def test_gradients_of_low_and_high(name: str) -> None:
    op, ways = "encode_backward", (kernel, by_reference, fake, meta)
    changes = [lambda t: t[:1], lambda t: t[:, :2], lambda t: t[..., :8], lambda t: t[0], lambda t: t.sum()]
    shapes = ["(1, 3, 7, 9)", "(2, 2, 7, 9)", "(2, 3, 7, 8)", "(3, 7, 9)", "()"]
    for change, shape in zip(changes, shapes, strict=True):
        check(op, {name: change}, f"{name} must have shape (2, 3, 7, 9), got {shape}", *ways)
    check(op, {name: to(torch.float64)}, f"{name} must be float32 like conv1_weight, got float64", *ways)
    check(op, {name: to(torch.int64)}, f"{name} must be float32 like conv1_weight, got int64", *ways)


def test_gradient_of_the_image() -> None:
    op, name, ways = "decode_backward", "grad_image", (kernel, by_reference, fake, meta)
    check(op, {name: lambda t: t[:1]}, f"{name} must have shape (2, 3, 13, 18), got (1, 3, 13, 18)", *ways)
    check(op, {name: to(torch.float64)}, f"{name} must be float32 like conv1_weight, got float64", *ways)
    for change, message in PICTURE_CASES:
        check(op, {name: change}, f"{name} {message}", *ways)
    for way in ways:
        said = outcome(way, op, arguments(op, grad_image=lambda t: t[..., 4:]))
        assert "grad_image's width must be 17 or 18 for a low of width 9, got 14" in said


# ------------------------------------------------------------------------------------ devices and layouts

TENSORS = [(op, name) for op in OPS for name in names_of(op) if not name.startswith(("need_", "output_"))]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_on_another_device(op: str, name: str) -> None:
    ways = (kernel, by_reference)
    first = PICTURES[op][0]
    if name == first:  # then its companions are what is elsewhere
        other = "conv1_weight" if first == "image" else "high"
        check(op, {name: lambda t: t.to("meta")}, f"{other} must be on {first}'s device meta, got cpu", *ways)
    else:
        like = "conv1_weight" if name.startswith("grad_") else first
        check(op, {name: lambda t: t.to("meta")}, f"{name} must be on {like}'s device cpu, got meta", *ways)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_sparse_tensor(op: str, name: str) -> None:
    message = f"{name} must be a dense tensor, got torch.sparse_coo"
    check(op, {name: lambda t: t.to_sparse()}, message, kernel, by_reference)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_layouts() -> None:
    image = {"image": lambda t: t.to_mkldnn()}
    check("encode", image, "image must be a dense tensor, got torch._mkldnn", kernel, by_reference)
    weight = {"conv2_bias": lambda t: torch.zeros(4, 4).to_sparse_csr()}
    check("encode", weight, "conv2_bias must be a dense tensor, got torch.sparse_csr", kernel, by_reference)


# -------------------------------------------------------------------------------- no kernel is run on it


@pytest.mark.parametrize("shape", [(2**24, 2**24), (2**42, 1), (1, 2**42)], ids=str)
def test_a_picture_that_no_memory_holds(cell: Cell, shape: tuple[int, int]) -> None:
    """One pixel seen 2^48 times: the output cannot be allocated, and that is all that happens."""
    values = arguments("encode", image=lambda t: t[:1, :, :1, :1].expand(1, 3, *shape))
    with pytest.raises(RuntimeError):
        kernel("encode", [v.to(cell.device) for v in values])


def test_what_is_not_a_tensor_is_refused_by_torch() -> None:
    for changes in ({"image": number(None)}, {"conv1_weight": number(None)}, {"low_bias": number(1.0)}):
        with pytest.raises((RuntimeError, TypeError)):
            kernel("encode", arguments("encode", **changes))
    for size in (13, 13.0, [13.0, 18.0], None, "no"):
        with pytest.raises((RuntimeError, TypeError)):
            kernel("decode", arguments("decode", output_size=number(size)))
    with pytest.raises((RuntimeError, TypeError)):
        kernel("encode", arguments("encode")[:5])


# ------------------------------------------------------------------------------------------- random faults


def _resized(t: Tensor, at: int, by: int) -> Tensor:
    shape = list(t.shape)
    shape[at % len(shape)] += by
    return t.new_zeros([max(size, 0) for size in shape]) if shape else t


FAULTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nothing": lambda t, at: t,
    "one more": lambda t, at: _resized(t, at, 1),
    "one less": lambda t, at: _resized(t, at, -1),
    "none": lambda t, at: _resized(t, at, -100),
    "half": lambda t, at: _resized(t, at, -8),
    "another dimension": lambda t, at: t[None],
    "a dimension less": lambda t, at: t[0] if t.dim() and len(t) else t,
    "float64": lambda t, at: t.double(),
    "float16": lambda t, at: t.half(),
    "uint8": lambda t, at: t.byte(),
    "int32": lambda t, at: t.int(),
    "transposed": lambda t, at: t.mT if t.dim() > 1 else t,
}


@given(
    op=st.sampled_from(OPS),
    faults=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(list(FAULTS)), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_faults_are_judged_alike(op: str, faults: list[tuple[int, str, int]], seed: int) -> None:
    """Of several faults, all ways to call name the same; and what one takes, all take."""
    torch.manual_seed(seed)
    values = arguments(op)
    tensors = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    for place, fault, at in faults:
        i = tensors[place % len(tensors)]
        values[i] = FAULTS[fault](values[i], at)
    judged = {way.__name__: outcome(way, op, values) for way in (kernel, by_reference, fake, meta)}
    assert len({str(j) for j in judged.values()}) == 1, judged
    said = judged["kernel"]
    assert isinstance(said, list) or said.startswith(f"wae::{op}: ")
