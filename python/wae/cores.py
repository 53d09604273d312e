"""The CPU's cores."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's, in cgroup v2


def usable_cores() -> int:
    """The number of cores this process may use: not all under ``taskset``, in a batch system's job, or in a
    container with a quota."""
    is_linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no file, or no quota: "max 100000"
        quota, period = map(int, _QUOTA.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return cores
