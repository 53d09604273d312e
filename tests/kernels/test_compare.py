"""The comparison that all op tests use: it fails for every kind of wrong result."""

from __future__ import annotations

import math

import pytest
import torch
from compare import EXACT, PLAIN, WINOGRAD, assert_close, border_error, relative_error, tolerance


@pytest.fixture
def ref() -> torch.Tensor:
    return torch.randn(2, 3, 9, 8, dtype=torch.float64)


def test_relative_error_is_the_ratio_of_the_norms() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_equal_tensors_have_no_error_in_any_layout_or_dtype(ref: torch.Tensor) -> None:
    half = ref.half()
    assert relative_error(half.to(memory_format=torch.channels_last), half.double()) == 0.0
    assert_close(half, half.double(), 0.0)


def test_relative_error_of_a_scaled_result(ref: torch.Tensor) -> None:
    assert relative_error(ref * 1.001, ref) == pytest.approx(1e-3)


def test_one_wrong_element_fails(ref: torch.Tensor) -> None:
    out = ref.clone()
    out[1, 2, 4, 4] += 0.01
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(out, ref, WINOGRAD)


@pytest.mark.parametrize(("row", "column"), [(0, 4), (8, 4), (4, 0), (4, 7), (0, 0), (8, 7)])
def test_small_error_on_the_border_fails(row: int, column: int) -> None:
    ref = torch.randn(1, 3, 9, 8, dtype=torch.float64)
    out = ref.clone()
    out[0, 0, row, column] += 1e-3
    assert border_error(out, ref) == pytest.approx(1e-3 / ref.square().mean().sqrt().item())
    with pytest.raises(AssertionError, match="border"):
        assert_close(out, ref, 1.1 * relative_error(out, ref))


def test_border_error_ignores_the_interior(ref: torch.Tensor) -> None:
    out = ref.clone()
    out[:, :, 1:-1, 1:-1] += 1
    assert border_error(out, ref) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_fail(ref: torch.Tensor, value: float) -> None:
    out = ref.clone()
    out[0, 0, 4, 4] = value
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(out, ref, 1.0)
    out[:] = value
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(out, torch.zeros_like(ref), 1.0)


def test_another_shape_fails_even_if_it_broadcasts(ref: torch.Tensor) -> None:
    for out in (ref[:1], ref[..., 0], ref.mT):
        with pytest.raises(AssertionError, match="shape"):
            assert_close(out, ref, 1.0)


def test_relative_error_to_zeros_is_zero_or_infinite(ref: torch.Tensor) -> None:
    zero = torch.zeros_like(ref)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(ref, zero) == math.inf


def test_empty_tensors_are_equal() -> None:
    assert_close(torch.empty(0, 3, 4, 4), torch.empty(0, 3, 4, 4), 0.0)


def test_tolerances_are_those_of_the_specification() -> None:
    assert tolerance(torch.float32) == PLAIN == 1e-6
    assert tolerance(torch.float32, "cpu:avx2") == tolerance(torch.float32, device="cuda") == WINOGRAD == 1e-5
    assert tolerance(torch.float16, "cpu:avx512") == 2e-3
    assert tolerance(torch.bfloat16, "reference") == 1.5e-2
    assert tolerance(torch.float64) == EXACT < 1e-12
