"""Checks that a deployed or exported model computes what the original model does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wae.difference import relative_difference
from wae.errors import WaeError
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.plain import is_plain
from wae.models.segmentation.segmenter import WAESegmenter
from wae.wording import counted, first_line

from .arguments import example_images, first_parameter
from .batches import filled
from .calibration import Calibration, CalibrationError
from .engines import EngineError, Run
from .engines.int8 import Simulation
from .precision import tolerance
from .undisturbed import undisturbed

_PIXELS_AT_ONCE = 32 * 224 * 224  # in a call of the original model
_NAMED = 3  # layers that an error names

# Limits for int8 kernels: see require_simulated. Of 150 small networks in three engines, right ones were at
# most 1.3 times as far from float32 as simulated, or within 1 %; one that was wrong was 16 times as far.
_FARTHER = 4
_ROUNDING = 2e-2

TRIES = 5
"""The most sets of example images on which scores are compared that right computations may disagree on."""


class DisagreementError(WaeError, RuntimeError):
    """A deployed or exported model does not compute what the original model does."""


def agreement(run: Run, batch: int, named: Tensor, data: Calibration, device: torch.device) -> dict[str, Any]:
    """The entries of :func:`wae.deploy`'s report that compare ``run`` with the model on the held-out images.

    Only counts are kept: the classes of all pixels would take much memory.

    Args:
        run: takes images and returns their scores.
        batch: the number of images in a call of ``run``; the last batch is padded to it.
        named: the classes that the model predicts: see :func:`named_by`.
        data: the images, and their labels if there are any. Labels below 0 do not count for accuracy.
        device: where ``run`` takes its images.
    """
    same = total = 0
    right = [0, 0]
    every = (data.held_out, named) if data.labels is None else (data.held_out, named, data.labels)
    for images, wanted, *labels in zip(*(x.split(batch) for x in every), strict=True):
        # copied because a network may change its input
        scores = run(filled(images, batch).to(device, copy=True))[: len(images)]
        found = scores.argmax(1).cpu()
        same += int((found == wanted).sum())
        for label in labels:
            counts = label >= 0
            total += int(counts.sum())
            right = [n + int((x == label)[counts].sum()) for n, x in zip(right, (wanted, found), strict=True)]
    accuracy, lost, of = None, named.numel() - same, named.numel()
    if data.labels is not None:
        accuracy = {"model": right[0] / total, "deployed": right[1] / total}
        lost, of = right[0] - right[1], total
    return {
        "calibration_images": len(data.images),
        "checked_images": len(named),
        "agreement": same / named.numel(),
        "accuracy": accuracy,
        "drop": lost / of,  # of counts: 1 - 0.995 is more than 0.005, which may be just what is accepted
    }


def require_no_drop(what: str, report: dict[str, Any]) -> None:
    """Raise DisagreementError if the report's drop is larger than its ``max_drop``."""
    if report["max_drop"] is None or report["drop"] <= report["max_drop"]:
        return
    of = "agreement with it" if report["accuracy"] is None else "accuracy"
    message = (
        f"{what} loses {report['drop']:.2%} of {of} on {counted(report['checked_images'], 'image')}, "
        f"more than max_drop={report['max_drop']:g}"
    )
    if report.get("layers"):
        worst = ", ".join(f"{name} ({difference:.1%})" for name, difference in report["layers"][:_NAMED])
        message += f"; most moved: {worst}"
    raise DisagreementError(message)


def require_simulated(engine: str, results: Sequence[Tensor], number: int, simulation: Simulation) -> None:
    """Raise DisagreementError if int8 kernels are much farther from the float32 network than they should be.

    How far int8 may be is otherwise ``max_drop``'s matter, which does not see errors that change no class.

    Args:
        engine: its name, for the error.
        results: what the kernels compute of the simulation's first inputs.
        number: how many of these count.
        simulation: what the engine's quantizer says that it computes.
    """
    exact = torch.cat([x[:number].flatten() for x in simulation.exact])
    found, wanted = (
        relative_difference(torch.cat([x[:number].flatten() for x in of]), exact)
        for of in (results, simulation.results)
    )
    if not found <= max(_ROUNDING, _FARTHER * wanted) or math.isinf(found):  # also if it is NaN
        raise DisagreementError(
            f"{engine}'s int8 kernels give results that differ by {found:.3g} from those in float32 (norm of "
            f"the difference over norm of the results), but its quantized network only by {wanted:.3g}"
        )


