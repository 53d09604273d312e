"""Whether a deployed or exported model computes what the model does."""

from __future__ import annotations

from collections.abc import Iterator
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

from .arguments import first_parameter
from .batches import filled
from .calibration import Calibration, CalibrationError
from .engines import EngineError, Run
from .precision import tolerance
from .undisturbed import undisturbed

_PIXELS_AT_ONCE = 32 * 224 * 224  # that the model itself gets to be compared with
_NAMED = 3  # layers that an error names


class DisagreementError(WaeError, RuntimeError):
    """A deployed or exported model does not compute the same as the model."""


def agreement(found: Tensor, wanted: Tensor, data: Calibration) -> dict[str, Any]:
    """The part of :func:`deploy`'s report about the classes ``found``, where the model names ``wanted``.

    Both are (N, ...) on the processor, as the labels are. Accuracy leaves out labels below 0.
    """
    same = float((found == wanted).double().mean())
    accuracy, drop = None, 1 - same
    if data.labels is not None:
        counted = data.labels >= 0
        right = [float((classes == data.labels)[counted].double().mean()) for classes in (wanted, found)]
        accuracy, drop = dict(zip(("model", "deployed"), right, strict=True)), right[0] - right[1]
    return {
        "calibration_images": len(data.images),
        "checked_images": len(found),
        "agreement": same,
        "accuracy": accuracy,
        "drop": drop,
    }


def classes_of(run: Run, images: Tensor, batch: int, device: torch.device) -> Tensor:
    """The class that ``run`` names for each of ``images``, (M, ...), or of their pixels, on the processor.

    It gets ``batch`` of them at a time, on ``device``; fewer are filled up.
    """
    scores = (run(filled(part, batch).to(device))[: len(part)] for part in images.split(batch))
    return torch.cat([part.argmax(1).cpu() for part in scores])


def require_no_drop(what: str, report: dict[str, Any]) -> None:
    """Raise DisagreementError where the report's drop is too large."""
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


def scores_of(model: nn.Module, images: Tensor, what: str = "an image") -> Tensor:
    """``model(images)``. Raises ValueError where it takes no such images, or gives no finite scores."""
    size = " x ".join(map(str, images.shape[2:]))
    with undisturbed(images.device):
        try:
            scores: Tensor = model(images)
        except Exception as error:  # any that the model's own code raises
            raise ValueError(f"the model takes no images of {size}: {first_line(error)}") from error
        if not isinstance(scores, Tensor):
            raise ValueError(f"the model must return its scores as one tensor, got {type(scores).__name__}")
        if not scores.isfinite().all():
            raise ValueError(f"the model's scores of {what} of {size} are not finite")
        return scores


def check_parts(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Raise EngineError where the parts of a WAE network do not give its scores, ``expected``.

    They are what is deployed or exported. What changes the scores beside them is a hook on the whole network,
    or a ``forward`` of its own or of its class. A hook that only looks on is left out without a word.
    """
    is_sum_of_parts = is_plain(model) and type(model).forward in (WAEClassifier.forward, WAESegmenter.forward)
    if is_sum_of_parts or not isinstance(model, WAENetwork):
        return
    with undisturbed(images.device):
        scores = model.behind_encoder(images.shape[2:])(*model.decompose(images))
    alike = scores.shape == expected.shape and expected.is_floating_point()  # not the numbers of classes
    if alike:
        alike = relative_difference(scores, expected) <= tolerance(expected.dtype, expected.device)
    if not alike:
        raise EngineError(
            f"{type(model).__name__} has a hook, or a forward of its own, that changes its scores: only its "
            f"parts run in an engine or a file. Put it on a part, such as {model.bodies[0]}, or do what it "
            "does before and after the call"
        )


def require_equal(what: str, scores: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The relative difference of ``scores`` from ``expected``, in the norm.

    Raises DisagreementError unless it is at most the tolerance for numbers computed in ``dtype``.
    """
    if scores.shape != expected.shape:
        raise DisagreementError(
            f"{what} gives {tuple(scores.shape)} scores, the model {tuple(expected.shape)}"
        )
    difference, most = relative_difference(scores, expected), tolerance(dtype, expected.device)
    if not difference <= most:  # NaN neither
        raise DisagreementError(
            f"{what} gives scores that differ from the model's by {difference:.3g}, more than "
            f"{most:g} (norm of the difference over norm of the scores)"
        )
    return difference


def named_by(model: nn.Module, data: Calibration) -> Tensor:
    """The classes that ``model`` names on the images that were held out, (N, ...), on the processor.

    Raises CalibrationError where there are labels, and of another shape.
    """
    scores = (scores_of(model, part, "the images of calibration") for part in _ready(model, data))
    named = torch.cat([part.argmax(1).cpu() for part in scores])
    if data.labels is not None and data.labels.shape != named.shape:
        wanted, got = (", ".join(("N", *map(str, x.shape[1:]))) for x in (named, data.labels))
        raise CalibrationError(
            f"calibration: need the numbers of classes, ({wanted}), as labels, got ({got})"
        )
    return named


def _ready(model: nn.Module, data: Calibration) -> Iterator[Tensor]:
    """The images that were held out, as ``model`` takes them, a few at a time."""
    images = data.held_out
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    like = first_parameter(model)
    keeps = images.dtype == torch.uint8 and isinstance(model, WAENetwork)
    for part in images.split(at_once):
        yield part.to(like.device) if keeps else part.to(like.device, like.dtype)
