"""``wae selftest``: every op on every backend of this machine, on random problems, against float64.

A problem is determined by its number alone, so that a failure reported by a user can be repeated elsewhere.
The error of an op may be as large as the limit in docs/network.md, plus the change of the float64 result
when the inputs change by half of that limit. The second part allows for sums that cancel and for
activations at a ReLU's kink, which are no faults. Each output has a limit of its own as well, because the
gradient of a bias can be a thousandth of all gradients. ``encode_int8`` must be exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wae.wording import first_line
from wae_kernels import backends, reference
from wae_kernels.checks import half_of
from wae_kernels.nn import Decoder, Encoder, ScoreDecoder


class Arithmetic(NamedTuple):
    """How floating-point arguments are computed with, and how far the results may be off.

    ``limit`` is that of docs/network.md, for all outputs of an op together. ``single`` is for each alone.
    """

    dtype: torch.dtype
    limit: float
    single: float


ARITHMETICS = {
    "float32": Arithmetic(torch.float32, 1e-5, 1e-5),
    "tf32": Arithmetic(torch.float32, 1e-3, 1e-2),
    "float16": Arithmetic(torch.float16, 2e-3, 2e-2),
    "bfloat16": Arithmetic(torch.bfloat16, 1.5e-2, 1.5e-1),
}
"""By name. "tf32" is float32 on a GPU whose tensor cores may round to tf32, as torch allows by default.

Small outputs, sums of gradients that cancel, suffer most if numbers are rounded between the layers, as on
GPUs: PyTorch's own operators in 16 bits, which round after each operation, were seen at 5.5 times the limit.
Hence 10 times.
"""

_LONGEST_SIDE = 40
_DRAWS = 2
"""How many times the inputs are changed, back and forth, to see how much the float64 result depends on them.

Of a sum within rounding of zero, one of the two changes brings it to the other side of its ReLU.
"""


class Problem(NamedTuple):
    """One call: the op and its arguments, in order."""

    op: str
    number: int
    arithmetic: str
    arguments: tuple[Any, ...]
    description: str


@dataclass
class Row:
    """The outcome of an op on a backend in one dtype, or in "tf32".

    ``error`` is the largest ``||out - ref|| / ||ref||`` of all outputs together. ``share`` is the largest
    error, of these or of a single output, divided by the allowed one; the op is wrong if it exceeds 1.
    ``failures`` describes the problems that failed, by number.
    """

    backend: str
    op: str
    dtype: str
    calls: int = 0
    error: float = 0.0
    share: float = 0.0
    failures: list[str] = field(default_factory=list)


def devices() -> list[tuple[str, str]]:
    """Every backend that runs here, and the device that it runs on."""
    usable = [backend.name for backend in backends.available() if backend.available]
    return [(name, "cuda" if name in ("cuda", "triton") else "cpu") for name in usable]


def problem(number: int, op: str, arithmetic: str) -> Problem:
    """Problem ``number`` of an op. The number seeds the sizes, memory layout, batch and values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        batch, height, width = (int(torch.randint(1, n, ())) for n in (4, _LONGEST_SIDE, _LONGEST_SIDE))
        layout = ("contiguous", "channels_last", "sliced")[int(torch.randint(3, ()))]
        arguments = _ARGUMENTS[op](batch, height, width, layout)
    arguments = tuple(_rounded(a, arithmetic) if _is_floating(a) else a for a in arguments)
    return Problem(op, number, arithmetic, arguments, f"{batch} x {height} x {width}, {layout}")


def _rounded(tensor: Tensor, arithmetic: str) -> Tensor:
    """The numbers that ``arithmetic`` represents exactly: else rounding them could use up the limit."""
    if arithmetic == "tf32":
        tensor.view(torch.int32).bitwise_and_(-(1 << 13))  # 10 of 23 bits of mantissa are left
    return tensor.to(ARITHMETICS[arithmetic].dtype)


def _images(batch: int, channels: int, height: int, width: int, layout: str) -> Tensor:
    if layout == "sliced":
        return torch.randn(batch, channels, height + 3, width + 2)[:, :, 1:-2, 2:]
    images = torch.randn(batch, channels, height, width)
    return images.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else images


