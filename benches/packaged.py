"""The part of the result files that is included in the package, because ``wae app`` shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wae.storage.files import write

from . import tables
from .result_files import Result

FILE = "python/wae/integrations/measured.json"


def keep(results: Sequence[Result], root: Path) -> None:
    """Write :data:`FILE` from the benchmarks' ``results`` and the trainings in ``docs/results``."""
    data = {"speed": speed(results), "accuracy": accuracy(root / "docs" / "results")}
    write(root / FILE, json.dumps(data, indent=1) + "\n", force=True)


def speed(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The medians of networks on each machine, in every form and engine, by ``FORM | ENGINE``."""
    return [
        {
            "machine": tables.name(result),
            "threads": result["machine"]["threads"],
            "network": b["network"],
            "images": b["images"],
            **_made(b["run"]["datetime"], b["run"]["commit"]),
            "milliseconds": {
                side: float(f"{1e3 * timing['median']:.4g}") for side, timing in b["timings"].items()
            },
        }
        for result in results
        for b in result["benchmarks"]
        if tables.table_of(b) in ("end to end", "end to end, GPU")
    ]


def accuracy(folder: Path) -> list[dict[str, Any]]:
    """The accuracy of every training that was kept: see :mod:`wae.experiments.reproduce`."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {
                "data": path.parent.name,
                "measure": "mean IoU" if "mean_iou" in result.get("measured", {}) else "accuracy",
                **{key: result[key] for key in ("network", "seed", "accuracy", "multiply_adds")},
                **_made(result["made"]["date"], result["made"]["commit"]),
            }
        )
    return found


def _made(time: str, commit: str | None) -> dict[str, str]:
    return {"date": time[:10], "commit": str(commit)[:10]}
