"""The gain of a thread of the encoder's own before an engine that has threads of its own.

    python -m benches.threads [ENGINE] [BATCH]

Times WAE-ResNet50 in turns, by where the encoder runs: "own", a thread of its own whose helpers end after
it; "own, spinning", the same without their end; "caller", the calling thread with all of PyTorch's; "one
core" of the calling thread. Prints medians and deciles in milliseconds, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

import wae
from wae.inference.timing import interleaved
from wae.models.resnet50 import wae_resnet50

from .modules import images


def sides(engine: str, batch: int) -> dict[str, Callable[[], Any]]:
    """Each way to call the encoder and then the engine."""
    torch.manual_seed(0)
    deployed = wae.deploy(wae_resnet50().eval(), batch=batch, engine=engine)
    image, front = images(batch, 224), deployed._front
    thread = front._thread
    assert thread is not None
    threads = torch.get_num_threads()

    def one_core() -> Any:
        torch.set_num_threads(1)
        try:
            return front._inputs(image)
        finally:
            torch.set_num_threads(threads)

    ways: dict[str, Callable[[], Any]] = {
        "own": lambda: front(image),
        "own, spinning": lambda: thread.submit(torch.no_grad()(front._inputs), image).result(),
        "caller": lambda: front._inputs(image),
        "one core": one_core,
    }
    return {name: lambda way=way: deployed._run(*way()) for name, way in ways.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    engine, batch = [*sys.argv[1:], *["openvino", "1"][len(sys.argv) - 1 :]]
    with torch.no_grad():
        timings = interleaved(sides(engine, int(batch)), 20, settle=1, burst=2)
    print(
        json.dumps(
            {name: [round(1e3 * x, 2) for x in (t.median, t.p10, t.p90)] for name, t in timings.items()}
        )
    )
