"""A pytest plugin (``-p stand_in``): the CPU stands in for the device "cuda", to test the GPU's benchmarks.

All of ``benches.devices.Gpu`` runs except the calls of CUDA: events read the CPU's clock, a graph is the
captured function itself, and the cache is small.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benches import devices


class Event:
    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.seconds - self.seconds)


class StandIn(devices.Gpu):
    torch = torch.device("cpu")

    def why_not(self) -> None:
        return None

    def cache_bytes(self) -> int:
        return 1 << 20

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        run()
        return run

    def working_memory(self, call: Callable[[], Any]) -> None:
        return None

    def event(self) -> Event:
        return Event()

    def synchronize(self) -> None:
        pass


devices.DEVICES["cuda"] = StandIn()
