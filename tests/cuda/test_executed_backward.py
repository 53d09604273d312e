"""The CUDA backward kernels, executed on the CPU from nvcc's PTX, against autograd in float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from compare import assert_close
from cuda_bindings import runner
from cuda_bindings.runner import DTYPE, LIMIT, Backward, Chip
from torch import Tensor

from wae_kernels import reference
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES

runner.require_nvcc()

pytestmark = pytest.mark.slow  # minutes, on two cores

MODES = ["float16", "bfloat16", "tf32", "float32"]
OTHER_CELLS = [("float16", 75), ("float32", 75), ("bfloat16_plain", 75), *((mode, 90) for mode in MODES)]
MINIMUM = 263.7e6
"""Multiply-adds of a 224 x 224 image's forward pass (docs/network.md)."""
MARGIN = {"float16": 0.1, "bfloat16": 0.5, "tf32": 0.1, "float32": 1e-4, "bfloat16_plain": 0.5}
"""The least distance of activations from the kink of ReLU: far more than the rounding error of each mode."""
# One pixel; odd sizes; exactly a tile of 52 x 52; more by a pixel in each direction; several partial tiles;
# exactly the widest tile; several partial tiles of this width.
SIZES = [(1, 1), (3, 5), (52, 52), (54, 53), (13, 140), (9, 116), (7, 221)]


def noise(batch: int, size: tuple[int, int], dtype: torch.dtype, layout: str = "nchw") -> Tensor:
    """Noise with mean 1, so that sums over the pixels do not cancel."""
    x = cases.image_of(batch, *size, dtype=dtype)
    return cases.LAYOUTS[layout](x if dtype == torch.uint8 else x + 1)


def gradient(batch: int, size: tuple[int, int], dtype: torch.dtype, layout: str = "nchw") -> Tensor:
    """An incoming gradient that is so small that the gradients of float16 weights do not overflow."""
    return cases.LAYOUTS[layout](noise(batch, size, dtype) / 16)


