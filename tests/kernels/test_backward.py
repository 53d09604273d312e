"""Gradients of wae::encode and the decoders against float64 autograd through the reference (problems.py)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    CLASSES,
    DTYPES,
    FEATURES,
    LAYOUTS,
    Cell,
    arguments_of,
    image_of,
    is_laid_out_like,
    scattered,
    score_decoder,
    seed_of,
    size_name,
)
from compare import assert_close, tolerance
from hypothesis import given
from hypothesis import strategies as st
from problems import MARGIN, Problem, make, with_float32_parameters
from torch import Tensor

import wae_kernels
from wae_kernels import backends
from wae_kernels.checks import IN_16_BITS, SCORE_DECODER_SHAPES

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKWARD_SIZES = [(1, 1), (1, 2), (2, 2), (3, 5), (5, 4), (1, 37), (37, 1), (16, 17), (31, 33), (40, 64)]


def own_dtype(cell: Cell) -> torch.dtype:
    """float32 for our kernels; float64 for the reference where an ill-conditioned sum may turn up.

    PyTorch's own float32 sums over pixels are then slightly beyond the limit.
    """
    return torch.float64 if cell.name == "reference" else torch.float32


def limit_for(cell: Cell, problem: Problem) -> float:
    weight = problem.inputs["conv1_weight"]
    backend = backends.backend_for(cell.device, weight.dtype, weight.shape[0])
    return tolerance(weight.dtype, backend, cell.device)


@functools.cache
def with_expected(
    op: str, device: str, size: tuple[int, int] = (13, 18), **options: Any
) -> tuple[Problem, dict[str, Tensor]]:
    """A problem and its gradients, made once for a device's backends: the float64 oracle takes its time."""
    torch.manual_seed(seed_of(f"{op} {size} {options}"))  # the same, whichever test comes first
    problem = make(op, Cell("reference", device), size, **options)
    return problem, problem.expected()


def check(
    cell: Cell, problem: Problem, expected: dict[str, Tensor] | None = None, limit: float | None = None
) -> None:
    """Every gradient is right, looks like its argument, and nothing given was touched."""
    before = [t.clone() for t in problem.tensors]
    found = problem.gradients()
    assert all(map(torch.equal, problem.tensors, before))
    limit = limit_for(cell, problem) if limit is None else limit
    for name, ref in (expected or problem.expected()).items():
        out, argument = found[name], problem.inputs[name]
        assert out.dtype == argument.dtype
        assert out.device == argument.device
        if name in ("image", "low", "high"):
            assert is_laid_out_like(out, argument), f"{name} {argument.stride()}, gradient {out.stride()}"
        assert_close(out, ref, limit, f"gradient of {name}")


every = pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])


@every
@pytest.mark.parametrize("size", BACKWARD_SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes(cell: Cell, op: str, layout: str, size: tuple[int, int]) -> None:
    options = {"layout": layout, "gradient_layout": layout, "dtype": own_dtype(cell)}
    check(cell, *with_expected(op, cell.device, size, **options))


@pytest.mark.slow
@every
@pytest.mark.parametrize("size", [(225, 223), (5, 4099), (4097, 3)], ids=size_name)
def test_large_sizes(cell: Cell, op: str, size: tuple[int, int]) -> None:
    if not cell.has_kernel(f"{op}_backward"):
        pytest.skip("PyTorch's own float32 sums over this many pixels are beyond the limit")
    torch.set_num_threads(2)
    check(cell, *with_expected(op, cell.device, size, batch=1))


@every
@pytest.mark.parametrize(
    "size", [(31, 31), (80, 300), pytest.param((1024, 1024), marks=pytest.mark.slow)], ids=size_name
)
def test_sums_of_equal_gradients_lose_no_digits(cell: Cell, op: str, size: tuple[int, int]) -> None:
    """Numbers that are equal are rounded the same way whenever they are added to one float."""
    if not cell.has_kernel(f"{op}_backward"):
        pytest.skip("PyTorch's own float32 sums over this many pixels are beyond the limit")
    problem, expected = with_expected(op, cell.device, size, batch=1, gradient_layout="expanded_value")
    check(cell, problem, expected)
    found = problem.gradients()
    for name, ref in expected.items():
        if name.endswith("bias"):
            assert_close(found[name], ref, 2e-6, f"gradient of {name}")


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cell: Cell, op: str, layout: str, dtype: torch.dtype) -> None:
    if cell.compiled and dtype == torch.float64:
        pytest.skip("the reference runs it")
    check(cell, *with_expected(op, cell.device, layout=layout, dtype=dtype))


