"""What all benchmarks share: equality is checked first, then all sides take turns, and medians are kept.

    pytest benches --benchmark-json=FILE [--seconds S]

pytest-benchmark's own table shows our side alone; the comparison is in the ``extra_info`` of the JSON
file, from which ``benches/report.py`` makes the tables.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from torch import Tensor

from wae.timing import interleaved
from wae_kernels import backends

PACKAGES = ("torch", "torchvision", "triton", "onnxruntime", "openvino", "wae-kernels")
# What limits the instructions that libraries may use; a result is worth little without it.
LIMITS = ("WAE_BACKEND", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
TOLERANCE = 1e-4  # float32, all sides with another order of arithmetic


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=6.0, help="time for each comparison (default 6)")


def pytest_configure(config: pytest.Config) -> None:
    # torch.compile's cache does not know about LIMITS: code it kept from a run without them gives NaN
    folder = tempfile.TemporaryDirectory(prefix="wae-bench-")
    config.add_cleanup(folder.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    config.addinivalue_line("filterwarnings", "ignore")  # the peers' warnings are not ours to mend


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["wae"] = {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backend": backends.backend_for("cpu"),
        "versions": {name: _version(name) for name in PACKAGES},
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
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

    All sides must return the same tensors; ``check=False`` is for sides that cannot (their caller has
    checked them). ``facts`` go into the result file.
    """

    def run(
        ours: str,
        sides: Mapping[str, Callable[[], Any]],
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        check: bool = True,
        **facts: Any,
    ) -> None:
        if check:
            for name, side in sides.items():
                require_equal(name, side(), sides[ours]())
        synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        timings = interleaved(
            sides, pytestconfig.getoption("seconds"), burst=5, settle=2, synchronize=synchronize
        )
        benchmark.extra_info.update(
            ours=ours, device=device.type, timings={n: asdict(t) for n, t in timings.items()}, **facts
        )

        def timed() -> None:
            sides[ours]()
            synchronize()

        benchmark.pedantic(timed, rounds=20, warmup_rounds=3)

    return run


def require_equal(name: str, got: Any, wanted: Any) -> None:
    """Fail unless two sides agree."""
    for a, b in zip(_tensors(got), _tensors(wanted), strict=True):
        error = ((a.double() - b.double()).norm() / b.double().norm()).item()
        assert error <= TOLERANCE, f"{name} differs from ours by {error:.3g}: not timed"


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs.cpu()]
    return [torch.as_tensor(output).cpu() for output in outputs]
