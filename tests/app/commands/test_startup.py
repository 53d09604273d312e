"""The modules that a command imports before it does its work: imports are most of the time of a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import wae
from wae.data import photos

WATCHED = """
import json, sys
from wae import cli

try:
    status = cli.main(sys.argv[2:])
except SystemExit as end:
    status = end.code
json.dump([status, sorted(sys.modules)], open(sys.argv[1], "w"))
"""


def imported_by(tmp_path: Path, *arguments: str) -> set[str]:
    """The modules that are there when the command has ended, in a process of its own."""
    report = tmp_path / "modules.json"
    subprocess.run(
        [sys.executable, "-c", WATCHED, str(report), *arguments], check=True, stdout=subprocess.DEVNULL
    )
    status, modules = json.loads(report.read_text())
    assert status == 0
    return set(modules)


def test_help_needs_nothing_but_python(tmp_path: Path) -> None:
    found = imported_by(tmp_path, "--help")
    assert "wae.commands.predict" in found
    assert not {"torch", "numpy", "PIL", "rich", "gradio", "torchvision"} & found


def test_notebooks_complete_what_is_imported_at_its_first_use() -> None:
    assert set(wae.__all__) <= set(dir(wae))


@pytest.mark.slow  # a process that imports torch
def test_predicting_imports_what_it_uses(tmp_path: Path) -> None:
    """With the checkpoint that is included. Each of these takes long."""
    alone = subprocess.run(
        [sys.executable, "-c", "import json, sys, torch; print(json.dumps(sorted(sys.modules)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    own = imported_by(tmp_path, "predict", str(photos.photo_path("chelsea"))) - set(json.loads(alone.stdout))
    assert "wae.inference.predict" in own
    unneeded = (
        "torchvision",
        "torch._dynamo",
        "torch._inductor",
        "torch.export",
        "torch.onnx",
        "sympy",
        "timm",
    )
    assert not [name for name in own for start in unneeded if name == start or name.startswith(f"{start}.")]
    assert not {"wae.inference.engines", "wae.inference.deploy", "scipy", "matplotlib", "sklearn"} & own
