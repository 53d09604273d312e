"""A saved network in a new process: seconds to its first scores, and the memory that it takes.

    python -m benches.load NETWORK ENGINE PRECISION BATCH [FOLDER]

Deploys WAE around VGG16 or ResNet50, saves it, and loads it in processes of their own. Prints medians as
JSON, and keeps them in FOLDER: ``seconds`` from the call of ``wae.load_deployed`` to the scores (importing
torch and wae is not counted), ``first`` the same in the first of the processes; ``megabytes``: the most that
the process holds during calls beyond what it held before (``peak``), how much of it is not pages of files
(``private``: weights, activations and the space to work in; a mapped file is the rest, and the system takes
its pages back when it needs them), and ``files``: what the folder has, about the weights.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import wae
from wae.experiments import bench
from wae.models.pairs import pair

from .memory import held

PROCESSES = 5
ROOT = Path(__file__).resolve().parents[1]


def measure(network: str, engine: str, precision: str, batch: int) -> dict[str, Any]:
    """See above."""
    model = pair(network).wae
    images = bench._crops(224, 40)
    deployed = wae.deploy(
        model,
        batch=batch,
        engine=engine,
        precision=precision,
        calibration=images if precision == "int8" else None,
        calibration_images=20,
        max_drop=None,
    )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "net"
        deployed.save(folder)
        command = [sys.executable, "-m", "benches.load", str(folder)]
        found = []
        for _ in range(PROCESSES):
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    middle = {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}
    return {
        "network": f"wae_{network}",
        "engine": engine,
        "precision": precision,
        "images": batch,
        "seconds": middle["seconds"],
        "first": round(found[0]["seconds"], 3),
        "megabytes": {key: round(middle[key]) for key in ("private", "peak")} | {"files": round(files)},
    }


def loaded(folder: Path) -> dict[str, float]:
    """The work of one process."""
    torch.ones(1).add(1)
    before, private = held("VmRSS"), held("RssAnon")
    start = time.perf_counter()
    deployed = wae.load_deployed(folder)
    images = torch.zeros(deployed.batch, 3, *deployed.size, dtype=torch.uint8)
    deployed(images)
    seconds = time.perf_counter() - start
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    for _ in range(2):
        deployed(images)
    return {"seconds": seconds, "private": held("RssAnon") - private, "peak": held("VmHWM") - before}


def keep(folder: Path, found: dict[str, Any]) -> None:
    """Write one case into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(str(found[key]) for key in ("network", "engine", "precision", "images"))
    text = json.dumps({"machine": bench.machine(), **found}, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 2:
        print(json.dumps(loaded(Path(sys.argv[1]))))
    else:
        network, engine, precision, batch, *folder = sys.argv[1:]
        result = measure(network.lower(), engine, precision, int(batch))
        print(json.dumps(result, indent=1))
        if folder:
            keep(Path(folder[0]), result)
