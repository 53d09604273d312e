"""How many cores a process may use, and what goes by it."""

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


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(("known", "cores"), [(64, 64), (None, 1)])
def test_where_the_system_does_not_tell_cores_are_all_that_there_are(monkeypatch, known, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
def test_images_are_read_by_as_many_threads_as_may_run():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