@every
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", ["nchw", "channels_last"])
def test_layouts_of_incoming_gradients(cell: Cell, op: str, input_layout: str, layout: str) -> None:
    """``expanded_value`` is what the derivative of ``sum()`` looks like."""
    options = {"layout": input_layout, "gradient_layout": layout, "dtype": own_dtype(cell)}
    check(cell, *with_expected(op, cell.device, **options))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "second_pixels_channels_last"])
def test_bytes_have_no_gradient_but_everything_else_has(cell: Cell, layout: str) -> None:
    problem = make("encode", cell, dtype=torch.uint8, layout=layout)
    assert "image" not in problem.differentiable
    check(cell, problem)
    found = torch.ops.wae.encode_backward(*problem.incoming, *problem.inputs.values(), True, True, True)
    assert found[0].numel() == 0


@pytest.mark.parametrize("scale_shift", [(True, False), (False, True), (False, False)], ids=str)
def test_scale_or_shift_left_out(cell: Cell, scale_shift: tuple[bool, bool]) -> None:
    check(cell, make("encode", cell, scale_shift=scale_shift))


@every
@pytest.mark.parametrize("width", [4, 8, 24])
def test_other_widths(cell: Cell, op: str, width: int) -> None:
    check(cell, make(op, cell, width=width))


@pytest.mark.parametrize("channels", [(1, 1), (16, 3), (17, 16), (32, 32), (3, 33), (33, 3)], ids=str)
def test_any_number_of_classes_and_features(cell: Cell, channels: tuple[int, int]) -> None:
    """Scores come 16 at a time, inputs in threes and sixes; beyond 32 the reference computes them."""
    options = {"channels": channels, "dtype": own_dtype(cell) if max(channels) <= 32 else torch.float64}
    check(cell, *with_expected("decode_scores", cell.device, (21, 34), **options))


