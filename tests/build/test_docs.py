"""The documentation's tables say what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wae_kernels import backends

ROOT = Path(__file__).resolve().parents[2]
READ = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\()\s*["'](\w+)["']""")
SOURCES = ("wae_kernels", "python", "csrc", "tools", "benches", "tests/conftest.py", "setup.py")
OTHERS = {"RANK", "LOCAL_RANK", "XDG_CACHE_HOME", "CUDA_PATH", "PATH", "TORCHINDUCTOR_CACHE_DIR"}
"""Variables that belong to torchrun, the system or a library, with the meaning they have everywhere."""


def table() -> str:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    return text.partition("## Environment variables")[2]


def read_in_sources() -> set[str]:
    found: set[str] = set()
    for place in SOURCES:
        path = ROOT / place
        files = (
            [path]
            if path.is_file()
            else [f for f in path.rglob("*") if f.suffix in (".py", ".cpp", ".h", ".cu")]
        )
        for file in files:
            found.update(READ.findall(file.read_text(encoding="utf-8")))
    return found


def test_every_environment_variable_is_explained() -> None:
    documented = set(
        re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(re.findall(r"^\| (`.*?) \|", table(), re.MULTILINE)))
    )
    found = read_in_sources()
    assert {
        "WAE_BACKEND",
        "WAE_NO_NATIVE",
        "WAE_TRITON_TILES",
        "FORCE_CUDA",
    } <= found  # the search finds them
    assert found - OTHERS <= documented
    assert {name for name in documented if name.startswith("WAE_")} <= found


@pytest.mark.parametrize("name", ["auto", "cpu", *(b.name for b in backends.available())])
def test_every_backend_is_explained(name: str) -> None:
    (line,) = re.findall(r"^\| `WAE_BACKEND` .*$", table(), re.MULTILINE)
    assert f"`{name}`" in line
