"""How many cores a process may use, and what depends on that number."""

import os
import subprocess
import sys

import pytest

from wae.cores import usable_cores

PROGRAM = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from wae.inference.reading import WORKERS
assert WORKERS == 1, WORKERS
"""


def test_usable_cores_follow_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(("known", "cores"), [(64, 64), (None, 1)])
def test_without_an_affinity_mask_all_cores_are_usable(monkeypatch, known, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs os.sched_setaffinity")
def test_the_number_of_reading_threads_follows_the_affinity_mask():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
