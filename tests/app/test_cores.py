"""How many cores a process may use, and what depends on that number."""

import os
import subprocess
import sys

import pytest

from wae import cores
from wae.cores import usable_cores

PROGRAM = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from wae.inference.reading import WORKERS
assert WORKERS == 1, WORKERS
"""


@pytest.fixture(autouse=True)
def _without_quota(tmp_path, monkeypatch):
    """Tests may run in a container that has one."""
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")


def test_usable_cores_follow_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(("known", "cores"), [(64, 64), (None, 1)])
def test_without_an_affinity_mask_all_cores_are_usable(monkeypatch, known, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("quota", "usable"),
    [
        *(("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 64)),
        *(("max 100000", 64), ("", 64), (None, 64)),
    ],
)
def test_usable_cores_follow_a_containers_quota(tmp_path, monkeypatch, quota, usable):
    """`wae reproduce` starts a process for each: 64 of them in `docker run --cpus 2`."""
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert usable_cores() == usable


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs os.sched_setaffinity")
def test_the_number_of_reading_threads_follows_the_affinity_mask():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
