"""Runs Python programs in new processes, in which they can import the same modules as the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_program(
    program: str, *arguments: str, check: bool = True, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program, with variables added to its environment. With ``check``, its failure is an assertion."""
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def run_interpreted(file: str, *options: str) -> str:
    """Run the tests of a file with Triton's interpreter, which must all pass; what pytest printed."""
    # The interpreter warns because it multiplies NaN outside of the image, where results are not used.
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *options, file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout
