"""Inputs of the op tests: backends, networks, images and memory layouts."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wae_kernels import _load, backends
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES, SCORE_DECODER_SHAPES, TRUNK_WIDTH, half_of

T = TypeVar("T")

_SEED = os.environ.get("WAE_TEST_SEED") or "0"
if not _SEED.isdecimal():
    raise pytest.UsageError(f"WAE_TEST_SEED must be a whole number, got {_SEED!r}")
SEED = int(_SEED)


def seed_of(name: str) -> int:
    """The seed of a test, or of a case that several tests share, from its name and ``WAE_TEST_SEED``."""
    return zlib.crc32(f"{SEED} {name}".encode())


KERNELS_FOR_GPUS = {
    "cuda": ("encode", "decode", "encode_backward", "decode_backward"),
    "triton": ("encode", "decode"),
}
"""The ops that each GPU backend has a kernel for. The reference computes the others."""


@dataclass(frozen=True)
class Cell:
    """A device, and the backend that is selected to run the ops there."""

    name: str
    device: str = "cpu"
    why_not: str = ""

    @property
    def compiled(self) -> bool:
        """Whether our kernels run when this backend is selected. They guarantee more than PyTorch's."""
        return backends.backend_for(self.device) != "reference"

    def has_kernel(self, op: str) -> bool:
        """Whether our kernel runs for ``op``: GPUs have kernels for fewer ops."""
        if self.device == "cpu":
            return self.compiled
        return op in KERNELS_FOR_GPUS.get(backends.backend_for(self.device), ())

    def __str__(self) -> str:
        return self.name if self.device == "cpu" else f"{self.name}@{self.device}"


CELLS = [
    Cell(b.name, "cuda" if b.name in ("cuda", "triton") else "cpu", "" if b.available else b.reason)
    for b in backends.available()
]
if torch.cuda.is_available():
    CELLS.append(Cell("reference", "cuda"))
MAIN_CELLS = [Cell("auto"), *(c for c in CELLS if not c.name.startswith("cpu:"))]
"""One cell for all variants of the CPU kernels, for tests of the code around the kernels."""

needs_library = pytest.mark.skipif(_load.CPU.library is None, reason="the compiled library is missing")
needs_kernels = pytest.mark.skipif(
    not backends.kernels_run(on_processor=True), reason="needs the compiled kernels"
)


def as_params(cells: Sequence[Cell]) -> list[Any]:
    """The cells as pytest parameters. Those that need a GPU are marked ``gpu``."""
    return [pytest.param(c, id=str(c), marks=[pytest.mark.gpu] if c.device == "cuda" else []) for c in cells]


