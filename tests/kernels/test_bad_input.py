"""Invalid arguments: the error names the argument, what it got and what it needs.

The rules are in wae_kernels/arguments.inc and have two interpreters: csrc/common/checks.h for the compiled
kernels, wae_kernels/checks.py for everything else. Every way to call an op must give the same message.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import CLASSES, FEATURES, MAIN_CELLS, OPS, Cell, arguments_of, as_tuple, names_of, needs_library
from hypothesis import given
from hypothesis import strategies as st
from programs import run_interpreted
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wae_kernels import backends
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES, SCORE_DECODER_SHAPES, TRUNK_WIDTH

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Change = Callable[[Any], Any]
HEIGHT, WIDTH = 13, 18


def arguments(op: str, **changes: Change) -> list[Any]:
    """Valid arguments, some of them changed."""
    named = dict(zip(names_of(op), arguments_of(op, size=(HEIGHT, WIDTH)), strict=True))
    return list({**named, **{name: change(named[name]) for name, change in changes.items()}}.values())


# ------------------------------------------------------------------------------------------- ways to call


Way = Callable[[str, list[Any]], Any]


def kernel(op: str, values: list[Any]) -> Any:
    return getattr(torch.ops.wae, op)(*values)


def by_reference(op: str, values: list[Any]) -> Any:
    return getattr(torch.ops.wae, f"_{op}_reference")(*values)


def fake(op: str, values: list[Any]) -> Any:
    with FakeTensorMode() as mode:
        return kernel(op, [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in values])


def meta(op: str, values: list[Any]) -> Any:
    return kernel(op, [v.to("meta") if isinstance(v, Tensor) else v for v in values])


def by(backend: str) -> Way:
    """The op on this backend."""

    def way(op: str, values: list[Any]) -> Any:
        with backends.use(backend):
            return kernel(op, values)

    way.__name__ = backend
    return way


def by_triton(op: str, values: list[Any]) -> Any:
    """The op dispatched to Triton's interpreter in the same way as on a GPU."""
    with pytest.MonkeyPatch.context() as patch, backends.use("reference"):
        patch.setattr(backends, "backend_for", lambda *_: "triton")
        return kernel(op, values)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CHECKED: list[Way] = [by(cell.name) for cell in MAIN_CELLS if not cell.why_not]
"""The ways through the compiled library, if there is one."""
REAL: list[Way] = [by_reference, *CHECKED]
"""The ways to call with tensors that have data."""
if INTERPRETED:
    REAL.append(by_triton)
WAYS: list[Way] = [*REAL, fake, meta]


def outcome(way: Way, op: str, values: list[Any]) -> tuple[type[Exception], str] | list[torch.Size]:
    """The error's type and first line, or the shapes of the results."""
    try:
        return [out.shape for out in as_tuple(way(op, values))]
    except Exception as error:
        return type(error), str(error).partition("\n")[0]


def check(op: str, changes: dict[str, Change], message: str, ways: Sequence[Way] = WAYS) -> None:
    values, expected = arguments(op, **changes), (RuntimeError, f"wae::{op}: {message}")
    for way in ways:
        assert outcome(way, op, values) == expected, way.__name__


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is already the process with the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_triton_gives_the_same_errors() -> None:
    """The invalid calls, in a process with Triton's interpreter; valid calls would take it minutes."""
    run_interpreted(__file__, "-k", "not random_faults")


# -------------------------------------------------------------------------------------- changes to a tensor


def to(dtype: torch.dtype) -> Change:
    return lambda t: t.to(dtype)


def zeros_of_shape(*shape: int) -> Change:
    return lambda t: t.new_zeros(shape)


def replaced_by(value: Any) -> Change:
    return lambda _: value


