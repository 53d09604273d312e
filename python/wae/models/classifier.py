"""The WAE classifier, for any two bodies (docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae.wording import counted
from wae_kernels.nn import Decoder, Encoder

from .haar import Haar
from .network import SideBySide, WAENetwork, check_classes
from .network import fold_normalization as fold_normalization


class _TwoBodies(SideBySide):
    """Everything behind the encoder, shared by the two classes below, which have these parts."""

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
        """The scores, (N, classes), from the two bodies' features of ``low`` and ``high``."""
        low_scores, fusion_scores = self.both_scores(low_features, high_features)
        return low_scores + fusion_scores

    def both_scores(self, low_features: Tensor, high_features: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the low classifier and of the fusion classifier, (N, classes) each.

        Their sum is the network's scores.
        """
        fused = torch.cat((low_features, high_features), dim=1)
        return self.low_classifier(low_features), self.fusion_classifier(fused)

    def features_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The two bodies' features of an image's ``low`` and ``high`` as the encoder gives them."""
        return self.both(
            lambda: self.low_body(self.low_norm(low)), lambda: self.high_body(self.high_norm(high))
        )


class WAEClassifier(_TwoBodies, WAENetwork):
    """A classifier of ``low`` and ``high`` instead of the image. Its scores are the sum of two classifiers'.

    ::

        image -> encoder -> low  -> norm -> low_body  -> features -> low_classifier --------+-> scores
                         -> high -> norm -> high_body -> features -> fusion_classifier -----+
                                                          (of both)

    Args:
        encoder, image_scale, image_shift, decoder: see :class:`WAENetwork`.
        low_body: a standard network without its classifier; maps (N, 3, h, w) to (N, C, ...).
        high_body: a light body; maps (N, 3, h, w) to (N, D, ...), with the other sizes of ``low_body``.
        low_classifier: maps (N, C, ...) to (N, classes).
        fusion_classifier: maps (N, C + D, ...) to (N, classes).
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
        """See :class:`WAENetwork`; ``size`` makes no difference."""
        return BehindEncoder(self)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low_features, high_features)`` of ``image``, (N, C, ...) and (N, D, ...)."""
        return self.features_of(*self.decompose(image))


class BehindEncoder(_TwoBodies):
    """The part of ``model`` behind the encoder, with the same modules: what an inference engine runs.

    Args:
        model: the network whose parts it uses.
    """

    def __init__(self, model: WAEClassifier) -> None:
        super().__init__()
        self.low_norm, self.high_norm = model.low_norm, model.high_norm
        self.low_body, self.high_body = model.low_body, model.high_body
        self.low_classifier, self.fusion_classifier = model.low_classifier, model.fusion_classifier

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """The scores, (N, classes), of ``low`` and ``high``, (N, 3, h, w) each."""
        return self.scores(low, high)


class FlatClassifier(nn.Sequential):
    """VGG's classifier on flattened features: FC, ReLU, dropout .5, FC, ReLU, dropout .5, FC.

    Args:
        features: the number of features of an image.
        width: the width of the two hidden layers.
        classes: the number of scores.
    """

    def __init__(self, features: int, width: int, classes: int) -> None:
        check_classes(classes)
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
        """The scores, (N, classes), from ``features``, (N, C, h, w).

        Raises ValueError if C * h * w is not the constructor's ``features``: the image then has a size for
        which the classifier was not made.
        """
        flat = features.flatten(1)
        if flat.shape[1] != self.features:
            raise ValueError(
                f"the classifier takes {counted(self.features, 'feature')} per image, got {flat.shape[1]} "
                f"({' x '.join(str(size) for size in features.shape[1:])}): the image's size does not fit"
            )
        scores: Tensor = super().forward(flat)
        return scores