SIZES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (5, 4), (1, 7), (7, 1), (1, 300), (300, 1),
    (15, 16), (16, 17), (31, 33), (64, 64), (65, 63), (130, 34),
]  # fmt: skip
LARGE_SIZES = [(224, 224), (225, 223), (3, 4096), (6, 4099), (9, 4096), (4096, 4), (4097, 7)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def halved(size: Sequence[int]) -> tuple[int, int]:
    """The size of ``low`` and ``high`` for an image of this size."""
    height, width = size
    return half_of(height), half_of(width)


def size_name(size: tuple[int, int]) -> str:
    """A test id: 31x33."""
    return f"{size[0]}x{size[1]}"


# ------------------------------------------------------------------------------------------------ networks


def _draw(shape: Sequence[int], variance: float) -> Tensor:
    return torch.randn(tuple(shape), dtype=torch.float64) * variance**0.5


def _network(fan_in: dict[str, float], shapes: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """He initialisation, so that every layer's output has a variance near 1. The biases are not zero."""
    return [_draw(s, 0.1) if len(s) == 1 else _draw(s, 2 / fan_in[name]) for name, s in shapes.items()]


def _shapes(shapes: dict[str, tuple[int | str, ...]], width: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(width if size == TRUNK_WIDTH else size for size in s) for name, s in shapes.items()}


def encoder(dtype: torch.dtype = torch.float32, device: str = "cpu", width: int = 16) -> list[Tensor]:
    """Ten random parameters in the order of ``wae::encode``."""
    shapes = _shapes(ENCODER_SHAPES, width)
    fan_in = {name: 9.0 * s[1] for name, s in shapes.items() if len(s) == 4}
    return [t.to(device, dtype) for t in _network(fan_in, shapes)]


def decoder(dtype: torch.dtype = torch.float32, device: str = "cpu", width: int = 16) -> list[Tensor]:
    """Ten random parameters in the order of ``wae::decode``."""
    shapes = _shapes(DECODER_SHAPES, width)
    fan_in = {name: 9.0 * s[1] for name, s in shapes.items() if len(s) == 4}
    # A pixel of the transposed convolutions sees 9/4 taps on average, of 3 channels of two images.
    fan_in["low_weight"] = fan_in["high_weight"] = 6 * 9 / 4
    return [t.to(device, dtype) for t in _network(fan_in, shapes)]


CLASSES, FEATURES = 5, 7
"""The channels of ``low`` and ``high`` for ``decode_scores``, unless a test names others."""


def score_decoder(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    width: int = 16,
    classes: int = CLASSES,
    features: int = FEATURES,
) -> list[Tensor]:
    """Eight random parameters in the order of ``wae::decode_scores``."""
    sizes = {TRUNK_WIDTH: width, "classes": classes, "features": features}
    shapes = {name: tuple(sizes.get(n, n) for n in s) for name, s in SCORE_DECODER_SHAPES.items()}
    fan_in = {name: 9.0 * s[1] for name, s in shapes.items() if len(s) == 4}
    fan_in["low_weight"] = fan_in["high_weight"] = (classes + features) * 9 / 4  # as in decoder()
    return [t.to(device, dtype) for t in _network(fan_in, shapes)]


def _shifts_away_from_zero(z: Tensor, margin: float) -> Tensor:
    """For each channel, the smallest shift that leaves no value within ``margin`` of 0."""
    shifts = []
    for values in z.movedim(1, 0).flatten(1):
        edges = values.neg().sort().values
        candidates = torch.cat([torch.zeros(1).to(edges), edges - margin, edges + margin])
        after = torch.searchsorted(edges, candidates)
        right = (edges[after.clamp(max=len(edges) - 1)] - candidates).abs()
        left = (edges[(after - 1).clamp(min=0)] - candidates).abs()
        free = candidates[torch.minimum(left, right) >= margin * 0.999]
        shifts.append(free[free.abs().argmin()])
    return torch.stack(shifts)


# The derivative of ReLU jumps at 0, its kink. If an activation is within rounding error of 0, the gradients
# of two correct implementations differ by more than any tolerance. The tests of gradients avoid this: they
# change the trunk's biases until all inputs of ReLU are at least `margin` away from 0 for the test's images.


def _move_from_kinks(x: Tensor, layers: Sequence[Tensor], margin: float) -> None:
    for weight, bias in zip(layers[0::2], layers[1::2], strict=True):
        bias += _shifts_away_from_zero(F.conv2d(x, weight, bias, padding=1), margin)
        x = F.relu(F.conv2d(x, weight, bias, padding=1))


def kink_free_encoder(parameters: Sequence[Tensor], normalized_image: Tensor, margin: float) -> list[Tensor]:
    """The encoder with biases that keep its activations for this image away from the kinks."""
    wide = [p.double().clone() for p in parameters]
    _move_from_kinks(normalized_image.double(), wide[:6], margin)
    return [w.to(p) for w, p in zip(wide, parameters, strict=True)]


def kink_free_decoder(
    parameters: Sequence[Tensor], low: Tensor, high: Tensor, size: Sequence[int], margin: float
) -> list[Tensor]:
    """The decoder of images or scores with biases that keep its activations away from the kinks."""
    wide = [p.double().clone() for p in parameters]

    def start() -> Tensor:
        padding = [s - (2 * h - 1) for s, h in zip(size, low.shape[2:], strict=True)]
        options = {"stride": 2, "padding": 1, "output_padding": padding}
        up_low = F.conv_transpose2d(low.double(), wide[0], wide[1], **options)
        return up_low + F.conv_transpose2d(high.double(), wide[2], wide[3], **options)

    wide[1] += _shifts_away_from_zero(start(), margin)
    _move_from_kinks(F.relu(start()), wide[4:-2], margin)
    return [w.to(p) for w, p in zip(wide, parameters, strict=True)]


# ------------------------------------------------------------------------------------------------ images


def image_of(
    batch: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels: int = 3,
) -> Tensor:
    """A (batch, channels, height, width) image of noise: variance 1, or all of 0..255 for uint8."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, (batch, channels, height, width), dtype=dtype).to(device)
    return _draw((batch, channels, height, width), 1).to(device, dtype)


def affine(
    dtype: torch.dtype = torch.float32, device: str = "cpu", *, of_bytes: bool = False
) -> list[Tensor]:
    """``image_scale`` and ``image_shift``; those for bytes scale 0..255 to a variance of about 1."""
    scale, shift = torch.tensor([0.7, 1.1, -1.3]), torch.tensor([0.4, -0.3, 0.2])
    if of_bytes:
        scale, shift = scale / 74, shift - 1.7 * scale
    return [scale.to(device, dtype), shift.to(device, dtype)]


def widened(values: Sequence[T]) -> list[T]:
    """``values`` with floating-point tensors converted to float64: the oracle's arguments."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


# ------------------------------------------------------------------------------------------------- layouts


def _embedded(x: Tensor, order: Sequence[int] = (0, 1, 2, 3), step: int = 1) -> Tensor:
    """``x`` as every ``step``-th pixel of a larger tensor, whose dimensions have this ``order`` in memory.

    The memory around it is NaN (noise for bytes), so that results are wrong if a kernel reads outside ``x``.
    """
    n, c, h, w = x.shape
    outer = (n + 2, c + 1, step * h + 3, step * w + 5)
    memory = torch.empty([outer[d] for d in order], dtype=x.dtype, device=x.device)
    if x.is_floating_point():
        memory.fill_(torch.nan)
    else:
        memory.random_(0, 256)
    inverse = [list(order).index(d) for d in range(4)]
    rows, columns = slice(2, 2 + step * h, step), slice(3, 3 + step * w, step)
    return memory.permute(inverse)[1 : 1 + n, 1 : 1 + c, rows, columns].copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _embedded,
    "sliced_channels_last": lambda x: _embedded(x, (0, 2, 3, 1)),
    "second_pixels": lambda x: _embedded(x, step=2),
    "second_pixels_channels_last": lambda x: _embedded(x, (0, 2, 3, 1), step=2),
    "transposed": lambda x: _embedded(x, (0, 1, 3, 2)),
    "batch_innermost": lambda x: _embedded(x, (1, 2, 3, 0)),
    "rows_outermost": lambda x: _embedded(x, (2, 0, 3, 1)),
    # These have strides of 0: they repeat some values and drop the others.
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_rows": lambda x: x[:, :, :1].expand_as(x),
    "expanded_columns": lambda x: x[..., :1].expand_as(x),
    "expanded_value": lambda x: x[:1, :1, :1, :1].expand_as(x),
}
"""Functions that put an (N, 3, H, W) tensor into a memory layout. The expanded ones need N, H, W >= 1."""

OPCHECK_LAYOUTS = [
    "nchw",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("channels_last", "sliced", "transposed", "batch_innermost")
    ),
]
"""One layout of each kind, for ``torch.library.opcheck``, which takes 0.2 s for each."""


