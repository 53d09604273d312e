"""WAE around a trained network: its body becomes the low body, its last matrix the low classifier.

Before any training the scores are those of the network itself on an image of half the size, where ``low`` is
one: the fusion classifier begins at zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.difference import relative_difference
from wae.wording import first_line, shown
from wae_kernels.checks import half_of
from wae_kernels.nn import Decoder, Encoder

from .around import PooledClassifier
from .bodies import feature_channels
from .classifier import WAEClassifier
from .evaluating import evaluating, in_the_mode_of
from .light_cnn import high_body
from .network import WAENetwork
from .positions import fit_to

_EQUAL = 1e-4  # relative, of the scores of a network and of its two parts


@dataclass(frozen=True)
class Form:
    """An accelerated network's form beyond its name. Raises ValueError where an entry is not usable."""

    size: int
    """Height and width of its images in pixels; the bodies see half."""
    factor: int = 4
    """Of the light body: see :func:`wae.models.light_cnn.high_body`."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 2, 2048), ("factor", 1, 64)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {shown(value)}")

    @property
    def half(self) -> tuple[int, int]:
        """Height and width of ``low`` and ``high``."""
        return (half_of(self.size),) * 2


def accelerated(network: nn.Module, form: Form) -> WAEClassifier:
    """WAE around a copy of ``network``, (N, 3, H, W) to scores, with a decoder and a random encoder.

    It is in the mode of ``network``, training or evaluation.

    Raises ValueError where the network takes no images of half the size, or does not end in a matrix.
    """
    body, matrix = split(fit_to(copy.deepcopy(network), form.half), form.half)
    light = high_body(body, form.factor, form.half)
    classes, features = matrix.weight.shape
    low_classifier = PooledClassifier(features, classes)
    low_classifier.load_state_dict(_with_bias(matrix))
    fusion_classifier = PooledClassifier(features + feature_channels(light, form.half), classes)
    nn.init.zeros_(fusion_classifier.weight)
    nn.init.zeros_(fusion_classifier.bias)
    like = matrix.weight
    model = WAEClassifier(
        Encoder().to(like),
        body,
        light,
        low_classifier.to(like),
        fusion_classifier.to(like),
        decoder=Decoder().to(like),
    )
    return in_the_mode_of(body, model)


def split(network: nn.Module, size: tuple[int, int]) -> tuple[nn.Module, nn.Linear]:
    """The body and the last matrix of ``network``: one behind the other they are the network.

    Changes ``network``: it becomes the body. Raises ValueError as :func:`last_matrix` does.
    """
    name = last_matrix(network, size)
    matrix = network.get_submodule(name)
    assert isinstance(matrix, nn.Linear)
    network.set_submodule(name, nn.Identity().train(matrix.training))
    return network, matrix


def last_matrix(network: nn.Module, size: tuple[int, int]) -> str:
    """The name of the matrix that makes the scores: it need not be the last one that is defined.

    Raises ValueError as :func:`scores_of_one` does, and where ``network`` does not end in a matrix.
    """
    scores = scores_of_one(network, size)
    image = _image(network, size)
    with evaluating(network):
        for name, matrix in list(_matrices(network)):
            network.set_submodule(name, nn.Identity().eval())
            try:
                if _is_rest(network, matrix, image, scores):
                    return name
            finally:
                network.set_submodule(name, matrix)
    raise ValueError(f"{type(network).__name__} must end in a torch.nn.Linear, after pooled features (N, C)")


def scores_of_one(network: nn.Module, size: tuple[int, int]) -> Tensor:
    """The scores, (1, classes), of an image of ``size`` (h, w), the same each time.

    Raises ValueError where ``network`` takes no such images, or does not give such scores.
    """
    try:
        with torch.no_grad(), evaluating(network):
            scores: Tensor = network(_image(network, size))
    except Exception as error:  # any that the network's own code raises
        why = first_line(error)
        raise ValueError(f"the network takes no images of {size[0]} x {size[1]}: {why}") from error
    _check_scores(network, scores)
    return scores


def _check_scores(network: nn.Module, scores: object) -> None:
    """Raise ValueError unless ``scores`` of an image are (1, classes), finite."""
    name = type(network).__name__
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{name} must give scores (N, classes) of images, got {got}")
    if not (scores.is_meta or bool(scores.isfinite().all())):
        raise ValueError(f"{name} must give finite scores, got some of an image that are not")


def with_classes(network: nn.Module, classes: int, size: tuple[int, int]) -> tuple[nn.Module, nn.Linear]:
    """A copy of ``network`` that ends in a random matrix for so many classes; and that matrix.

    Raises ValueError as :func:`last_matrix` does.
    """
    network = copy.deepcopy(network)
    name = last_matrix(network, size)
    matrix = network.get_submodule(name)
    assert isinstance(matrix, nn.Linear)
    new = nn.Linear(matrix.in_features, classes).to(matrix.weight).train(matrix.training)
    network.set_submodule(name, new)
    return network, new


def _matrices(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """By their names, the last first."""
    named = list(network.named_modules())
    yield from ((name, module) for name, module in reversed(named) if isinstance(module, nn.Linear))


def _is_rest(body: nn.Module, matrix: nn.Linear, image: Tensor, scores: Tensor) -> bool:
    """Whether ``matrix`` makes ``scores`` of what ``body`` makes of ``image``."""
    try:
        with torch.no_grad():
            found = matrix(body(image))
    except Exception:  # any that the network's own code raises where a matrix in its middle is gone
        return False
    if not isinstance(found, Tensor) or found.dim() != 2 or found.shape != scores.shape:
        return False
    return found.is_meta or relative_difference(found, scores) <= _EQUAL


def _image(network: nn.Module, size: tuple[int, int]) -> Tensor:
    """The same each time; of the network's dtype and device."""
    like = next(network.parameters(), torch.empty(0))
    numbers = torch.linspace(-1, 1, 3 * size[0] * size[1]).sin_().reshape(1, 3, *size)
    return numbers.to(like)


