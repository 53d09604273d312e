"""Peak memory of classifiers, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .classifiers import NETWORKS, cells, side

ROOT = Path(__file__).resolve().parents[1]
BATCH = 8


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("network", NETWORKS)
def bench_memory(benchmark: Any, network: str) -> None:
    """Megabytes at the peak of a call, including weights, workspace and engine: see memory.py."""
    megabytes: dict[str, float] = {}

    def measure_all() -> None:
        for form, runner in cells(network, full=True):
            megabytes[side(form, runner)] = measure(network, form, runner)

    benchmark.pedantic(measure_all, rounds=1)
    benchmark.extra_info.update(table="memory", network=network, images=BATCH, megabytes=megabytes)


def measure(network: str, form: str, runner: str) -> float:
    """The megabytes that ``memory.py`` prints."""
    command = [sys.executable, "-m", "benches.memory", network, form, runner, str(BATCH)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT)
    return float(json.loads(done.stdout))
