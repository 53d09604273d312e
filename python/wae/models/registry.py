"""All networks by name, as ``wae train``, ``wae info`` and checkpoints use them.

Besides those in :data:`NETWORKS` there are five forms of each classifier NAME of torchvision, or else timm:

- ``NAME``: the network itself, on images with values 0..255,
- ``NAME_half``: at half the resolution,
- ``NAME_at_SIDE``: on images scaled to SIDE x SIDE,
- ``wae_NAME``: WAE around it,
- ``wavelet_NAME``: the same with the Haar transform in place of the encoder.

Segmentation networks (:mod:`wae.models.segmentation.networks`) have three forms: ``NAME``, ``NAME_half`` and
``wae_NAME``.

``python -m wae.models.registry`` prints the costs of the networks in :data:`COMPARED`;
``python -m wae.models.registry NAME ...`` those of the bodies of these networks and of WAE around them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from torch import nn

from wae.errors import UsageError
from wae.wording import amount
from wae_kernels.checks import half_of
from wae_kernels.nn import Encoder

from .accelerated import Form, accelerated
from .around import wae_around
from .autoencoder import AutoEncoder
from .baselines import AtSize, FullResolution, HalfResolution, vgg16_half, wavelet_cnn
from .bodies import feature_shape, is_timm, is_torchvision, standard_body, standard_network
from .classifier import WAEClassifier
from .counting import count
from .meta import on_meta, without_memory
from .network import check_classes
from .positions import fit_to
from .resnet50 import wae_resnet50
from .segmentation import networks as segmentation
from .small_vgg import (
    SmallVGG,
    small_photo_vgg,
    small_photo_vgg_at,
    small_photo_vgg_half,
    small_vgg_half,
    wae_small_photo_vgg,
    wae_small_vgg,
)
from .vgg16 import wae_vgg16

Builder = Callable[[int], nn.Module]
"""Makes a network with random weights for a number of classes."""


class NetworkError(UsageError):
    """A network is unknown or cannot be built. The message names it and says why."""


def small_vgg(classes: int = 10) -> SmallVGG:
    """The small VGG, at full resolution."""
    return SmallVGG(classes)


NETWORKS: dict[str, Builder] = {
    build.__name__: build
    for build in (
        *(wae_vgg16, wae_resnet50, wae_small_vgg, wae_small_photo_vgg),
        *(small_vgg, small_vgg_half, small_photo_vgg, small_photo_vgg_half, vgg16_half),
    )
}
"""The classifiers that have their own constructor."""

PARTS: dict[str, Callable[[], nn.Module]] = {"encoder": Encoder, "autoencoder": AutoEncoder}
"""Networks that are no classifiers: ``wae train-autoencoder`` trains them."""

COMPARED = (
    *PARTS,
    *("vgg16", "vgg16_half", "wae_vgg16", "wavelet_vgg16"),
    *("resnet50", "resnet50_half", "wae_resnet50", "wavelet_resnet50"),
)
"""The networks of the table in docs/models.md."""

PUBLISHED = {"vgg16": 15.36, "vgg16_half": 3.89, "wae_vgg16": 4.11}
"""Billions of multiply-adds in the paper (docs/network.md). WAE-VGG16's do not include the encoder."""

_CLASSES, _SIDE = 1000, 224
_SMALL = {"small_vgg": (10, 28), "small_photo_vgg": (10, 64)}  # classes and side of all forms of small VGGs


def known() -> str:
    """The names of all networks, for an error."""
    own = ", ".join((*NETWORKS, *PARTS))
    pixels = ", ".join(segmentation.NETWORKS)
    return (
        f"{own}, or NAME, NAME_half, NAME_at_SIDE, wae_NAME or wavelet_NAME of a NAME in torchvision or "
        f"timm; for segmentation NAME, NAME_half or wae_NAME of {pixels}, or of one in torchvision"
    )


