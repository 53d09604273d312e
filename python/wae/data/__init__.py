"""Images and their sources: bundled photos, image files, folders, IDX files, shards; loading in batches."""

from importlib import import_module
from typing import Any

_MOVED = {
    "Batches": "wae.data.loading.Batches",
    "Dataset": "wae.data.dataset.Dataset",
    "DatasetError": "wae.data.dataset.DatasetError",
    "FASHION_MNIST_FOLDER": "wae.data.idx.FASHION_MNIST_FOLDER",
    "FASHION_MNIST_LABELS": "wae.data.idx.FASHION_MNIST_LABELS",
    "ImageError": "wae.data.images.ImageError",
    "ImageFolder": "wae.data.folder.ImageFolder",
    "InMemory": "wae.data.dataset.InMemory",
    "KEPT_OUT": "wae.data.photos.HELD_OUT",
    "OnCorrupt": "wae.data.image_files.OnCorrupt",
    "TRAINING": "wae.data.photos.TRAINING",
    "batches": "wae.data.loading.batches",
    "digits": "wae.data.photos.digits",
    "evaluation_resize": "wae.data.input.evaluation_resize",
    "fashion_mnist": "wae.data.idx.fashion_mnist",
    "fingerprint": "wae.data.loading.fingerprint",
    "image_folder": "wae.data.folder.image_folder",
    "open_dataset": "wae.data.loading.open_dataset",
    "photo": "wae.data.photos.photo",
    "photo_path": "wae.data.photos.photo_path",
    "read_image": "wae.data.images.read_image",
}
"""Where each name that version 0.1 had in ``wae.data`` and ``wae.datasets`` is now."""


def __getattr__(name: str) -> Any:
    """Find a name that has moved, and warn once with its new path."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wae._moved import warn

    warn(f"wae.data.{name}", _MOVED[name])
    module, _, name_there = _MOVED[name].rpartition(".")
    found = globals()[name] = getattr(import_module(module), name_there)  # `from ... import` looks twice
    return found
