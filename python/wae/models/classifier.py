"""The classifier around two bodies, for any body (docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae.wording import counted
from wae_kernels.nn import Decoder, Encoder

from .haar import Haar
from .network import SideBySide, WAENetwork
from .network import fold_normalization as fold_normalization


class _TwoBodies(SideBySide):
    """Everything behind the encoder, for the two modules below that have these parts."""

    low_norm: nn.Module
    high_norm: nn.Module
    low_body: nn.Module
    high_body: nn.Module
    low_classifier: nn.Module
    fusion_classifier: nn.Module

    def scores(self, low: Tensor, high: Tensor) -> Tensor:
        """The scores, (N, classes), of an image's ``low`` and ``high`` as the encoder gives them."""
        return self.classify(*self.features_of(low, high))

    def classify(self, low_features: Tensor, high_features: Tensor) -> Tensor:
        """The scores, (N, classes), of what the two bodies make of ``low`` and ``high``."""
        low_scores, fusion_scores = self.both_scores(low_features, high_features)
        return low_scores + fusion_scores

    def both_scores(self, low_features: Tensor, high_features: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the low classifier and of the fusion classifier, whose sum counts."""
        fused = torch.cat((low_features, high_features), dim=1)
        return self.low_classifier(low_features), self.fusion_classifier(fused)

    def features_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The two bodies' features of an image's ``low`` and ``high`` as the encoder gives them."""
        return self.both(
            lambda: self.low_body(self.low_norm(low)), lambda: self.high_body(self.high_norm(high))
        )


class WAEClassifier(_TwoBodies, WAENetwork):
    """A classifier of ``low`` and ``high`` instead of the image: scores are the sum of two classifiers.

    ::

        image -> encoder -> low  -> norm -> low_body  -> features -> low_classifier --------+-> scores
                         -> high -> norm -> high_body -> features -> fusion_classifier -----+
                                                          (of both)

    Args:
        encoder, image_scale, image_shift, decoder: see :class:`WAENetwork`.
        low_body: an unchanged standard network without its classifier: (N, 3, h, w) to (N, C, ...).
        high_body: a light one: (N, 3, h, w) to (N, D, ...), the dots as for ``low_body``.
        low_classifier: (N, C, ...) to (N, classes).
        fusion_classifier: (N, C + D, ...) to (N, classes).
    """

    bodies = ("low_body", "high_body")

    def __init__(
        self,
        encoder: Encoder | Haar,
        low_body: nn.Module,
        high_body: nn.Module,
        low_classifier: nn.Module,
        fusion_classifier: nn.Module,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(encoder, image_scale, image_shift, decoder)
        self.low_body = low_body
        self.high_body = high_body
        self.low_classifier = low_classifier
        self.fusion_classifier = fusion_classifier

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes), of ``image``: (N, 3, H, W), uint8 or the parameters' dtype."""
        return self.scores(*self.decompose(image))

    def behind_encoder(self, size: Sequence[int]) -> BehindEncoder:
        """See :class:`WAENetwork`; ``size`` does not matter."""
        return BehindEncoder(self)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low_features, high_features)`` of ``image``, (N, C, ...) and (N, D, ...)."""
        return self.features_of(*self.decompose(image))


class BehindEncoder(_TwoBodies):
    """``model`` from ``low`` and ``high`` on, with the same modules: what an inference engine runs.

    Args:
        model: whose parts these are.
    """

    def __init__(self, model: WAEClassifier) -> None:
        super().__init__()
        self.low_norm, self.high_norm = model.low_norm, model.high_norm
        self.low_body, self.high_body = model.low_body, model.high_body
        self.low_classifier, self.fusion_classifier = model.low_classifier, model.fusion_classifier

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """The scores, (N, classes)."""
        return self.scores(low, high)


class FlatClassifier(nn.Sequential):
    """FC, ReLU, dropout .5, FC, ReLU, dropout .5, FC on flattened features: VGG's form of a classifier.

    Args:
        features: numbers per image.
        width: of the two hidden layers.
        classes: of the result.
    """

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__(
            nn.Linear(features, width),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(width, classes),
        )
        self.features = features

    def forward(self, features: Tensor) -> Tensor:
        """The scores, (N, classes), of features (N, C, h, w) with C * h * w as given to the constructor.

        Raises ValueError where they are not: then the image has a size the classifier was not made for.
        """
        flat = features.flatten(1)
        if flat.shape[1] != self.features:
            raise ValueError(
                f"the classifier takes {counted(self.features, 'feature')} per image, got {flat.shape[1]} "
                f"({' x '.join(str(size) for size in features.shape[1:])}): the image's size does not fit"
            )
        scores: Tensor = super().forward(flat)
        return scores
