"""Wavelet-like auto-encoders: models, training and a command line, on the ops of :mod:`wae_kernels`.

Importing this package imports nothing else, torch included: ``wae --help`` is quick.
"""

from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from wae_kernels import __version__

    from .inference.deployed import deploy

__all__ = ["__version__", "deploy"]

_moved.install()


def __getattr__(name: str) -> Any:
    """``wae.deploy`` and ``wae.__version__``, imported at their first use."""
    if name == "deploy":
        from .inference.deployed import deploy

        return deploy
    if name == "__version__":
        from wae_kernels import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
