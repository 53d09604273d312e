"""The loss that a stage minimises, and the parameters that it trains (docs/network.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.data.input import luma
from wae.models.autoencoder import AutoEncoder
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import WAESegmenter, doubled, pixel_scores
from wae_kernels.checks import half_size
from wae_kernels.reference import normalize_image

from .losses import cross_entropy, mimic_loss, transform_loss
from .plan import Stage


class Objective(nn.Module):
    """A model and the loss of one stage: the module that is trained, on one process or many.

    Args:
        model: a :class:`WAENetwork`; for a stage of kind ``classifier`` any network that scores images or
            pixels; for one of kind ``transform`` also an :class:`AutoEncoder`.
        stage: defines the loss.
        teacher: a network in evaluation mode to distil from, for ``stage.mimic_weight``.
        weights: the weight of each class in the cross entropy, (classes,); None for equal weights.

    Raises:
        ValueError: the model does not fit the stage, or a teacher is missing.
    """

    weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        teacher: nn.Module | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        check(model, stage, teacher)
        self.model = model
        self.stage = stage
        self.teacher = [teacher]  # in a list, so that its parameters are not this module's
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, images: Tensor, labels: Tensor, whole: float | None = None) -> dict[str, Tensor]:
        """The losses by name, scalars. ``loss`` is the one to minimise.

        Args:
            images: (N, 3, H, W), uint8 or floating point.
            labels: (N,) int64, or (N, H, W) if the model scores pixels.
            whole: what the sum of cross entropies is divided by: see
                :func:`wae.training.losses.cross_entropy`.
        """
        stage, model = self.stage, self.model
        if not isinstance(model, (WAENetwork, AutoEncoder)):
            with _others_caught(model) as others:
                losses = self._classification(model(images), images, labels, whole)
            return self._with_others(losses, others, labels, whole)
        low, high = model.decompose(images)
        transform = self._transform(model, images, low, high) if _transforms(stage) else {}
        if stage.kind == "transform":
            return {"loss": transform["transform"], **transform}
        with _others_caught(model) as others:
            low_scores, scores = _both_scores(model, low, high, images.shape[2:])
        losses = self._classification(scores, images, labels, whole)
        losses = self._with_others(losses, others, labels, whole)
        loss = losses.pop("loss")
        if stage.low_weight:
            losses["low cross entropy"] = self._cross_entropy(_of_size(low_scores, labels), labels, whole)
            loss = loss + stage.low_weight * losses["low cross entropy"]
        if transform:
            loss = loss + stage.transform_weight * transform["transform"]
        return {"loss": loss, **losses, **transform}

    def _with_others(
        self,
        losses: dict[str, Tensor],
        others: Mapping[str, tuple[float, Tensor]],
        labels: Tensor,
        whole: float | None,
    ) -> dict[str, Tensor]:
        """``losses`` with those of the auxiliary scores added, multiplied by their weights."""
        for name, (weight, scores) in others.items():
            entropy = self._cross_entropy(_of_size(scores, labels), labels, whole)
            losses = {**losses, f"{name} cross entropy": entropy, "loss": losses["loss"] + weight * entropy}
        return losses

    def _cross_entropy(self, scores: Tensor, labels: Tensor, whole: float | None) -> Tensor:
        return cross_entropy(scores, labels, self.weights, self.stage.label_smoothing, whole)

    def _transform(
        self, model: WAENetwork | AutoEncoder, images: Tensor, low: Tensor, high: Tensor
    ) -> dict[str, Tensor]:
        assert model.decoder is not None
        decoded = model.decoder(low, high, images.shape[2:])
        # In 16 bits its rounding would be as large as the errors of a good reconstruction.
        exact = torch.promote_types(decoded.dtype, torch.float32)
        wanted = normalize_image(images, exact, model.image_scale, model.image_shift)
        losses = transform_loss(decoded, wanted, high, self.stage.energy_weight)
        return {"transform": losses.total, "reconstruction": losses.reconstruction, "energy": losses.energy}

    def _classification(
        self, scores: Tensor, images: Tensor, labels: Tensor, whole: float | None
    ) -> dict[str, Tensor]:
        stage, (teacher,) = self.stage, self.teacher
        entropy = self._cross_entropy(scores, labels, whole)
        if teacher is None or not stage.mimic_weight:
            return {"loss": entropy, "cross entropy": entropy}
        wanted = _teacher_scores(teacher, images, stage.mimic_mirrored)
        distance = mimic_loss(scores, wanted, stage.mimic_temperature)
        return {"loss": entropy + stage.mimic_weight * distance, "cross entropy": entropy, "mimic": distance}


@torch.no_grad()
def _teacher_scores(teacher: nn.Module, images: Tensor, mirrored: bool) -> Tensor:
    """The teacher's scores; with ``mirrored`` averaged over the images and their mirror images."""
    scores: Tensor = teacher(images)
    if not mirrored:
        return scores
    others: Tensor = teacher(images.flip(3))
    return (scores + (others.flip(3) if others.dim() == 4 else others)) / 2