IMAGES = {
    "encode": ["image"],
    "decode": ["low", "high"],
    "decode_scores": ["low", "high"],
    "encode_backward": ["image"],
    "decode_backward": ["low", "high"],
    "decode_scores_backward": ["low", "high"],
}
SCORES = ("decode_scores", "decode_scores_backward")
DECODERS = ("decode", "decode_backward", *SCORES)
SHAPES = {"low": "(batch, 3, half_height >= 1, half_width >= 1)", "high": "(2, 3, 7, 9)"}
SHAPES["image"] = "(batch, 3, height >= 1, width >= 1)"
IMAGE_CASES: list[tuple[Change, str]] = [
    (lambda t: t[0], "(3, {h}, {w})"),
    (lambda t: t[None], "(1, 2, 3, {h}, {w})"),
    (lambda t: t.sum(), "()"),
    (lambda t: t[:, :1], "(2, 1, {h}, {w})"),
    (lambda t: t[:, :0], "(2, 0, {h}, {w})"),
    (lambda t: torch.cat([t, t], 1), "(2, 6, {h}, {w})"),
    (lambda t: t[:, :, :0], "(2, 3, 0, {w})"),
    (lambda t: t[..., :0], "(2, 3, {h}, 0)"),
    (zeros_of_shape(0, 3, 0, 0), "(0, 3, 0, 0)"),
]
OPS_AND_IMAGES = [(op, name) for op in OPS if op not in SCORES for name in IMAGES[op]]


@pytest.mark.parametrize(("change", "got"), IMAGE_CASES, ids=[got for _, got in IMAGE_CASES])
@pytest.mark.parametrize(("op", "name"), OPS_AND_IMAGES)
def test_images_of_a_wrong_shape(op: str, name: str, change: Change, got: str) -> None:
    h, w = (HEIGHT, WIDTH) if name == "image" else (7, 9)
    check(op, {name: change}, f"{name} must have shape {SHAPES[name]}, got {got.format(h=h, w=w)}")


ANY_SCORES = "(batch, classes >= 1, half_height >= 1, half_width >= 1)"


@pytest.mark.parametrize("op", SCORES)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("low", lambda t: t[0], f"{ANY_SCORES}, got (5, 7, 9)"),
        ("low", lambda t: t.sum(), f"{ANY_SCORES}, got ()"),
        ("low", lambda t: t[:, :0], f"{ANY_SCORES}, got (2, 0, 7, 9)"),
        ("low", lambda t: t[..., :0], f"{ANY_SCORES}, got (2, 5, 7, 0)"),
        ("high", lambda t: t[:1], "(2, features >= 1, 7, 9), got (1, 7, 7, 9)"),
        ("high", lambda t: t[:, :0], "(2, features >= 1, 7, 9), got (2, 0, 7, 9)"),
        ("high", lambda t: t[:, :, 1:], "(2, features >= 1, 7, 9), got (2, 7, 6, 9)"),
    ],
)
def test_scores_and_features_of_a_wrong_shape(op: str, name: str, change: Change, message: str) -> None:
    check(op, {name: change}, f"{name} must have shape {message}")


@pytest.mark.parametrize("op", SCORES)
def test_scores_and_features_decide_the_channels(op: str) -> None:
    message = "low_weight must have shape (4, trunk_width >= 1, 3, 3), got (5, 16, 3, 3)"
    check(op, {"low": lambda t: t[:, :4]}, message)
    check(op, {"high": lambda t: t[:, :4]}, "high_weight must have shape (4, 16, 3, 3), got (7, 16, 3, 3)")


OTHERS = {torch.int64: "int64", torch.int8: "int8", torch.bool: "bool", torch.complex64: "complex64"}
OTHERS |= {torch.uint16: "uint16", torch.uint64: "uint64", torch.float8_e5m2: "float8_e5m2"}


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_images_of_a_dtype_without_a_kernel(op: str, dtype: torch.dtype) -> None:
    name = IMAGES[op][0]
    kinds = "uint8, float32, float16, bfloat16 or float64"
    wanted = f"{name} must be {kinds if name == 'image' else kinds.removeprefix('uint8, ')}"
    check(op, {name: to(dtype)}, f"{wanted}, got {OTHERS[dtype]}")