def builder(name: str, size: tuple[int, int] = (_SIDE, _SIDE)) -> Builder | None:
    """The constructor of the network called ``name``; None if there is no such network.

    ``size`` is the (H, W) of the images for which ``wae_NAME`` and ``wavelet_NAME`` are made.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    kind, _, base = name.partition("_")
    if kind == "wavelet":
        around = None if segmentation.builder(f"wae_{base}") else builder(f"wae_{base}", size)
        return None if around is None else partial(_wavelet, around)
    if of_pixels := segmentation.builder(name):
        return of_pixels
    forms: list[tuple[str, Callable[[str, int], nn.Module]]] = [
        (name, _full),
        (name.removesuffix("_half"), _half),
        (name.removeprefix("wae_"), partial(_wae, size)),
    ]
    if sized := re.fullmatch(r"([\w.]+)_at_([1-9]\d{0,3})", name):
        stem, side = sized[1], int(sized[2])
        if stem == small_photo_vgg.__name__:
            return partial(small_photo_vgg_at, side)
        forms.append((stem, partial(_at, side)))
    for is_known in (is_torchvision, is_timm):
        for stem, make in forms:
            if is_known(stem):
                return partial(make, stem)
    return None


def check_known(name: str) -> None:
    """Raise NetworkError if there is no network called ``name``."""
    if name not in PARTS and builder(name) is None:
        raise NetworkError(f"there is no network {name}; known are {known()}")


def build(
    name: str,
    classes: int | None = None,
    form: Form | None = None,
    size: tuple[int, int] = (_SIDE, _SIDE),
) -> nn.Module:
    """Build the network called ``name``, with random weights.

    Args:
        name: the name of a classifier or a segmentation network, or a key of :data:`PARTS`.
        classes: the number of scores, at least 1; None for that of the data for which the network was
            published. Ignored for :data:`PARTS`.
        form: for an accelerated ``wae_NAME``: see :func:`wae.models.accelerated.accelerated`.
        size: the (H, W) of the images for which any other ``wae_NAME`` or ``wavelet_NAME`` is made.

    Raises:
        NetworkError: there is no such network, ``classes`` is not usable, or WAE cannot be built around it.
        ModuleNotFoundError: the network needs a package that is not installed.
    """
    check_known(name)
    if name in PARTS:
        return PARTS[name]()
    make = builder(name, size)
    assert make is not None
    try:
        number = _standard(name)[0] if classes is None else classes
        check_classes(number)
        return make(number) if form is None else accelerated(_alone(name.removeprefix("wae_"), number), form)
    except ValueError as error:
        raise NetworkError(f"{name} cannot be built: {error}") from error


def _alone(name: str, classes: int) -> nn.Module:
    """The network in ``NAME``, which takes images that are scaled and shifted already."""
    make = builder(name)
    stock = None if make is None else make(classes)
    if type(stock) is not FullResolution:
        raise ValueError(f"only a network of torchvision or timm can be accelerated by name, got {name}")
    return stock.network


def image_side(name: str) -> int:
    """The height and width in pixels of the images for which the network called ``name`` was published."""
    return _standard(name)[1]


def _standard(name: str) -> tuple[int, int]:
    """The number of classes and the side of the images for which a network was published."""
    if segmentation.builder(name):
        return segmentation.CLASSES, segmentation.SIDE
    return next((standard for stem, standard in _SMALL.items() if stem in name), (_CLASSES, _SIDE))


def _full(name: str, classes: int) -> nn.Module:
    return FullResolution(standard_network(name, num_classes=classes))


def _half(name: str, classes: int) -> nn.Module:
    return HalfResolution(standard_network(name, num_classes=classes))


def _at(side: int, name: str, classes: int) -> nn.Module:
    return AtSize(standard_network(name, num_classes=classes), side)


def _wae(size: tuple[int, int], name: str, classes: int) -> nn.Module:
    try:
        return wae_around(name, classes=classes, size=_size_of_bodies(size, name))
    except ValueError as error:
        (height, width), (h, w) = size, _half_size(size)
        raise ValueError(f"{error} (its bodies get {h} x {w} of images of {height} x {width})") from error


def _size_of_bodies(size: tuple[int, int], name: str) -> tuple[int, int]:
    """The (h, w) that the bodies of ``wae_NAME`` are made for, given the ``size`` of its images.

    That is half of 224 x 224 if the low body then takes half of ``size`` too, so that the widths of a light
    CNN do not depend on the images; checkpoints rely on it. Otherwise it is half of ``size``.
    """
    half, usual = _half_size(size), _half_size((_SIDE, _SIDE))
    if half != usual:
        with without_memory(), suppress(ValueError):
            body = fit_to(standard_body(name), usual)
            for taken in (usual, half):
                feature_shape(body, taken)
            return usual
    return half


def _half_size(size: tuple[int, int]) -> tuple[int, int]:
    return half_of(size[0]), half_of(size[1])


def _wavelet(around: Builder, classes: int) -> nn.Module:
    model = around(classes)
    assert isinstance(model, WAEClassifier)
    return wavelet_cnn(model)


# ------------------------------------------------------------------------------------ what networks cost


def encoder_multiply_adds(network: nn.Module, side: int = _SIDE) -> int:
    """The multiply-adds of the encoders in ``network`` for one image of ``side`` x ``side``."""
    size = (side, side)
    return sum(count(part, size).multiply_adds for part in network.modules() if isinstance(part, Encoder))


def around(names: Sequence[str]) -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the body of each named network of torchvision or timm, and of WAE around it."""
    networks: dict[str, Callable[[], nn.Module]] = {}
    for name in names:
        networks[f"body of {name}"] = partial(standard_body, name)
        networks[f"WAE around {name}"] = partial(wae_around, name)
    return networks


def compared() -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the networks in :data:`COMPARED`."""
    return {name: partial(build, name) for name in COMPARED}


def table(networks: Mapping[str, Callable[[], nn.Module]]) -> str:
    """A Markdown table of the parameters of ``networks`` and their multiply-adds for one 224 x 224 image."""
    lines = [
        "| network | parameters | multiply-adds | of these, the encoder | published, without the encoder |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, make in networks.items():
        network = on_meta(make)
        parameters, total = count(network)
        published = f"{PUBLISHED[name]} G" if name in PUBLISHED else ""
        share = encoder_multiply_adds(network)
        encoder = amount(share) if share else ""
        lines.append(f"| {name} | {parameters:,} | {amount(total)} | {encoder} | {published} |")
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Print the table for ``names``, or else for :data:`COMPARED`; return 1 if one cannot be built."""
    try:
        print(table(around(names) if names else compared()))
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
