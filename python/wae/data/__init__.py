"""Images and where they come from: bundled photos, image files, folders, IDX files, batches of them."""

from importlib import import_module
from typing import Any

_MOVED = dict.fromkeys(
    ("ImageError", "KEPT_OUT", "TRAINING", "photo", "photo_path", "read_image"), "wae.data.photos"
)
"""The names of the module ``wae.data`` of version 0.1, and where each is now."""


def __getattr__(name: str) -> Any:
    """What has moved; reported once with its new name."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wae._moved import warn

    warn(f"wae.data.{name}", f"{_MOVED[name]}.{name}")
    return getattr(import_module(_MOVED[name]), name)
