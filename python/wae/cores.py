"""The processor's cores."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many this process may use: not all that there are within ``taskset`` or a job of a batch system."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
