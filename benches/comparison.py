"""A comparison: each side is built and checked, and those that are right take turns being timed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor

from wae.difference import largest_difference

from .devices import Calls, Processor

Side = Callable[[], Calls]
"""Builds a side: one call for each set of inputs. The first call's results are checked."""


class OutOfTimeError(Exception):
    """A side took longer to build than was left."""


@dataclass
class Ready:
    """The sides that can be timed, and why the others cannot."""

    rounds: dict[str, Callable[[], Any]] = field(default_factory=dict)
    calls: int = 1
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The result file's entries about the sides, beside their times."""
        found = {
            "errors": self.errors,
            "left_out": self.left_out,
            "notes": self.notes,
            "megabytes": self.megabytes,
        }
        return {name: value for name, value in found.items() if value}


def prepare(
    sides: Mapping[str, Side],
    wanted: Mapping[str, Sequence[Tensor]],
    limits: Mapping[str, float],
    device: Processor,
    capture: bool = False,
    budget: float | None = None,
) -> Ready:
    """Build the sides in their order, and compare the results of each with what is wanted of it.

    A side that fails, is wrong, or is not built within ``budget`` seconds (all sides together) is left out,
    with the reason.

    Args:
        sides: by name.
        wanted: for each side, the right results of its first call.
        limits: for each side, the largest ||a - b|| / ||b|| of a result.
        device: where they run.
        capture: whether a round becomes one graph, where the device has graphs.
        budget: seconds; None for as long as it takes.
    """
    ready = Ready()
    end = time.monotonic() + budget if budget is not None else None
    for name, build in sides.items():
        try:
            with _until(end):
                calls = build()
                error = largest_difference(calls[0](), wanted[name])
                ready.errors[name] = error
                if not error <= limits[name]:  # NaN neither
                    raise ValueError(f"wrong by {error:.2g}, more than {limits[name]:.2g}")
                memory = device.working_memory(calls[0])
                run, note = device.round(calls, capture)
        except Exception as problem:  # of whatever kind a library raises; the others are still measured
            ready.left_out[name] = str(problem).strip().partition("\n")[0][:200] or repr(problem)
            continue
        ready.rounds[name], ready.calls = run, len(calls)
        if note:
            ready.notes[name] = note
        if memory is not None:
            ready.megabytes[name] = memory
    return ready


@contextmanager
def _until(end: float | None) -> Iterator[None]:
    """Raise OutOfTimeError in the block when the time has come: at once, if it takes no system call's end."""
    if end is None:
        yield
        return
    left = end - time.monotonic()
    if left <= 0:
        raise OutOfTimeError("no time left")

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"not built within the {left:.0f} s left")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tensors(results: Any) -> list[Tensor]:
    """One tensor or several, as a list."""
    return [results] if isinstance(results, Tensor) else list(results)