@pytest.mark.parametrize("dtype", [torch.uint4, torch.bits8, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("way", REAL)
def test_dtype_without_a_name_in_the_stable_abi(way: Way, dtype: torch.dtype) -> None:
    """The error need not name this dtype, but names the argument and what it must be."""
    for name, wanted in (("image", "uint8, float32, float16"), ("conv2_bias", "float32 like image, got")):
        values = arguments("encode", **{name: lambda t: t.to(torch.uint8).view(dtype)})
        kind, message = outcome(way, "encode", values)
        assert kind is RuntimeError
        assert message.startswith(f"wae::encode: {name} must be {wanted}")


def test_decoders_refuse_uint8() -> None:
    message = "low must be float32, float16, bfloat16 or float64, got uint8"
    for op in ("decode", "decode_scores"):
        check(op, {"low": to(torch.uint8)}, message)


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
def test_high_unlike_low(op: str, change: Change, message: str) -> None:
    verb = "have " if message.startswith("shape") else "be "
    check(op, {"high": change}, f"high must {verb}{message}")


# ------------------------------------------------------------------------------------------- parameters


NETWORKS = {"encode": ENCODER_SHAPES, "decode": DECODER_SHAPES, "decode_scores": SCORE_DECODER_SHAPES}
SIZES = {TRUNK_WIDTH: 16, "classes": CLASSES, "features": FEATURES}


def shapes_of(op: str) -> dict[str, tuple[int | str, ...]]:
    return NETWORKS[op.removesuffix("_backward")]


def shape_of(op: str, name: str) -> tuple[int, ...]:
    return tuple(SIZES.get(size, size) for size in shapes_of(op)[name])


def wanted(op: str, name: str) -> str:
    """The shape as the error writes it: the width is free for the first weight, which decides it."""
    first = "conv1_weight" if op.startswith("encode") else "low_weight"
    return text(shape_of(op, name)).replace("16", "trunk_width >= 1" if name == first else "16")


def text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


OPS_AND_PARAMETERS = [(op, name) for op in OPS for name in shapes_of(op)]


@pytest.mark.parametrize(("op", "name"), OPS_AND_PARAMETERS)
def test_parameters_of_a_wrong_shape(op: str, name: str) -> None:
    shape = shape_of(op, name)
    for wrong in ((*shape[:-1], shape[-1] + 1), (*shape[:-1], 0), (*shape, 1), shape[1:], ()):
        message = f"{name} must have shape {wanted(op, name)}, got {text(wrong)}"
        check(op, {name: zeros_of_shape(*wrong)}, message)


def test_network_of_width_0() -> None:
    message = "conv1_weight must have shape (trunk_width >= 1, 3, 3, 3), got (0, 3, 3, 3)"
    check("encode", {"conv1_weight": zeros_of_shape(0, 3, 3, 3)}, message)
    message = "low_weight must have shape (3, trunk_width >= 1, 3, 3), got (3, 0, 3, 3)"
    check("decode", {"low_weight": zeros_of_shape(3, 0, 3, 3)}, message)


def test_the_first_weight_decides_the_width() -> None:
    for op in ("encode", "encode_backward"):
        check(op, {"conv1_weight": lambda t: t[:8]}, "conv1_bias must have shape (8), got (16)")
    for op in ("decode", "decode_backward", *SCORES):
        check(op, {"low_weight": lambda t: t[:, :8]}, "low_bias must have shape (8), got (16)")


@pytest.mark.parametrize(("op", "name"), OPS_AND_PARAMETERS)
def test_parameters_of_another_dtype(op: str, name: str) -> None:
    first = "low_weight" if op.startswith("decode") and name != "low_weight" else IMAGES[op][0]
    for dtype, dtype_name in {torch.float64: "float64", torch.bfloat16: "bfloat16", **OTHERS}.items():
        message = f"{name} must be float32 like {first}, got {dtype_name}"
        check(op, {name: to(dtype)}, message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", DECODERS)
def test_parameters_with_16_bit_images(op: str, dtype: torch.dtype) -> None:
    """Either all parameters are float32, or all have the images' dtype."""
    images = {name: to(dtype) for name in names_of(op) if name.startswith(("low", "high", "grad"))}
    images = {name: change for name, change in images.items() if name not in shapes_of(op)}
    images_dtype = str(dtype).removeprefix("torch.")
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    for wrong, name in {torch.float64: "float64", other: str(other)[6:], **OTHERS}.items():
        message = f"low_weight must be {images_dtype} like low, or float32, got {name}"
        check(op, {**images, "low_weight": to(wrong)}, message)
        check(op, {**images, "low_bias": to(wrong)}, f"low_bias must be float32 like low_weight, got {name}")
    for name in shapes_of(op):
        if name != "low_weight":
            message = f"{name} must be float32 like low_weight, got {images_dtype}"
            check(op, {**images, name: to(dtype)}, message)
    message = f"low_bias must be {images_dtype} like low_weight, got float32"
    check(op, {**images, "low_weight": to(dtype)}, message)
    message = f"high must be {images_dtype} like low, got float32"
    check(op, {**images, "high": lambda t: t}, message)


@pytest.mark.parametrize("op", DECODERS)
def test_float32_parameters_with_float64_images(op: str) -> None:
    images = {"low": to(torch.float64), "high": to(torch.float64)}
    check(op, images, "low_weight must be float64 like low, got float32")


@pytest.mark.parametrize("op", [op for op in DECODERS if op.endswith("backward")])
def test_float32_gradient_with_16_bit_images(op: str) -> None:
    images = {"low": to(torch.float16), "high": to(torch.float16)}
    check(op, images, f"{names_of(op)[0]} must be float16 like low, got float32")


@pytest.mark.parametrize("op", ["encode", "encode_backward"])
def test_parameters_with_a_uint8_image(op: str) -> None:
    image = {"image": to(torch.uint8)}
    message = "conv1_weight must be float32, float16, bfloat16 or float64, got int32"
    check(op, {**image, "conv1_weight": to(torch.int32)}, message)
    message = "low_bias must be float32 like conv1_weight, got float16"
    check(op, {**image, "low_bias": to(torch.float16)}, message)


@pytest.mark.parametrize("name", ["image_scale", "image_shift"])
@pytest.mark.parametrize("op", ["encode", "encode_backward"])
def test_scale_and_shift(op: str, name: str) -> None:
    for wrong in ((), (1,), (4,), (0,), (3, 1), (1, 3, 1, 1)):
        check(op, {name: zeros_of_shape(*wrong)}, f"{name} must have shape (3), got {text(wrong)}")
    for dtype, dtype_name in OTHERS.items():
        message = f"{name} must be float32, float16, bfloat16 or float64, got {dtype_name}"
        check(op, {name: to(dtype)}, message)


# ------------------------------------------------------------------------------------------- output_size


@pytest.mark.parametrize(
    ("size", "got"),
    [
        ([12, 18], "(12, 18)"),
        ([15, 18], "(15, 18)"),
        ([13, 16], "(13, 16)"),
        ([13, 19], "(13, 19)"),
        ([7, 9], "(7, 9)"),
        ([0, 0], "(0, 0)"),
        ([13, -18], "(13, -18)"),
        ([-(2**63), 18], f"({-(2**63)}, 18)"),
        ([2**63 - 1, 18], f"({2**63 - 1}, 18)"),
        ([], "()"),
        ([13], "(13)"),
        ([13, 18, 3], "(13, 18, 3)"),
    ],
    ids=str,
)
def test_output_size(size: list[int], got: str) -> None:
    message = f"output_size must be (13 or 14, 17 or 18), got {got}"
    for op in ("decode", "decode_scores"):
        check(op, {"output_size": replaced_by(size)}, message)


def test_output_size_of_a_one_pixel_low_is_not_empty() -> None:
    message = "output_size must be (1 or 2, 1 or 2), got (0, 0)"
    pixel = {"low": lambda t: t[..., :1, :1], "high": lambda t: t[..., :1, :1]}
    check("decode", {**pixel, "output_size": replaced_by([0, 0])}, message)


# --------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("op", "name", "wanted"),
    [
        ("encode_backward", "grad_low", "(2, 3, 7, 9)"),
        ("encode_backward", "grad_high", "(2, 3, 7, 9)"),
        ("decode_backward", "grad_image", "(2, 3, 13 or 14, 17 or 18)"),
        ("decode_scores_backward", "grad_scores", "(2, 5, 13 or 14, 17 or 18)"),
    ],
)
def test_gradients(op: str, name: str, wanted: str) -> None:
    changes = [lambda t: t[:1], lambda t: t[:, :2], lambda t: t[..., 3:], lambda t: t[0], lambda t: t.sum()]
    gradient = dict(zip(names_of(op), arguments(op), strict=True))[name]
    for change in changes:
        got = text(tuple(change(gradient).shape))
        check(op, {name: change}, f"{name} must have shape {wanted}, got {got}")
    first = IMAGES[op][0]
    for dtype, dtype_name in {torch.float64: "float64", **OTHERS}.items():
        check(op, {name: to(dtype)}, f"{name} must be float32 like {first}, got {dtype_name}")


# ------------------------------------------------------------------------------------ devices and layouts

TENSORS = [(op, name) for op in OPS for name in names_of(op) if not name.startswith(("need_", "output_"))]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_on_another_device(op: str, name: str) -> None:
    first = IMAGES[op][0]
    if name == first:  # the devices of the other tensors are then the wrong ones
        other = "conv1_weight" if first == "image" else "high"
        check(op, {name: lambda t: t.to("meta")}, f"{other} must be on {first}'s device meta, got cpu", REAL)
    else:
        check(op, {name: lambda t: t.to("meta")}, f"{name} must be on {first}'s device cpu, got meta", REAL)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_sparse_tensor(op: str, name: str) -> None:
    message = f"{name} must be a dense tensor, got torch.sparse_coo"
    check(op, {name: lambda t: t.to_sparse()}, message, REAL)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_layouts() -> None:
    image = {"image": lambda t: t.to_mkldnn()}
    check("encode", image, "image must be a dense tensor, got torch._mkldnn", REAL)
    weight = {"conv2_bias": lambda t: torch.zeros(4, 4).to_sparse_csr()}
    check("encode", weight, "conv2_bias must be a dense tensor, got torch.sparse_csr", REAL)


@needs_library
@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_without_its_memory(op: str, name: str) -> None:
    """Sharding libraries free a tensor's memory but keep the tensor. The kernels would read at address 0."""

    def emptied(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(0)
        return tensor

    needed = dict(zip(names_of(op), arguments(op), strict=True))[name].nbytes
    check(op, {name: emptied}, f"{name} must have {needed} bytes of memory, got 0", CHECKED)


@needs_library
def test_a_view_that_reaches_beyond_its_memory() -> None:
    def shortened(image: Tensor) -> Tensor:
        view = torch.cat([image, image])[1::2]
        view.untyped_storage().resize_(needed - 1)
        return view

    needed = 2 * arguments("encode")[0].nbytes
    check(
        "encode", {"image": shortened}, f"image must have {needed} bytes of memory, got {needed - 1}", CHECKED
    )


# ------------------------------------------------------- failures of allocation, of the reference, of torch


@pytest.mark.parametrize("shape", [(2**24, 2**24), (2**42, 1), (1, 2**42)], ids=str)
def test_image_too_large_for_memory(cell: Cell, shape: tuple[int, int]) -> None:
    """One pixel expanded to 2^48: the failed allocation of the output is an ordinary error."""
    values = arguments("encode", image=lambda t: t[:1, :, :1, :1].expand(1, 3, *shape))
    with pytest.raises(RuntimeError, match=r"allocate|out of memory|fallback failed"):
        kernel("encode", [v.to(cell.device) for v in values])


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**63 - 1, 1), (1, 2**63 - 1)], ids=str)
def test_empty_result_with_strides_that_overflow(cell: Cell, shape: tuple[int, int]) -> None:
    """The reference's convolution speaks of the padded size, because it overflows."""
    values = arguments("encode", image=lambda t: t[:0, :, :1, :1].expand(0, 3, *shape))
    with pytest.raises(RuntimeError, match=r"overflow|fallback failed|padded input size"):
        kernel("encode", [v.to(cell.device) for v in values])


