"""Which backend runs, why, and how it is chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import Cell, arguments_of

from wae_kernels import backends
from wae_kernels.parameters import KERNEL_WIDTH

USABLE = [b.name for b in backends.available() if b.available]
UNUSABLE = [b.name for b in backends.available() if not b.available]


def run_python(program: str, backend: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WAE_BACKEND"}
    if backend is not None:
        environment["WAE_BACKEND"] = backend
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )


def convolutions(device: str) -> int:
    """How many of PyTorch's convolutions an encode is made of, run now."""
    arguments = arguments_of("encode", device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ops.wae.encode(*arguments)
    return sum(event.name == "aten::conv2d" for event in profile.events())


def test_every_backend_is_listed_with_a_reason() -> None:
    listed = backends.available()
    assert [b.name for b in listed if b.name.startswith("cpu:")] == ["cpu:avx512", "cpu:avx2", "cpu:portable"]
    assert listed[-1].name == "reference"
    assert listed[-1].available
    assert all(b.reason for b in listed)


def test_what_is_selected_runs(cell: Cell) -> None:
    assert backends.selected() == cell.name
    asked = backends.backend_for(cell.device)
    assert asked == (cell.name if cell.name != "auto" else asked)
    assert convolutions(cell.device) == (5 if asked == "reference" else 0)


def test_automatic_is_the_best_that_is_available() -> None:
    with backends.use("auto"):
        assert backends.backend_for("cpu") == next(name for name in USABLE if name != "cuda")


def test_cpu_is_the_best_of_the_compiled_kernels() -> None:
    if USABLE == ["reference"]:
        pytest.skip("there is no compiled library")
    with backends.use("cpu"):
        assert backends.backend_for("cpu") == USABLE[0]


@pytest.mark.parametrize("name", USABLE)
def test_what_has_no_kernel_runs_the_reference(name: str) -> None:
    with backends.use(name):
        assert backends.backend_for("cpu", torch.float64) == "reference"
        assert backends.backend_for("cpu", torch.float32, 8) == "reference"
        assert backends.backend_for("meta") == "reference"


def test_the_former_name_of_the_kernels_width_warns() -> None:
    with pytest.warns(DeprecationWarning, match="WIDTH is wae_kernels.parameters.KERNEL_WIDTH now"):
        assert backends.WIDTH == KERNEL_WIDTH
    with pytest.raises(AttributeError, match="has no attribute 'HEIGHT'"):
        _ = backends.HEIGHT


def test_use_puts_the_former_choice_back() -> None:
    before = backends.selected()
    with backends.use("reference"):
        with backends.use(USABLE[0]):
            assert backends.selected() == USABLE[0]
        assert backends.selected() == "reference"
        with pytest.raises(KeyError), backends.use("auto"):
            raise KeyError
        assert backends.selected() == "reference"
    assert backends.selected() == before


@pytest.mark.parametrize("name", ["", "gpu", "cpu:", "cpu:sse", "Reference", *UNUSABLE])
def test_what_cannot_be_used_is_refused_with_what_can(name: str) -> None:
    before = backends.selected()
    with pytest.raises(ValueError, match="backend must be one of auto,") as refusal:
        backends.select(name)
    assert all(usable in str(refusal.value) for usable in USABLE)
    assert str(refusal.value).endswith(f"got {name!r}")
    assert backends.selected() == before


@pytest.mark.parametrize("name", ["reference", USABLE[-2] if len(USABLE) > 1 else "auto"])
def test_the_environment_variable(name: str) -> None:
    program = "import wae_kernels.backends as b; print(b.selected(), b.backend_for('cpu'))"
    with backends.use(name):
        expected = backends.backend_for("cpu")
    assert run_python(program, name).stdout.split() == [name, expected]


def test_without_the_environment_variable_the_choice_is_automatic() -> None:
    assert run_python("import wae_kernels; print(wae_kernels.backends.selected())", None).stdout == "auto\n"


def test_an_environment_variable_that_names_no_backend_is_refused() -> None:
    result = run_python("import wae_kernels", "fastest")
    assert result.returncode != 0
    assert "backend must be one of auto" in result.stderr
    assert "'fastest'" in result.stderr
