"""WAE around a trained network: its body becomes the low body, its last linear layer the low classifier.

The fusion classifier starts at zero. So before any training the scores are those of the network itself on an
image of half the size, provided that ``low`` is such an image.
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

_EQUAL = 1e-4  # the largest relative difference between the scores of a network and of its two parts


@dataclass(frozen=True)
class Form:
    """What the name of an accelerated network leaves open. Raises ValueError for an entry out of range."""

    size: int
    """Height and width of its images in pixels, 2 to 2048; the bodies see half of each."""
    factor: int = 4
    """By what the channels of the high body are divided, 1 to 64: see
    :func:`wae.models.light_cnn.high_body`."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 2, 2048), ("factor", 1, 64)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {shown(value)}")

    @property
    def half(self) -> tuple[int, int]:
        """(h, w) of ``low`` and ``high`` in pixels."""
        return (half_of(self.size),) * 2


def accelerated(network: nn.Module, form: Form) -> WAEClassifier:
    """WAE around a copy of ``network``, with a decoder and a random encoder.

    The result has the dtype and the device of the network's last layer, and the network's mode, training or
    evaluation.

    Args:
        network: a classifier that ends in a linear layer, (N, 3, H, W) to (N, classes).
        form: the size of the images and the factor of the high body.

    Raises:
        ValueError: the network does not run on images of half the size, or does not end in a linear layer.
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
    """The body and the last linear layer of ``network``, which make up the network.

    ``network`` itself is changed: it becomes the body. Raises ValueError as :func:`last_matrix` does.
    """
    name = last_matrix(network, size)
    matrix = network.get_submodule(name)
    assert isinstance(matrix, nn.Linear)
    network.set_submodule(name, nn.Identity().train(matrix.training))
    return network, matrix


def last_matrix(network: nn.Module, size: tuple[int, int]) -> str:
    """The name of the linear layer that makes the scores, which need not be the last one that is defined.

    Args:
        network: (N, 3, h, w) to (N, classes).
        size: (h, w) of an image that it takes.

    Raises:
        ValueError: see :func:`scores_of_one`; or ``network`` does not end in a linear layer.
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
    """The scores, (1, classes), of an example image of ``size`` (h, w), the same in every call.

    Raises:
        ValueError: ``network`` does not take such an image, or does not return such scores, all finite.
    """
    try:
        with torch.no_grad(), evaluating(network):
            scores: Tensor = network(_image(network, size))
    except Exception as error:  # the network's own code may raise anything
        why = first_line(error)
        raise ValueError(f"the network takes no images of {size[0]} x {size[1]}: {why}") from error
    _check_scores(network, scores)
    return scores


def _check_scores(network: nn.Module, scores: object) -> None:
    """Raise ValueError unless ``scores`` of an image are (1, classes), finite."""
    name = type(network).__name__
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{name} must return scores (N, classes), got {got}")
    if not (scores.is_meta or bool(scores.isfinite().all())):
        raise ValueError(f"{name} must return finite scores, got some that are not")


def with_classes(network: nn.Module, classes: int, size: tuple[int, int]) -> tuple[nn.Module, nn.Linear]:
    """A copy of ``network`` whose last linear layer is replaced by a random one for ``classes`` scores.

    Args:
        network: (N, 3, h, w) to scores.
        classes: the number of scores.
        size: (h, w) of an image that it takes.

    Returns:
        The copy, and its new last layer.

    Raises:
        ValueError: see :func:`last_matrix`.
    """
    network = copy.deepcopy(network)
    name = last_matrix(network, size)
    matrix = network.get_submodule(name)
    assert isinstance(matrix, nn.Linear)
    new = nn.Linear(matrix.in_features, classes).to(matrix.weight).train(matrix.training)
    network.set_submodule(name, new)
    return network, new


def _matrices(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of ``network``, by name, the last one first."""
    named = list(network.named_modules())
    yield from ((name, module) for name, module in reversed(named) if isinstance(module, nn.Linear))


def _is_rest(body: nn.Module, matrix: nn.Linear, image: Tensor, scores: Tensor) -> bool:
    """Whether ``matrix``, applied to the output of ``body`` for ``image``, gives ``scores``."""
    try:
        with torch.no_grad():
            found = matrix(body(image.clone()))  # cloned because a network may change its input
    except Exception:  # the network's own code may raise anything if a layer in its middle is missing
        return False
    if not isinstance(found, Tensor) or found.dim() != 2 or found.shape != scores.shape:
        return False
    return found.is_meta or relative_difference(found, scores) <= _EQUAL


def _image(network: nn.Module, size: tuple[int, int]) -> Tensor:
    """An example image, (1, 3, h, w), in the network's dtype and on its device; the same in every call."""
    like = next(network.parameters(), torch.empty(0))
    numbers = torch.linspace(-1, 1, 3 * size[0] * size[1]).sin_().reshape(1, 3, *size)
    return numbers.to(like)


def _with_bias(matrix: nn.Linear) -> dict[str, Tensor]:
    weight, bias = matrix.weight, getattr(matrix, "bias", None)  # a state_dict splits parametrised ones
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


@torch.no_grad()
def show_small_image(model: WAENetwork, images: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Set the normalisation of ``low`` so that the low network sees the small image that it was trained on.

    ``low`` is assumed to be a small image in other units. A gain and an offset for each colour are fitted, by
    least squares, so that they map ``low`` to the means of the 2 x 2 blocks of ``images * scale + shift``.
    The normalisation of ``high`` gets the statistics of ``high`` on ``images``.

    Args:
        model: the network whose two normalisations are set.
        images: (N, 3, H, W) uint8.
        scale, shift: those of the original network, (3,) each.

    Raises:
        ValueError: ``low`` is no small image: a colour is not positively correlated with it.
    """
    low, high = (part.double() for part in model.decompose(images))
    wanted = images.double() * scale.double().view(1, 3, 1, 1) + shift.double().view(1, 3, 1, 1)
    small = F.avg_pool2d(wanted, 2, ceil_mode=True)
    mean, centre = (x.mean((0, 2, 3), keepdim=True) for x in (low, small))
    covariance, variance = ((low - mean) * x for x in (small - centre, low - mean))
    gain = covariance.sum((0, 2, 3)) / variance.sum((0, 2, 3)).clamp_min(1e-30)
    if not bool((gain > 0).all()):
        raise ValueError("the auto-encoder's low is not a small image in the same colours")
    for norm, average, variance in (
        (model.low_norm, mean.flatten() - centre.flatten() / gain, gain.square().reciprocal()),
        (model.high_norm, high.mean((0, 2, 3)), high.var((0, 2, 3))),
    ):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(average)
        norm.running_var.copy_(variance - norm.eps * (norm is model.low_norm))
