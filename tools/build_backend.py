"""The build backend: setuptools, with the torch to build against.

``pip`` builds in a separate, empty environment. Requiring torch there would download gigabytes that the
target environment mostly has already. So this backend requires torch only if the target environment has none
that fits, and otherwise makes the installed one available to the build.
"""

from __future__ import annotations

import shutil
import site
import sys
from importlib.metadata import distributions
from importlib.util import find_spec

import setuptools
from setuptools.build_meta import *  # noqa: F403  the other hooks, unchanged
from toolchain import NATIVE, OLDEST_TORCH, require_compiler, version

OLDEST_SETUPTOOLS = (77, 0)


def _installed_torch_fits() -> bool:
    """Whether the environment to install into (not the build's own) has a usable torch."""
    found = distributions(name="torch", path=site.getsitepackages())
    return any(version(torch.version) >= OLDEST_TORCH for torch in found)


def _requirements(config_settings: object = None) -> list[str]:
    if not NATIVE:
        return []
    require_compiler()
    torch = [] if _installed_torch_fits() else ["torch>={}.{}".format(*OLDEST_TORCH)]
    return torch if shutil.which("ninja") else [*torch, "ninja"]


get_requires_for_build_wheel = _requirements
get_requires_for_build_editable = _requirements


def get_requires_for_build_sdist(config_settings: object = None) -> list[str]:
    """Nothing: building a source archive compiles nothing."""
    return []


if version(setuptools.__version__) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        "wae-kernels: building needs setuptools {}.{} or newer, ".format(*OLDEST_SETUPTOOLS)
        + f"found {setuptools.__version__}; build without --no-build-isolation, "
        "or run `pip install -U setuptools` first."
    )
if find_spec("torch") is None and _installed_torch_fits():
    # At the end, so that the build's own setuptools comes first.
    sys.path += site.getsitepackages()
