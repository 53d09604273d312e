"""Wavelet-like auto-encoders: models, training and a command line, on the ops of :mod:`wae_kernels`."""

from wae_kernels import __version__

__all__ = ["__version__"]
