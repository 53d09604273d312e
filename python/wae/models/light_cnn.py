"""The high body for networks whose channels cannot be divided: a light CNN of the usual kind."""

from __future__ import annotations

import logging
from itertools import count, pairwise

from torch import nn

from wae.wording import amount, counted

from . import counting
from .bodies import IndivisibleError, feature_shape, initialize, light_body
from .meta import empty_copy

_STAGES = 4

_log = logging.getLogger(__name__)


class LightCNN(nn.Sequential):
    """Four 3 x 3 convolutions of stride 2, each with BatchNorm and ReLU, and an average pool.

    Maps (N, 3, h, w) to (N, C), or to ``(N, C, *pooled)``, where C is ``8 * channels``. The weights have He
    initialisation.

    Args:
        channels: the number of channels of the first stage; each further stage has twice as many.
        pooled: (height, width) of the features; None for features (N, C).
        reason: a sentence that says why a network has this body.
    """

    def __init__(self, channels: int, pooled: tuple[int, int] | None = None, reason: str = "") -> None:
        widths = [3, *(channels << stage for stage in range(_STAGES))]
        stages = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise(widths)
        ]
        end = [nn.Flatten()] if pooled is None else []
        super().__init__(*stages, nn.AdaptiveAvgPool2d(pooled or 1), *end)
        self.reason = reason
        self.apply(initialize)


def high_body(low_body: nn.Module, factor: int, size: tuple[int, int]) -> nn.Module:
    """The high body for ``low_body``: ``light_body(low_body, factor, size)``, or else a :class:`LightCNN`.

    If it is a light CNN, its ``reason`` says why, and is logged at the level INFO.

    Args:
        low_body: a network without its classifier.
        factor: by what the channels are divided.
        size: (h, w) of the images that the bodies take.

    Raises:
        ValueError: ``low_body`` takes no such images, or is too small for a lighter body.
    """
    try:
        return light_body(low_body, factor, size)
    except IndivisibleError as error:
        body = light_cnn(low_body, size, factor, str(error))
    _log.info("%s", body.reason)
    return body


def light_cnn(low_body: nn.Module, size: tuple[int, int], factor: int = 4, why: str = "") -> LightCNN:
    """The widest light CNN that is as light as ``low_body`` with its channels divided by ``factor`` would be.

    It has at most ``1 / factor`` of the features of ``low_body``, and ``1 / factor**2`` of its multiply-adds.

    Args:
        low_body: a network without its classifier.
        size: (h, w) of the images that it takes.
        factor: 4 in the paper's light bodies.
        why: why a light CNN is needed; it becomes part of the ``reason``.

    Raises:
        ValueError: the features of ``low_body`` are not (N, C) or (N, C, h, w), or there are too few.
    """
    _, features, *pooled = feature_shape(low_body, size)
    if len(pooled) not in (0, 2):
        shape = ", ".join(map(str, ("N", features, *pooled)))
        raise ValueError(f"a light CNN needs a low body with features (N, C) or (N, C, h, w), got ({shape})")
    allowed = _multiply_adds(low_body, size) // factor**2
    widest = 0
    for channels in count(1):
        most = channels << (_STAGES - 1)
        if factor * most > features or _multiply_adds(LightCNN(channels), size) > allowed:
            break
        widest = channels
    if not widest:
        raise ValueError(f"the low body is too small for a lighter one: {counted(features, 'feature')}")
    used = _multiply_adds(LightCNN(widest), size)
    reason = (
        f"the high body is a light CNN of {_STAGES} convolutions and {widest << (_STAGES - 1)} features "
        f"({amount(used)} multiply-adds)" + (f": {why}" if why else "")
    )
    height_width = (pooled[0], pooled[1]) if pooled else None
    return LightCNN(widest, height_width, reason).to(next(low_body.parameters()))


def _multiply_adds(body: nn.Module, size: tuple[int, int]) -> int:
    """The multiply-adds for one image, counted on "meta", so that they are the same for every device."""
    return counting.count(empty_copy(body).eval(), size).multiply_adds
