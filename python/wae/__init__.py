"""Wavelet-like auto-encoders: models, training and a command line, on the ops of :mod:`wae_kernels`."""

from typing import TYPE_CHECKING, Any

from wae_kernels import __version__

from . import _moved

if TYPE_CHECKING:
    from .inference.deployed import deploy

__all__ = ["__version__", "deploy"]

_moved.install()


def __getattr__(name: str) -> Any:
    """``wae.deploy``, imported at its first use: `import wae` stays light."""
    if name == "deploy":
        from .inference.deployed import deploy

        return deploy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
