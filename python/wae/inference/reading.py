"""Image files as a network's input, read by threads ahead of who asks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from wae.data.images import LONGEST, MAX_PIXELS, ImageError, check_length, read_image
from wae.data.walk import Found
from wae.storage.checkpoint import Input

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode."""

_BATCH = 32  # images read ahead where nobody says how many
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, as Pillow's mode L


def prepare(image: Tensor, input: Input, invert: bool = False) -> Tensor:
    """The network's input, (3, size, size) uint8, of ``image``, (3, H, W) uint8.

    Args:
        input: see there.
        invert: make light dark and dark light.

    Raises:
        ImageError: the image is more than a hundred times longer than wide.
    """
    check_length(*image.shape[1:])
    image = transforms.resize(image, [input.resize], antialias=True)
    image = transforms.center_crop(image, [input.size])
    if input.grayscale:
        # Not torchvision's: that rounds down, and makes 199 of a grey of 200.
        luma = (image * torch.tensor(_LUMA).view(3, 1, 1)).sum(0).round().to(torch.uint8)
        image = luma.expand(3, -1, -1)
    return 255 - image if invert else image


def load(found: Found, input: Input, invert: bool, max_pixels: int) -> tuple[Found, Tensor | None]:
    """The prepared image, or why there is none."""
    if found.error:
        return found, None
    try:
        return found, prepare(read_image(found.path, max_pixels, LONGEST), input, invert)
    except ImageError as error:
        return Found(found.path, str(error).removeprefix(f"{found.path}: ")), None


def ahead(
    load: Callable[[Found], tuple[Found, Tensor | None]], found: Iterable[Found], batch: int
) -> Generator[tuple[Found, Tensor | None], None, None]:
    """``map(load, found)``, in threads that are about a batch ahead of who asks."""
    waiting: deque[Future[tuple[Found, Tensor | None]]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in found:
                waiting.append(pool.submit(load, item))
                if len(waiting) > batch + WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def images(found: Iterable[Found], input: Input) -> Iterator[Tensor]:
    """The prepared images of those files that can be read."""
    with closing(
        ahead(partial(load, input=input, invert=False, max_pixels=MAX_PIXELS), found, _BATCH)
    ) as loaded:
        yield from (image for _, image in loaded if image is not None)
