"""The CPU's cores."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The number of cores this process may use: not all under ``taskset`` or in a batch system's job."""
    if hasattr(os, "sched_getaffinity"):  # absent on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
