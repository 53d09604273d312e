"""wae::encode_int8 against its reference, bit for bit, and the reference against Python integers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    CELLS,
    LARGE_SIZES,
    LAYOUTS,
    OPCHECK_LAYOUTS,
    SIZES,
    ZERO_POINTS,
    Cell,
    errors_of,
    far_apart,
    image_of,
    int8_encoder,
    is_laid_out_like,
    scattered,
    size_name,
)
from programs import run_program
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import wae_kernels
from wae_kernels import _load, backends, flops, reference  # noqa: F401  (importing flops registers the formulas)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

encode_int8 = torch.ops.wae.encode_int8
HAS_KERNEL = [cell for cell in CELLS if cell.name in ("cpu:avx512", "cpu:avx2") and not cell.why_not]


def by_definition(image: Tensor, *rest: Any) -> list[Tensor]:
    """The definition in docs/network.md with Python integers, one number at a time."""
    *layers, padding, shift, multiplier, scale, _, _ = [None if t is None else t.tolist() for t in rest]
    height, width = image.shape[2:]

    def convolve(x: Any, layer: int, stride: int, outside: list[int]) -> Any:
        weight, bias = layers[2 * layer], layers[2 * layer + 1]

        def total(o: int, y: int, z: int) -> int:
            total = bias[o]
            for c, taps in enumerate(weight[o]):
                for tap in range(9):
                    row, column = stride * y + tap // 3 - 1, stride * z + tap % 3 - 1
                    inside = 0 <= row < height and 0 <= column < width
                    total += taps[tap // 3][tap % 3] * (x[c][row][column] if inside else outside[c])
            return total

        rows, columns = range(-(-height // stride)), range(-(-width // stride))
        return [[[total(o, y, z) for z in columns] for y in rows] for o in range(len(weight))]

    def requantize(total: int, layer: int, o: int) -> int:
        shifted = (total + (1 << shift[layer][o]) // 2) >> shift[layer][o]
        short = min(max(shifted, -(2**15)), 2**15 - 1)
        return min(max((short * multiplier[layer][o] + 2**14) >> 15, 0), 255)

    def branch(x: Any, number: int) -> Tensor:
        sums = torch.tensor(convolve(x, 3 + number, 2, [0] * 16))
        result = sums.float() * torch.tensor(scale[number]).view(3, 1, 1)
        if (zero_point := rest[number - 2]) is None:
            return result
        least = -128 if zero_point.dtype == torch.int8 else 0
        return (result.round() + zero_point.view(3, 1, 1)).clamp(least, least + 255).to(zero_point.dtype)

    results = []
    for one in image:
        x = one.tolist()
        for layer in range(3):
            sums = convolve(x, layer, 1, padding if layer == 0 else [0] * 16)
            x = [[[requantize(s, layer, o) for s in row] for row in plane] for o, plane in enumerate(sums)]
        results.append([branch(x, 0), branch(x, 1)])
    return [torch.stack([result[k] for result in results]) for k in range(2)]


def allow_amx(allowed: bool) -> bool:
    """Allow or forbid AMX, and return whether it is used now: the CPU and the system must support it, too."""
    return _load.CPU.library is not None and bool(_load.CPU.library.wae_cpu_amx(int(allowed)))


@pytest.fixture(autouse=True)
def restored_amx() -> Iterator[None]:
    yield
    allow_amx(os.environ.get("WAE_AMX") != "0")


def check(image: Tensor, rest: list[Any]) -> None:
    """Results on the image's device equal the reference's on the CPU, without AMX and, if possible, with."""
    before, expected = image.clone(), reference.encode_int8(image.cpu(), *rest)
    rest = [None if t is None else t.to(image.device) for t in rest]
    for amx in (True, False):
        if allow_amx(amx) != amx:
            continue
        outputs = encode_int8(image, *rest)
        for output, wanted, zero_point in zip(outputs, expected, rest[-2:], strict=True):
            assert output.dtype == (torch.float32 if zero_point is None else zero_point.dtype)
            assert is_laid_out_like(output, image)
            assert torch.equal(output.cpu(), wanted)
    assert torch.equal(image, before)


@pytest.mark.parametrize("zero_points", ZERO_POINTS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)], ids=size_name)
def test_reference_equals_the_definition(size: tuple[int, int], zero_points: Sequence[Any]) -> None:
    image, rest = image_of(2, *size, torch.uint8), int8_encoder(zero_points=zero_points)
    for got, wanted in zip(reference.encode_int8(image, *rest), by_definition(image, *rest), strict=True):
        assert torch.equal(got, wanted)
        assert got.float().std() > 0 or got.numel() < 10


@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_sizes(cell: Cell, size: tuple[int, int]) -> None:
    for batch, zero_points in enumerate(ZERO_POINTS, 1):
        check(image_of(batch, *size, torch.uint8, cell.device), int8_encoder(zero_points=zero_points))


@pytest.mark.parametrize("size", [*LARGE_SIZES[:5], (40, 247), (40, 249), (40, 496)], ids=size_name)
@pytest.mark.parametrize("backend", HAS_KERNEL, ids=str)
def test_large_sizes(backend: Cell, size: tuple[int, int]) -> None:
    with backends.use(backend.name):
        check(image_of(1, *size, torch.uint8), int8_encoder())


@pytest.mark.parametrize("zero_points", ZERO_POINTS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cell: Cell, layout: str, zero_points: Sequence[Any]) -> None:
    numbers = int8_encoder(zero_points=zero_points)
    rest = [None if t is None else scattered(t) if t.is_floating_point() else t for t in numbers]
    rest[0] = rest[0].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if zero_points[0] is not None:
        rest[-2] = torch.full((1,), 100, dtype=zero_points[0]).expand(3)
    check(LAYOUTS[layout](image_of(3, 9, 37, torch.uint8, cell.device)), rest)


@pytest.mark.parametrize("backend", HAS_KERNEL, ids=str)
def test_strides_beyond_32_bits(backend: Cell) -> None:
    with backends.use(backend.name):
        check(far_apart(image_of(2, 2, 40, torch.uint8)), int8_encoder())


def test_an_empty_batch(cell: Cell) -> None:
    check(image_of(0, 5, 6, torch.uint8, cell.device), int8_encoder())


@pytest.mark.parametrize("width", [1, 8, 17])
def test_other_widths(width: int) -> None:
    check(image_of(2, 9, 14, torch.uint8), int8_encoder(width))


def test_nothing_overflows(cell: Cell) -> None:
    """The largest possible sums, biases and shifts, with both signs."""
    rest = int8_encoder(zero_points=ZERO_POINTS[1])
    for sign in (1, -1):
        for tensor in rest[:10:2]:
            tensor.fill_(127 if sign > 0 else -128)
        for tensor in rest[1:10:2]:
            tensor.fill_(sign * 2**30)
        rest[11].copy_(torch.arange(16).mul(2).expand(3, 16))
        rest[12].fill_(2**15 - 1)
        check(torch.full((1, 3, 7, 40), 255, dtype=torch.uint8, device=cell.device), rest)


@pytest.mark.parametrize("size", [(30, 31), (64, 300)], ids=size_name)
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("backend", HAS_KERNEL, ids=str)
def test_any_number_of_threads(backend: Cell, threads: int, size: tuple[int, int]) -> None:
    torch.set_num_threads(threads)
    with backends.use(backend.name):
        check(image_of(2, *size, torch.uint8), int8_encoder())


def test_changed_weights_take_effect() -> None:
    """Writing through .data changes no version counter and no address."""
    image, rest = image_of(1, 8, 9, torch.uint8), int8_encoder(zero_points=ZERO_POINTS[1])
    check(image, rest)
    for tensor in rest:
        tensor.data.copy_(tensor.flip(0))
        check(image, rest)


def test_backends_with_a_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    has_kernel = {"cpu:avx512": torch.cpu._is_vnni_supported(), "cpu:avx2": "avx_vnni" in flags}
    for backend in HAS_KERNEL:
        with backends.use(backend.name):
            assert backends.int8_runs() == has_kernel[backend.name]
    for name in ("cpu:portable", "reference"):
        if name in [b.name for b in backends.available() if b.available]:
            with backends.use(name):
                assert not backends.int8_runs()
    assert not backends.int8_runs("meta")


AMX_PROGRAM = """
import ctypes, os, sys
import torch
from cases import image_of, int8_encoder
from wae_kernels import _load, backends, reference