@every
def test_parameters_of_any_strides(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    inputs = {n: t if n in ("image", "low", "high") else scattered(t) for n, t in problem.inputs.items()}
    check(cell, replace(problem, inputs=inputs))


@every
def test_outputs_that_do_not_count(cell: Cell, op: str) -> None:
    """A loss that looks at low alone, or at a part of the image: the other gradients are zero."""
    problem = make(op, cell)
    problem.incoming[-1][..., 0 if op == "encode" else 4 :].zero_()
    check(cell, problem)


def test_an_output_that_was_not_used(cell: Cell) -> None:
    problem = make("encode", cell)
    leaf = problem.inputs["image"].detach().requires_grad_()
    low, _ = problem.outputs(image=leaf)
    (found,) = torch.autograd.grad(low, leaf, problem.incoming[0])
    problem.incoming[1].zero_()
    assert torch.equal(found, problem.gradients(["image"])["image"])


# ----------------------------------------------------------------------------------- what is asked for


@every
@pytest.mark.parametrize(
    "places", [[0], [1], [3], [4], [10], [11], [12], [0, 2]], ids=lambda p: "+".join(map(str, p))
)
def test_only_what_is_asked_for(cell: Cell, op: str, places: list[int]) -> None:
    problem, _ = with_expected(op, cell.device)
    wanted = [name for i, name in enumerate(problem.inputs) if i in places]
    leaves = {n: t.detach().clone().requires_grad_(n in wanted) for n, t in problem.inputs.items()}
    outputs = problem.outputs(**leaves)
    if not wanted:  # the decoders have no 13th input
        assert not any(out.requires_grad for out in outputs)
        return
    torch.autograd.backward(outputs, problem.incoming)
    full = problem.gradients()
    for name, leaf in leaves.items():
        if name in wanted:
            assert_close(leaf.grad, full[name].double(), tolerance(torch.float32))
        else:
            assert leaf.grad is None, name


@every
def test_nothing_is_recorded_where_no_gradient_is_wanted(cell: Cell, op: str) -> None:
    assert not any(out.requires_grad for out in make(op, cell).outputs())


@every
def test_a_result_tells_which_op_made_it(op: str) -> None:
    problem = make(op, Cell("auto"))
    (leaf, *_) = (t.detach().requires_grad_() for t in problem.inputs.values())
    for out in problem.outputs(**{next(iter(problem.inputs)): leaf}):
        assert out.grad_fn.name() == f"wae_{op}Backward"


@every
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
def test_the_groups_of_gradients_that_the_op_is_told(cell: Cell, op: str, flags: tuple[bool, ...]) -> None:
    problem, _ = with_expected(op, cell.device)
    backward = getattr(torch.ops.wae, f"{op}_backward")
    flags = flags if op == "encode" else flags[:2]
    counts = {"encode": (1, 10, 2), "decode": (2, 10), "decode_scores": (2, 8)}[op]
    found = backward(*problem.incoming, *problem.inputs.values(), *flags)
    wanted = [flag for flag, count in zip(flags, counts, strict=True) for _ in range(count)]
    for gradient, is_wanted, ref in zip(found, wanted, problem.gradients().values(), strict=True):
        assert_close(gradient, ref.double() if is_wanted else ref.new_empty(0), tolerance(torch.float32))


@every
def test_gradients_do_not_alias_anything(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    memory = [t.untyped_storage().data_ptr() for t in [*problem.tensors, *problem.gradients().values()]]
    assert len(set(memory)) == len(memory)


@every
def test_only_inputs_are_kept_for_the_backward_pass(cell: Cell, op: str) -> None:
    problem = make(op, cell, layout="channels_last")
    kept: list[Tensor] = []
    leaves = {name: t.detach().requires_grad_() for name, t in problem.inputs.items()}

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.outputs(**leaves)
    assert [t.data_ptr() for t in kept] == [leaf.data_ptr() for leaf in leaves.values()]


@every
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_batch_of_none_has_zero_gradients(cell: Cell, op: str, layout: str) -> None:
    problem = make(op, cell, batch=0, layout=layout)
    for name, gradient in problem.gradients().items():
        assert gradient.shape == problem.inputs[name].shape
        assert not gradient.any(), name


# -------------------------------------------------------------------------------------------- same bits


@pytest.mark.slow
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_on_any_number_of_threads(cell: Cell, op: str, dtype: torch.dtype) -> None:
    problem = make(op, cell, (45, 50), batch=3, dtype=dtype)
    torch.set_num_threads(1)
    once = problem.gradients()
    for threads in (1, 2, 3, 7) if cell.has_kernel(f"{op}_backward") else (1,):
        torch.set_num_threads(threads)
        for _ in range(2):
            for name, gradient in problem.gradients().items():
                assert torch.equal(gradient, once[name]), f"{name}, {threads} threads"


# ------------------------------------------------------------------------------------------- many problems


@pytest.mark.slow
@every
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(list(LAYOUTS)),
    gradient_layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_problems(
    cell: Cell,
    op: str,
    batch: int,
    size: tuple[int, int],
    layout: str,
    gradient_layout: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    dtype = own_dtype(cell)
    check(
        cell, make(op, cell, size, batch=batch, layout=layout, gradient_layout=gradient_layout, dtype=dtype)
    )


@every
def test_numerical_derivatives(op: str) -> None:
    """Against differences of the op itself, in float64, with margins that no step crosses."""
    problem = make(op, Cell("reference"), (3, 4), batch=1, dtype=torch.float64, width=3).settled(0.01)
    leaves = [t.requires_grad_() for t in problem.inputs.values()]
    assert torch.autograd.gradcheck(lambda *t: getattr(torch.ops.wae, op)(*t, *problem.rest), leaves)


# ------------------------------------------------------------------------------------- second derivatives


@every
def test_a_second_derivative_is_refused(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    name = problem.differentiable[0]
    leaf = problem.inputs[name].detach().requires_grad_()
    outputs = problem.outputs(**{name: leaf})
    (gradient,) = torch.autograd.grad(outputs, leaf, problem.incoming, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"wae::{op}_backward has no derivative.*second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "sliced_channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_scores_in_16_bits_are_those_of_the_scores(dtype: torch.dtype, layout: str) -> None:
    """Activations near ReLU's kink included, for both passes compute in float32 between their roundings."""
    cell = Cell("auto")
    halves = [LAYOUTS[layout](image_of(2, 31, 24, dtype, channels=n)) for n in (CLASSES, FEATURES)]
    named = dict(zip(("low", "high", *SCORE_DECODER_SHAPES), (*halves, *score_decoder(dtype)), strict=True))
    check(cell, Problem("decode_scores", named, [(62, 48)], [image_of(2, 62, 48, dtype, channels=CLASSES)]))


@pytest.mark.parametrize("op", ["decode", "decode_scores"])
@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_float32_parameters_beside_images_in_16_bits(
    cell: Cell, layout: str, dtype: torch.dtype, op: str
) -> None:
    """They are in float32, those of the images in 16 bits; both as exact as the images' dtype allows."""
    problem, expected = with_expected(op, cell.device, layout=layout, dtype=dtype)
    limit = tolerance(dtype, backends.backend_for(cell.device, dtype), cell.device)
    check(cell, with_float32_parameters(problem), expected, limit)


@pytest.mark.parametrize("op", ["decode", "decode_scores"])
@pytest.mark.parametrize("needs", [(False, True), (True, False), (False, False)], ids=str)
def test_gradients_that_are_not_wanted_have_their_tensors_dtypes(
    cell: Cell, needs: tuple[bool, bool], op: str
) -> None:
    name = f"{op}_backward"
    *tensors, _, _ = arguments_of(
        name, device=cell.device, dtype=torch.bfloat16, parameter_dtype=torch.float32
    )
    gradients = getattr(torch.ops.wae, name)(*tensors, *needs)
    for gradient, tensor, needed in zip(
        gradients, tensors[1:], [needs[0]] * 2 + [needs[1]] * (len(tensors) - 3), strict=True
    ):
        assert gradient.dtype == tensor.dtype
        assert gradient.shape == (tensor.shape if needed else (0,))


# ------------------------------------------------------------------------------- results of another dtype


@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_results_of_another_dtype(cell: Cell, own: torch.dtype, wanted: torch.dtype) -> None:
    """They are those of a cast behind the op, and have their tensors' dtypes.

    A GPU computes in 16 bits where the results have them: away from the kinks, to the same gradients.
    """
    problem = make("encode", cell, dtype=own).settled(max(MARGIN[own], MARGIN[wanted]))
    tensors = [t.requires_grad_() for t in problem.tensors[: len(problem.inputs)]]

    def gradients(low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((low * low).sum() + high.sum(), tensors)

    asked = gradients(*wae_kernels.encode(*tensors, dtype=wanted, memory_format=torch.channels_last))
    cast = gradients(*(part.to(wanted) for part in wae_kernels.encode(*tensors)))
    limit = max(
        tolerance(dtype, backends.backend_for(cell.device, own), cell.device) for dtype in (own, wanted)
    )
    for tensor, out, ref in zip(tensors, asked, cast, strict=True):
        assert out.dtype == tensor.dtype
        assert_close(out, ref.double(), 4 * limit)
