"""Images and their sources: bundled photos, image files, folders, IDX files, shards; loading in batches."""

from importlib import import_module
from typing import Any

_MOVED = {
    "wae.data.dataset": ("Dataset", "DatasetError", "InMemory"),
    "wae.data.folder": ("ImageFolder", "OnCorrupt", "evaluation_resize", "image_folder"),
    "wae.data.idx": ("FASHION_MNIST_FOLDER", "FASHION_MNIST_LABELS", "fashion_mnist"),
    "wae.data.images": ("ImageError", "read_image"),
    "wae.data.loading": ("Batches", "batches", "fingerprint", "open_dataset"),
    "wae.data.photos": ("KEPT_OUT", "TRAINING", "digits", "photo", "photo_path"),
}
"""The current modules of the names that version 0.1 had in ``wae.data`` and ``wae.datasets``."""


def __getattr__(name: str) -> Any:
    """Find a name that has moved, and warn once with its new path."""
    for module, names in _MOVED.items():
        if name in names:
            from wae._moved import warn

            warn(f"wae.data.{name}", f"{module}.{name}")
            found = globals()[name] = getattr(import_module(module), name)  # `from ... import` looks twice
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