def scores_of(model: nn.Module, images: Tensor, what: str = "an image") -> Tensor:
    """``model(images)``, without gradients; ``images`` stay as they are.

    Args:
        model: in evaluation mode.
        images: (N, 3, H, W).
        what: the images' name in the error about scores that are not finite.

    Raises:
        ValueError: the model fails on such images, returns no tensor, or returns scores that are not finite.
    """
    size = " x ".join(map(str, images.shape[2:]))
    with undisturbed(images.device):
        try:
            scores: Tensor = model(images.clone())  # cloned because a network may change its input
        except Exception as error:  # the model's own code may raise anything
            raise ValueError(f"the model takes no images of {size}: {first_line(error)}") from error
        if not isinstance(scores, Tensor):
            raise ValueError(f"the model must return its scores as one tensor, got {type(scores).__name__}")
        if not scores.isfinite().all():
            raise ValueError(f"the model's scores of {what} of {size} are not finite")
        return scores


def check_parts(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Raise EngineError if the parts of a WAE network do not compute its scores, ``expected``.

    Only the parts are deployed or exported. A hook on the network itself, or a method that its instance or
    class overrides, may change the scores and would be lost. A hook that changes nothing is dropped silently.

    Raises ValueError if ``expected`` are not floating-point numbers.
    """
    is_sum_of_parts = is_plain(model) and type(model) in (WAEClassifier, WAESegmenter)
    if is_sum_of_parts or not isinstance(model, WAENetwork):
        if not expected.is_floating_point():
            raise ValueError(f"the model must return floating-point scores, got {expected.dtype}")
        return
    with undisturbed(images.device):
        parts = model.encoder(images, model.image_scale, model.image_shift)
        scores = model.behind_encoder(images.shape[2:])(*parts)
    alike = scores.shape == expected.shape and expected.is_floating_point()  # integers are classes
    if alike:
        alike = relative_difference(scores, expected) <= tolerance(expected.dtype, expected.device)
    if not alike:
        raise EngineError(
            f"{type(model).__name__} has a hook, or a method of its own, that changes its scores, but only "
            f"its parts run in an engine or a file. Put the hook on a part, such as {model.bodies[0]}, or do "
            "its work before or after the call"
        )


def require_equal(what: str, scores: Tensor, expected: Tensor, most: float) -> float:
    """The relative difference of ``scores`` from ``expected``: the norm of the difference over the norm.

    Args:
        what: what computed ``scores``, for the error.
        scores, expected: tensors of one shape.
        most: the largest difference that is accepted: see :func:`.precision.tolerance`.

    Raises:
        DisagreementError: the shapes differ, or the difference is not finite or larger than ``most``.
    """
    if scores.shape != expected.shape:
        raise DisagreementError(
            f"{what} gives scores of shape {tuple(scores.shape)}, the model of {tuple(expected.shape)}"
        )
    difference = relative_difference(scores, expected)
    if not difference <= most or math.isinf(difference):  # also if it is NaN
        raise DisagreementError(
            f"{what} gives scores that differ from the model's by {difference:.3g}, more than "
            f"{most:g} (norm of the difference over norm of the scores)"
        )
    return difference


def require_equal_once(what: str, pairs: Iterator[Sequence[Tensor]], most: float) -> float:
    """:func:`require_equal` of the first of ``pairs``, (scores, expected), that are equal.

    If none are, raises the DisagreementError of the first pair.
    """
    scores, expected = next(pairs)
    try:
        return require_equal(what, scores, expected, most)
    except DisagreementError:
        for scores, expected in pairs:
            with suppress(DisagreementError):
                return require_equal(what, scores, expected, most)
        raise


def other_images(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """For a network with unpooling other example images like ``images``; for others none.

    Unpooling puts a number where the largest of four pixels was. Where two of these are equal up to rounding,
    two right computations may choose differently, and their scores differ in that place. So right scores may
    disagree on some images, whereas wrong ones disagree on all.
    """
    if any(isinstance(part, nn.MaxUnpool2d) for part in model.modules()):
        batch, _, height, width = images.shape
        for seed in range(1, TRIES):
            yield example_images(model, batch, (height, width), images.dtype, seed)


def other_number(images: Tensor) -> Tensor:
    """Images for a call with another number of them: the first of ``images``, or the only one and another.

    The other one is darker, because a network may compute with the statistics of all images in a call.
    """
    return images[:1] if len(images) > 1 else torch.cat((images, (images / 2).to(images.dtype)))


def dependence_on_number(model: nn.Module, images: Tensor, expected: Tensor) -> float:
    """How far the model's scores of an image depend on how many images are in the call, or on which.

    A network may treat a single image in its own way (``if images.shape[0] > 1``), or normalise all images by
    their common statistics. Most engines cannot do the former: they run one graph for any number of images.
    Those that run any number in chunks cannot do the latter.

    Args:
        model: in evaluation mode.
        images: (N, 3, H, W).
        expected: the model's scores of them.

    Returns:
        The relative difference between the first image's scores in two calls with different numbers of
        images; the least over :func:`other_images`. It is 0 if the model takes no other number.
    """
    least = math.inf
    others = ((x, scores_of(model, x)) for x in other_images(model, images))
    for x, scores in chain([(images, expected)], others):
        try:
            again = scores_of(model, other_number(x))
        except ValueError:
            return 0.0
        if again.shape[1:] != scores.shape[1:]:
            return 0.0
        # a network that squeezes its scores may return a scalar for one image
        of_first = [torch.atleast_1d(x)[:1] for x in (again, scores)]
        least = min(least, relative_difference(*of_first))
        if least <= tolerance(scores.dtype, scores.device):
            break
    return least


def named_by(model: nn.Module, data: Calibration) -> Tensor:
    """The classes that ``model`` predicts for the held-out images or their pixels.

    Returns:
        (N,) or (N, H, W), int32 on the CPU.

    Raises:
        ValueError: see :func:`scores_of`.
        CalibrationError: the labels have another shape, are no class's number, or are all negative.
    """
    scores = (scores_of(model, part, "the images of calibration") for part in _ready(model, data))
    classes, parts = 0, []
    for part in scores:
        classes = part.shape[1]
        parts.append(part.argmax(1).int().cpu())
    named = torch.cat(parts)
    if data.labels is not None:
        _check_labels(data.labels, named, classes)
    return named


def _check_labels(labels: Tensor, named: Tensor, classes: int) -> None:
    """Raise CalibrationError unless ``labels`` are comparable with the classes ``named``."""
    if labels.shape != named.shape:
        wanted, got = (", ".join(("N", *map(str, x.shape[1:]))) for x in (named, labels))
        raise CalibrationError(f"calibration: labels must be class numbers, ({wanted}), got ({got})")
    most = float(labels.max())
    if not most < classes:  # 255, for example, which some data sets give to pixels that do not count
        raise CalibrationError(
            f"calibration: labels must be below {classes}, the number of classes, or negative for what does "
            f"not count; got {most:g}"
        )
    if most < 0:
        raise CalibrationError("calibration: all labels are negative, so that there is no accuracy to check")


def _ready(model: nn.Module, data: Calibration) -> Iterator[Tensor]:
    """The held-out images as ``model`` takes them, a few at a time."""
    images = data.held_out
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    like = first_parameter(model)
    keeps = images.dtype == torch.uint8 and isinstance(model, WAENetwork)
    for part in images.split(at_once):
        yield part.to(like.device) if keeps else part.to(like.device, like.dtype)
