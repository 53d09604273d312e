"""Wavelet-like auto-encoders: models, training and a command line, on the ops of :mod:`wae_kernels`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wae_kernels import __version__

if TYPE_CHECKING:
    from .deploy import deploy

__all__ = ["__version__", "deploy"]


def __getattr__(name: str) -> Any:
    """``wae.deploy``, imported at its first use: `import wae` stays light."""
    if name == "deploy":
        return import_module(".deploy", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
