"""Argument checks from the tables of ``arguments.inc``, for the fakes, the reference and Triton.

``csrc/common/checks.h`` interprets the same tables for the compiled kernels, which check before they read a
byte; ``tests/kernels/test_bad_input.py`` compares the two. Everything here works on symbolic sizes, so
``torch.compile`` and ``torch.export`` check too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ._load import schemas
from .parameters import DecoderParameters, EncoderParameters, ScoreDecoderParameters

_OWN_NAMES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "float32": torch.float32,
}
"""The dtype rules of ``arguments.inc`` that are the name of a dtype."""

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IN_16_BITS = (torch.float16, torch.bfloat16)
_FLOATING_NAMES = "float32, float16, bfloat16 or float64"

MOST_BIAS = 2**30
INT8_RANGES = {
    **{f"{layer}_bias": (-MOST_BIAS, MOST_BIAS) for layer in ("conv1", "conv2", "conv3", "low", "high")},
    "shift": (0, 30),
    "multiplier": (0, 2**15 - 1),
}
"""The smallest and largest values that ``wae::encode_int8`` takes, in the order in which it checks them."""

PANEL, DEPTH = 16, 32
"""The block sizes of a packed 3x3 weight, in output and in input channels."""


def half_of(size: int) -> int:
    """The size of ``low`` and ``high`` for an image's height or width."""
    return (size + 1) // 2


def half_size(image: Tensor) -> tuple[int, int]:
    """The height and width of ``low`` and ``high`` for an image."""
    return half_of(image.shape[-2]), half_of(image.shape[-1])


def panels_of(out_channels: int) -> int:
    """The number of panels of 16 output channels in a packed 3x3 weight."""
    return (out_channels + PANEL - 1) // PANEL


def packed_shape(out_channels: int, channels: int) -> tuple[int, int, int]:
    """The shape into which ``wae::conv3x3_pack`` packs a weight (out_channels, channels, 3, 3).

    It has three dimensions so that ``module.to(memory_format=torch.channels_last)`` leaves it alone.
    """
    return panels_of(out_channels), channels, 9 * PANEL


# ----------------------------------------------------------------------------------------------- the table


class Argument(NamedTuple):
    """A row of ``arguments.inc``, which explains it."""

    name: str
    dtype: str
    sizes: tuple[int | str, ...]


def _tables() -> dict[str, list[Argument]]:
    text = (Path(__file__).parent / "arguments.inc").read_text(encoding="utf-8")
    tables: dict[str, list[Argument]] = {}
    for row in re.findall(r"^WAE_ARGUMENT\((.*)\)$", text, re.MULTILINE):
        table, name, dtype, *sizes = row.split(", ")
        shape = tuple(int(size) if size.isdigit() else size for size in sizes)
        tables.setdefault(table, []).append(Argument(name, dtype, shape))
    return tables


TABLES = _tables()
TRUNK_WIDTH = "trunk_width"
"""The name of the network's width in the tables."""

ENCODER_SHAPES = {a.name: a.sizes for a in TABLES["encoder"] if a.name in EncoderParameters._fields}
DECODER_SHAPES = {a.name: a.sizes for a in TABLES["decoder"] if a.name in DecoderParameters._fields}
SCORE_DECODER_SHAPES = {
    a.name: a.sizes for a in TABLES["score_decoder"] if a.name in ScoreDecoderParameters._fields
}
"""The shapes of the parameters by name, in the order of the ops' arguments."""


# ----------------------------------------------------------------------------------------- the interpreter


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _joined(sizes: Iterable[str]) -> str:
    return f"({', '.join(sizes)})"


