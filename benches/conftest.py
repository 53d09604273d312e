"""What all benchmarks share: equality is checked first, then all sides take turns, and medians are kept.

    pytest benches --benchmark-json=FILE [--seconds S] [--full]

pytest-benchmark's own table shows our side alone; the comparison is in the ``extra_info`` of the JSON
file, from which ``benches/report.py`` makes the tables. Without ``--full`` the benchmarks marked ``full``
are left out, and some sides of the others.
"""

from __future__ import annotations

import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import limits
import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning
from torch import Tensor

from wae.inference.timing import interleaved
from wae_kernels import backends

PACKAGES = ("torch", "torchvision", "triton", "onnxruntime", "openvino", "wae-kernels")
TOLERANCE = 1e-4  # float32, all sides with another order of arithmetic


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=6.0, help="time for each comparison (default 6)")
    parser.addoption("--full", action="store_true", help="the long ones as well, and all sides of the others")


def pytest_configure(config: pytest.Config) -> None:
    limits.apply()
    # torch.compile's cache does not know of them: code it kept from a run without them gives NaN
    folder = tempfile.TemporaryDirectory(prefix="wae-bench-")
    config.add_cleanup(folder.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    config.addinivalue_line("filterwarnings", "ignore")  # the peers' warnings are not ours to mend
    # pytest-benchmark's, after the last test: as an error it would hide why that one failed
    warnings.filterwarnings("ignore", category=PytestBenchmarkWarning)
    config.addinivalue_line("markers", "full: takes minutes; runs with --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["wae"] = {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backend": backends.backend_for("cpu"),
        "limits": {name: os.environ[name] for name in limits.LIMITS if name in os.environ},
    }
    machine_info["wae run"] = {
        "versions": {name: _version(name) for name in PACKAGES},
        "seconds": config.getoption("seconds"),
        "full": config.getoption("full"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def compare(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """``compare(ours, sides, **facts)``: time ``sides`` (name to function), of which ``ours`` is ours.

    Sides that are named together in ``agree`` must return the same tensors; by default all. Those that cannot
    are checked by their caller. ``longer`` multiplies ``--seconds``. ``facts`` go into the result file.
    """

    def run(
        ours: str,
        sides: Mapping[str, Callable[[], Any]],
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        agree: Iterable[Sequence[str]] | None = None,
        tolerance: float = TOLERANCE,
        burst: int = 5,
        settle: int = 2,
        longer: float = 1.0,
        **facts: Any,
    ) -> None:
        for group in [list(sides)] if agree is None else agree:
            wanted = _tensors(sides[group[0]]())
            for name in group[1:]:
                require_equal(f"{name} against {group[0]}", _tensors(sides[name]()), wanted, tolerance)
        synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        seconds = longer * pytestconfig.getoption("seconds")
        timings = interleaved(sides, seconds, warmup=1, burst=burst, settle=settle, synchronize=synchronize)
        measured = {name: asdict(timing) for name, timing in timings.items()}
        if "images" in facts:
            for timing in measured.values():
                timing["images_per_second"] = facts["images"] / timing["median"]
        benchmark.extra_info.update(ours=ours, device=device.type, timings=measured, **facts)

        def timed() -> None:
            sides[ours]()
            synchronize()

        benchmark.pedantic(timed, rounds=3)  # for pytest-benchmark's own table

    return run


def require_equal(what: str, got: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Fail unless two sides agree."""
    for a, b in zip(got, wanted, strict=True):
        error = ((a.double() - b.double()).norm() / b.double().norm()).item()
        assert error <= tolerance, f"{what} differs by {error:.3g}: not timed"


def _tensors(outputs: Any) -> list[Tensor]:
    """Copies, on the processor: a runner may write its next result to the same place."""
    if isinstance(outputs, Tensor):
        return [outputs.cpu().clone()]
    return [torch.as_tensor(output).cpu().clone() for output in outputs]
