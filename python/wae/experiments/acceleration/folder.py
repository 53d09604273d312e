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
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wae.inference.saving import ABOUT
from wae.storage.files import read_json, write
from wae.storage.weights_file import CheckpointError
from wae.training.plan import changed
from wae.training.processes import broadcast, is_first
from wae.training.session import LOG, MODEL, PLAN, STATE, TENSORBOARD

from .report_files import FILES as REPORT

RECORD, DEPLOYED, ONNX, TRIALS, BASELINES = "accelerate.json", "deployed", "model.onnx", "trials", "baselines"
ORIGINAL = "original.safetensors"


_WRITTEN = {TENSORBOARD: "events.out.tfevents.*", TRIALS: "*.safetensors", BASELINES: "*.safetensors"}
"""What an acceleration writes to its subfolders."""

_OF_DEPLOYMENT = ("engine", "precision", "max_drop")
"""Settings that may change after the training, until the network is deployed: else a training would be lost
because no engine computes its network in int8 within ``max_drop``."""


def clear(folder: Path) -> None:
    """Remove the files that an acceleration wrote, the record last. Other files stay."""
    if not (folder / RECORD).exists():
        return
    for name in _WRITTEN:
        clear_subfolder(folder, name)
    if (folder / DEPLOYED / ABOUT).exists():
        shutil.rmtree(folder / DEPLOYED, ignore_errors=True)
    for name in (STATE, MODEL, ORIGINAL, PLAN, LOG, ONNX, *REPORT, RECORD):
        (folder / name).unlink(missing_ok=True)


def clear_subfolder(folder: Path, name: str) -> None:
    """Remove the files that an acceleration wrote to a subfolder, and the subfolder if it is then empty."""
    subfolder = folder / name
    if subfolder.is_symlink():
        return
    for path in (*subfolder.glob(_WRITTEN[name]), *subfolder.glob(".*.part")):  # of killed processes
        path.unlink()
    with suppress(OSError):  # it is not empty, or was not there
        subfolder.rmdir()


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
            content = json.dumps({"settings": self.settings, "found": self.found}, indent=1)
            write(self.path, content, force=True)


def open_record(folder: Path, settings: dict[str, Any]) -> Record:
    """The record in ``folder``, if it was begun with these ``settings``; a new one in an empty folder.

    After the training the settings of the deployment may differ, until it is done.

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
        before, found = dict(made["settings"]), dict(made["found"])
    except (ValueError, LookupError, TypeError):
        raise CheckpointError(f"{path}: is damaged; --force starts over") from None
    if "training" in found and "deployed" not in found:
        before |= {name: settings[name] for name in _OF_DEPLOYMENT}
    if different := ", ".join(changed(before, settings)):
        raise CheckpointError(f"{folder}: was begun with other settings: {different}; --force starts over")
    return Record(path, settings, found)
