"""Result files: one for each machine, with the latest numbers of every case.

Each case records the date, commit and versions it was measured with. A new measurement of a case replaces the
old one, so that a long run can be split into parts. Short runs (without ``--full``) go into a separate file,
``*.short.json``, which is shown only if there is no full one of the same machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wae.storage.files import write

Result = dict[str, Any]
"""A result file: "machine" and "benchmarks"."""
Benchmark = dict[str, Any]
"""One entry of "benchmarks": "name", "run", "table", and what was measured."""


def keep(folder: Path, machine: dict[str, Any], benchmark: Benchmark) -> Path:
    """Put one case into the file of its machine in ``folder``; returns the file.

    Raises:
        ValueError: the file was measured on another machine, or under other limits.
    """
    target = folder / file_name(machine, benchmark["run"]["full"])
    result: Result = {"machine": machine, "benchmarks": []}
    if target.exists():
        result = json.loads(target.read_text(encoding="utf-8"))
    if result["machine"] != machine:
        raise ValueError(f"{target} was measured on {result['machine']}, not on {machine}: move it away")
    kept = {b["name"]: b for b in result["benchmarks"]} | {benchmark["name"]: benchmark}
    content = json.dumps({"machine": machine, "benchmarks": list(kept.values())}, indent=1) + "\n"
    write(target, content, force=True)
    return target


def file_name(machine: dict[str, Any], full: bool) -> str:
    """The name of the result file for a machine and kind of run."""
    label = f"{machine['gpu'] or machine['processor']} {machine['backend']} {machine['threads']} threads"
    words = "".join(c if c.isalnum() else " " for c in label.lower()).split()
    return "-".join(words) + (".json" if full else ".short.json")


def shown(folder: Path) -> list[Result]:
    """The result files to show: for each machine the full one, or else the short one."""
    results = []
    for path in sorted(folder.glob("*.json")):
        full = path.with_name(path.name.replace(".short.json", ".json"))
        if full != path and full.exists():
            print(f"not shown, because {full.name} is the full run of this machine: {path.name}")
            continue
        results.append(json.loads(path.read_text(encoding="utf-8")))
    return results
