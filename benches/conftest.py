"""Shared by all benchmarks: every side is checked first, then all correct ones are timed interleaved.

    python -m pytest benches [--keep FOLDER] [--seconds S] [--case-seconds S] [--full] [--benchmark-json=FILE]

pytest-benchmark's own table shows only our side. The comparison is in ``extra_info``, which ``--keep`` puts
into the machine's result file as soon as a case is done. ``benches/report.py`` makes the tables of that file.
Without ``--full``, the benchmarks marked ``full`` and some sides of the others are left out.
"""

from __future__ import annotations

import gc
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning
from pytest_benchmark.utils import get_commit_info
from torch import Tensor

from wae.experiments.machine import processor
from wae_kernels import backends

from . import limits, result_files
from .comparison import Side, prepare
from .devices import Setting

PACKAGES = (
    "torch", "torchvision", "triton", "onnxruntime", "onnxruntime-gpu", "openvino", "torch-tensorrt",
    "wae-kernels",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=6.0, help="seconds to time one case for (default 6)")
    parser.addoption("--full", action="store_true", help="run the long benchmarks too, and all sides of each")
    parser.addoption(
        "--keep", type=Path, metavar="FOLDER", help="put each finished case into a result file here"
    )
    parser.addoption(
        "--case-seconds",
        type=float,
        help="seconds to build and check the sides of one case; those that are not ready then are left out",
    )


def pytest_configure(config: pytest.Config) -> None:
    limits.apply()
    # torch.compile's cache ignores these limits: code cached by a run without them gives NaN
    folder = tempfile.TemporaryDirectory(prefix="wae-bench-")
    config.add_cleanup(folder.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    config.addinivalue_line("filterwarnings", "ignore")  # we cannot fix the baselines' warnings
    # pytest-benchmark warns after the last test: as an error, this would hide why that test failed
    warnings.filterwarnings("ignore", category=PytestBenchmarkWarning)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["wae"] = _machine()
    machine_info["wae run"] = _run(config)


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backend": backends.backend_for("cpu"),
        "limits": {name: os.environ[name] for name in limits.LIMITS if name in os.environ},
    }


def _run(config: pytest.Config) -> dict[str, Any]:
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "seconds": config.getoption("seconds"),
        "full": config.getoption("full"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> Iterator[Setting]:
    """A device, a precision and a batch size; the case is skipped if there is no such device."""
    setting: Setting = request.param
    if (reason := setting.device.why_not()) is not None:
        pytest.skip(reason)
    with setting.precision.allowed():
        yield setting


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Free the networks of one case before the next: they can be several gigabytes."""
    yield
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def kept(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[None]:
    """Put a case into the result file as soon as it is done, so that an interrupted run keeps its results."""
    yield
    folder, config = request.config.getoption("keep"), request.config
    if folder is None or not benchmark.extra_info:
        return
    commit = get_commit_info()
    run = {
        "datetime": datetime.now(timezone.utc).isoformat(),
        "commit": commit.get("id"),
        "dirty": commit.get("dirty"),
        **_run(config),
    }
    result_files.keep(folder, _machine(), {"name": request.node.name, "run": run, **benchmark.extra_info})


@pytest.fixture
def compare(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """``compare(ours, sides, wanted, setting, limit, **facts)``: check the sides, and time the correct ones.

    ``wanted`` holds the expected results, for all sides or for each by name; so does ``limit``. ``capture``:
    a round of calls is captured as one CUDA graph on a GPU. ``longer`` multiplies ``--seconds``. ``facts`` go
    into the result file. A side that is wrong is kept without times; if it is ``ours``, the case fails.
    """

    def run(
        ours: str,
        sides: Mapping[str, Side],
        wanted: Sequence[Tensor] | Mapping[str, Sequence[Tensor]],
        setting: Setting,
        limit: float | Mapping[str, float],
        *,
        capture: bool = False,
        burst: int = 5,
        settle: int = 2,
        longer: float = 1.0,
        **facts: Any,
    ) -> None:
        device = setting.device
        wanted = wanted if isinstance(wanted, Mapping) else dict.fromkeys(sides, wanted)
        limit = limit if isinstance(limit, Mapping) else dict.fromkeys(sides, limit)
        budget = pytestconfig.getoption("case_seconds")
        ready = prepare(sides, wanted, limit, device, capture, budget)
        assert ready.rounds, f"no side can be timed: {ready.left_out}"
        seconds = longer * pytestconfig.getoption("seconds")
        timings = device.time(ready.rounds, seconds, ready.calls, burst, settle)
        facts = {"images": setting.batch, "device": setting.name, "precision": setting.precision.name} | facts
        facts = {name: value for name, value in facts.items() if value is not None}
        if "images" in facts:
            for timing in timings.values():
                timing["images_per_second"] = facts["images"] / timing["median"]
        state = {"state": state} if (state := device.facts()) else {}
        benchmark.extra_info.update(ours=ours, timings=timings, **ready.facts(), **state, **facts)
        assert ours in ready.rounds, f"{ours}: {ready.left_out[ours]}"
        benchmark.pedantic(ready.rounds[ours], rounds=3)  # for pytest-benchmark's own table

    return run
