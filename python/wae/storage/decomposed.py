"""Files with ``low`` and ``high`` of one image, which ``wae encode`` writes and ``wae decode`` reads.

Such a file is a safetensors file with two tensors, ``low`` and ``high``, (3, h, w) each. Its metadata holds
the image's size and the fingerprint of the weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from wae.errors import WaeError
from wae.wording import reason
from wae_kernels.checks import half_of

from .files import no_file, written

_FORMAT = "wae decomposed image 1"
_DTYPES = (torch.float32, torch.float16)


class ContainerError(WaeError):
    """A file is no decomposed image, or a decomposition cannot become one. The message says why."""


class Decomposition(NamedTuple):
    """The decomposition of one image by the encoder."""

    low: Tensor
    """(3, ceil(H/2), ceil(W/2)), float32 or float16."""
    high: Tensor
    """Of the shape and dtype of ``low``."""
    size: tuple[int, int]
    """(H, W) of the image."""
    weights: str
    """The :func:`fingerprint` of the model that made it."""


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that are the same for models with the same parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(path: Path, image: Decomposition, force: bool = False) -> None:
    """Write ``image`` to ``path``, completely or not at all.

    Raises:
        ContainerError: :func:`load` would refuse ``image``.
        FileExistsError, OSError: see :func:`wae.storage.files.written`.
    """
    with written(path, force) as file:
        file.write(encoded(image))


def encoded(image: Decomposition) -> bytes:
    """The content of a file with ``image``. Raises ContainerError if :func:`load` would refuse it."""
    _check("the decomposition", image)
    height, width = image.size
    metadata = {
        "format": _FORMAT,
        "height": str(height),
        "width": str(width),
        "weights": image.weights,
    }
    tensors = {"low": image.low.contiguous(), "high": image.high.contiguous()}
    return to_bytes(tensors, metadata)


def load(path: Path) -> Decomposition:
    """Read what :func:`save` wrote.

    Raises:
        ContainerError: the file is missing, damaged, or of another kind; the message says which.
    """
    if why := no_file(path):
        raise ContainerError(f"{path}: {why}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.get("format") != _FORMAT:
            raise ContainerError(f"{path}: this file was not written by `wae encode`")
        size = (int(metadata["height"]), int(metadata["width"]))
        image = Decomposition(tensors["low"], tensors["high"], size, metadata["weights"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ContainerError(f"{path}: the file cannot be read ({reason(error)})") from None
    _check(str(path), image)
    return image


def _check(what: str, image: Decomposition) -> None:
    """Raise ContainerError, starting with ``what``, unless ``image`` is consistent and finite."""
    half = tuple(half_of(size) for size in image.size)
    for name, tensor in (("low", image.low), ("high", image.high)):
        if tensor.shape != (3, *half) or min(image.size) < 1:
            height, width = image.size
            raise ContainerError(
                f"{what}: {name} has shape {tuple(tensor.shape)}, not that of an image of {height} x {width}"
            )
        if tensor.dtype not in _DTYPES or not tensor.isfinite().all():
            raise ContainerError(f"{what}: {name} must hold finite float32 or float16 numbers")
