"""Commands whose standard streams are closed, or have an encoding of few characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_REPORT = """
import os, subprocess, sys
from wae.streams import prepare_streams

prepare_streams()
print(sys.stdin.read(), sys.stdout.isatty(), file=sys.stderr)
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
assert opened > 2, opened
subprocess.run([sys.executable, "-c", "print(1, end='', flush=True)"], check=True)
os._exit(0 if os.path.getsize(sys.argv[1]) == 0 else 1)
"""


@pytest.mark.parametrize("closed", ["0", "1", "2", "1 2", "0 1 2"])
def test_closed_streams_become_the_null_device(closed: str, tmp_path: Path) -> None:
    """Also in child processes. A file that is opened later does not get what they print."""
    shell = f"""exec "$0" "$@" {" ".join(f"{number}>&-" for number in closed.split())}"""
    command = ["bash", "-c", shell, sys.executable, "-c", _REPORT, str(tmp_path / "file")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_characters_that_the_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    script = "from wae.streams import prepare_streams; prepare_streams(); print('\u00e9 \U0001f600')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.decode("ascii").strip() == r"\xe9 \U0001f600"


def test_the_command_prepares_its_streams() -> None:
    command = ["bash", "-c", 'exec "$0" -m wae encode - -o - <&- >&-', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "this is not an image file" in done.stderr
