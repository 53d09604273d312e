"""NaN and infinity: each result is right or not finite. No kernel turns either into a finite number.

Winograd arithmetic may spread them to neighbours in a tile (docs/kernels.md): some results that are finite in
the float64 reference may not be, but never the other way round.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, Cell, decoder, encoder, image_of, seed_of
from compare import relative_error, tolerance
from problems import MARGIN, REFERENCES, Problem, make, with_float32_parameters
from torch import Tensor

from wae_kernels import backends, reference
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES, IN_16_BITS, SCORE_DECODER_SHAPES

PLACES = [
    *(("encode", name) for name in ("image", *ENCODER_SHAPES, "image_scale", "image_shift")),
    *(("decode", name) for name in ("low", "high", *DECODER_SHAPES)),
    *(("decode_scores", name) for name in ("low", "high", *SCORE_DECODER_SHAPES)),
]
VALUES = [torch.nan, torch.inf, -torch.inf]
QUICK_OR_SLOW = [
    torch.nan,
    *(pytest.param(value, marks=pytest.mark.slow) for value in (torch.inf, -torch.inf)),
]


Places = tuple[slice, slice]


def taps(
    small: Sequence[int], large: Sequence[int], stride: int
) -> Iterator[tuple[int, int, Places, Places]]:
    """Each tap of a 3x3 filter from ``large`` (height, width) to ``small``: where it reads and where it adds.

    The padding, of 1, is left out.
    """
    for y, x in itertools.product(range(3), repeat=2):
        reads, adds = [], []
        for tap, few, many in zip((y, x), small, large, strict=True):
            first, end = int(tap == 0), min(few, (many - tap) // stride + 1)
            adds.append(slice(first, end))
            reads.append(slice(stride * first + tap - 1, stride * (end - 1) + tap, stride))
        yield y, x, (reads[0], reads[1]), (adds[0], adds[1])


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    """``F.conv2d``, tap by tap."""
    sizes = [-(-size // stride) for size in x.shape[2:]]
    out = bias.view(1, -1, 1, 1).expand(len(x), -1, *sizes).clone()
    for ky, kx, reads, adds in taps(sizes, x.shape[2:], stride):
        out[(..., *adds)] += torch.einsum("nchw,dc->ndhw", x[(..., *reads)], weight[:, :, ky, kx])
    return out


def transposed(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, output_padding: Sequence[int]
) -> Tensor:
    """``F.conv_transpose2d``, tap by tap."""
    sizes = [stride * (size - 1) + 1 + more for size, more in zip(x.shape[2:], output_padding, strict=True)]
    out = bias.view(1, -1, 1, 1).expand(len(x), -1, *sizes).clone()
    for ky, kx, reads, adds in taps(x.shape[2:], sizes, stride):
        out[(..., *reads)] += torch.einsum("nchw,cd->ndhw", x[(..., *adds)], weight[:, :, ky, kx])
    return out


@contextmanager
def without_padding() -> Iterator[None]:
    """The oracle multiplies no zeros of the padding, nor those that a stride inserts: NaN * 0 is NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", convolution)
        patch.setattr(F, "conv_transpose2d", transposed)
        yield


def test_oracle_without_padding_is_the_reference() -> None:
    for op, function in REFERENCES.items():
        for size in ((1, 1), (2, 1), (7, 6)):
            problem = make(op, Cell("reference"), size, dtype=torch.float64)
            wanted = [*problem.outputs(function), *problem.expected().values()]
            with without_padding():
                found = [*problem.outputs(function), *problem.expected().values()]
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other)


def limit_for(cell: Cell, dtype: torch.dtype) -> float:
    return tolerance(dtype, backends.backend_for(cell.device, dtype), cell.device)


def assert_right_or_not_finite(out: Tensor, ref: Tensor, limit: float, what: str) -> None:
    """Wherever ``out`` is finite, ``ref`` is finite, too, and equals it."""
    out, ref = out.cpu(), ref.cpu()
    is_finite = out.isfinite()
    assert ref[is_finite].isfinite().all(), f"{what}: finite where the reference is not"
    error = relative_error(out[is_finite], ref[is_finite])
    assert error <= limit, f"{what}: relative error {error:.3g} of the finite part, allowed {limit:.3g}"