def set_to_nan_beside_infinity(number: Tensor) -> None:
    """Make one number of a float32 tensor the NaN whose bits are next to those of minus infinity.

    In the bits that tf32 keeps, it is minus infinity; times positive numbers, this is 0 after a ReLU.
    """
    number.copy_(torch.tensor(0xFF800001 - 2**32, dtype=torch.int32).view(torch.float32))


def scattered(tensor: Tensor) -> Tensor:
    """The same values with NaN between them, and without any stride of a contiguous tensor."""
    memory = tensor.new_full([2 * size + 1 for size in reversed(tensor.shape)], torch.nan)
    view = memory.permute(*reversed(range(tensor.dim())))[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def far_apart(x: Tensor) -> Tensor:
    """The same (N, C, H, W) values with images and rows so far apart that offsets exceed 32 bits."""
    distance = 2**31 // (x.shape[0] * x.shape[2] - 1) + 2**16
    last = (x.shape[0] * x.shape[2] - 1) * distance
    torch.utils.deterministic.fill_uninitialized_memory = False  # poisoned_memory restores it
    try:
        memory = torch.empty(last + x.shape[1] * x.shape[3], dtype=x.dtype)
    except RuntimeError:
        pytest.skip("the system does not reserve that much virtual memory")
    torch.utils.deterministic.fill_uninitialized_memory = True
    strides = (x.shape[2] * distance, x.shape[3], distance, 1)
    return memory.as_strided(x.shape, strides).copy_(x)


def is_laid_out_like(out: Tensor, like: Tensor) -> bool:
    """Whether ``out`` is dense and in the memory format of ``like``, as the specification requires."""
    channels_last = 0 < like.stride(1) < like.stride(3)
    return out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _integers(least: int, most: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(least, most + 1, shape, dtype=dtype)


def _zero_point(dtype: torch.dtype) -> Tensor:
    return _integers(torch.iinfo(dtype).min, torch.iinfo(dtype).max, 3, dtype=dtype)


ZERO_POINTS: tuple[tuple[torch.dtype | None, torch.dtype | None], ...] = (
    (None, None),
    (torch.uint8, torch.int8),
    (torch.int8, torch.uint8),
    (torch.int8, None),
)
"""Dtypes of the zero points of ``low`` and ``high``; None if there is no zero point."""


def int8_encoder(width: int = 16, zero_points: Sequence[torch.dtype | None] = (None, None)) -> list[Any]:
    """The arguments of ``encode_int8`` after the image.

    They use the full range of their dtypes, but the activations do not all saturate at 0 or 255.
    ``zero_points`` is one of :data:`ZERO_POINTS`.
    """
    shapes = [(width, 3), (width, width), (width, width), (3, width), (3, width)]
    layers = [
        tensor
        for shape in shapes
        for tensor in (
            _integers(-128, 127, *shape, 3, 3, dtype=torch.int8),
            _integers(-20_000, 20_000, shape[0], dtype=torch.int32),
        )
    ]
    return [
        *layers,
        torch.tensor([0, 255, 124], dtype=torch.uint8),
        _integers(0, 10, 3, width, dtype=torch.int32),
        _integers(0, 2**15 - 1, 3, width, dtype=torch.int16),
        torch.rand(2, 3) / 3_000,
        *(None if dtype is None else _zero_point(dtype) for dtype in zero_points),
    ]


# ------------------------------------------------------------------------------------------- complete calls


OPS = ("encode", "decode", "decode_scores", "encode_backward", "decode_backward", "decode_scores_backward")


RESULT_OPTIONS = ("dtype", "memory_format")
"""The arguments of ``encode`` that set the form of its results. :func:`arguments_of` leaves them out."""


def names_of(op: str) -> list[str]:
    """The names of the arguments that :func:`arguments_of` gives."""
    schema = getattr(torch.ops.wae, op).default._schema
    return [argument.name for argument in schema.arguments if argument.name not in RESULT_OPTIONS]


def arguments_of(
    op: str,
    layout: str = "nchw",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] = (13, 18),
    requires_grad: bool = False,
    parameter_dtype: torch.dtype | None = None,
) -> list[Any]:
    """Valid arguments of the op, with images in this layout, and parameters of ``dtype`` by default."""
    own = parameter_dtype or dtype
    lay, half = LAYOUTS[layout], halved(size)
    if op.startswith("encode"):
        images = [lay(image_of(2, *size, dtype, device))]
        gradients = [lay(image_of(2, *half, dtype, device))] * 2
        parameters = [*encoder(own, device), *affine(device=device)]
    elif op.startswith("decode_scores"):
        images = [lay(image_of(2, *half, dtype, device, channels=n)) for n in (CLASSES, FEATURES)]
        gradients = [lay(image_of(2, *size, dtype, device, channels=CLASSES))]
        parameters = score_decoder(own, device)
    else:
        images = [lay(image_of(2, *half, dtype, device)) for _ in range(2)]
        gradients = [lay(image_of(2, *size, dtype, device))]
        parameters = decoder(own, device)
    if op == "encode_backward":
        return [*gradients, *images, *parameters, True, True, True]
    if op in ("decode_backward", "decode_scores_backward"):
        return [*gradients, *images, *parameters, True, True]
    tensors = [t.detach().requires_grad_(requires_grad) for t in [*images, *parameters]]
    return tensors if op == "encode" else [*tensors, list(size)]


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """An op's outputs as a tuple, even if there is only one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def errors_of(op: Any, arguments: Sequence[Any], *, fake: bool = True) -> list[str]:
    """First lines of the errors from the kernel, the reference and, if ``fake``, the fake kernel."""

    def call_fake() -> Any:
        with FakeTensorMode() as mode:
            return op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))

    by_reference = getattr(torch.ops.wae, f"_{op.__name__}_reference")
    calls = [lambda: op(*arguments), lambda: by_reference(*arguments), *([call_fake] if fake else [])]
    lines = []
    for call in calls:
        with pytest.raises(RuntimeError) as error:
            call()
        lines.append(str(error.value).partition("\n")[0])
    return lines


def recorded(
    activity: torch.profiler.ProfilerActivity = torch.profiler.ProfilerActivity.CPU,
) -> torch.profiler.profile:
    """A profiler of the operators that run. Without ``acc_events``, torch 2.10 warns."""
    return torch.profiler.profile(activities=[activity], acc_events=True)
