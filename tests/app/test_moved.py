"""The import paths of version 0.1: each still works, and warns once, at the line that uses it."""

import importlib
import re
import subprocess
import sys

import pytest

from wae._moved import GONE, MOVED


def warnings_of(tmp_path, code):
    """What ``code`` prints, and its warnings as "line number: text". It runs as a user's program would."""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    where = [line.removeprefix(f"{script}:") for line in lines if "Warning" in line]
    assert len(where) * 2 == len(lines), lines  # each warning is followed by the line of code
    return done.stdout.splitlines(), where


@pytest.mark.slow
def test_old_paths_import_the_new_modules(tmp_path):
    olds = [old for old in MOVED if old != "wae.deploy"]
    code = "import importlib\n" + "".join(
        f"import {old}\nimport {old}\nassert __import__('sys').modules['{old}'] is "
        f"importlib.import_module('{MOVED[old]}')\n"
        for old in olds
    )
    _, warned = warnings_of(tmp_path, code)
    assert warned == [
        f"{2 + 3 * index}: DeprecationWarning: {old} is now {MOVED[old]}" for index, old in enumerate(olds)
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import wae.datasets\nprint(wae.datasets.__name__)", ["wae.datasets is now wae.data"]),
        (
            "import wae.data\nprint(wae.data.read_image.__module__)",
            ["wae.data.read_image is now wae.data.images.read_image"],
        ),
        (
            "from wae.data import read_image\nprint(read_image.__name__)",
            ["wae.data.read_image is now wae.data.images.read_image"],
        ),
        (
            "from wae.deploy import deploy\nprint(deploy.__name__)",
            ["wae.deploy is now wae.inference.deploy"],
        ),
        (
            "import wae\nfrom wae.deploy import Deployed, deploy\nprint(wae.deploy is deploy)",
            ["wae.deploy is now wae.inference.deploy"],
        ),
        ("import wae\nprint(wae.deploy.__name__, callable(wae.deploy))", []),
        ("import wae\nimport wae.storage.checkpoint, wae.data.images, wae.inference.deploy", []),
    ],
)
@pytest.mark.slow
def test_old_names_work_and_warn(tmp_path, code, expected):
    printed, warned = warnings_of(tmp_path, code)
    assert [line.partition("DeprecationWarning: ")[2] for line in warned] == expected
    assert "False" not in " ".join(printed)


@pytest.mark.parametrize("old", list(GONE))
def test_removed_modules_name_their_successor(old):
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"{old} was removed: {GONE[old]}")):
        importlib.import_module(old)
