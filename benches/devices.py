"""The devices that a comparison runs on: their precisions, sets of inputs, and clocks."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from wae.inference.cuda_graphs import recorded
from wae.inference.timing import interleaved, summary

Inputs = tuple[Tensor, ...]
Calls = Sequence[Callable[[], Any]]
"""A side that is ready to be timed: one call for each set of inputs."""
Timings = dict[str, dict[str, float]]


class Launched(list[Callable[[], Any]]):
    """Calls of a library that computes on its own stream: a CUDA graph would not capture its work."""


# ----------------------------------------------------------------------------------------------- precision


@dataclass(frozen=True)
class Precision:
    """An arithmetic, and how far its results may be from float64: the table in docs/network.md.

    Attributes:
        dtype: of weights and images.
        tf32: whether float32 may be rounded to tf32 on tensor cores.
        op: the limit for one op, ||a - b|| / ||b||.
        network: the limit for the scores of a network.
    """

    name: str
    dtype: torch.dtype
    tf32: bool
    op: float
    network: float

    @property
    def gradient(self) -> float:
        """The limit for gradients through the three ReLUs of encode or decode.

        A forward error of ``op`` puts up to that share of a layer's units on the other side of their ReLU.
        The gradient of such a unit is entirely wrong, so the error's norm is the square root of the share.
        """
        return float((3 * self.op) ** 0.5)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A context in which torch rounds float32 as this precision allows."""
        settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [setting.allow_tf32 for setting in settings]
        try:
            for setting in settings:
                setting.allow_tf32 = self.tf32
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.allow_tf32 = value


PRECISIONS = {
    p.name: p
    for p in (
        Precision("float32", torch.float32, False, 1e-5, 1e-4),
        Precision("tf32", torch.float32, True, 1e-3, 2e-3),
        Precision("float16", torch.float16, True, 2e-3, 2e-2),
        Precision("bfloat16", torch.bfloat16, True, 1.5e-2, 1e-1),
    )
}
EXACT = PRECISIONS["float32"]

# ------------------------------------------------------------------------------------------------- devices


class Processor:
    """The CPU: calls are timed one by one, with the inputs in its cache."""

    torch = torch.device("cpu")

    def why_not(self) -> str | None:
        """The reason why nothing can be measured on this device; None if it can."""
        return None

    def facts(self) -> dict[str, Any]:
        """The current state of the device, for the result file."""
        return {}

    def sets(self, inputs: Inputs, most: int | None = None) -> list[Inputs]:
        """The inputs of one round of calls."""
        return [inputs]

    def round(self, calls: Calls, capture: bool) -> tuple[Callable[[], Any], str]:
        """A function that makes all calls once, and a note if it is not the requested graph."""
        (call,) = calls
        return call, ""

    def time(
        self, rounds: Mapping[str, Callable[[], Any]], seconds: float, calls: int, burst: int, settle: int
    ) -> Timings:
        """The seconds that one call of each side takes."""
        timings = interleaved(rounds, seconds, warmup=1, burst=burst, settle=settle)
        return {name: asdict(timing) for name, timing in timings.items()}

    def working_memory(self, call: Callable[[], Any]) -> float | None:
        """Megabytes that a call allocates in addition to what is already there; None if unknown."""
        return None


class Gpu(Processor):
    """A CUDA device.

    A round uses so many sets of inputs that each has left the L2 cache before it is used again. The round is
    captured as one CUDA graph if that is requested and possible, and it is timed by CUDA events.
    """

    torch = torch.device("cuda")
    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"

    def why_not(self) -> str | None:
        return None if torch.cuda.is_available() else "no CUDA device"

    def facts(self) -> dict[str, Any]:
        if shutil.which("nvidia-smi") is None:
            return {}
        command = ["nvidia-smi", f"--query-gpu={self.query}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        values = done.stdout.splitlines()[0].split(", ") if done.stdout else []
        return dict(zip(self.query.split(","), values, strict=False))

    def cache_bytes(self) -> int:
        """The size of the L2 cache."""
        return int(getattr(torch.cuda.get_device_properties(self.torch), "L2_cache_size", 64 << 20))

    def sets(self, inputs: Inputs, most: int | None = None) -> list[Inputs]:
        bytes_each = sum(x.numel() * x.element_size() for x in inputs)
        count = max(2, -(-2 * self.cache_bytes() // bytes_each))
        return [tuple(x.roll(i, -1) for x in inputs) for i in range(min(count, most or count))]

    def round(self, calls: Calls, capture: bool) -> tuple[Callable[[], Any], str]:
        def run() -> None:
            for call in calls:
                call()

        if not capture or isinstance(calls, Launched):
            return run, "launched, not a graph" if capture else ""
        try:
            return self.captured(run), ""
        except RuntimeError as problem:
            self.synchronize()
            return run, f"launched, not a graph: {str(problem).splitlines()[0]}"

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """``run`` as a CUDA graph."""
        replay, _ = recorded(run)
        return replay

    def time(
        self, rounds: Mapping[str, Callable[[], Any]], seconds: float, calls: int, burst: int, settle: int
    ) -> Timings:
        samples: dict[str, list[float]] = {name: [] for name in rounds}
        order, shuffle = list(rounds), random.Random(0).shuffle
        for run in rounds.values():
            run()
        end = time.perf_counter() + seconds
        while len(samples[order[0]]) < 3 or time.perf_counter() < end:
            shuffle(order)
            events = []
            for name in order:  # all are queued before the first is read, so that launches are not timed
                start, stop = self.event(), self.event()
                start.record()
                rounds[name]()
                stop.record()
                events.append((name, start, stop))
            self.synchronize()
            for name, start, stop in events:
                samples[name].append(start.elapsed_time(stop) / 1e3 / calls)
        return {name: asdict(summary(times)) for name, times in samples.items()}

    def working_memory(self, call: Callable[[], Any]) -> float | None:
        call()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def event(self) -> Any:
        """An object whose ``record()`` stores the device's time."""
        return torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        torch.cuda.synchronize()


DEVICES: dict[str, Processor] = {"cpu": Processor(), "cuda": Gpu()}


# ------------------------------------------------------------------------------------------------ settings


class Setting(NamedTuple):
    """One case: its device, its precision, and the batch size."""

    name: str
    precision: Precision
    batch: int

    @property
    def device(self) -> Processor:
        """The device of this name."""
        return DEVICES[self.name]


def settings(
    cpu: Sequence[int] = (),
    cuda: Sequence[int] = (),
    precisions: Sequence[str] = tuple(PRECISIONS),
    full: Sequence[tuple[str, int]] = (),
) -> list[Any]:
    """pytest's parameters: batch sizes on the CPU in float32, and on the GPU in ``precisions``.

    Those in ``full``, as (device, batch), run only with ``--full``.
    """
    chosen = [Setting("cpu", EXACT, batch) for batch in cpu]
    chosen += [Setting("cuda", PRECISIONS[name], batch) for name in precisions for batch in cuda]
    return [pytest.param(s, id=_id(s), marks=_marks(s, full)) for s in chosen]


def _id(setting: Setting) -> str:
    precision = "" if setting.name == "cpu" else f"{setting.precision.name}-"
    return f"{setting.name}-{precision}{setting.batch}"


def _marks(setting: Setting, full: Sequence[tuple[str, int]]) -> list[Any]:
    marks = [pytest.mark.gpu] if setting.name == "cuda" else []
    return [*marks, pytest.mark.full] if (setting.name, setting.batch) in full else marks