def expected(problem: Problem) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The outputs and gradients of a problem in float64, computed on the CPU."""
    wide = problem.widened()
    inputs = {name: None if t is None else t.cpu() for name, t in wide.inputs.items()}
    wide = replace(wide, inputs=inputs, incoming=[t.cpu() for t in wide.incoming])
    with without_padding():
        return wide.outputs(REFERENCES[problem.op]), wide.expected()


def check(cell: Cell, problem: Problem, limit: float) -> None:
    """Check the outputs and gradients of a problem with a number that is not finite."""
    outputs, gradients = expected(problem)
    for out, ref in zip(problem.outputs(), outputs, strict=True):
        assert_right_or_not_finite(out, ref, limit, problem.op)
    dtype = problem.inputs["conv1_weight"].dtype
    on_gpu = cell.device == "cuda"
    if on_gpu and not cell.has_kernel(f"{problem.op}_backward") and dtype != torch.float64:
        return  # PyTorch's own convolutions compute its gradients: see dtypes_of
    found = problem.gradients()
    for name, ref in gradients.items():
        assert_right_or_not_finite(found[name], ref, limit, f"gradient of {name}")


def poisoned(tensor: Tensor, value: float) -> Tensor:
    """A copy with the middle element replaced. On the border, im2col would have NaN * 0 in its padding."""
    poisoned = tensor.clone()
    poisoned[tuple(size // 2 for size in tensor.shape)] = value
    return poisoned


def with_number(problem: Problem, name: str, value: float) -> Problem:
    """The problem with one number of an input replaced.

    A bias of minus infinity makes a channel zero, like any that is small enough. That changes the activations
    of the next layers, which are moved from the kinks of ReLU again.
    """
    if name.endswith("bias") and value == -torch.inf:
        problem = with_number(problem, name, -1e4)
        problem = problem.kink_free(MARGIN[problem.inputs[name].dtype])
    return replace(problem, inputs={**problem.inputs, name: poisoned(problem.inputs[name], value)})


def dtypes_of(cell: Cell) -> Iterable[torch.dtype]:
    """Of PyTorch's convolutions only those in float64: others may compute NaN * 0 in the padding."""
    return [d for d in DTYPES if d != torch.float64] if cell.compiled else [torch.float64]


@functools.cache
def finite(op: str, dtype: torch.dtype, device: str) -> Problem:
    """A problem of finite numbers, cached because moving it from the kinks is slow."""
    torch.manual_seed(seed_of(f"{op} {dtype}"))  # the same problem, whichever test runs first
    return make(op, Cell("reference", device), (22, 25), batch=1, dtype=dtype)


@pytest.mark.parametrize("value", QUICK_OR_SLOW)
@pytest.mark.parametrize(("op", "name"), PLACES)
def test_in_an_input(cell: Cell, op: str, name: str, value: float) -> None:
    for dtype in dtypes_of(cell):
        problem = with_number(finite(op, dtype, cell.device), name, value)
        check(cell, problem, limit_for(cell, dtype))


@pytest.mark.parametrize("value", QUICK_OR_SLOW)
@pytest.mark.parametrize("name", ["low", "high_weight", "conv2_bias"])
@pytest.mark.parametrize("op", ["decode", "decode_scores"])
def test_in_an_input_with_float32_parameters(cell: Cell, op: str, name: str, value: float) -> None:
    if not cell.compiled:
        pytest.skip("PyTorch's own convolutions in float32 may compute NaN * 0 in the padding")
    for dtype in IN_16_BITS:
        problem = with_float32_parameters(with_number(finite(op, dtype, cell.device), name, value))
        check(cell, problem, limit_for(cell, dtype))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_in_an_incoming_gradient(cell: Cell, op: str, value: float) -> None:
    for dtype in dtypes_of(cell):
        problem = finite(op, dtype, cell.device)
        incoming = [poisoned(problem.incoming[0], value), *problem.incoming[1:]]
        check(cell, replace(problem, incoming=incoming), limit_for(cell, dtype))