def test_halves_of_the_largest_sizes() -> None:
    largest = 2**63 - 1
    empty = replaced_by(torch.empty(0).as_strided((0, 3, largest, 1), (0, 0, 0, 0)))
    message = f"grad_low must have shape (0, 3, {2**62}, 1), got (2, 3, 7, 9)"
    check("encode_backward", {"image": empty}, message, REAL)
    message = f"output_size must be ({2 * largest - 1} or {2 * largest}, 1 or 2), got (14, 18)"
    check("decode", {"low": empty, "high": empty, "output_size": replaced_by([14, 18])}, message, REAL)


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="C++ does not get the message before torch 2.13")
def test_error_in_the_reference_keeps_its_message(cell: Cell) -> None:
    """The kernels pass float64 on to the reference."""
    image, *others = (v.to(cell.device, torch.float64) for v in arguments("encode"))
    with pytest.raises(RuntimeError, match=r"allocate|out of memory"):
        kernel("encode", [image[:1, :, :1, :1].expand(1, 3, 2**20, 2**20), *others])


def test_torch_refuses_values_of_another_type() -> None:
    for changes in (
        {"image": replaced_by(None)},
        {"conv1_weight": replaced_by(None)},
        {"low_bias": replaced_by(1.0)},
    ):
        with pytest.raises((RuntimeError, TypeError)):
            kernel("encode", arguments("encode", **changes))
    for size in (13, 13.0, [13.0, 18.0], None, "no"):
        with pytest.raises((RuntimeError, TypeError)):
            kernel("decode", arguments("decode", output_size=replaced_by(size)))
    with pytest.raises((RuntimeError, TypeError)):
        kernel("encode", arguments("encode")[:5])


