"""Pre-commit, CI and releases use the same tools and commands as the Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_github_workflow_runs_our_ci() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    first, *others = re.findall(r"^      - run: (.*)$", workflow, re.MULTILINE)
    assert first == ".ci/run"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in others:  # of the job for another architecture
        target = re.fullmatch(r"sudo apt-get .*|(?:\S+=\S+ )*make (\w+)", command)
        assert target is not None, command
        assert target[1] is None or f"\n{target[1]}:" in makefile


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def check(*workflows: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    return subprocess.run(
        [*command, "vendor.github-workflows", *map(str, workflows)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_workflows_are_well_formed(tmp_path: Path) -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    done = check(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on:", "run-on:", 1))
    assert check(wrong).returncode != 0  # so the schema is checked


def test_releases_are_what_make_dist_makes() -> None:
    steps = re.findall(r"^      - run: (.*)$", WORKFLOWS[1].read_text(encoding="utf-8"), re.MULTILINE)
    assert steps[0].startswith("make dist ")
    program = ROOT / steps[1].split()[0]
    assert program.is_file()
    assert os.access(program, os.X_OK)
