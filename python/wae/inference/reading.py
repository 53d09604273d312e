"""Reads image files as a network's input, in threads that work ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

from torch import Tensor

from wae.cores import usable_cores
from wae.data.images import LONGEST, MAX_PIXELS, ImageError, decode_image, read_image
from wae.data.input import Input, prepare
from wae.data.walk import Found

WORKERS = min(8, usable_cores())
"""The number of threads that decode images."""

_BATCH = 32  # images read ahead by :func:`images`


def load(found: Found, input: Input, invert: bool, max_pixels: int) -> tuple[Found, Tensor | None]:
    """The file and its prepared image, ``(3, *input.shape)`` uint8; or the file with an error, and None.

    ``invert`` and ``max_pixels`` are as for :func:`wae.data.input.prepare` and
    :func:`wae.data.images.read_image`.
    """
    if found.error:
        return found, None
    try:
        if found.content is None:
            image = read_image(found.path, max_pixels, LONGEST)
        else:
            image = decode_image(found.content, found.path, max_pixels, LONGEST)
        return found, prepare(image, input, invert)
    except ImageError as error:
        return Found(found.path, str(error).removeprefix(f"{found.path}: ")), None


def ahead(
    load: Callable[[Found], tuple[Found, Tensor | None]], found: Iterable[Found], batch: int
) -> Generator[tuple[Found, Tensor | None], None, None]:
    """``map(load, found)``, in threads that work about one batch ahead of the consumer."""
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


def images(found: Iterable[Found], input: Input, invert: bool = False) -> Iterator[Tensor]:
    """The prepared images of the files in ``found`` that can be read, ``(3, *input.shape)`` uint8 each.

    ``invert`` is as for :func:`wae.data.input.prepare`.
    """
    prepared = partial(load, input=input, invert=invert, max_pixels=MAX_PIXELS)
    with closing(ahead(prepared, found, _BATCH)) as loaded:
        yield from (image for _, image in loaded if image is not None)
