"""The classifier around two bodies, for any body; and its form for inference (docs/network.md)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae_kernels.nn import Decoder, Encoder

from .autoencoder import reconstruct
from .haar import Haar


class _TwoBodies(nn.Module):
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
        """What the two bodies make of an image's ``low`` and ``high`` as the encoder gives them."""
        return self.low_body(self.low_norm(low)), self.high_body(self.high_norm(high))


class WAEClassifier(_TwoBodies):
    """A classifier of ``low`` and ``high`` instead of the image: scores are the sum of two classifiers.

    ::

        image -> encoder -> low  -> norm -> low_body  -> features -> low_classifier --------+-> scores
                         -> high -> norm -> high_body -> features -> fusion_classifier -----+
                                                          (of both)

    Args:
        encoder: splits the image. Its convolutions ``low`` and ``high`` make the two parts.
        low_body: an unchanged standard network without its classifier: (N, 3, h, w) to (N, C, ...).
        high_body: a light one: (N, 3, h, w) to (N, D, ...), the dots as for ``low_body``.
        low_classifier: (N, C, ...) to (N, classes).
        fusion_classifier: (N, C + D, ...) to (N, classes).
        image_scale, image_shift: three numbers each; the image becomes ``image * scale + shift`` first.
        decoder: the encoder's, for :meth:`reconstruct`; None where nothing is to be reconstructed.
    """

    image_scale: Tensor
    image_shift: Tensor

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
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.low_norm = nn.BatchNorm2d(encoder.low.out_channels, affine=False)
        self.high_norm = nn.BatchNorm2d(encoder.high.out_channels, affine=False)
        self.low_body = low_body
        self.high_body = high_body
        self.low_classifier = low_classifier
        self.fusion_classifier = fusion_classifier
        self.register_buffer("image_scale", torch.tensor(image_scale))
        self.register_buffer("image_shift", torch.tensor(image_shift))

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes), of ``image``: (N, 3, H, W), uint8 or the parameters' dtype."""
        return self.scores(*self.decompose(image))

    def decompose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of ``image``, as the encoder makes them: before the two normalisations, unless
        :func:`fold_normalization` has put these into the encoder.

        Both are (N, 3, ceil(H/2), ceil(W/2)). Raises RuntimeError for anything that
        :func:`wae_kernels.encode` refuses.
        """
        low, high = self.encoder(image, self.image_scale, self.image_shift)
        return low, high

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low_features, high_features)`` of ``image``, (N, C, ...) and (N, D, ...)."""
        return self.features_of(*self.decompose(image))

    def reconstruct(self, low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
        """The image of ``size`` (H, W) that ``low`` and ``high`` came from, with scale and shift undone.

        Raises RuntimeError without a decoder, and for anything that :func:`wae_kernels.decode` refuses.
        """
        if self.decoder is None:
            raise RuntimeError("the model has no decoder: give WAEClassifier one, or set model.decoder")
        return reconstruct(self.decoder, low, high, size, self.image_scale, self.image_shift)


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
        """The scores, (N, classes), of features (N, C, h, w) with C * h * w as the constructor was told.

        Raises ValueError where they are not: then the image has a size the classifier was not made for.
        """
        flat = features.flatten(1)
        if flat.shape[1] != self.features:
            raise ValueError(
                f"the classifier takes {self.features} features per image, got {flat.shape[1]} "
                f"({' x '.join(str(size) for size in features.shape[1:])}): the image's size does not fit"
            )
        scores: Tensor = super().forward(flat)
        return scores


def fold_normalization(model: WAEClassifier) -> WAEClassifier:
    """A copy of ``model`` for inference, its two normalisations folded into the encoder's branches.

    The scores are those of ``model.eval()``, up to rounding; two passes over ``low`` and ``high`` are saved.
    The copy has no decoder: one that was trained with the encoder reads them before the normalisation.
    """
    folded = copy.deepcopy(model).eval()
    folded.decoder = None
    for branch, name in ((folded.encoder.low, "low_norm"), (folded.encoder.high, "high_norm")):
        norm = getattr(folded, name)
        if isinstance(norm, nn.BatchNorm2d):
            _fold(norm, branch)
            setattr(folded, name, nn.Identity().eval())
    return folded


@torch.no_grad()
def _fold(norm: nn.BatchNorm2d, branch: nn.Conv2d) -> None:
    """Make ``branch`` compute ``norm(branch(x))``. In float64, so that only the result is rounded."""
    assert branch.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    branch.weight.copy_(branch.weight.double() * factor.view(-1, 1, 1, 1))
    branch.bias.copy_((branch.bias.double() - norm.running_mean.double()) * factor)