def representable(mode: str, tensor: Tensor) -> Tensor:
    """For tf32, round the numbers to tf32, as the inputs of 16-bit modes are rounded to 16 bits.

    In any implementation, rounding the weights of six layers would use up most of the tolerance.
    """
    if mode != "tf32" or tensor.dtype != torch.float32:
        return tensor
    rounded = (tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return tensor.copy_(rounded.view(torch.float32))


class EncodeProblem:
    """Inputs without activations near the kink of ReLU, and gradients by autograd through the reference."""

    names = ("image", *ENCODER_SHAPES, "image_scale", "image_shift")

    def __init__(
        self,
        mode: str,
        size: tuple[int, int],
        *,
        batch: int = 2,
        layout: str = "nchw",
        of_bytes: bool = False,
        shifted: bool = True,
    ) -> None:
        dtype = DTYPE[mode]
        self.mode, self.image = mode, noise(batch, size, torch.uint8 if of_bytes else dtype, layout)
        self.gradients = [
            representable(mode, gradient(batch, cases.halved(size), dtype, layout)) for _ in range(2)
        ]
        scale, shift = cases.affine(of_bytes=of_bytes)
        self.affine = [scale, shift if shifted else None]
        x = reference.normalize_image(self.image, dtype, *self.affine)
        encoder = [representable(mode, p) for p in cases.encoder(dtype)]
        self.parameters = cases.kink_free_encoder(encoder, x, MARGIN[mode])

    def run(self, **options: Any) -> Backward:
        return runner.encode_backward(
            self.mode, *self.gradients, self.image, self.parameters, *self.affine, **options
        )

    def expected(self) -> dict[str, Tensor]:
        inputs = cases.widened([self.image, *self.parameters, *self.affine])
        leaves = {
            name: tensor.requires_grad_()
            for name, tensor in zip(self.names, inputs, strict=True)
            if tensor is not None and tensor.is_floating_point()
        }
        outputs = reference.encode(*inputs)
        grads = torch.autograd.grad(outputs, list(leaves.values()), cases.widened(self.gradients))
        return dict(zip(leaves, grads, strict=True))

    def got(self, result: Backward) -> dict[str, Tensor | None]:
        values = [*result.inputs, *result.parameters, result.scale, result.shift]
        return dict(zip(self.names, values, strict=True))


class DecodeProblem:
    """The same for the decoder."""

    names = ("low", "high", *DECODER_SHAPES)

    def __init__(self, mode: str, size: tuple[int, int], *, batch: int = 2, layout: str = "nchw") -> None:
        dtype = DTYPE[mode]
        self.mode, self.size = mode, size
        self.inputs = [representable(mode, noise(batch, cases.halved(size), dtype, layout)) for _ in range(2)]
        self.gradient = representable(mode, gradient(batch, size, dtype, layout))
        decoder = [representable(mode, p) for p in cases.decoder(dtype)]
        self.parameters = cases.kink_free_decoder(decoder, *self.inputs, size, MARGIN[mode])

    def run(self, **options: Any) -> Backward:
        return runner.decode_backward(self.mode, self.gradient, *self.inputs, self.parameters, **options)

    def expected(self) -> dict[str, Tensor]:
        leaves = [t.detach().requires_grad_() for t in cases.widened([*self.inputs, *self.parameters])]
        image = reference.decode(*leaves, self.size)
        return dict(zip(self.names, torch.autograd.grad(image, leaves, self.gradient.double()), strict=True))

    def got(self, result: Backward) -> dict[str, Tensor | None]:
        return dict(zip(self.names, [*result.inputs, *result.parameters], strict=True))


PROBLEMS = {"encode": EncodeProblem, "decode": DecodeProblem}
Problem = EncodeProblem | DecodeProblem


def check(problem: Problem, **options: Any) -> Backward:
    """Check that every requested gradient is within the tolerance of its mode."""
    result = problem.run(**options)
    got = problem.got(result)
    for name, want in problem.expected().items():
        if got[name] is not None:
            assert_close(got[name], want, LIMIT[problem.mode], name)
    return result


def bit_identical(a: Backward, b: Backward) -> bool:
    pairs = zip(
        [*a.inputs, *a.parameters, a.scale, a.shift],
        [*b.inputs, *b.parameters, b.scale, b.shift],
        strict=True,
    )
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------------- shapes and modes


@pytest.mark.parametrize("size", SIZES, ids=cases.size_name)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", PROBLEMS)
def test_sizes(op: str, mode: str, size: tuple[int, int]) -> None:
    """Each block has several tiles. Batches of tiny images are larger, so that roundings average out."""
    batch = 8 if min(size) < 4 else 2
    check(PROBLEMS[op](mode, size, batch=batch), chip=Chip(80, 3))


@pytest.mark.parametrize(("mode", "capability"), OTHER_CELLS, ids=[f"{m}-sm_{c}" for m, c in OTHER_CELLS])
@pytest.mark.parametrize("op", PROBLEMS)
def test_other_architectures(op: str, mode: str, capability: int) -> None:
    """With the 64 KB of sm_75, tiles are narrower. In plain modes, weights stay in global memory."""
    check(PROBLEMS[op](mode, (31, 61)), chip=Chip(capability, 2))


@pytest.mark.parametrize("mode", ["float16", "tf32"])
@pytest.mark.parametrize("op", PROBLEMS)
def test_narrow_tiles(op: str, mode: str) -> None:
    """Two to six strips, as on chips with less shared memory."""
    for kilobytes in (64, 99, 115):
        if (mode, kilobytes) != ("tf32", 64):
            check(PROBLEMS[op](mode, (17, 75)), shared_limit=1024 * kilobytes)


@pytest.mark.parametrize("op", PROBLEMS)
def test_bit_identical_in_any_order_of_threads(op: str) -> None:
    """Neither the order of threads between two barriers nor the order of blocks matters."""
    problem = PROBLEMS[op]("float16", (24, 60))
    first = check(problem)
    assert all(bit_identical(first, problem.run(seed=seed)) for seed in (1, 2))


@pytest.mark.parametrize("op", PROBLEMS)
def test_long_sums_lose_no_digits(op: str) -> None:
    """Equal gradients, all rounded in one direction, from three tall tiles; registers sum over two."""
    assert 2 * 100 <= runner.load().LONGEST_SUM < 3 * 100
    problem = PROBLEMS[op]("float32", (200, 8), batch=3)
    for incoming in problem.gradients if op == "encode" else [problem.gradient]:
        incoming.fill_(1.7)  # one of the numbers that lose most when they are added 300 times
    result = problem.run(chip=Chip(80, 1))
    got = problem.got(result)
    want = problem.expected()
    for name in problem.names[len(result.inputs) :]:
        assert_close(got[name], want[name], 5e-7, name)
    # The block writes its sums twice, the first time with their rounding errors.
    sums = 3 * 4 * runner.load().partial_floats(op)
    assert result.counts.written_bytes == 4 * sum(x.numel() for x in result.inputs) + sums


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("op", PROBLEMS)
def test_layouts(op: str, layout: str) -> None:
    """Sliced images are surrounded by NaN, and reading outside of a buffer is an error."""
    check(PROBLEMS[op]("float16", (9, 61), layout=layout))


@pytest.mark.parametrize("mode", ["float16", "tf32"])
def test_bytes(mode: str) -> None:
    result = check(EncodeProblem(mode, (9, 61), of_bytes=True), needs=(False, True, True))
    assert result.inputs == [None]


@pytest.mark.parametrize("op", PROBLEMS)
def test_scattered_parameters(op: str) -> None:
    problem = PROBLEMS[op]("float16", (5, 7))
    problem.parameters = [cases.scattered(p) for p in problem.parameters]
    check(problem)


def test_offsets_beyond_32_bits() -> None:
    problem = EncodeProblem("float16", (5, 7))
    problem.image = cases.far_apart(problem.image)
    problem.gradients = [cases.far_apart(g) for g in problem.gradients]
    check(problem)


# ------------------------------------------------------------------------------------------------------ needs


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_encode_needs(needs: tuple[bool, bool, bool]) -> None:
    problem = EncodeProblem("float16", (9, 14))
    result, everything = check(problem, needs=needs), problem.run()
    assert [r is not None for r in (result.inputs[0], result.parameters[0], result.scale)] == list(needs)
    for got, all_of_it in zip(problem.got(result).values(), problem.got(everything).values(), strict=True):
        assert got is None or torch.equal(got, all_of_it)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_decode_needs(needs: tuple[bool, bool]) -> None:
    result = check(DecodeProblem("float16", (9, 14)), needs=needs)
    assert [r is not None for r in (result.inputs[0], result.parameters[0])] == list(needs)


def test_scale_without_shift() -> None:
    result = check(EncodeProblem("float32", (5, 7), shifted=False))
    assert result.scale is not None
    assert result.shift is None


# ------------------------------------------------------------------------------------------- NaN and infinity


def where_not_finite(x: Tensor) -> Tensor:
    return ~x.isfinite()


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_gradient_that_is_not_finite(value: float) -> None:
    """As in autograd, it passes a ReLU whose activation is positive, and no other."""
    problem = EncodeProblem("float16", (30, 40), batch=1)
    problem.gradients[0][0, 1, 8, 9] = value
    result, want = problem.got(problem.run()), problem.expected()
    assert torch.equal(where_not_finite(result["image"]), where_not_finite(want["image"]))
    for name in ("conv1_weight", "conv2_bias", "conv3_bias"):
        assert torch.equal(where_not_finite(result[name]), where_not_finite(want[name])), name


@pytest.mark.parametrize("op", PROBLEMS)
def test_no_nan_becomes_infinity_in_tf32(op: str) -> None:
    """Tensor cores do not read the low 13 bits of a number, which may be all that tells it from infinity."""
    problem = PROBLEMS[op]("tf32", (30, 40), batch=1)
    images = [problem.image] if op == "encode" else problem.inputs
    for tensor in (*images, *problem.parameters):
        tensor.abs_()  # infinity minus infinity would be NaN, too, and so would infinity times 0
    gradient = problem.gradients[0] if op == "encode" else problem.gradient
    for tensor, place in ((gradient, (0, 1, 8, 9)), (problem.parameters[4], (3, 2, 1, 1))):
        number, before = tensor[place], tensor[place].clone()
        cases.set_to_nan_beside_infinity(number)
        result, want = problem.got(problem.run()), problem.expected()
        for name, expected in want.items():
            assert torch.equal(result[name].isnan(), expected.isnan()), name
        number.copy_(before)


@pytest.mark.parametrize("place", [(11, 20), (0, 0), (29, 39)], ids=["inside", "first", "last"])
def test_activation_that_is_nan(place: tuple[int, int]) -> None:
    """A NaN in the image makes activations NaN, and the gradient passes these, as in torch's ReLU.

    In a corner, some taps do not read it. It must not be multiplied by a zero from outside of the image.
    """
    problem = EncodeProblem("float16", (30, 40), batch=1)
    problem.image[(0, 1, *place)] = torch.nan
    result, want = problem.got(problem.run()), problem.expected()
    for name, expected in want.items():
        assert torch.equal(result[name].isnan(), expected.isnan()), name


@pytest.mark.parametrize("mode", ["float16", "tf32", "float32"])
def test_weight_that_is_nan(mode: str) -> None:
    """Odd pixels do not read this tap. Multiplied by zeros there, it would let gradients pass their ReLU."""
    problem = DecodeProblem(mode, (22, 25), batch=1)
    problem.parameters[0][1, 8, 1, 1] = torch.nan
    result, want = problem.got(problem.run()), problem.expected()
    for name, expected in want.items():
        finite = expected.isfinite()
        assert torch.equal(result[name].isfinite(), finite), name
        assert_close(result[name][finite], expected[finite], LIMIT[mode], name)


# ----------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("op", PROBLEMS)
def test_counts_of_an_image(op: str) -> None:
    """The limits of docs/cuda.md, with 2 blocks for a 224 x 224 image, as in a large batch."""
    problem = PROBLEMS[op]("float16", (224, 224), batch=1)
    counts = problem.run(chip=Chip(80, 2)).counts
    assert counts.multiply_adds <= 3.9 * MINIMUM
    assert counts.shared_wavefronts <= 1.3e6
    assert counts.shared_wavefronts <= 1.05 * counts.shared_ideal_wavefronts
    inputs = 2 * (3 * 224 * 224 + 6 * 112 * 112)
    results = inputs - 2 * (6 if op == "encode" else 3) * {"encode": 112 * 112, "decode": 224 * 224}[op]
    sums = 2 * 4 * runner.load().partial_floats(op)
    assert counts.written_bytes == results + sums
    # The weights, the full-resolution filter for both directions, and scale and shift for four threads.
    parameters = 2 * 2 * (5904 + 432) + (2 * 2 * 4 * 4 if op == "encode" else 0)
    assert counts.read_bytes <= 1.75 * inputs + parameters
