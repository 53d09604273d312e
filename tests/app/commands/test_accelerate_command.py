"""The command line of `wae accelerate`."""

from dataclasses import fields
from pathlib import Path

import pytest

from wae import cli
from wae.experiments import accelerate
from wae.experiments.accelerate import Settings
from wae.training.plan import find


def test_every_option_is_passed_on(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(accelerate, "run", lambda settings, console, force: seen.append((settings, force)))
    line = (
        "--model m --data d --weights w --plan digits --epochs 3 --learning-rate 0.2 --batch 5 --seed 7 "
        "--start linear --compare --mimic 0.5 --mimic-mirrored --size 96 --factor 2 "
        "--precision bfloat16 --engine eager --images 2 --max-drop 0.02 --input-size 64 "
        "--interpolation bicubic --mean 1 2 3 --std 4 5 6 --on-corrupt skip --max-pixels 99 "
        "--workers 8 --device cpu --force"
    )
    assert cli.main(["accelerate", "-o", str(tmp_path / "out"), *line.split()]) == 0
    options = {"epochs": 3, "learning_rate": 0.2, "batch": 5, "seed": 7, "start": "linear", "compare": True}
    options |= {"mimic": 0.5, "mimic_mirrored": True, "size": 96, "factor": 2}
    options |= {"precision": "bfloat16", "engine": "eager", "images": 2, "max_drop": 0.02, "input_size": 64}
    options |= {"interpolation": "bicubic", "mean": (1, 2, 3), "std": (4, 5, 6), "on_corrupt": "skip"}
    options |= {"max_pixels": 99, "workers": 8, "device": "cpu"}
    wanted = Settings("m", "d", tmp_path / "out", "w", find("digits"), **options)
    assert seen == [(wanted, True)]
    defaults = [f.name for f in fields(Settings) if getattr(wanted, f.name) == f.default]
    assert defaults == ["optimizer", "target", "target_ms"]  # which cannot be combined with the others
    line = "accelerate -o o --model m --data d --optimizer sgd"
    for target, entry in (("--target 2.5x", {"target": 2.5}), ("--target-ms 3.5", {"target_ms": 3.5})):
        assert cli.main([*line.split(), *target.split()]) == 0
        assert seen.pop() == (Settings("m", "d", Path("o"), optimizer="sgd", **entry), False)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        *((("--target", value), "needs a finite number above 1, got") for value in ("1x", "0", "nan", "inf")),
        (("--target", "fast"), "needs a number such as 2.0x, got 'fast'"),
        (("--engine", "warp"), "must be auto or one of"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, arguments, needed, capsys):
    line = ["accelerate", "--model", "resnet18", "--data", "digits", "-o", str(tmp_path / "out"), *arguments]
    try:
        status = cli.main(line)
    except SystemExit as end:  # raised by argparse
        status = end.code
    assert status == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert arguments[0] in said
    assert needed in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "-inf"])
@pytest.mark.parametrize("option", ["--target-ms", "--mimic", "--learning-rate"])
def test_invalid_numbers_are_refused(tmp_path, option, value, capsys):
    line = ["accelerate", "--model", "m", "--data", "digits", "-o", str(tmp_path / "out")]
    assert cli.main([*line, f"{option}={value}"]) == 1
    name = option.strip("-").replace("-", "_")
    assert f"wae: {name} must be a number " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
