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
    far_apart,
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
from problems import MARGIN, REFERENCES, Problem, make, with_float32_parameters
from torch import Tensor

import wae_kernels
from wae_kernels import backends
from wae_kernels.checks import IN_16_BITS, SCORE_DECODER_SHAPES

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKWARD_SIZES = [(1, 1), (1, 2), (2, 2), (3, 5), (5, 4), (1, 37), (37, 1), (16, 17), (31, 33), (40, 64)]


def own_dtype(cell: Cell) -> torch.dtype:
    """float32 for our kernels; float64 for the reference, in tests whose sums may be ill-conditioned.

    For such sums over pixels, PyTorch's own float32 arithmetic slightly exceeds the tolerance.
    """
    return torch.float64 if cell.name == "reference" else torch.float32


def limit_for(cell: Cell, problem: Problem) -> float:
    weight = problem.inputs["conv1_weight"]
    backend = backends.backend_for(cell.device, weight.dtype, weight.shape[0])
    return tolerance(weight.dtype, backend, cell.device)


@functools.cache
def problem_and_gradients(
    op: str, device: str, size: tuple[int, int] = (13, 18), **options: Any
) -> tuple[Problem, dict[str, Tensor]]:
    """A problem and its gradients, shared by a device's backends because the float64 oracle is slow."""
    torch.manual_seed(seed_of(f"{op} {size} {options}"))  # the same problem, whichever test runs first
    problem = make(op, Cell("reference", device), size, **options)
    return problem, problem.expected()


def check(
    cell: Cell, problem: Problem, expected: dict[str, Tensor] | None = None, limit: float | None = None
) -> None:
    """Every gradient is right and has the form of its argument, and no argument was changed."""
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


every_op = pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])


@every_op
@pytest.mark.parametrize("size", BACKWARD_SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes(cell: Cell, op: str, layout: str, size: tuple[int, int]) -> None:
    options = {"layout": layout, "gradient_layout": layout, "dtype": own_dtype(cell)}
    check(cell, *problem_and_gradients(op, cell.device, size, **options))


@every_op
@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
@pytest.mark.parametrize("size", [(33, 1), (1, 33)], ids=size_name)
def test_16_bit_images_one_pixel_wide_or_high(
    cell: Cell, op: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """oneDNN's bfloat16 weight gradients of such widths contain uninitialised memory."""
    check(cell, *problem_and_gradients(op, cell.device, size, dtype=dtype))


@pytest.mark.slow
@every_op
@pytest.mark.parametrize("size", [(225, 223), (5, 4099), (4097, 3)], ids=size_name)
def test_large_sizes(cell: Cell, op: str, size: tuple[int, int]) -> None:
    if not cell.has_kernel(f"{op}_backward"):
        pytest.skip("PyTorch's own float32 sums over this many pixels exceed the tolerance")
    torch.set_num_threads(2)
    check(cell, *problem_and_gradients(op, cell.device, size, batch=1))


@every_op
@pytest.mark.parametrize(
    "size", [(31, 31), (80, 300), pytest.param((1024, 1024), marks=pytest.mark.slow)], ids=size_name
)
def test_sums_of_equal_gradients_lose_no_digits(cell: Cell, op: str, size: tuple[int, int]) -> None:
    """Each time an equal number is added to a float32 sum, it is rounded in the same direction."""
    if not cell.has_kernel(f"{op}_backward"):
        pytest.skip("PyTorch's own float32 sums over this many pixels exceed the tolerance")
    problem, expected = problem_and_gradients(
        op, cell.device, size, batch=1, gradient_layout="expanded_value"
    )
    check(cell, problem, expected)
    found = problem.gradients()
    for name, ref in expected.items():
        if name.endswith("bias"):
            assert_close(found[name], ref, 2e-6, f"gradient of {name}")


@every_op
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cell: Cell, op: str, layout: str, dtype: torch.dtype) -> None:
    if cell.compiled and dtype == torch.float64:
        pytest.skip("the reference computes in float64")
    check(cell, *problem_and_gradients(op, cell.device, layout=layout, dtype=dtype))


@every_op
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", ["nchw", "channels_last"])
def test_layouts_of_incoming_gradients(cell: Cell, op: str, input_layout: str, layout: str) -> None:
    """The derivative of ``sum()`` has the layout ``expanded_value``."""
    options = {"layout": input_layout, "gradient_layout": layout, "dtype": own_dtype(cell)}
    check(cell, *problem_and_gradients(op, cell.device, **options))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "second_pixels_channels_last"])
