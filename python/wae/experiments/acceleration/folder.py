"""The folder of an acceleration.

::

    folder/accelerate.json   the settings, and what each step found: a stopped run resumes from it
          /plan.toml, state.safetensors, log.jsonl, tensorboard/, model.safetensors: as in wae train
          /trials/           checkpoints of the other trainings, until they are done
          /baselines/        the trained baselines
          /deployed/         for wae.load_deployed
          /model.onnx        if ONNX Runtime is installed
          /original.safetensors  the original's weights, if it was given a new head
          /report.md, report.html
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wae.storage.files import read_json, written
from wae.storage.weights_file import CheckpointError
from wae.training.plan import changed
from wae.training.processes import broadcast, is_first
from wae.training.session import LOG, MODEL, PLAN, STATE, TENSORBOARD
from wae.training.small_data import ADAMW

from .report_files import FILES as REPORT
from .settings import DEFAULTS, MIRRORED

RECORD, DEPLOYED, ONNX, TRIALS, BASELINES = "accelerate.json", "deployed", "model.onnx", "trials", "baselines"
ORIGINAL = "original.safetensors"

_OLD_BASELINES = "rivals"  # the baselines' folder in earlier versions
_PLAIN_TEACHER = re.compile(r"trial: .*, mimic (?!0$)[^ ,]+")


def clear(folder: Path) -> None:
    """Remove the files that an acceleration wrote, the record last. Other files stay."""
    if not (folder / RECORD).exists():
        return
    for name in (TENSORBOARD, TRIALS, DEPLOYED, BASELINES, _OLD_BASELINES):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (STATE, MODEL, ORIGINAL, PLAN, LOG, ONNX, *REPORT, RECORD):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """The results so far, the same in all processes and written to disk after each step."""

    path: Path
    settings: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The result of ``find``. It is called once; later calls and runs read its result from the record."""
        if name not in self.found:
            self.found[name] = json.loads(json.dumps(find()))
            self.write()
        return self.found[name]

    def write(self) -> None:
        """Replace the file; only the first process does."""
        if is_first():
            with written(self.path, force=True) as file:
                file.write(json.dumps({"settings": self.settings, "found": self.found}, indent=1).encode())


def open_record(folder: Path, settings: dict[str, Any]) -> Record:
    """The record in ``folder``, if it was begun with these ``settings``; a new one in an empty folder.

    Raises:
        FileExistsError: the folder holds other files.
        CheckpointError: the record is damaged, or was begun with other settings.
    """
    path = folder / RECORD
    entries = list(folder.glob("[!.]*")) if is_first() else []
    if not broadcast(path.exists()):
        if entries:
            raise FileExistsError(
                f"{folder} is neither empty nor the folder of an acceleration; name another folder"
            )
        record = Record(path, settings)
        record.write()
        return record
    try:
        made: Any = broadcast(read_json(path) if is_first() else None)
        known_later = {**DEFAULTS, "test data": settings["test data"]}
        before, found = {**known_later, **made["settings"]}, _as_called_now(made)
    except (ValueError, LookupError, TypeError):
        raise CheckpointError(f"{path}: is damaged; --force starts over") from None
    if different := ", ".join(changed(before, settings)):
        raise CheckpointError(f"{folder}: was begun with another {different}; --force starts over")
    if is_first() and (folder / _OLD_BASELINES).is_dir():
        (folder / _OLD_BASELINES).rename(folder / BASELINES)
    return Record(path, settings, found)


def _as_called_now(made: dict[str, Any]) -> dict[str, Any]:
    """The results of a record under today's names.

    Earlier versions always used AdamW, did not name mirrored scores in their trials, and called baselines
    rivals.
    """
    named = dict(made["found"]).items()
    found: dict[str, Any] = {re.sub("^rival: ", "baseline: ", name): value for name, value in named}
    if "optimizer" not in made["settings"]:
        found.setdefault("optimizer", {"name": ADAMW})
    if not made["settings"].get("mimic_mirrored"):
        return found
    called = {name: f"{name}, {MIRRORED}" for name in found if _PLAIN_TEACHER.fullmatch(name)}
    return {called.get(name, name): value for name, value in found.items()}
