"""A saved network in a new process: the seconds to its first scores, and the memory that it takes.

    python -m benches.load NETWORK ENGINE PRECISION BATCH [FOLDER]

Deploys WAE around VGG16 or ResNet50, saves it, and loads it in new processes, one after the other. Prints
JSON, and writes it to FOLDER: ``seconds``, the median; ``first``, the seconds of the first process; and
``megabytes``: ``peak`` and ``private`` as `wae.inference.footprint` defines them, and ``files``, the size of
the saved folder, which is mostly weights.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import wae
from wae.experiments.bench import crops
from wae.experiments.machine import machine
from wae.inference.footprint import Footprint, footprint
from wae.models.pairs import pair

PROCESSES = 5


def measure(network: str, engine: str, precision: str, batch: int) -> dict[str, Any]:
    """See above."""
    model = pair(network).wae
    images = crops(224, 40)
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
        found = [footprint(folder) for _ in range(PROCESSES)]
        files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
    known = [each._asdict() for each in found if each is not None]
    middle = {key: round(statistics.median(each[key] for each in known), 3) for key in Footprint._fields}
    return {
        "network": f"wae_{network}",
        "engine": engine,
        "precision": precision,
        "images": batch,
        "seconds": middle["seconds"],
        "first": round(known[0]["seconds"], 3),
        "megabytes": {key: round(middle[key]) for key in ("private", "peak")} | {"files": round(files)},
    }


def keep(folder: Path, found: dict[str, Any]) -> None:
    """Write one case to a file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(str(found[key]) for key in ("network", "engine", "precision", "images"))
    text = json.dumps({"machine": machine(), **found}, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    network, engine, precision, batch, *folder = sys.argv[1:]
    result = measure(network.lower(), engine, precision, int(batch))
    print(json.dumps(result, indent=1))
    if folder:
        keep(Path(folder[0]), result)
