"""Which modules a command imports: a short command spends most of its time on imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import run_program

import wae
from wae import cli
from wae.commands import types
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


@pytest.mark.parametrize("name", ["wae_resnet50", "wavelet_vgg16"])
@pytest.mark.parametrize("command", ["bench resnet18", "accelerate --data digits -o out --model"])
def test_wae_around_a_network_is_not_a_network_to_build_it_around(
    command: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused as any wrong option is, before torch is imported."""
    monkeypatch.setattr(cli, "_check_backend", lambda: pytest.fail("torch is imported"))
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command.split(), name])
    stem = name.partition("_")[2]
    wanted = f"needs the network around which WAE is built, {stem}, got {name}\n"
    assert capsys.readouterr().err.endswith(wanted)


def test_a_file_or_a_function_may_be_called_as_wae_around_a_network() -> None:
    for name in ("wae_resnet50.safetensors", "wae_networks:build", "waes_x"):
        assert types.original(name) == name


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
