"""Who may import whom: /docs/ARCHITECTURE.md's arrows, read from the sources.

Imports inside functions count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"wae_kernels": ROOT / "wae_kernels", "wae": ROOT / "python" / "wae"}

# A package may import those of its own and of later levels, without cycles.
LEVELS = (
    ("wae.__main__",),
    ("wae.cli",),
    ("wae.commands",),
    ("wae.experiments", "wae.integrations"),
    ("wae.training", "wae.inference"),
    ("wae.storage", "wae.data", "wae.models"),
    ("wae_kernels",),
)
FOR_ALL = (
    "wae.cores",
    "wae.errors",
    "wae.difference",
    "wae.progress",
    "wae.streams",
    "wae.termination",
    "wae.wording",
    "wae._moved",
)  # of our modules, they import only each other


def modules() -> dict[str, Path]:
    """Every module of both packages, by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imports_of(name: str, file: Path) -> Iterator[str]:
    """Our modules that a module imports, anywhere in it."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` imports that module; `from module import name` imports `module`.
            inner = [f"{source}.{alias.name}" for alias in node.names]
            wanted = [target if target in MODULES else source for target in inner]
        else:
            continue
        yield from (target for target in wanted if target in MODULES)


GRAPH = {name: sorted(set(imports_of(name, file)) - {name}) for name, file in MODULES.items()}


def level(module: str) -> int | None:
    """A module's level; None for those that have none: ``FOR_ALL``, and the package ``wae`` itself."""
    for number, packages in enumerate(LEVELS):
        if any(module == package or module.startswith(f"{package}.") for package in packages):
            return number
    return None


def test_the_parser_sees_imports_of_every_kind() -> None:
    assert {"wae_kernels.backends", "wae_kernels.ops", "wae_kernels.nn"} <= set(GRAPH["wae_kernels"])
    assert "wae_kernels.triton" in GRAPH["wae_kernels.fallback"]  # inside a function
    assert "wae_kernels.triton.plan" in GRAPH["wae_kernels.triton.launch"]  # relative
    assert "wae.errors" in GRAPH["wae.cli"]  # absolute


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycles(package: str) -> None:
    graph = {name: targets for name, targets in GRAPH.items() if name.partition(".")[0] == package}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_kernels_do_not_import_the_application() -> None:
    assert not [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if name.startswith("wae_kernels") and not target.startswith("wae_kernels")
    ]


def test_every_module_has_a_level() -> None:
    outside = {name for name in MODULES if level(name) is None}
    assert outside == {"wae", *FOR_ALL}
    assert {target for name in FOR_ALL for target in GRAPH[name]} <= set(FOR_ALL)


def test_imports_between_levels_go_one_way() -> None:
    upwards = {
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if level(name) is not None and level(target) is not None and level(target) < level(name)
    }
    assert not upwards


def test_integrations_are_imported_by_commands_only() -> None:
    assert not {
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if target.startswith("wae.integrations") and not name.startswith(("wae.integrations", "wae.commands"))
    }
