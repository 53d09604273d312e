"""Runs Python programs in new processes, in which they can import the same modules as the tests."""

from __future__ import annotations

import os
import subprocess
import sys


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