small = sys.argv[1] == "small signal stack"
if small:  # some libraries give their threads such stacks, which are too small for AMX's registers
    class Stack(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]
    memory = ctypes.create_string_buffer(4096)
    stack = Stack(ctypes.addressof(memory), 0, 4096)
    if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) != 0:
        print(0)  # this kernel refuses such a small stack
        sys.exit()
torch.set_num_threads(1)
image, rest = image_of(1, 9, 70, torch.uint8), int8_encoder()
expected = reference.encode_int8(image, *rest)

def right():
    return all(map(torch.equal, torch.ops.wae.encode_int8(image, *rest), expected))

assert right()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
assert os.waitpid(child, 0)[1] == 0
print(_load.CPU.library.wae_cpu_amx(os.environ.get("WAE_AMX") != "0"))
"""


def amx_in_a_process(case: str, **environment: str) -> str:
    """Return "1" if a new process uses AMX, else "0"; its results and its child's must be right."""
    return run_program(AMX_PROGRAM, case, **environment).stdout.strip()


@pytest.mark.skipif(not allow_amx(True), reason="this CPU has no AMX, or the system does not permit it")
def test_process_requests_amx_and_keeps_it_after_a_fork() -> None:
    assert amx_in_a_process("usual stack", WAE_AMX="1", WAE_BACKEND="cpu:avx512") == "1"
    assert amx_in_a_process("small signal stack", WAE_AMX="1", WAE_BACKEND="cpu:avx512") == "0"
    assert amx_in_a_process("usual stack", WAE_AMX="0", WAE_BACKEND="cpu:avx512") == "0"
    assert amx_in_a_process("usual stack", WAE_AMX="1", WAE_BACKEND="cpu:avx2") == "0"


