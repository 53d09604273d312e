"""The predictions of WAE and of the network without WAE for one image, and the time of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wae.data.input import prepare
from wae.inference.predict import Network, runner
from wae.inference.timing import interleaved
from wae.models.registry import build, builder
from wae.storage.checkpoint import Description, describe_classifier, load_classifier
from wae.wording import printable

TOP = 5
"""Classes of an answer, at most."""

_SECONDS = 0.5  # to time all networks for


class Candidate(NamedTuple):
    """A network that predicts one image at a time."""

    name: str
    """The name that is shown."""
    described: Description
    network: Network
    trained: bool
    """False if its weights are not those that go with the images, so that only its time is meaningful."""


class Answer(NamedTuple):
    """The classes that one network predicts, and its time."""

    network: str
    shares: dict[str, float]
    """The probabilities of the best classes by name, highest first; empty without trained weights."""
    seconds: float
    """Median of interleaved runs."""


def candidates(
    weights: Path, stock: Path | None = None, engine: str = "eager", own: nn.Module | None = None
) -> list[Candidate]:
    """The classifier in the checkpoint ``weights``, and the one beside it.

    That is the one in ``stock``. Without it, it is the network that the first is WAE around, to compare times
    only; there is none if the first is another network.

    Args:
        weights, stock: see :func:`wae.storage.checkpoint.load_classifier`.
        engine: of :func:`wae.deploy`, for both.
        own: the user's network, if ``weights`` is built around it.

    Raises:
        CheckpointError: a file is missing, damaged, or no checkpoint of a classifier; or it scores pixels.
        ValueError: there is no such engine.
        EngineError, DisagreementError: see :func:`wae.deploy`.
    """
    first = _candidate(weights, engine, own)
    if stock is not None:
        return [first, _candidate(stock, engine, own)]
    described = first.described
    name = described.network.removeprefix("wae_")
    if described.is_own:
        assert own is not None
        model = own.eval()
    elif name == described.network or builder(name) is None:
        return [first]
    else:
        torch.manual_seed(0)
        model = build(name, described.classes).eval()
    return [first, Candidate(name, described, runner(model, described.input, engine, 1), trained=False)]


def _candidate(path: Path, engine: str, own: nn.Module | None) -> Candidate:
    described = describe_classifier(path)
    name = f"WAE around {described.network}" if described.is_own else described.network
    network = runner(load_classifier(path, own), described.input, engine, 1)
    return Candidate(name, described, network, trained=True)


def answers(asked: Sequence[Candidate], image: Tensor, invert: bool = False) -> list[Answer]:
    """Each candidate's answer to ``image``, (3, H, W) uint8.

    Args:
        asked: see :func:`candidates`.
        image: is scaled and cut as each network's checkpoint says.
        invert: swap light and dark first.

    Raises ImageError where the image is too long for a network.
    """
    images = [prepare(image, candidate.described.input, invert)[None] for candidate in asked]
    calls = [partial(_scores, one.network, image) for one, image in zip(asked, images, strict=True)]
    timings = interleaved({str(number): call for number, call in enumerate(calls)}, _SECONDS)
    return [
        Answer(
            candidate.name,
            _shares(call(), candidate.described) if candidate.trained else {},
            timing.median,
        )
        for candidate, call, timing in zip(asked, calls, timings.values(), strict=True)
    ]


def _scores(network: Network, images: Tensor) -> Tensor:
    """The scores on the CPU: a call returns before a GPU has computed them."""
    return network(images).cpu()


def _shares(scores: Tensor, described: Description) -> dict[str, float]:
    best = scores[0].double().softmax(0).topk(min(TOP, described.classes))
    return {_name(n, described.labels): share for share, n in zip(*map(Tensor.tolist, best), strict=True)}


def _name(number: int, labels: Sequence[str] | None) -> str:
    """The class's label; with its number where that does not tell it from others."""
    if labels is None:
        return f"class {number}"
    label = printable(labels[number])
    return label if labels.count(labels[number]) == 1 else f"{label} ({number})"
