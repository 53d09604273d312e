"""A network's predictions for image files, as a stream: memory does not grow with the number of files.

::

    found = find([Path("photos")])
    for prediction in predict(runner(model, described.input), found, described.input):
        print(*JsonLines(described.labels).lines(prediction))

A few threads read images ahead of the network. They decode an image, scale its shorter side to
``Input.resize`` (by default bilinear, antialiased), crop ``Input.size`` x ``Input.size`` from the centre and,
if ``Input.grayscale`` is set, replace the colours by their luma. If the checkpoint says so, the whole image
is scaled instead. The results are uint8, which the network takes: its encoder applies scale and shift itself.
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
from wae.data.input import prepare as prepare
from wae.data.walk import Found
from wae.data.walk import find as find
from wae.wording import first_line, printable

from .batches import filled
from .maps import Maps
from .reading import ahead, load

BATCH = 32
"""The default number of images in a call of the network."""


class Prediction(NamedTuple):
    """The network's prediction for one file."""

    path: Path
    ranking: tuple[tuple[int, float], ...]
    """Class numbers and their probabilities, 0..1, the highest first; empty if there is an error. For a
    segmentation network, the classes' shares of the pixels instead."""
    error: str = ""
    """Why there is no prediction, without the file's name; empty if there is one."""


Network = Callable[[Tensor], Tensor]
"""Maps images, ``(N, 3, *input.shape)`` uint8 on the CPU, to scores, (N, classes) or (N, classes, H, W)."""


# -------------------------------------------------------------------------------------------------- network


def runner(
    model: nn.Module, input: Input, engine: str | None = None, batch: int = BATCH, **options: Any
) -> Network:
    """A function that runs ``model`` on the GPU if there is one, else on the CPU.

    Args:
        model: in evaluation mode. It is moved to the device.
        input: the network's input, of which only ``input.shape`` matters here.
        engine: see :func:`wae.deploy`; None runs the model as it is.
        batch: the number of images that the engine is prepared for. A call with fewer is padded; more are an
            error.
        options: further arguments of :func:`wae.deploy`: ``precision``, ``calibration``, ...

    Raises:
        ValueError: the model does not take such images, or there is no such engine.
        EngineError, DisagreementError, CalibrationError: see :func:`wae.deploy`.
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
    except Exception as error:  # the network's own code may raise anything
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
    """Predict each file, in order. A file that cannot be used yields a prediction with an error.

    Args:
        network: see :func:`runner`.
        found: the files: see :func:`wae.data.walk.find`. They are read about two batches ahead.
        input: how an image becomes the network's input.
        top: the most classes in a ranking.
        batch: the number of images in a call of the network.
        invert: see :func:`wae.data.input.prepare`.
        max_pixels: an image with more pixels is an error: see :func:`wae.data.images.read_image`.
        maps: writes the classes of the pixels; for a segmentation network only.
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
    """The prediction from an image's scores, (classes,) or (classes, H, W). Writes the maps too."""
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
    """The probabilities from scores (classes,), or the classes' shares of the pixels from (classes, H, W).

    They are NaN if the scores are not finite.
    """
    if scores.dim() == 1:
        return scores.double().softmax(0)
    if not scores.isfinite().all():
        return scores.new_full((len(scores),), torch.nan)
    return torch.bincount(scores.argmax(0).flatten(), minlength=len(scores)).double() / scores[0].numel()


# --------------------------------------------------------------------------------------------------- output


def _name_of_number(of_pixels: bool) -> str:
    """What the number beside a class is."""
    return "share" if of_pixels else "probability"


class JsonLines:
    """Writes a line of JSON for each image: ``path``, and ``error`` or ``classes``, the most probable first.

    Each class has its number as ``class``, its ``label`` if it has one, and its ``probability``, or for a
    segmentation network its ``share`` of the pixels.

    Args:
        labels: the names of the classes; None if they have none.
        of_pixels: whether the network is a segmentation network.
    """

    head: tuple[str, ...] = ()
    """The lines before all others."""

    def __init__(self, labels: Sequence[str] | None, of_pixels: bool = False) -> None:
        self._labels, self._number = labels, _name_of_number(of_pixels)

    def lines(self, prediction: Prediction) -> Iterator[str]:
        """The line of ``prediction``."""
        entries: dict[str, object] = {"path": str(prediction.path)}
        if prediction.error:
            entries["error"] = prediction.error
        else:
            entries["classes"] = self.classes(prediction)
        yield json.dumps(entries)

    def classes(self, prediction: Prediction) -> list[dict[str, object]]:
        """An entry for each class in the ranking of ``prediction``."""
        return [self._entry(*entry) for entry in prediction.ranking]

    def _entry(self, number: int, value: float) -> dict[str, object]:
        label = {"label": self._labels[number]} if self._labels else {}
        return {"class": number, **label, self._number: value}


class Table:
    """Writes a table line by line: one line for each class of each image.

    Args:
        labels: the names of the classes; None for their numbers.
        of_pixels: whether the network is a segmentation network.
    """

    def __init__(self, labels: Sequence[str] | None, of_pixels: bool = False) -> None:
        self._labels = None if labels is None else [printable(label) for label in labels]
        self._width = max(map(len, (*(self._labels or ()), "class")))
        name = _name_of_number(of_pixels)
        self._number_width = max(len("100.0 %"), len(name))
        self.head = (self._line(name, "class", "image"),)

    def lines(self, prediction: Prediction) -> Iterator[str]:
        """The lines of one image, the first with its name; none if there is an error."""
        image = printable(str(prediction.path))
        for number, probability in prediction.ranking:
            label = self._labels[number] if self._labels else str(number)
            yield self._line(f"{100 * probability:.1f} %", label, image)
            image = ""

    def _line(self, number: str, label: str, image: str) -> str:
        return f"{number:>{self._number_width}}  {label:<{self._width}}  {image}".rstrip()


FORMATS: dict[str, type[JsonLines | Table]] = {"table": Table, "jsonl": JsonLines}
"""The output formats, by their names on the command line."""