# ------------------------------------------------------------------------------------------ random changes


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
    in_16_bits=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_faults_give_the_same_outcome(
    op: str, faults: list[tuple[int, str, int]], in_16_bits: bool, seed: int
) -> None:
    """If there are several faults, all ways to call name the same one. If one way accepts a call, all do.

    With ``in_16_bits``, images and gradients are float16 and parameters float32.
    """
    torch.manual_seed(seed)
    images = [name for name in names_of(op) if name in ("image", "low", "high") or name.startswith("grad")]
    values = arguments(op, **({name: to(torch.float16) for name in images} if in_16_bits else {}))
    tensors = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    for place, fault, at in faults:
        i = tensors[place % len(tensors)]
        values[i] = FAULTS[fault](values[i], at)
    outcomes = {way.__name__: outcome(way, op, values) for way in WAYS}
    assert len({str(o) for o in outcomes.values()}) == 1, outcomes
    found = outcomes["by_reference"]
    assert isinstance(found, list) or (found[0] is RuntimeError and found[1].startswith(f"wae::{op}: "))


# -------------------------------------------------------------------------- dtype and format of the results


FORMATS = "memory_format must be torch.contiguous_format or torch.channels_last"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("dtype", "memory_format", "message"),
    [
        *(
            (wrong, None, f"dtype must be float32, float16, bfloat16 or float64, got {name}")
            for wrong, name in {**OTHERS, torch.uint8: "uint8"}.items()
        ),
        (None, torch.preserve_format, f"{FORMATS}, got torch.preserve_format"),
        (None, torch.channels_last_3d, f"{FORMATS}, got torch.channels_last_3d"),
    ],
    ids=str,
)
def test_invalid_dtype_or_memory_format_of_results(
    way: Way, dtype: torch.dtype | None, memory_format: torch.memory_format | None, message: str
) -> None:
    expected = RuntimeError, f"wae::encode: {message}"
    assert outcome(way, "encode", [*arguments("encode"), dtype, memory_format]) == expected