def _both_scores(model: nn.Module, low: Tensor, high: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The scores of the network on ``low`` alone and those of the model, for images of ``size`` (H, W)."""
    if isinstance(model, WAEClassifier):
        low_scores, fusion_scores = model.both_scores(*model.features_of(low, high))
        return low_scores, low_scores + fusion_scores
    assert isinstance(model, WAESegmenter)  # the only other kind
    coarse = pixel_scores(model.low_network, model.low_norm(low))
    return coarse, model.fusion(coarse, model.high_body(model.high_norm(high)), size)


@contextmanager
def _others_caught(model: nn.Module) -> Iterator[dict[str, tuple[float, Tensor]]]:
    """In this block the auxiliary scores of networks in ``model`` are collected, with their weights.

    Such a network has the weights in its attribute ``auxiliary`` and returns a dictionary with the same
    names. Of a network inside another one, those of the outer one count, which may have cut off padding.
    """
    caught: dict[str, tuple[float, Tensor]] = {}

    def catch(network: nn.Module, _: Any, result: Any) -> None:
        if isinstance(result, Mapping):
            weights: Mapping[str, float] = network.auxiliary  # type: ignore[assignment]
            caught.update({name: (weight, result[name]) for name, weight in weights.items()})

    networks = [
        module for module in model.modules() if isinstance(getattr(module, "auxiliary", None), Mapping)
    ]
    hooks = [network.register_forward_hook(catch) for network in networks]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def _of_size(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores of pixels, resized to the resolution of their labels; scores of images unchanged."""
    if labels.dim() == 1:
        return scores
    if scores.shape[2:] == half_size(labels):  # those of ``low``, which are not stretched at an odd edge
        return doubled(scores, labels.shape[1:])
    return F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)


@contextmanager
def trained(model: nn.Module, stage: Stage) -> Iterator[dict[str, nn.Parameter]]:
    """In this block only the parameters that ``stage`` trains require gradients; yields these by name."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(before[name] and _is_trained(name, model, stage))
    try:
        yield {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def of_transform(name: str) -> bool:
    """Whether the parameter of a WAENetwork called ``name`` belongs to the encoder or decoder."""
    return name.startswith(("encoder.", "decoder."))


def _is_trained(name: str, model: nn.Module, stage: Stage) -> bool:
    if not isinstance(model, WAENetwork):
        return True
    if stage.kind == "joint":
        return _transforms(stage) or not name.startswith("decoder.")
    return of_transform(name) == (stage.kind == "transform")


def _transforms(stage: Stage) -> bool:
    return stage.kind == "transform" or (stage.kind == "joint" and stage.transform_weight > 0)


class InOrder(nn.Module):
    """``network`` with its scores reordered: score ``i`` is its score ``numbers[i]``."""

    def __init__(self, network: nn.Module, numbers: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, classes), or to (N, classes, H, W)."""
        scores: Tensor = self.network(images)
        return scores[:, self.get_buffer("numbers")]


class OnLuma(nn.Module):
    """``network``, which is for grey images, on the luma of its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, 3, H, W) uint8 to the scores of ``network``."""
        scores: Tensor = self.network(luma(images))
        return scores


def check(model: nn.Module, stage: Stage, teacher: nn.Module | None) -> None:
    """Raise ValueError if ``model`` does not fit ``stage``, or if a ``teacher`` is missing."""
    alone = stage.kind == "transform" and isinstance(model, AutoEncoder)
    if stage.kind != "classifier" and not (alone or isinstance(model, WAENetwork)):
        raise ValueError(f"a stage of kind {stage.kind} needs a WAE network, got {type(model).__name__}")
    if _transforms(stage) and getattr(model, "decoder", None) is None:
        raise ValueError(f"a stage of kind {stage.kind} needs a decoder, but the model has none")
    if stage.low_weight and not isinstance(model, WAENetwork):
        raise ValueError(f"low_weight needs a WAE network, got {type(model).__name__}")
    if stage.mimic_weight and teacher is None:
        raise ValueError("mimic_weight needs a teacher")