@pytest.mark.parametrize("name", ["conv2_weight", "image_scale"])
def test_in_the_weights_of_a_uint8_image(cell: Cell, name: str) -> None:
    problem = with_number(make("encode", cell, (22, 25), batch=1, dtype=torch.uint8), name, torch.nan)
    check(cell, problem, limit_for(cell, torch.float32))


def test_nan_reaches_every_output_that_reads_it(cell: Cell) -> None:
    """5 rows and 4 columns in 3 channels read it; with Winograd's tiles at most 6 x 6 become NaN."""
    image = image_of(1, 64, 64, device=cell.device)
    image[0, 1, 30, 31] = torch.nan
    low, high = torch.ops.wae.encode(image, *encoder(device=cell.device))
    for out in (low, high):
        assert out[0, :, 13:18, 14:18].isnan().all()
        out[0, :, 13:19, 13:19] = 0
        assert not out.isnan().any()


def test_nan_stays_in_its_image(cell: Cell) -> None:
    low, high = image_of(3, 9, 8, device=cell.device), image_of(3, 9, 8, device=cell.device)
    parameters = decoder(device=cell.device)
    clean = torch.ops.wae.decode(low, high, *parameters, [17, 16])
    high[1] = torch.nan
    image = torch.ops.wae.decode(low, high, *parameters, [17, 16])
    assert image[1].isnan().all()
    assert torch.equal(image[0::2], clean[0::2])


@pytest.mark.parametrize("magnitude", [1e18, 1e30, 1e36, 1e37, 1e38, 3e38])
@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_numbers_near_the_largest_float(cell: Cell, kind: str, magnitude: float) -> None:
    """An intermediate sum may overflow even if the exact result does not."""
    if not cell.compiled:
        pytest.skip("PyTorch's ReLU turns a sum that overflowed into zero")
    unit = (
        image_of(1, 22, 25, device=cell.device).clamp(-1, 1) if kind == "noise" else torch.ones(1, 3, 22, 25)
    )
    image = unit.to(cell.device) * magnitude
    parameters = encoder(device=cell.device)
    wanted = reference.encode(image.double(), *(p.double() for p in parameters))
    for out, ref in zip(torch.ops.wae.encode(image, *parameters), wanted, strict=True):
        assert_right_or_not_finite(out, ref, limit_for(cell, torch.float32), f"{magnitude:g}")


def test_conv3x3(cell: Cell) -> None:
    """With few input channels, which are convolved directly, and with many."""
    for channels in (3, 20):
        weight, bias = torch.randn(24, channels, 3, 3), torch.randn(24)
        x = torch.randn(1, channels, 13, 14)
        for name in ("x", "weight", "bias"):
            for value in VALUES:
                tensors = {"x": x, "weight": weight, "bias": bias}
                tensors[name] = poisoned(tensors[name], value)
                packed = reference.conv3x3_pack(tensors["weight"])
                out = torch.ops.wae.conv3x3(tensors["x"], packed, tensors["bias"], 24, True)
                wide = [t.double() for t in tensors.values()]
                ref = torch.nn.functional.conv2d(*wide, padding=1).relu()
                assert_right_or_not_finite(out, ref, 1e-5, f"{channels} channels, {value} in {name}")


@pytest.mark.parametrize("magnitude", [1e36, 1e38, 3e38])
def test_conv3x3_near_the_largest_float(cell: Cell, magnitude: float) -> None:
    if not cell.compiled:
        pytest.skip("PyTorch's ReLU turns a sum that overflowed into zero")
    weight, x = torch.randn(24, 20, 3, 3), torch.ones(1, 20, 13, 14) * magnitude
    out = torch.ops.wae.conv3x3(x, reference.conv3x3_pack(weight), None, 24, True)
    ref = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1).relu()
    assert_right_or_not_finite(out, ref, 1e-5, f"{magnitude:g}")
