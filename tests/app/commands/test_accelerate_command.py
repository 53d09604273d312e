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
        *(
            (("--target", value), "needs a number above 1, up to 1e+06, got")
            for value in ("1x", "0", "nan", "inf", "1e7")
        ),
        (("--target", "fast"), "needs a number such as 2.0x, got 'fast'"),
        *(
            ((f"{option}={value}",), "needs a number ")
            for option in ("--target-ms", "--mimic", "--learning-rate", "--max-drop")
            for value in ("nan", "inf", "-1", "-inf")
        ),
        (("--target-ms", "0"), "needs a number "),
        (("--mean", "0", "nan", "0"), "needs a number from -1e+06 to 1e+06, got nan"),
        (("--std", "1", "1", "0"), "needs a number from 1e-06 to 1e+06, got 0"),
        (("--seed=-1",), "needs a whole number from 0 to 2147483648, got -1"),
        (("--epochs", "1000001"), "needs a whole number from 1 to 1000000, got 1000001"),
        (("--batch", "10000001"), "needs a whole number from 1 to 10000000"),
        (("--factor", "65"), "needs a whole number from 1 to 64, got 65"),
        *(((option, "2049"), "needs a whole number from 1 to 2048") for option in ("--size", "--input-size")),
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
    assert arguments[0].partition("=")[0] in said
    assert needed in said
    assert not (tmp_path / "out").exists()
