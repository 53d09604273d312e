"""int8 against float32: what it loses on Fashion-MNIST, and what it wins in time.

    python -m benches.precision accuracy [ENGINE]          # the included network, all 10,000 test images
    python -m benches.precision speed NETWORK BATCH [ENGINE]    # VGG16 or ResNet50, random weights

Prints JSON. ``accuracy`` calibrates on 100 training images. ``speed`` times, in turns, the stock network
eager in float32, and stock and WAE in int8 in the same engine, encoder included; milliseconds, median and
deciles.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import wae
from wae.data.idx import fashion_mnist
from wae.inference.deployed import classes_of
from wae.inference.timing import interleaved
from wae.storage.checkpoint import load_classifier
from wae.storage.weights_file import WEIGHTS

from .classifiers import forms
from .modules import images


def accuracy(engine: str = "openvino") -> dict[str, Any]:
    """Shares of the 10,000 test images that are named rightly."""
    model = load_classifier(WEIGHTS / "fashion-mnist.safetensors")
    train, test = (fashion_mnist(None, train, False, 0) for train in (True, False))
    given, targets = test.batch(range(len(test)), 0)
    found = {}
    for precision in ("float32", "int8"):
        deployed = wae.deploy(
            model, (28, 28), 50, engine, precision=precision, calibration=train, max_drop=None
        )
        found[precision] = float((classes_of(deployed, given) == targets).double().mean())
    return {"engine": engine, "images": len(test), **found, "lost": found["float32"] - found["int8"]}


@torch.no_grad()
def speed(network: str, batch: str, engine: str = "openvino") -> dict[str, Any]:
    """Medians and deciles of a call, in milliseconds."""
    image = images(int(batch), 224, torch.device("cpu"))
    stock, ours = (forms(network)[form]() for form in (f"{network} at 224", f"WAE-{network}, deployed"))
    make = partial(deployed_in_int8, engine=engine, batch=int(batch))
    functions: dict[str, Callable[[], Any]] = {
        f"{network}, eager float32": partial(stock, image),
        f"{network}, int8": partial(make(stock), image),
        f"WAE-{network}, int8": partial(make(ours), image),
    }
    timings = interleaved(functions, 20, settle=1, min_rounds=9)
    return {name: [round(1e3 * x, 2) for x in (t.median, t.p10, t.p90)] for name, t in timings.items()}


def deployed_in_int8(model: torch.nn.Module, engine: str, batch: int) -> Callable[[torch.Tensor], Any]:
    """With random weights only time is meant: any drop is taken."""
    data = images(40, 224, torch.device("cpu"))
    return wae.deploy(
        model,
        batch=batch,
        engine=engine,
        precision="int8",
        calibration=data,
        calibration_images=20,
        max_drop=None,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    what, *arguments = sys.argv[1:]
    print(json.dumps({"accuracy": accuracy, "speed": speed}[what](*arguments), indent=2))