# ------------------------------------------------------------------------------------ registration with torch


@pytest.mark.parametrize("zero_points", ZERO_POINTS, ids=str)
@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
def test_opcheck(layout: str, zero_points: Sequence[Any]) -> None:
    image = LAYOUTS[layout](image_of(2, 6, 7, torch.uint8))
    torch.library.opcheck(encode_int8.default, (image, *int8_encoder(zero_points=zero_points)))


def test_compile_fullgraph_for_any_size() -> None:
    rest = int8_encoder()

    def model(image: Tensor) -> Tensor:
        low, high = wae_kernels.encode_int8(image, *rest)
        return low + high

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((8, 9), (6, 17)):
        image = image_of(2, *size, torch.uint8)
        assert torch.equal(compiled(image), model(image))


def test_unchanged_inside_autocast() -> None:
    image, rest = image_of(1, 8, 9, torch.uint8), int8_encoder()
    with torch.autocast("cpu"):
        assert torch.equal(encode_int8(image, *rest)[0], reference.encode_int8(image, *rest)[0])


def test_gradients_are_refused() -> None:
    rest = int8_encoder()
    rest[13].requires_grad_()
    with pytest.raises(RuntimeError, match=r"wae::encode_int8 has no derivative: .*torch\.no_grad"):
        encode_int8(image_of(1, 5, 5, torch.uint8), *rest)[0].sum().backward()


def test_flops_equal_those_of_the_float32_encoder() -> None:
    with FlopCounterMode(display=False) as counter:
        encode_int8(image_of(1, 224, 224, torch.uint8), *int8_encoder())
    assert counter.get_total_flops() == pytest.approx(2 * 263.7e6, rel=1e-3)


def test_function_equals_the_op() -> None:
    values = [image_of(1, 5, 6, torch.uint8), *int8_encoder(zero_points=ZERO_POINTS[1])]
    values[-2:] = torch.tensor([1, 2, 3], dtype=torch.uint8), torch.tensor([-1, 0, 1], dtype=torch.int8)
    assert list(inspect.signature(wae_kernels.encode_int8).parameters) == NAMES
    expected = encode_int8(*values)
    named = dict(zip(NAMES, values, strict=True))
    for results in (wae_kernels.encode_int8(*values), wae_kernels.encode_int8(**named)):
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)
            assert result.dtype == wanted.dtype


# ---------------------------------------------------------------------------------------------- bad input

NAMES = [argument.name for argument in encode_int8.default._schema.arguments]
INVALID = {
    "image": (lambda t: t.float(), "be uint8, got float32"),
    "conv1_weight": (lambda t: t.short(), "be int8, got int16"),
    "conv2_weight": (lambda t: t[:, :4], "have shape (16, 16, 3, 3), got (16, 4, 3, 3)"),
    "conv3_bias": (lambda t: t.float(), "be int32, got float32"),
    "image_padding": (lambda t: t[:2], "have shape (3), got (2)"),
    "shift": (lambda t: t[0], "have shape (3, 16), got (16)"),
    "multiplier": (lambda t: t.int(), "be int16, got int32"),
    "scale": (lambda t: t.double(), "be float32, got float64"),
    "low_zero_point": (lambda t: t.int(), "be uint8 or int8, got int32"),
    "high_zero_point": (lambda t: t.view(1, 3), "have shape (3), got (1, 3)"),
}
NUMBERS = [
    ("low_bias", 2**30 + 1, f"have numbers from {-(2**30)} to {2**30}, got {2**30 + 1}"),
    ("conv1_bias", -(2**30) - 1, f"have numbers from {-(2**30)} to {2**30}, got {-(2**30) - 1}"),
    ("shift", 31, "have numbers from 0 to 30, got 31"),
    ("shift", -1, "have numbers from 0 to 30, got -1"),
    ("multiplier", -1, "have numbers from 0 to 32767, got -1"),
    ("scale", float("nan"), "have finite numbers, got nan"),
    ("scale", float("-inf"), "have finite numbers, got -inf"),
]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_argument_is_named(name: str) -> None:
    values = [image_of(1, 5, 6, torch.uint8), *int8_encoder(zero_points=ZERO_POINTS[1])]
    change, text = INVALID[name]
    values[NAMES.index(name)] = change(values[NAMES.index(name)])
    assert errors_of(encode_int8, values) == [f"wae::encode_int8: {name} must {text}"] * 3


@pytest.mark.parametrize(("name", "number", "text"), NUMBERS)
def test_numbers_out_of_range_are_named(name: str, number: float, text: str) -> None:
    """If there are several, the message has the first."""
    values = [image_of(1, 5, 6, torch.uint8), *int8_encoder(zero_points=ZERO_POINTS[1])]
    numbers = values[NAMES.index(name)].view(-1)
    numbers[-1] = float("inf") if numbers.is_floating_point() else torch.iinfo(numbers.dtype).min
    numbers[-2] = number
    assert errors_of(encode_int8, values, fake=False) == [f"wae::encode_int8: {name} must {text}"] * 2