def test_uint8_image_has_no_gradient_but_the_parameters_have(cell: Cell, layout: str) -> None:
    problem = make("encode", cell, dtype=torch.uint8, layout=layout)
    assert "image" not in problem.differentiable
    check(cell, problem)
    found = torch.ops.wae.encode_backward(*problem.incoming, *problem.inputs.values(), True, True, True)
    assert found[0].numel() == 0


@pytest.mark.parametrize("scale_shift", [(True, False), (False, True), (False, False)], ids=str)
def test_without_scale_or_shift(cell: Cell, scale_shift: tuple[bool, bool]) -> None:
    check(cell, make("encode", cell, scale_shift=scale_shift))


@every_op
@pytest.mark.parametrize("width", [4, 8, 24])
def test_other_widths(cell: Cell, op: str, width: int) -> None:
    check(cell, make(op, cell, width=width))


@pytest.mark.parametrize("channels", [(1, 1), (16, 3), (17, 16), (32, 32), (3, 33), (33, 3)], ids=str)
def test_any_number_of_classes_and_features(cell: Cell, channels: tuple[int, int]) -> None:
    """Kernels compute 16 scores at a time and read 3 or 6 inputs; beyond 32 channels the reference runs."""
    options = {"channels": channels, "dtype": own_dtype(cell) if max(channels) <= 32 else torch.float64}
    check(cell, *problem_and_gradients("decode_scores", cell.device, (21, 34), **options))


@every_op
def test_parameters_of_any_strides(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    inputs = {n: t if n in ("image", "low", "high") else scattered(t) for n, t in problem.inputs.items()}
    check(cell, replace(problem, inputs=inputs))


@every_op
def test_strides_beyond_32_bits(cell: Cell, op: str) -> None:
    if cell.device != "cpu":
        pytest.skip("only a CPU reserves memory without allocating it")
    problem = make(op, cell, (4, 40), dtype=own_dtype(cell))
    inputs = {n: far_apart(t) if n in ("image", "low") else t for n, t in problem.inputs.items()}
    far = replace(problem, inputs=inputs, incoming=[far_apart(t) for t in problem.incoming])
    check(cell, far, problem.expected())


@every_op
def test_small_float16_numbers_are_not_zero_if_torch_flushes_subnormal_floats(cell: Cell, op: str) -> None:
    """A float16 number below 6.1e-5 is subnormal, but is no subnormal float."""
    if cell.device != "cpu":
        pytest.skip("it is a setting of CPUs; GPUs keep these numbers in float16 between the layers, too")
    problem = make(op, cell, dtype=torch.float16)
    problem = replace(problem, incoming=[gradient * 2**-17 for gradient in problem.incoming])
    parameters = [name for name in problem.inputs if name.startswith(("conv", "low_", "high_"))]
    expected = problem.widened().gradients(parameters, REFERENCES[op])
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers to zero")
    try:
        found = problem.gradients(parameters)
    finally:
        torch.set_flush_denormal(False)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, limit_for(cell, problem), f"gradient of {name}")


@every_op
def test_incoming_gradients_of_zero(cell: Cell, op: str) -> None:
    """If a loss depends only on low, or on a part of the image, the other incoming gradients are zero."""
    problem = make(op, cell)
    problem.incoming[-1][..., 0 if op == "encode" else 4 :].zero_()
    check(cell, problem)


def test_unused_output(cell: Cell) -> None:
    problem = make("encode", cell)
    leaf = problem.inputs["image"].detach().requires_grad_()
    low, _ = problem.outputs(image=leaf)
    (found,) = torch.autograd.grad(low, leaf, problem.incoming[0])
    problem.incoming[1].zero_()
    assert torch.equal(found, problem.gradients(["image"])["image"])