def _with_bias(matrix: nn.Linear) -> dict[str, Tensor]:
    weight, bias = matrix.weight, getattr(matrix, "bias", None)  # in a state parametrised ones are in parts
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


@torch.no_grad()
def show_small_image(model: WAENetwork, images: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Set the normalisation of ``low`` so that the network on it gets the small image that it was trained on.

    ``low`` is taken to be a small image in other units: of each colour the gain and offset are those that
    make it, in the least squares, the mean of each 2 x 2 block of ``images * scale + shift``. That of
    ``high`` is what it is on ``images``.

    Args:
        model: whose two normalisations are set.
        images: (N, 3, H, W) uint8.
        scale, shift: of the original network, (3,) each.

    Raises ValueError where ``low`` is no small image: it has nothing in common with one.
    """
    low, high = (part.double() for part in model.decompose(images))
    wanted = images.double() * scale.double().view(1, 3, 1, 1) + shift.double().view(1, 3, 1, 1)
    small = F.avg_pool2d(wanted, 2, ceil_mode=True)
    mean, centre = (x.mean((0, 2, 3), keepdim=True) for x in (low, small))
    covariance, variance = ((low - mean) * x for x in (small - centre, low - mean))
    gain = covariance.sum((0, 2, 3)) / variance.sum((0, 2, 3)).clamp_min(1e-30)
    if not bool((gain > 0).all()):
        raise ValueError("the auto-encoder's low is no small image of the same colours")
    for norm, average, variance in (
        (model.low_norm, mean.flatten() - centre.flatten() / gain, gain.square().reciprocal()),
        (model.high_norm, high.mean((0, 2, 3)), high.var((0, 2, 3))),
    ):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(average)
        norm.running_var.copy_(variance - norm.eps * (norm is model.low_norm))
