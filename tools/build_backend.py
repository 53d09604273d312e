"""The build backend: setuptools, told which torch to build against.

``pip`` builds in an empty environment of its own. Asking for torch there would download gigabytes that
the environment we install into mostly has already, so this asks only where it has none, and else lends
the installed one to the build.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
from importlib.metadata import distributions
from importlib.util import find_spec

import setuptools
from setuptools.build_meta import *  # noqa: F403  the hooks that we leave as they are

TORCH = "torch>=2.10"
OLDEST_SETUPTOOLS = 77


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _installed_torch_fits() -> bool:
    """Whether the environment that we install into (not the one that we build in) has a usable torch."""
    found = distributions(name="torch", path=site.getsitepackages())
    return any(_version(torch.version) >= _version(TORCH.partition(">=")[2]) for torch in found)


def _requirements(config_settings: object = None) -> list[str]:
    if os.environ.get("WAE_NO_NATIVE", "0") not in ("", "0"):
        return []
    torch = [] if _installed_torch_fits() else [TORCH]
    return torch if shutil.which("ninja") else [*torch, "ninja"]


get_requires_for_build_wheel = _requirements
get_requires_for_build_editable = _requirements


def get_requires_for_build_sdist(config_settings: object = None) -> list[str]:
    """Nothing: a source archive is packed without compiling."""
    return []


if _version(setuptools.__version__)[0] < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"wae-kernels: building needs setuptools {OLDEST_SETUPTOOLS} or newer, found "
        f"{setuptools.__version__}; leave out --no-build-isolation, or run `pip install -U setuptools` first."
    )
if find_spec("torch") is None and _installed_torch_fits():
    # At the end, so that the build's own setuptools stays in front.
    sys.path += site.getsitepackages()
