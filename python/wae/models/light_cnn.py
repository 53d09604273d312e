"""The high body where a quarter of the channels is not defined: a light CNN of the common kind."""

from __future__ import annotations

import logging
from itertools import count, pairwise

from torch import nn

from wae.wording import counted

from . import counting
from .bodies import IndivisibleError, feature_shape, initialize, light_body, without_numbers

_STAGES = 4

_log = logging.getLogger(__name__)


class LightCNN(nn.Sequential):
    """Four 3 x 3 convolutions of stride 2, each with BatchNorm and ReLU, and an average pool.

    Takes (N, 3, h, w), and makes (N, C), or (N, C, ...) of the size ``pooled``; C is 8 * channels. Weights
    are He's.

    Args:
        channels: of the first stage; each further one has twice as many.
        pooled: height and width of the features; None for a single number of each channel.
        reason: the sentence that says why the network has this body.
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
    """The high body beside ``low_body``: ``light_body(low_body, factor, size)``, else a :class:`LightCNN`.

    That it is the second is logged, at the level INFO, and stands in its ``reason``.

    Raises ValueError where the body takes no image of ``size`` (h, w), or is too small for a lighter one.
    """
    try:
        return light_body(low_body, factor, size)
    except IndivisibleError as error:
        body = light_cnn(low_body, size, factor, str(error))
    _log.info("%s", body.reason)
    return body


def light_cnn(low_body: nn.Module, size: tuple[int, int], factor: int = 4, why: str = "") -> LightCNN:
    """The widest light CNN beside ``low_body`` on images of ``size`` (h, w).

    It has at most one part in ``factor`` of its features, and one in the square of that of its multiply-adds,
    as a body with one part in ``factor`` of the channels has.

    Args:
        low_body: a network without its classifier.
        size: of the images that it takes.
        factor: 4 as in the paper's light bodies.
        why: the reason, for the sentence.

    Raises ValueError where the features of ``low_body`` are not (N, C) or (N, C, h, w), or too few.
    """
    _, features, *pooled = feature_shape(low_body, size)
    if len(pooled) not in (0, 2):
        shape = ", ".join(map(str, ("N", features, *pooled)))
        raise ValueError(f"a light CNN makes features (N, C) or (N, C, h, w), the low body ({shape})")
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
        f"({used / 1e6:.1f} M multiply-adds)" + (f": {why}" if why else "")
    )
    height_width = (pooled[0], pooled[1]) if pooled else None
    return LightCNN(widest, height_width, reason).to(next(low_body.parameters()))


def _multiply_adds(body: nn.Module, size: tuple[int, int]) -> int:
    """Of one image of ``size``; counted without memory, so that it is the same on every device."""
    return counting.count(without_numbers(body).eval(), size).multiply_adds