def _may_hold(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds, or cannot be decided while an op is traced: its kernel decides."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # sizes are tensors; it warns of decisions by them
        return True
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # a module that takes long to import

    return bool(guard_or_true(condition))


_OPTIONAL = {name for schema in schemas() for name in re.findall(r"Tensor\? (\w+)", schema)}


class _Checker:
    """Checks a call's arguments against the tables, given the sizes and dtypes that earlier ones fixed."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.first: tuple[str, torch.device] | None = None
        self.network: tuple[str, torch.dtype] | None = None
        self.parameter: tuple[str, torch.dtype] | None = None

    def check(self, table: str, *values: Any) -> None:
        """Raise RuntimeError for the first of ``values`` that its row of ``table`` does not take."""
        for argument, value in zip(TABLES[table], values, strict=True):
            if argument.dtype == "numbers":
                self.check_numbers(argument, value)
            elif isinstance(value, Tensor):
                self.check_tensor(argument, value)
            elif value is not None or argument.name not in _OPTIONAL:
                self.fail(argument, "be a tensor", type(value).__name__)

    def check_tensor(self, argument: Argument, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            self.fail(argument, "be a dense tensor", tensor.layout)
        self.check_sizes(argument, tensor.shape)
        self.check_dtype(argument, tensor.dtype)
        if self.first is None:
            self.first = argument.name, tensor.device
        elif tensor.device != self.first[1]:
            self.fail(argument, f"be on {self.first[0]}'s device {self.first[1]}", tensor.device)

    def check_numbers(self, argument: Argument, value: Any) -> None:
        """Check numbers as the schemas do, which the reference and called layers do not go through."""
        numbers = list(value) if isinstance(value, Iterable) else [value]
        if not all(isinstance(number, int) or hasattr(number, "__index__") for number in numbers):
            self.fail_sizes(argument, numbers)
        self.check_sizes(argument, numbers)

    def check_sizes(self, argument: Argument, got: Sequence[int]) -> None:
        wanted = argument.sizes
        if len(got) != len(wanted) or not all(map(self.fits, wanted, got)):
            self.fail_sizes(argument, got)
        self.sizes.update((size, n) for size, n in zip(wanted, got, strict=True) if isinstance(size, str))

    def known(self, size: int | str) -> int | None:
        """The value that a size must have; None if no earlier argument has fixed it."""
        if isinstance(size, int):
            return size
        if size == "panels":
            return panels_of(self.sizes["out_channels"])
        if size.startswith("half_") and (whole := size.removeprefix("half_")) in self.sizes:
            return half_of(self.sizes[whole])
        return self.sizes.get(size)

    def fits(self, size: int | str, got: int) -> bool:
        if (number := self.known(size)) is not None:
            return _may_hold(got == number)
        if (half := self.sizes.get(f"half_{size}")) is not None:
            return _may_hold(half_of(got) == half)  # an `or` would make torch.export decide which side holds
        return size == "batch" or _may_hold(got >= 1)

    def text(self, size: int | str) -> str:
        if (number := self.known(size)) is not None:
            return str(number)
        if (half := self.sizes.get(f"half_{size}")) is not None:
            return f"{2 * half - 1} or {2 * half}"
        return "batch" if size == "batch" else f"{size} >= 1"

    def check_dtype(self, argument: Argument, dtype: torch.dtype) -> None:
        rule = argument.dtype
        if rule == "pixels" and dtype == torch.uint8:
            return
        if rule == "bytes":
            if dtype not in (torch.uint8, torch.int8):
                self.fail(argument, "be uint8 or int8", _name(dtype))
        elif rule in _OWN_NAMES:
            if dtype != _OWN_NAMES[rule]:
                self.fail(argument, f"be {rule}", _name(dtype))
        elif rule == "parameter":
            self.check_parameter(argument, dtype)
        elif rule != "floating" and self.network is not None:
            if dtype != self.network[1]:
                self.fail(argument, f"be {_name(self.network[1])} like {self.network[0]}", _name(dtype))
        elif dtype not in FLOATING:
            self.fail(argument, f"be {'uint8, ' if rule == 'pixels' else ''}{_FLOATING_NAMES}", _name(dtype))
        elif rule != "floating":
            self.network = argument.name, dtype

    def check_parameter(self, argument: Argument, dtype: torch.dtype) -> None:
        like = self.parameter or self.network
        assert like is not None  # in the tables an image precedes the parameters
        or_float32 = self.parameter is None and like[1] in IN_16_BITS
        if dtype != like[1] and not (or_float32 and dtype == torch.float32):
            must = f"be {_name(like[1])} like {like[0]}{', or float32' if or_float32 else ''}"
            self.fail(argument, must, _name(dtype))
        self.parameter = self.parameter or (argument.name, dtype)

    def fail_sizes(self, argument: Argument, got: Sequence[object]) -> None:
        verb = "be" if argument.dtype == "numbers" else "have shape"
        self.fail(argument, f"{verb} {_joined(map(self.text, argument.sizes))}", _joined(map(str, got)))

    def fail(self, argument: Argument, must: str, got: object) -> None:
        raise RuntimeError(f"wae::{self.op}: {argument.name} must {must}, got {got}")


def check_memory(op: str, table: str, *tensors: Tensor | None) -> None:
    """Check that nobody freed the memory of a tensor that has elements; ``checks.h`` says who does that.

    What stands for a tensor while an op is traced has no memory, and passes.
    """
    for argument, tensor in zip(TABLES[table], tensors, strict=True):
        if tensor is None or type(tensor) not in (Tensor, Parameter):
            continue
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if needed > (got := tensor.untyped_storage().nbytes()):
            _Checker(op).fail(argument, f"have {needed} bytes of memory", got)


# ------------------------------------------------------------------------------------------------- the ops
#
# Each function raises RuntimeError if the arguments do not fit the op. The message begins with the name `op`.


def check_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    op: str = "encode",
) -> None:
    """Check the arguments of ``wae::encode``."""
    _Checker(op).check("encoder", image, *parameters, image_scale, image_shift)
    check_results(dtype, memory_format)


_TABLES_OF = {
    "encode": ("encoder",),
    "decode": ("decoder", "decode"),
    "decode_scores": ("score_decoder", "decode"),
}


def check_inputs(op: str, **inputs: Any) -> None:
    """Check what an op takes besides its parameters, as far as these do not matter.

    Images of several dtypes pass, because autocast takes them, and so does what stands for them while
    torch.fx traces.
    """
    checker = _Checker(op)
    rows = {row.name: row for table in _TABLES_OF[op] for row in TABLES[table]}
    for name, value in inputs.items():
        row = rows[name]
        if row.dtype == "numbers":
            checker.check_numbers(row, value)
        elif isinstance(value, Tensor):
            checker.check_tensor(row._replace(dtype="floating") if row.dtype == "network" else row, value)
        elif not isinstance(value, torch.fx.Proxy):
            checker.fail(row, "be a tensor", type(value).__name__)


def check_results(dtype: torch.dtype | None, memory_format: torch.memory_format | None) -> None:
    """Check the dtype and memory format that a caller requests for the results of ``wae::encode``."""
    if dtype is not None and dtype not in FLOATING:
        raise RuntimeError(f"wae::encode: dtype must be {_FLOATING_NAMES}, got {_name(dtype)}")
    if memory_format not in (None, torch.contiguous_format, torch.channels_last):
        formats = "torch.contiguous_format or torch.channels_last"
        raise RuntimeError(f"wae::encode: memory_format must be {formats}, got {memory_format}")


def check_encode_backward(
    grad_low: Tensor,
    grad_high: Tensor,
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
) -> None:
    """Check the arguments of ``wae::encode_backward``."""
    checker = _Checker("encode_backward")
    checker.check("encoder", image, *parameters, image_scale, image_shift)
    checker.check("encode_backward", grad_low, grad_high)


def check_encode_int8(
    image: Tensor,
    parameters: EncoderParameters,
    image_padding: Tensor,
    shift: Tensor,
    multiplier: Tensor,
    scale: Tensor,
    low_zero_point: Tensor | None,
    high_zero_point: Tensor | None,
) -> None:
    """Check the arguments of ``wae::encode_int8``, except their values: see :func:`check_int8_numbers`."""
    checker = _Checker("encode_int8")
    rest = image_padding, shift, multiplier, scale, low_zero_point, high_zero_point
    checker.check("encode_int8", image, *parameters, *rest)


def check_int8_numbers(
    parameters: EncoderParameters, shift: Tensor, multiplier: Tensor, scale: Tensor
) -> None:
    """Check the values that ``wae::encode_int8`` computes with.

    Within these ranges no sum overflows. No result is NaN either, whose conversion to a byte differs between
    CPUs.
    """
    named = {**parameters._asdict(), "shift": shift, "multiplier": multiplier}
    for name, (least, most) in INT8_RANGES.items():
        numbers = named[name]
        wrong = numbers[(numbers < least) | (numbers > most)].tolist()
        if wrong:
            message = f"{name} must have numbers from {least} to {most}, got {wrong[0]}"
            raise RuntimeError(f"wae::encode_int8: {message}")
    if not_finite := scale[~scale.isfinite()].tolist():
        raise RuntimeError(f"wae::encode_int8: scale must have finite numbers, got {not_finite[0]}")


def check_decode(
    low: Tensor, high: Tensor, parameters: DecoderParameters, output_size: Sequence[int], op: str = "decode"
) -> None:
    """Check the arguments of ``wae::decode``."""
    checker = _Checker(op)
    checker.check("decoder", low, high, *parameters)
    checker.check("decode", output_size)


def check_decode_backward(
    grad_image: Tensor, low: Tensor, high: Tensor, parameters: DecoderParameters
) -> None:
    """Check the arguments of ``wae::decode_backward``."""
    checker = _Checker("decode_backward")
    checker.check("decoder", low, high, *parameters)
    checker.check("decode_backward", grad_image)


def check_decode_scores(
    low: Tensor, high: Tensor, parameters: ScoreDecoderParameters, output_size: Sequence[int]
) -> None:
    """Check the arguments of ``wae::decode_scores``."""
    checker = _Checker("decode_scores")
    checker.check("score_decoder", low, high, *parameters)
    checker.check("decode", output_size)


def check_decode_scores_backward(
    grad_scores: Tensor, low: Tensor, high: Tensor, parameters: ScoreDecoderParameters
) -> None:
    """Check the arguments of ``wae::decode_scores_backward``."""
    checker = _Checker("decode_scores_backward")
    checker.check("score_decoder", low, high, *parameters)
    checker.check("decode_scores_backward", grad_scores)


def check_conv3x3_pack(weight: Tensor) -> None:
    """Check the argument of ``wae::conv3x3_pack``."""
    _Checker("conv3x3_pack").check("conv3x3_pack", weight)


def check_conv3x3(input: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int) -> None:
    """Check the arguments of ``wae::conv3x3``."""
    checker = _Checker("conv3x3")
    checker.check("conv3x3", [out_channels], input, packed, bias)
    if not packed.is_contiguous():
        (row,) = (argument for argument in TABLES["conv3x3"] if argument.name == "packed")
        checker.fail(row, "be contiguous, as conv3x3_pack returns it", "other strides")
