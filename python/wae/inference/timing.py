"""Timing several functions against each other, so that their ratio means something on a busy machine.

The functions take turns: whatever slows the machine down for a while slows all of them. Medians are
reported, because a disturbed run is only ever slower.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """How long one function took: seconds, and the number of runs they were taken from."""

    median: float
    p10: float
    p90: float
    runs: int


def _no_wait() -> None:
    """Work on the processor has ended when the call returns."""


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    warmup: int = 2,
    min_rounds: int = 3,
    burst: int = 1,
    settle: int = 0,
    synchronize: Callable[[], None] = _no_wait,
) -> dict[str, Timing]:
    """Time the functions in rounds: in each round every function has one turn, in a random order.

    Args:
        functions: what to time, by name. None takes an argument.
        seconds: how long to go on, all functions together, warm-up not counted.
        warmup: runs of each function before the clock starts, in rounds too.
        min_rounds: rounds to do even if they take longer than ``seconds``.
        burst: counted runs in a turn.
        settle: runs before them that are not counted, for functions that bring threads of their own: the
            threads of the one before may still be spinning.
        synchronize: called before the clock is read; ``torch.cuda.synchronize`` for work on a GPU.

    Returns:
        A :class:`Timing` for every name, in the order given. All have the same number of runs.

    Raises:
        ValueError: a count is too small.
    """
    if min_rounds < 1 or burst < 1:
        raise ValueError(f"min_rounds and burst must be at least 1, got {min_rounds} and {burst}")
    if warmup < 0 or settle < 0:
        raise ValueError(f"warmup and settle must be at least 0, got {warmup} and {settle}")
    samples: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(warmup):
        for name in order:
            functions[name]()
    synchronize()
    end = time.perf_counter() + seconds
    rounds = 0
    while order and (rounds < min_rounds or time.perf_counter() < end):
        shuffle(order)
        for name in order:
            function = functions[name]
            for _ in range(settle):
                function()
            synchronize()
            for _ in range(burst):
                start = time.perf_counter()
                function()
                synchronize()
                samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: summary(times) for name, times in samples.items()}


def summary(times: list[float]) -> Timing:
    """Median and deciles of the seconds of single runs, of which there is at least one."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(statistics.median(times), deciles[0], deciles[-1], len(times))
