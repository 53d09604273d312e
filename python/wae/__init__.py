"""Wavelet-like auto-encoders: models, training and a command line, on the ops of :mod:`wae_kernels`.

Importing this package imports nothing else, torch included: ``wae --help`` is quick.
"""

from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from wae_kernels import __version__

    from .experiments.accelerate import accelerate
    from .inference.deploy import deploy
    from .inference.saved import load_deployed

__all__ = ["__version__", "accelerate", "deploy", "load_deployed"]

_moved.install()


def __getattr__(name: str) -> Any:
    """The names in ``__all__``, each imported at its first use: `import wae` stays light."""
    if name == "accelerate":
        from .experiments.accelerate import accelerate

        return accelerate
    if name == "deploy":
        from .inference.deploy import deploy

        return deploy
    if name == "__version__":
        from wae_kernels import __version__

        return __version__
    if name == "load_deployed":
        from .inference.saved import load_deployed

        return load_deployed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names in ``__all__``: notebooks complete what is in here."""
    return sorted({*globals(), *__all__})
