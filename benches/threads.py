"""The gain from helper threads that sleep, for an encoder in front of an engine that has its own threads.

    python -m benches.threads [ENGINE] [BATCH] [PRECISION]

Times WAE-ResNet50 interleaved with the encoder on different threads: "sleeping", the helpers of
wae_kernels.threads; "waiting", PyTorch's threads, which busy-wait afterwards; "one core", only the calling
thread; and "engine", the engine without the encoder. Prints medians and deciles in milliseconds, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

import wae
from wae.difference import largest_difference
from wae.inference.timing import interleaved
from wae.models.resnet50 import wae_resnet50

from .devices import EXACT
from .modules import images


def sides(engine: str, batch: int, precision: str) -> dict[str, Callable[[], Any]]:
    """The ways to call the encoder and then the engine, by name; all give the same scores."""
    torch.manual_seed(0)
    examples = images(200, 224)
    deployed = wae.deploy(
        wae_resnet50().eval(),
        batch=batch,
        engine=engine,
        precision=precision,
        calibration=examples if precision == "int8" else None,
        max_drop=None,
    )
    image, front = examples[:batch], deployed._front
    inputs, threads = front(image), torch.get_num_threads()

    def one_core() -> Any:
        torch.set_num_threads(1)
        try:
            return front._inputs(image)
        finally:
            torch.set_num_threads(threads)

    ways: dict[str, Callable[[], Any]] = {
        "sleeping": lambda: front(image),
        "waiting": lambda: front._inputs(image),
        "one core": one_core,
        "engine": lambda: inputs,
    }
    calls = {name: lambda way=way: deployed._run(*way()) for name, way in ways.items()}
    wanted = calls["engine"]().clone()
    for name, call in calls.items():
        if not (error := largest_difference(call(), wanted)) <= EXACT.network:
            raise SystemExit(f"{name} is wrong by {error:.2g}")
    return calls


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    engine, batch, precision = [*sys.argv[1:], *["openvino", "1", "float32"][len(sys.argv) - 1 :]]
    with torch.no_grad():
        timings = interleaved(sides(engine, int(batch), precision), 20, settle=1, burst=2)
    print(
        json.dumps(
            {name: [round(1e3 * x, 2) for x in (t.median, t.p10, t.p90)] for name, t in timings.items()}
        )
    )
