"""WAE-ResNet50 (docs/network.md), from torchvision's definition of ResNet50."""

from __future__ import annotations

from collections.abc import Sequence

from wae_kernels.nn import Encoder

from .around import wae_around
from .classifier import WAEClassifier


def wae_resnet50(
    classes: int = 1000,
    encoder: Encoder | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> WAEClassifier:
    """WAE-ResNet50 with random weights, for images of any size.

    ``low_body`` is torchvision's ResNet50 without ``fc``, whose weights can be loaded into it. ``high_body``
    has a quarter of its channels. Both end in global average pooling, with 2048 and 512 features.

    Args:
        classes: the number of scores.
        encoder: a trained encoder; None for a random one.
        image_scale, image_shift: see :class:`WAEClassifier`. By default the image is not changed.
    """
    return wae_around(
        "resnet50", classes=classes, encoder=encoder, image_scale=image_scale, image_shift=image_shift
    )