@pytest.mark.parametrize("used", [0, 1], ids=["low", "high"])
def test_layer_of_an_unused_output_has_no_gradient(cell: Cell, used: int) -> None:
    """As if the layers were called: an optimizer would apply weight decay to a gradient of zero."""
    problem, unused = make("encode", cell), ("high_", "low_")[used]
    leaves = {name: t.detach().clone().requires_grad_() for name, t in problem.inputs.items()}
    problem.outputs(**leaves)[used].backward(problem.incoming[used])
    without = {name for name, leaf in leaves.items() if leaf.grad is None}
    assert without == {name for name in leaves if name.startswith(unused)}
    problem.incoming[1 - used].zero_()
    for name, expected in problem.gradients([name for name in leaves if name not in without]).items():
        assert torch.equal(leaves[name].grad, expected), name


# ------------------------------------------------------------------------------- requested gradients only


@every_op
@pytest.mark.parametrize(
    "places", [[0], [1], [3], [4], [10], [11], [12], [0, 2]], ids=lambda p: "+".join(map(str, p))
)
def test_only_requested_gradients_are_computed(cell: Cell, op: str, places: list[int]) -> None:
    problem, _ = problem_and_gradients(op, cell.device)
    wanted = [name for i, name in enumerate(problem.inputs) if i in places]
    leaves = {n: t.detach().clone().requires_grad_(n in wanted) for n, t in problem.inputs.items()}
    outputs = problem.outputs(**leaves)
    if not wanted:  # the decoders have fewer inputs
        assert not any(out.requires_grad for out in outputs)
        return
    torch.autograd.backward(outputs, problem.incoming)
    full = problem.gradients()
    for name, leaf in leaves.items():
        if name in wanted:
            assert_close(leaf.grad, full[name].double(), tolerance(torch.float32))
        else:
            assert leaf.grad is None, name


@every_op
def test_no_graph_is_recorded_if_no_gradient_is_required(cell: Cell, op: str) -> None:
    assert not any(out.requires_grad for out in make(op, cell).outputs())


@every_op
def test_grad_fn_has_the_name_of_the_op(op: str) -> None:
    problem = make(op, Cell("auto"))
    (leaf, *_) = (t.detach().requires_grad_() for t in problem.inputs.values())
    for out in problem.outputs(**{next(iter(problem.inputs)): leaf}):
        assert out.grad_fn.name() == f"wae_{op}Backward"


@every_op
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
def test_flags_of_the_backward_op_select_groups_of_gradients(
    cell: Cell, op: str, flags: tuple[bool, ...]
) -> None:
    problem, _ = problem_and_gradients(op, cell.device)
    backward = getattr(torch.ops.wae, f"{op}_backward")
    flags = flags if op == "encode" else flags[:2]
    counts = {"encode": (1, 10, 2), "decode": (2, 10), "decode_scores": (2, 8)}[op]
    found = backward(*problem.incoming, *problem.inputs.values(), *flags)
    wanted = [flag for flag, count in zip(flags, counts, strict=True) for _ in range(count)]
    for gradient, is_wanted, ref in zip(found, wanted, problem.gradients().values(), strict=True):
        assert_close(gradient, ref.double() if is_wanted else ref.new_empty(0), tolerance(torch.float32))


