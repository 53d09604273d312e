"""The ways to check the sources use one set of tools, and one command."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pinned() -> dict[str, str]:
    """Versions of pyproject.toml's extra "lint"."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^lint = (\[.*\])$", text, re.MULTILINE)
    return dict(re.findall(r'"([\w-]+)==([\d.]+)"', line))


def test_pre_commit_has_the_versions_of_make_lint() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = dict(re.findall(r"repo: https://\S+/(ruff|mirrors-clang-format)\S*\s+rev: v([\d.]+)", text))
    versions = pinned()
    assert hooks == {"ruff": versions["ruff"], "mirrors-clang-format": versions["clang-format"]}
    assert "entry: .venv/bin/mypy" in text
    assert "mypy" in versions


def test_the_hosts_ci_runs_what_ours_does() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    first, *others = re.findall(r"^      - run: (.*)$", workflow, re.MULTILINE)
    assert first == ".ci/run"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in others:  # of the job for another processor
        target = re.fullmatch(r"sudo apt-get .*|(?:\S+=\S+ )*make (\w+)", command)
        assert target is not None, command
        assert target[1] is None or f"\n{target[1]}:" in makefile


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
def test_workflows_are_well_formed() -> None:
    command = ["actionlint", *map(str, (ROOT / ".github/workflows").glob("*.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