def _parameters(module: Encoder | Decoder | ScoreDecoder) -> list[Tensor]:
    """Random parameters, scaled so that activations keep the variance of the input."""
    layers = [(module.get_parameter(f"{name}.weight"), name) for name, _ in module.named_children()]
    tensors: list[Tensor] = []
    for weight, name in layers:
        fan_in: float = weight[0].numel()
        if not isinstance(module, Encoder) and not name.startswith("conv"):
            fan_in = (module.low.in_channels + module.high.in_channels) * 9 / 4
        tensors += [torch.randn_like(weight) * (2 / fan_in) ** 0.5]
        tensors += [0.5 * torch.randn_like(module.get_parameter(f"{name}.bias"))]
    return tensors


def _encode(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    scale, shift = torch.rand(3) + 0.5, torch.randn(3)
    return (_images(batch, 3, height, width, layout), *_parameters(Encoder()), scale, shift)


def _encode_int8(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    def integers(like: Tensor, least: int, most: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(least, most, like.shape, dtype=dtype)

    image = _images(batch, 3, height, width, layout).mul(64).add(128).clamp(0, 255).byte()
    layers = [
        integers(p, -128, 128, torch.int8) if p.dim() > 1 else integers(p, -20_000, 20_000, torch.int32)
        for p in Encoder().parameters()
    ]
    rows = torch.empty(3, 16)
    shift, multiplier = integers(rows, 0, 11, torch.int32), integers(rows, 0, 2**15, torch.int16)
    return (image, *layers, integers(rows[:, 0], 0, 256, torch.uint8), shift, multiplier, torch.rand(2, 3))


def _decode(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    halves = [_images(batch, 3, half_of(height), half_of(width), layout) for _ in range(2)]
    return (*halves, *_parameters(Decoder()), (height, width))


def _decode_scores(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    channels = [int(torch.randint(1, 34, ())) for _ in range(2)]
    halves = [_images(batch, n, half_of(height), half_of(width), layout) for n in channels]
    return (*halves, *_parameters(ScoreDecoder(*channels)), (height, width))


def _encode_backward(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    gradients = [_images(batch, 3, half_of(height), half_of(width), "contiguous") + 1 for _ in range(2)]
    return (*gradients, *_encode(batch, height, width, layout), True, True, True)


def _decode_backward(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    *tensors, _ = _decode(batch, height, width, layout)
    return (_images(batch, 3, height, width, "contiguous") + 1, *tensors, True, True)


def _decode_scores_backward(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    *tensors, _ = _decode_scores(batch, height, width, layout)
    classes = tensors[0].shape[1]
    return (_images(batch, classes, height, width, "contiguous") + 1, *tensors, True, True)


def _conv3x3(batch: int, height: int, width: int, layout: str) -> tuple[Any, ...]:
    channels, out_channels = (int(torch.randint(1, 70, ())) for _ in range(2))
    weight = torch.randn(out_channels, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
    images = _images(batch, channels, height, width, layout)
    return images, weight, 0.5 * torch.randn(out_channels), bool(torch.randint(2, ()))


_ARGUMENTS: dict[str, Callable[[int, int, int, str], tuple[Any, ...]]] = {
    "encode": _encode,
    "encode_int8": _encode_int8,
    "decode": _decode,
    "decode_scores": _decode_scores,
    "encode_backward": _encode_backward,
    "decode_backward": _decode_backward,
    "decode_scores_backward": _decode_scores_backward,
    "conv3x3": _conv3x3,
}

OPS = tuple(_ARGUMENTS)
"""The ops that are checked."""


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _convolution(image: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    output = torch.nn.functional.conv2d(image, weight, bias, padding=1)
    return output.relu() if relu else output


def _packed_convolution(image: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    packed = torch.ops.wae.conv3x3_pack(weight)
    output: Tensor = torch.ops.wae.conv3x3(image, packed, bias, weight.shape[0], relu)
    return output


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _call(op: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    function = _packed_convolution if op == "conv3x3" else getattr(torch.ops.wae, op)
    return _as_tuple(function(*arguments))


def _reference(op: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    function = _convolution if op == "conv3x3" else getattr(reference, op)
    return _as_tuple(function(*arguments))


def _relative(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The norm of all differences over that of all expected values; infinite for NaN or a wrong shape."""
    if [tuple(o.shape) for o in outputs] != [tuple(e.shape) for e in expected]:
        return float("inf")
    difference = sum(
        float((o.double().cpu() - e).square().sum()) for o, e in zip(outputs, expected, strict=True)
    )
    norm = sum(float(e.square().sum()) for e in expected)
    error = (difference / max(norm, 1e-300)) ** 0.5
    return error if error == error else float("inf")


class Expected(NamedTuple):
    """The float64 results of a problem, and the allowed relative errors, of all together and of each."""

    outputs: tuple[Tensor, ...]
    allowed: float
    each: tuple[float, ...]

    def worst(self, outputs: Sequence[Tensor]) -> tuple[float, float, str]:
        """The error that is the largest share of what is allowed, what is, and which outputs have it."""
        errors = [(_relative(outputs, self.outputs), self.allowed, "")]
        pairs = zip(outputs, self.outputs, self.each, strict=True)
        for number, (output, wanted, allowed) in enumerate(pairs, 1):
            errors.append((_relative([output], [wanted]), allowed, f" in output {number}"))
        return max(errors, key=lambda found: _share(*found[:2]))


def _share(error: float, allowed: float) -> float:
    if allowed:
        return error / allowed
    return float("inf") if error else 0.0


def expected(made: Problem) -> Expected:
    """Compute the problem in float64, and again with slightly changed inputs: see the module's docstring."""
    if made.op == "encode_int8":
        outputs = tuple(x.double() for x in _reference(made.op, made.arguments))
        return Expected(outputs, 0.0, (0.0,) * len(outputs))
    _, limit, single = ARITHMETICS[made.arithmetic]
    wide = [a.double() if _is_floating(a) else a for a in made.arguments]
    outputs = _reference(made.op, wide)
    by = limit / 2
    draws = [_changed(wide, signed, draw) for draw in range(_DRAWS) for signed in (by, -by)]
    changed = [_reference(made.op, arguments) for arguments in draws]
    change = max(_relative(each, outputs) for each in changed)
    changes = [max(_relative([c], [o]) for c in cs) for o, *cs in zip(outputs, *changed, strict=True)]
    return Expected(outputs, limit + change, tuple(single + change for change in changes))


def _changed(arguments: Sequence[Any], by: float, draw: int) -> list[Any]:
    """The arguments with every floating-point number changed by about ``by`` of it."""
    generator = torch.Generator().manual_seed(draw)

    def change(value: Any) -> Any:
        if not _is_floating(value):
            return value
        return value * (1 + by * torch.randn(value.shape, generator=generator, dtype=torch.float64))

    return [change(value) for value in arguments]


def _arithmetics(op: str, device: str) -> Sequence[str]:
    if op in ("conv3x3", "encode_int8"):
        return ("float32",)
    return tuple(name for name in ARITHMETICS if name != "tf32" or device == "cuda")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let float32 convolutions round to tf32 on GPUs, or not, whatever torch's setting is outside."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set at run time
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def run(seconds: float, first: int = 0, only: int | None = None) -> Iterator[list[Row]]:
    """Run problems until the time is up, and yield the rows so far after each number.

    Args:
        seconds: how long to run; every backend and op gets at least one problem.
        first: the number of the first problem.
        only: run this number and no other.
    """
    rows = {
        (name, op, arithmetic): Row(name, op, arithmetic)
        for name, device in devices()
        for op in OPS
        for arithmetic in _arithmetics(op, device)
    }
    kinds = dict.fromkeys((op, arithmetic) for _, op, arithmetic in rows)
    end = time.monotonic() + seconds
    for number in (only,) if only is not None else count(first):
        for op, arithmetic in kinds:
            _check(rows, problem(number, op, arithmetic))
        yield list(rows.values())
        if time.monotonic() >= end:
            return


def _check(rows: dict[tuple[str, str, str], Row], made: Problem) -> None:
    wanted = expected(made)
    for name, device in devices():
        row = rows.get((name, made.op, made.arithmetic))
        if row is None:
            continue
        arguments = [a.to(device) if isinstance(a, Tensor) else a for a in made.arguments]
        row.calls += 1
        try:
            with backends.use(name), _tf32(made.arithmetic == "tf32"):
                outputs = _call(made.op, arguments)
        except Exception as problem:  # a driver, or Triton's compiler: the other backends are still tested
            row.error = row.share = float("inf")
            row.failures.append(f"{made.number} ({made.description}): {first_line(problem)}")
            continue
        error, allowed, where = wanted.worst(outputs)
        row.error = max(row.error, _relative(outputs, wanted.outputs))
        row.share = max(row.share, _share(error, allowed))
        if error > allowed:
            row.failures.append(
                f"{made.number} ({made.description}): {error:.2g}, allowed {allowed:.2g}{where}"
            )
