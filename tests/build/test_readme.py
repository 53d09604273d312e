"""The README's examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", blocks(), ids=lambda code: code.strip().splitlines()[0])
def test_example_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["low"].shape == (1, 3, 240, 320)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (README.parent / link).exists()]
    assert not missing
