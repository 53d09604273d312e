"""WAE around any body, with pooled features and a linear layer for each classifier (docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae_kernels.nn import Decoder, Encoder

from .bodies import feature_shape, standard_body
from .classifier import WAEClassifier
from .evaluating import in_the_mode_of
from .haar import Haar
from .light_cnn import high_body as light_beside
from .network import check_classes, check_is_like
from .positions import fit_to


class PooledClassifier(nn.Linear):
    """A linear layer behind global average pooling, which is skipped if the features are pooled already.

    Args:
        features: the number of channels of the features.
        classes: the number of scores.
    """

    def __init__(self, features: int, classes: int) -> None:
        check_classes(classes)
        super().__init__(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """The scores, (N, classes), from ``features``, (N, C) or (N, C, ...)."""
        return super().forward(features.flatten(2).mean(2) if features.dim() > 2 else features)


def wae_around(
    low_body: nn.Module | str,
    high_body: nn.Module | None = None,
    classes: int = 1000,
    encoder: Encoder | Haar | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
    decoder: Decoder | None = None,
    size: tuple[int, int] = (112, 112),
) -> WAEClassifier:
    """WAE around a body that maps (N, 3, h, w) to features (N, C, ...).

    The new parts have the dtype and the device of ``low_body``. The result has its mode, training or
    evaluation. For bodies with other features use :class:`WAEClassifier` directly.

    Args:
        low_body: a standard network without its classifier, used as it is; or the name of one, which gets
            random weights: see :func:`wae.models.bodies.standard_body`. The position table of a named network
            is made for ``size``.
        high_body: a light body, used as it is. None for ``low_body`` with a quarter of the channels, or for a
            light CNN if that is not defined: see :func:`wae.models.light_cnn.high_body`.
        classes: the number of scores.
        encoder: a trained encoder; None for a random one.
        image_scale, image_shift, decoder: see :class:`WAEClassifier`.
        size: (h, w) of ``low`` and ``high`` in pixels, half the size of the images.

    Raises:
        ValueError: a body does not run on images of ``size``, or the bodies' features differ in more than
            channels; there is no network of that name; ``high_body``, ``encoder`` or ``decoder`` has another
            dtype or device than ``low_body``; ``classes`` is below 1; or ``image_scale`` or ``image_shift``
            is not three numbers.
        ModuleNotFoundError: torchvision has no network of that name, and timm is not installed.
    """
    if isinstance(low_body, str):
        low_body = fit_to(standard_body(low_body), size)
    like = next(low_body.parameters(), torch.empty(0))
    for name, part in (("high_body", high_body), ("encoder", encoder), ("decoder", decoder)):
        check_is_like(name, part, like)
    given = [] if high_body is None else [high_body]
    if high_body is None:
        high_body = light_beside(low_body, 4, size)
    _, low_features, *sizes = feature_shape(low_body, size)
    _, high_features, *others = feature_shape(high_body, size)
    if others != sizes:
        raise ValueError(f"high_body must return features of the sizes {sizes} of low_body's, got {others}")
    model = WAEClassifier(
        Encoder().to(like) if encoder is None else encoder,
        low_body,
        high_body,
        PooledClassifier(low_features, classes).to(like),
        PooledClassifier(low_features + high_features, classes).to(like),
        image_scale,
        image_shift,
        decoder,
    )
    return in_the_mode_of(low_body, model, *given)
