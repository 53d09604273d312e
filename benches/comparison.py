"""A comparison: each side is built and checked; the correct ones are then timed interleaved."""

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
"""Builds a side, which is one call for each set of inputs. The first call's results are checked."""


class OutOfTimeError(BaseException):
    """Building a side took longer than the time that was left.

    Compilers try many kernels, and go on with the next one after any ``Exception``.
    """


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
        """The result file's entries about the sides, apart from their times."""
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
    """Build the sides in order, and compare the results of each with the expected ones.

    A side is left out, with the reason, if it fails, is wrong, or is not built in time. All sides share the
    ``budget`` of seconds.

    Args:
        sides: by name.
        wanted: for each side, the expected results of its first call.
        limits: for each side, the largest ||a - b|| / ||b|| that a result may have.
        device: where the sides run.
        capture: whether a round is captured as one graph, if the device has graphs.
        budget: in seconds; None for no limit.
    """
    ready = Ready()
    end = time.monotonic() + budget if budget is not None else None
    for name, build in sides.items():
        try:
            with _until(end):
                calls = build()
                error = largest_difference(calls[0](), wanted[name])
                ready.errors[name] = error
                if not error <= limits[name]:  # NaN fails as well
                    raise ValueError(f"wrong by {error:.2g}, more than {limits[name]:.2g}")
                memory = device.working_memory(calls[0])
                run, note = device.round(calls, capture)
        except (Exception, OutOfTimeError) as problem:  # libraries raise all kinds; the others are timed
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
    """Raise OutOfTimeError inside the block at time ``end``; a system call in progress may delay it."""
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
    """One tensor or several, always as a list."""
    return [results] if isinstance(results, Tensor) else list(results)
