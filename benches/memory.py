"""The peak memory of one form of a network; ``bench_memory.py`` runs this module.

    python -m benches.memory NETWORK FORM RUNNER BATCH

Prints megabytes (1e6 bytes): the peak of the process (Linux's VmHWM) during calls after a first one, minus
what it held with PyTorch imported and before the network was built. Weights, packed copies of them, the
engine's library and workspace count; building and compiling do not.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch

from wae.inference.footprint import held, restart_peak

from . import limits
from .classifiers import RUNNERS, forms, make
from .modules import images


@torch.no_grad()
def peak(network: str, form: str, runner: str, batch: int) -> float:
    """See above."""
    image = images(batch, 224)
    before = held("VmRSS")
    run = make(form, RUNNERS["cpu"][runner], forms(network)[form](), image)
    run(image)
    restart_peak()
    for _ in range(2):
        run(image)
    return held("VmHWM") - before


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    limits.apply()
    name, form, runner, batch = sys.argv[1:]
    print(json.dumps(peak(name, form, runner, int(batch))))
