"""A network's predictions for image files, as a stream: memory does not grow with their number.

::

    found = find([Path("photos")])
    for prediction in predict(runner(model, described.input), found, described.input):
        print(*JsonLines(described.labels).lines(prediction))

A few threads read images ahead of the network: they decode, scale the shorter side to ``Input.resize``
(bilinear, antialiased), cut ``Input.size`` x ``Input.size`` out of the middle and, where asked, reduce it to
its luma. All of that is uint8, which is what the network gets: its encoder applies scale and shift itself.
Where the checkpoint says so, the whole image is scaled instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wae.data.images import MAX_PIXELS, ImageError
from wae.data.images import is_image as is_image
from wae.data.input import Input
from wae.data.walk import Found
from wae.data.walk import find as find
from wae.wording import first_line, printable

from .batches import filled
from .maps import Maps
from .reading import ahead, load
from .reading import prepare as prepare

BATCH = 32
"""Images that the network gets at once."""


class Prediction(NamedTuple):
    """The network's answer for one file."""

    path: Path
    ranking: tuple[tuple[int, float], ...]
    """Numbers of classes and their probabilities, 0..1, the highest first; none if there is an error. Of a
    network that scores pixels: the classes' shares of these."""
    error: str = ""
    """Why there is none, without the file's name."""


Network = Callable[[Tensor], Tensor]
"""(N, 3, *input.shape) uint8 on the processor to scores, (N, classes) or (N, classes, H, W)."""


# -------------------------------------------------------------------------------------------------- network


def runner(
    model: nn.Module, input: Input, engine: str | None = None, batch: int = BATCH, **options: Any
) -> Network:
    """``model`` on the GPU if there is one, else on the processor.

    Args:
        input: its images' size counts.
        engine: of :func:`wae.deploy`; None runs the model as it is.
        batch: images at once that an engine is prepared for. Fewer are filled up, more are not possible.
        options: of :func:`wae.deploy`: precision, calibration ...

    Raises:
        ValueError: the model does not take such images, or there is no such engine.
        EngineError, DisagreementError: see :func:`wae.deploy`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    size = input.shape
    if engine is not None:
        from .deploy import deploy

        deployed = deploy(model, size, batch, engine, **options)
        return lambda images: deployed(filled(images, batch).to(device))[: len(images)]

    def network(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = model(images.to(device))
        return scores

    try:
        network(torch.zeros(1, 3, *size, dtype=torch.uint8))
    except Exception as error:  # any that the network's own code raises
        raise ValueError(
            f"the network takes no images of {size[0]} x {size[1]}: {first_line(error)}"
        ) from error
    return network


def predict(
    network: Network,
    found: Iterable[Found],
    input: Input,
    top: int = 3,
    batch: int = BATCH,
    invert: bool = False,
    max_pixels: int = MAX_PIXELS,
    maps: Maps | None = None,
) -> Generator[Prediction, None, None]:
    """A prediction of each file, in order; errors among them.

    Args:
        network: see :func:`runner`.
        found: see :func:`wae.data.walk.find`; it is read about two batches ahead.
        input: how an image becomes the network's input.
        top: classes to tell of each image, at most.
        batch: images that the network gets at once.
        invert: see :func:`prepare`.
        max_pixels: an image of more is an error: see :func:`wae.data.images.read_image`.
        maps: where the classes of the pixels are written; for a network that scores pixels.
    """
    prepared = partial(load, input=input, invert=invert, max_pixels=max_pixels)
    with closing(ahead(prepared, found, batch)) as loaded:
        while chunk := list(islice(loaded, batch)):
            images = [image for _, image in chunk if image is not None]
            scored = iter(network(torch.stack(images)) if images else ())
            for file, image in chunk:
                if image is None:
                    yield Prediction(file.path, (), file.error)
                else:
                    yield _predicted(file.path, next(scored), top, maps)


def _predicted(path: Path, scores: Tensor, top: int, maps: Maps | None) -> Prediction:
    """The prediction from an image's scores, (classes,) or (classes, H, W); maps are written, too."""
    if not (shares := _shares(scores)).isfinite().all():
        return Prediction(path, (), "the network's scores are not finite numbers")
    try:
        if maps is not None:
            maps.write(path, scores)
    except ImageError as error:
        return Prediction(path, (), str(error).removeprefix(f"{path}: "))
    except FileExistsError as error:
        return Prediction(path, (), str(error))
    seen = len(shares) if scores.dim() == 1 else int(shares.count_nonzero())
    best = shares.topk(min(top, seen))
    return Prediction(path, tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _shares(scores: Tensor) -> Tensor:
    """Of (classes,) scores the probabilities; of (classes, H, W) the classes' shares of the pixels; NaN where
    the scores are not finite."""
    if scores.dim() == 1:
        return scores.double().softmax(0)
    if not scores.isfinite().all():
        return scores.new_full((len(scores),), torch.nan)
    return torch.bincount(scores.argmax(0).flatten(), minlength=len(scores)).double() / scores[0].numel()


# --------------------------------------------------------------------------------------------------- output


class JsonLines:
    """A line of JSON for each image: ``path``, and ``error`` or ``classes``, the most probable first.

    Each class has its number as ``class``, its ``label`` if it has one, and its ``probability``, or its
    ``share`` of the pixels.

    Args:
        labels: the names of the classes; None if they have none.
        of_pixels: whether the network scores pixels.
    """

    head: tuple[str, ...] = ()
    """The lines above all others."""

    def __init__(self, labels: Sequence[str] | None, of_pixels: bool = False) -> None:
        self._labels, self._number = labels, "share" if of_pixels else "probability"

    def lines(self, prediction: Prediction) -> Iterator[str]:
        """The one of ``prediction``."""
        entries: dict[str, object] = {"path": str(prediction.path)}
        if prediction.error:
            entries["error"] = prediction.error
        else:
            entries["classes"] = self.classes(prediction)
        yield json.dumps(entries)

    def classes(self, prediction: Prediction) -> list[dict[str, object]]:
        """An entry for each class in its ranking."""
        return [self._entry(*entry) for entry in prediction.ranking]

    def _entry(self, number: int, share: float) -> dict[str, object]:
        label = {"label": self._labels[number]} if self._labels else {}
        return {"class": number, **label, self._number: share}


class Table:
    """A table that can be written as it grows: a line for each class of each image.

    Args:
        labels: the names of the classes; None for their numbers.
        of_pixels: is the same here: a share is of probability, or of the pixels.
    """

    def __init__(self, labels: Sequence[str] | None, of_pixels: bool = False) -> None:
        self._labels = None if labels is None else [printable(label) for label in labels]
        self._width = max(map(len, (*(self._labels or ()), "class")))
        self.head = (self._line("share", "class", "image"),)

    def lines(self, prediction: Prediction) -> Iterator[str]:
        """Those of one image; the first names it. None if there is an error."""
        image = printable(str(prediction.path))
        for number, probability in prediction.ranking:
            label = self._labels[number] if self._labels else str(number)
            yield self._line(f"{100 * probability:.1f} %", label, image)
            image = ""

    def _line(self, share: str, label: str, image: str) -> str:
        return f"{share:>7}  {label:<{self._width}}  {image}".rstrip()


FORMATS: dict[str, type[JsonLines | Table]] = {"table": Table, "jsonl": JsonLines}
"""By their names on the command line."""
