"""The accuracy that int8 loses on Fashion-MNIST against float32. `wae bench` measures the time it saves.

    python -m benches.precision [ENGINE]

Uses the included network, 100 training images for calibration, and all 10,000 test images. Prints JSON;
``encoder`` is the precision of the encoder in the int8 network, which `wae.deploy` chooses by time.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import wae
from wae.data.idx import fashion_mnist
from wae.inference.agreement import classes_of
from wae.storage.checkpoint import load_classifier
from wae.storage.weights_file import CLASSIFIER


def accuracy(engine: str = "openvino") -> dict[str, Any]:
    """The shares of the 10,000 test images that are classified correctly."""
    model = load_classifier(CLASSIFIER)
    train, test = (fashion_mnist(None, train, False, 0) for train in (True, False))
    given, targets = test.batch(range(len(test)), 0)
    found = {}
    for precision in ("float32", "int8"):
        deployed = wae.deploy(
            model, (28, 28), 50, engine, precision=precision, calibration=train, max_drop=None
        )
        found[precision] = float(
            (classes_of(deployed, given, deployed.batch, given.device) == targets).double().mean()
        )
    lost = found["float32"] - found["int8"]
    encoder = deployed.report["encoder"]["precision"]
    return {"engine": engine, "images": len(test), "encoder": encoder, **found, "lost": lost}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(accuracy(*sys.argv[1:]), indent=2))
