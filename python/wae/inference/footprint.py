"""A saved network in a new process: seconds to its first scores, and the memory that it takes there.

python -m wae.inference.footprint FOLDER
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from .deployed import Deployed
from .engines import EngineError
from .saved import load_deployed

_STATUS = Path("/proc/self/status")
_PEAK = Path("/proc/self/clear_refs")  # where it is written to, the peak starts again


class Footprint(NamedTuple):
    """Of a network in a process that runs nothing else. Megabytes are 1e6 bytes."""

    seconds: float
    """From the call of :func:`wae.load_deployed` to the first scores, after torch and wae are imported."""
    private: float
    """Megabytes that it holds beyond those of before, without pages of files: weights, activations and the
    space to work in. A mapped file is the rest, and the system takes its pages back when it needs them."""
    peak: float
    """The most megabytes that the process holds during calls, beyond what it held before."""


def footprint(folder: Path) -> Footprint | None:
    """Of the network that was saved in ``folder``; None where the system does not tell (only Linux does)."""
    if not _PEAK.exists():
        return None
    command = [sys.executable, "-m", __name__, str(folder.resolve())]
    paths = os.pathsep.join(path or "." for path in sys.path)  # the same packages as here
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    return Footprint(*json.loads(done.stdout.splitlines()[-1]))


def footprint_of(deployed: Deployed) -> Footprint | None:
    """Of ``deployed``, saved for that; None also where its engine cannot be saved, or the process fails."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "net"
        try:
            deployed.save(folder)
            return footprint(folder)
        except (EngineError, subprocess.CalledProcessError):  # the process says why, on standard error
            return None


def held(field: str) -> float:
    """Megabytes under ``field`` in Linux's account of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{_STATUS} has no {field}"
    return int(found[1]) * 1024 / 1e6


def restart_peak() -> None:
    """Have the field VmHWM start again, after what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _PEAK.write_text("5")


def _loaded(folder: Path) -> Footprint:
    """The work of the new process."""
    torch.ones(1).add(1)
    before, private = held("VmRSS"), held("RssAnon")
    start = time.perf_counter()
    deployed = load_deployed(folder)
    images = torch.zeros(deployed.batch, 3, *deployed.size, dtype=torch.uint8)
    deployed(images)
    seconds = time.perf_counter() - start
    restart_peak()
    for _ in range(2):
        deployed(images)
    return Footprint(seconds, held("RssAnon") - private, held("VmHWM") - before)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(_loaded(Path(sys.argv[1]))))