@every_op
def test_gradients_alias_nothing(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    memory = [t.untyped_storage().data_ptr() for t in [*problem.tensors, *problem.gradients().values()]]
    assert len(set(memory)) == len(memory)


@every_op
def test_only_inputs_are_saved_for_the_backward_pass(cell: Cell, op: str) -> None:
    problem = make(op, cell, layout="channels_last")
    saved: list[Tensor] = []
    leaves = {name: t.detach().requires_grad_() for name, t in problem.inputs.items()}

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.outputs(**leaves)
    assert [t.data_ptr() for t in saved] == [leaf.data_ptr() for leaf in leaves.values()]


@every_op
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_empty_batch_has_zero_gradients(cell: Cell, op: str, layout: str) -> None:
    problem = make(op, cell, batch=0, layout=layout)
    for name, gradient in problem.gradients().items():
        assert gradient.shape == problem.inputs[name].shape
        assert not gradient.any(), name


# ------------------------------------------------------------------------------------------- determinism


@pytest.mark.slow
@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bit_identical_on_any_number_of_threads(cell: Cell, op: str, dtype: torch.dtype) -> None:
    problem = make(op, cell, (45, 50), batch=3, dtype=dtype)
    torch.set_num_threads(1)
    once = problem.gradients()
    for threads in (1, 2, 3, 7) if cell.has_kernel(f"{op}_backward") else (1,):
        torch.set_num_threads(threads)
        for _ in range(2):
            for name, gradient in problem.gradients().items():
                assert torch.equal(gradient, once[name]), f"{name}, {threads} threads"


# ------------------------------------------------------------------------------------------ random problems


@pytest.mark.slow
@every_op
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


@every_op
def test_numerical_derivatives(op: str) -> None:
    """Compared with finite differences of the op, in float64, whose steps do not cross a kink."""
    problem = make(op, Cell("reference"), (3, 4), batch=1, dtype=torch.float64, width=3).kink_free(0.01)
    leaves = [t.requires_grad_() for t in problem.inputs.values()]
    assert torch.autograd.gradcheck(lambda *t: getattr(torch.ops.wae, op)(*t, *problem.rest), leaves)


# ------------------------------------------------------------------------------------- second derivatives


@every_op
def test_second_derivatives_are_refused(cell: Cell, op: str) -> None:
    problem = make(op, cell)
    name = problem.differentiable[0]
    leaf = problem.inputs[name].detach().requires_grad_()
    outputs = problem.outputs(**{name: leaf})
    (gradient,) = torch.autograd.grad(outputs, leaf, problem.incoming, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"wae::{op}_backward has no derivative.*second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", ["nchw", "sliced_channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bit_scores(dtype: torch.dtype, layout: str) -> None:
    """Even with activations near the kink of ReLU, because both passes compute in float32."""
    cell = Cell("auto")
    halves = [LAYOUTS[layout](image_of(2, 31, 24, dtype, channels=n)) for n in (CLASSES, FEATURES)]
    named = dict(zip(("low", "high", *SCORE_DECODER_SHAPES), (*halves, *score_decoder(dtype)), strict=True))
    check(cell, Problem("decode_scores", named, [(62, 48)], [image_of(2, 62, 48, dtype, channels=CLASSES)]))


@pytest.mark.parametrize("op", ["decode", "decode_scores"])
@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_float32_parameters_with_16_bit_images(
    cell: Cell, layout: str, dtype: torch.dtype, op: str
) -> None:
    """Gradients of parameters are float32, those of images 16-bit; both are within the 16-bit tolerance."""
    problem, expected = problem_and_gradients(op, cell.device, layout=layout, dtype=dtype)
    limit = tolerance(dtype, backends.backend_for(cell.device, dtype), cell.device)
    check(cell, with_float32_parameters(problem), expected, limit)


@pytest.mark.parametrize("op", ["decode", "decode_scores"])
@pytest.mark.parametrize("needs", [(False, True), (True, False), (False, False)], ids=str)
def test_empty_gradients_have_the_dtypes_of_their_tensors(
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
    """They equal those of a cast after the op, and have the dtypes of their tensors.

    If the results are 16-bit, a GPU computes in 16 bits; away from the kinks, the gradients are the same.
    """
    problem = make("encode", cell, dtype=own).kink_free(max(MARGIN[own], MARGIN[wanted]))
    tensors = [t.requires_grad_() for t in problem.tensors[: len(problem.inputs)]]

    def gradients(low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((low * low).sum() + high.sum(), tensors)

    direct = gradients(*wae_kernels.encode(*tensors, dtype=wanted, memory_format=torch.channels_last))
    cast = gradients(*(part.to(wanted) for part in wae_kernels.encode(*tensors)))
    limit = max(
        tolerance(dtype, backends.backend_for(cell.device, own), cell.device) for dtype in (own, wanted)
    )
    for tensor, out, ref in zip(tensors, direct, cast, strict=True):
        assert out.dtype == tensor.dtype
        assert_close(out, ref.double(), 4 * limit)
