"""Fixtures for all tests: a fixed seed for each test, and process settings that are restored after it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from cases import CELLS, SEED, Cell, as_params, seed_of

from wae_kernels import _load, backends

hypothesis.settings.register_profile(
    "wae",
    deadline=None,
    derandomize=SEED == 0,  # otherwise WAE_TEST_SEED seeds Hypothesis, below
    max_examples=25,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("wae")


if SEED:
    hypothesis.core.global_force_seed = SEED


def pytest_configure(config: pytest.Config) -> None:
    # tests/build/test_install.py tests the warning of an installation without the compiled library.
    config.addinivalue_line("filterwarnings", "ignore:wae_kernels runs on plain PyTorch:RuntimeWarning")
    # torch 2.10 itself causes these: torch.func uses torch.jit.script, and torch.export reads such buffers.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:The given buffer is not writable:UserWarning")
    # poisoned_memory makes torch warn of each operator that is not deterministic on a GPU.
    config.addinivalue_line("filterwarnings", "ignore:(?s).*determinis:UserWarning")
    torch.backends.cudnn.deterministic = True  # tests compare trainings, on a GPU if there is one, bit by bit


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip a backend that cannot run here once for each test function, not for each of its cases."""
    repeated: list[pytest.Item] = []
    skipped: set[tuple[object, Cell]] = set()
    for item in items:
        cell = item.callspec.params.get("cell") if hasattr(item, "callspec") else None
        if cell is None or not cell.why_not:
            continue
        if (item.function, cell) in skipped:
            repeated.append(item)
        skipped.add((item.function, cell))
    deselected = set(repeated)
    items[:] = [item for item in items if item not in deselected]
    config.hook.pytest_deselected(items=repeated)


def pytest_report_header() -> str:
    usable = ", ".join(b.name for b in backends.available() if b.available)
    return (
        f"seed: {SEED} and each test's name (WAE_TEST_SEED={SEED}); torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; backends: {usable}"
    )


@pytest.fixture(autouse=True)
def fixed_seed(request: pytest.FixtureRequest) -> None:
    """Seed the generators from the test's name, so that a test draws the same numbers when it runs alone."""
    seed = seed_of(request.node.nodeid)
    random.seed(seed)
    # torch.manual_seed would store a traceback in case CUDA is initialised later: 2 ms per test.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    """Run on one thread, because tests are small, and restore the number of threads and the backend."""
    threads, backend = torch.get_num_threads(), backends.selected()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    backends.select(backend)


@pytest.fixture(scope="session", autouse=True)
def programs_do_not_spin() -> Iterator[None]:
    """Let OpenMP's threads sleep while they wait, in the programs that tests start.

    They would spin on the cores that other tests need, and take several times as long for it. Those of this
    process do as always, because it has read the variable already: tests check that none of them spins.
    """
    with pytest.MonkeyPatch.context() as patched:
        if "OMP_WAIT_POLICY" not in os.environ:
            patched.setenv("OMP_WAIT_POLICY", "passive")
        yield


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill new tensors with NaN (uint8: 85), so that tests detect elements that a kernel does not write."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    compiled = _load.CPU.library
    if compiled is not None:
        compiled.wae_cpu_poison(True)
    yield
    if compiled is not None:
        compiled.wae_cpu_poison(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.fixture(params=as_params(CELLS))
def cell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Select each backend (and device) in turn; skip it, with the reason, if it cannot run here."""
    cell: Cell = request.param
    if cell.why_not:
        pytest.skip(f"{cell}: {cell.why_not}")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if cell.name == "reference":  # cuDNN may use Winograd arithmetic, which spreads NaN and is less accurate
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    backends.select(cell.name)  # not use(), because autograd runs on a GPU in threads of its own
    return cell
