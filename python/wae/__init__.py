"""Wavelet-like auto-encoders: models, training and a command line, built on the ops of :mod:`wae_kernels`.

Importing this package imports no other library, not even torch, so ``wae --help`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from wae_kernels import __version__

    from .experiments.accelerate import accelerate
    from .inference.deploy import deploy
    from .inference.saved import load_deployed

__all__ = ["__version__", "accelerate", "deploy", "load_deployed"]

_MODULES = {
    "__version__": "wae_kernels",
    "accelerate": "wae.experiments.accelerate",
    "deploy": "wae.inference.deploy",
    "load_deployed": "wae.inference.saved",
}
"""Where each name in ``__all__`` is defined."""

_moved.install()


def __getattr__(name: str) -> Any:
    """Import the names in ``__all__`` on first use, so that ``import wae`` stays light."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the names in ``__all__`` too, so that notebooks complete them."""
    return sorted({*globals(), *__all__})
