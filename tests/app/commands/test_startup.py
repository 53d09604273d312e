"""Which modules a command imports: a short command spends most of its time on imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import run_program

import wae
from wae import cli
from wae.data import photos

WATCHED = """
import json, sys
from wae import cli

report, commands = sys.argv[1:]
for arguments in json.loads(commands):
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0, arguments
json.dump(sorted(sys.modules), open(report, "w"))
"""


def imported_by(tmp_path: Path, *commands: list[str]) -> set[str]:
    """The modules that a new process has imported after these commands."""
    report = tmp_path / "modules.json"
    run_program(WATCHED, str(report), json.dumps(commands))
    return set(json.loads(report.read_text()))


def test_help_imports_nothing_but_python(tmp_path: Path) -> None:
    found = imported_by(tmp_path, ["--help"], *([command, "--help"] for command in cli.COMMANDS))
    assert "wae.commands.predict" in found
    assert not {"torch", "numpy", "PIL", "rich", "gradio", "torchvision"} & found


def test_dir_lists_names_that_are_imported_at_their_first_use() -> None:
    """So notebooks complete them."""
    assert set(wae.__all__) <= set(dir(wae))


@pytest.mark.slow  # a process that imports torch
def test_predict_imports_only_what_it_uses(tmp_path: Path) -> None:
    """With the included checkpoint. The modules listed are slow to import."""
    alone = json.loads(run_program("import json, sys, torch; print(json.dumps(sorted(sys.modules)))").stdout)
    own = imported_by(tmp_path, ["predict", str(photos.photo_path("chelsea"))]) - set(alone)
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
