"""The last linear layer of a classifier, which makes the scores: finding, removing and replacing it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from wae.difference import relative_difference
from wae.wording import first_line

from .evaluating import evaluating

_EQUAL = 1e-4  # the largest relative difference between the scores of a network and of its two parts


def split_last_linear(network: nn.Module, size: tuple[int, int]) -> tuple[nn.Module, nn.Linear]:
    """The body and the last linear layer of ``network``, which make up the network.

    ``network`` itself is changed: it becomes the body. Raises ValueError as :func:`last_linear` does.
    """
    name = last_linear(network, size)
    linear = network.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    network.set_submodule(name, nn.Identity().train(linear.training))
    return network, linear


def last_linear(network: nn.Module, size: tuple[int, int]) -> str:
    """The name of the linear layer that makes the scores, which need not be the last one that is defined.

    Args:
        network: (N, 3, h, w) to (N, classes).
        size: (h, w) of an image that it takes.

    Raises:
        ValueError: see :func:`example_scores`; or ``network`` does not end in a linear layer.
    """
    scores = example_scores(network, size)
    image = _image(network, size)
    with evaluating(network):
        for name, linear in reversed(_linear_layers(network)):
            network.set_submodule(name, nn.Identity().eval())
            try:
                if _makes_scores(network, linear, image, scores):
                    return name
            finally:
                network.set_submodule(name, linear)
    raise ValueError(f"{type(network).__name__} must end in a torch.nn.Linear, after pooled features (N, C)")


def example_scores(network: nn.Module, size: tuple[int, int]) -> Tensor:
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
        ValueError: see :func:`last_linear`.
    """
    network = copy.deepcopy(network)
    name = last_linear(network, size)
    linear = network.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    new = nn.Linear(linear.in_features, classes).to(linear.weight).train(linear.training)
    network.set_submodule(name, new)
    return network, new


def _linear_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of ``network`` with their names, in the order in which they are defined."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def _makes_scores(body: nn.Module, linear: nn.Linear, image: Tensor, scores: Tensor) -> bool:
    """Whether ``linear``, applied to the output of ``body`` for ``image``, gives ``scores``."""
    try:
        with torch.no_grad():
            found = linear(body(image.clone()))  # cloned because a network may change its input
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
