"""Times several functions against each other, so that their ratios are meaningful on a busy machine.

The runs are interleaved: whatever slows the machine down for a while slows all functions. Medians are
reported, because a disturbance only ever makes a run slower.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """How long the runs of one function took, in seconds."""

    median: float
    p10: float
    """The first decile."""
    p90: float
    """The last decile."""
    runs: int
    """The number of runs that were timed."""


def _no_wait() -> None:
    """Do nothing: work on the CPU has ended when the call returns."""


def synchronize_for(device: torch.device) -> Callable[[], None]:
    """A function that waits until the work on ``device`` has ended."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else _no_wait


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    warmup: int = 2,
    min_rounds: int = 3,
    burst: int = 1,
    settle: int = 0,
    synchronize: Callable[[], None] = _no_wait,
) -> dict[str, Timing]:
    """Time the functions in rounds. In each round every function has one turn, in a random order.

    Args:
        functions: the functions to time, by name; they take no arguments.
        seconds: the seconds to spend, all functions together, without the warm-up.
        warmup: runs of each function before the timing starts, interleaved too.
        min_rounds: rounds to do even if they take longer than ``seconds``.
        burst: timed runs in a turn.
        settle: runs at the start of a turn that are not timed. Functions with their own threads need some,
            because the threads of the function before may still be spinning.
        synchronize: called before the clock is read: see :func:`synchronize_for`.

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
    """The median and the deciles of ``times``, the seconds of one run or more."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(statistics.median(times), deciles[0], deciles[-1], len(times))
