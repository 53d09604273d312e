"""docs/licences.md has every dependency, with the licence that the installed package states."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {
    "Apache": ("apache",),
    "BSD": ("bsd", "redistribution and use in source and binary forms"),
    "GPL": ("gpl", "gnu general public license"),
    "MIT": ("mit", "permission is hereby granted, free of charge"),
    "MPL": ("mpl", "mozilla"),
    "NVIDIA": ("nvidia",),
    "PSF": ("python software foundation", "psf"),
}
"""The first word of a licence in the table, and words by which packages state that licence."""


def dependencies() -> dict[str, str]:
    """Every package that pyproject.toml names, with its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {
        re.match(r"[\w.-]+", requirement)[0]: extra
        for extra, requirements in reversed(groups.items())
        for requirement in requirements
    }
    return {name: extra for name, extra in found.items() if name != "wae-kernels"}


def table() -> dict[str, tuple[str, str]]:
    """Extra and licence of each package on the page."""
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").partition("## Included")[0]
    rows = re.findall(r"^\| ([^|`]+?) \| ([^|]*?) ?\| ([^|]+?) \|$", text, re.MULTILINE)
    return {name: (extra, licence) for names, extra, licence in rows for name in names.split(", ")}


def stated(package: Distribution) -> str:
    """All that an installed package says about its licence, in lower case."""
    fields = [package.metadata.get(field) or "" for field in ("License-Expression", "License")]
    classifiers = package.metadata.get_all("Classifier") or []
    files = [file for file in package.files or [] if "licen" in file.name.lower()]
    texts = [file.read_text() for file in files if ".dist-info" in str(file) and file.suffix != ".py"]
    return " ".join([*fields, *classifiers, *texts]).lower()


def test_the_table_has_every_dependency_and_no_other() -> None:
    assert {name: extra.partition(",")[0] for name, (extra, _) in table().items() if name != "package"} == (
        dependencies()
    )


@pytest.mark.parametrize("name", dependencies())
def test_a_licence_is_what_the_package_says(name: str) -> None:
    try:
        words = stated(distribution(name))
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    licence = table()[name][1]
    family = next(family for family in FAMILIES if licence.startswith(family))
    assert any(re.search(rf"\b{re.escape(word)}\b", words) for word in FAMILIES[family]), words[:500]


def test_all_included_weights_are_listed() -> None:
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").partition("## Included")[2]
    files = {path.name for path in (ROOT / "python/wae/weights").glob("*.safetensors")}
    assert set(re.findall(r"^\| `(.+?)`", text, re.MULTILINE)) == files
