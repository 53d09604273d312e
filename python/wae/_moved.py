"""The import paths of version 0.1. Each works and warns once with the new path, or says what replaced it.

``wae.data`` and ``wae.deploy`` now mean something else (a package and a function). The names of the old
``wae.data`` and ``wae.datasets`` are resolved by the package (``wae/data/__init__.py``). Those of
``wae.deploy`` become attributes of the function when ``from wae.deploy import ...`` runs.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "wae.caffe": "wae.storage.caffe",
    "wae.checkpoints": "wae.storage.checkpoint",
    "wae.comparison": "wae.experiments.comparison",
    "wae.container": "wae.storage.decomposed",
    "wae.datasets": "wae.data",
    "wae.demo": "wae.experiments.demo",
    "wae.deploy": "wae.inference.deploy",
    "wae.engines": "wae.inference.engines",
    "wae.evaluation": "wae.experiments.evaluation",
    "wae.export": "wae.inference.export",
    "wae.files": "wae.storage.files",
    "wae.info": "wae.experiments.info",
    "wae.pictures": "wae.experiments.panels",
    "wae.models.classifiers": "wae.models.registry",
    "wae.predict": "wae.inference.predict",
    "wae.reproduce": "wae.experiments.reproduce",
    "wae.timing": "wae.inference.timing",
    "wae.training.checkpoint": "wae.storage.weights_file",
    "wae.winograd": "wae.inference.winograd",
}
"""The new name of each old one."""

GONE = {
    "wae.protobuf": "Google's protobuf library reads Caffe's files",
    "wae.training.progress": "use the observers of wae.training.observers",
    "wae.training.recipe": "use wae.training.stage1.schedule in place of Recipe",
}
"""What to do instead of using each old name."""


def warn(old: str, new: str) -> None:
    """Warn that ``old`` is now called ``new``.

    The warning points at the line that uses it (the caller's caller).
    """
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


class _Finder(MetaPathFinder, Loader):
    """Finds a moved module under its old name. It is consulted only after all other finders failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in GONE:
            raise ModuleNotFoundError(f"{fullname} was removed: {GONE[fullname]}", name=fullname)
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__doc__ = f"Moved to {MOVED[spec.name]}."
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Put what the old name stands for into ``sys.modules``, where the import picks it up."""
        old = module.__name__
        moved = importlib.import_module(MOVED[old])
        warn(old, MOVED[old])
        if old == "wae.deploy":
            vars(moved.deploy).update({name: value for name, value in vars(moved).items() if name[:1] != "_"})
            sys.modules[old] = moved.deploy
        else:
            sys.modules[old] = moved


def install() -> None:
    """Make the old import paths work. Calling it again has no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
