"""Image files as a network's input, read by threads ahead of who asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

from torch import Tensor

from wae.cores import usable_cores
from wae.data.images import LONGEST, MAX_PIXELS, ImageError, decode_image, read_image
from wae.data.input import Input
from wae.data.input import prepare as prepare
from wae.data.walk import Found

WORKERS = min(8, usable_cores())
"""Threads that decode."""

_BATCH = 32  # images read ahead where nobody says how many


def load(found: Found, input: Input, invert: bool, max_pixels: int) -> tuple[Found, Tensor | None]:
    """The prepared image, or why there is none."""
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
