"""The start-up time and the memory of a saved network, measured in a new process.

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
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from wae.storage.files import temporary_folder

from .agreement import DisagreementError
from .deployed import Deployed
from .engines import EngineError
from .saved import load_deployed

_STATUS = Path("/proc/self/status")
_PEAK = Path("/proc/self/clear_refs")  # writing "5" to it resets the peak


class Footprint(NamedTuple):
    """The footprint of a network in a process that runs nothing else. A megabyte is 1e6 bytes."""

    seconds: float
    """Seconds from the call of :func:`wae.load_deployed` to the first scores; torch and wae are imported
    before."""
    private: float
    """Megabytes of anonymous memory that the process gained: weights, activations and workspace. Mapped files
    are not included, because the system can reclaim their pages."""
    peak: float
    """The peak megabytes that the process holds during calls, beyond what it held before loading."""


def footprint(folder: Path) -> Footprint | None:
    """Measure the network saved in ``folder``; None except on Linux, as other systems do not report it.

    Raises:
        subprocess.CalledProcessError: the process failed; its standard error says why.
    """
    if not _PEAK.exists():
        return None
    command = [sys.executable, "-m", __name__, str(folder.resolve())]
    paths = os.pathsep.join(path or "." for path in sys.path)  # the same packages as here
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    return Footprint(*json.loads(done.stdout.splitlines()[-1]))


def footprint_of(deployed: Deployed) -> Footprint | None:
    """Save ``deployed`` and measure it; None also if its engine cannot be saved, or the process fails."""
    with temporary_folder() as parent:
        folder = parent / "net"
        try:
            deployed.save(folder)
            return footprint(folder)
        except (EngineError, DisagreementError, subprocess.CalledProcessError):  # it says why on stderr
            return None


def held(field: str) -> float:
    """Megabytes in ``field`` of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{_STATUS} has no {field}"
    return int(found[1]) * 1024 / 1e6


def restart_peak() -> None:
    """Return free memory to the system, and reset the peak in the field VmHWM."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _PEAK.write_text("5")


def _loaded(folder: Path) -> Footprint:
    """Load the network in ``folder`` and measure this process."""
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
