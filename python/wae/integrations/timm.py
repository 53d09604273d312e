"""WAE networks in timm: ``import wae.integrations.timm``, then ``timm.create_model("wae_resnet50")``.

The import registers ``wae_NAME`` for each NAME in timm. It is the network that has this name in the rest of
the package (:mod:`wae.models.registry`): ``wae_vgg16`` and ``wae_resnet50`` are the published ones, and if
both libraries have a network it is torchvision's. timm loads the checkpoints of ``wae train``.

``pretrained_cfg`` says how images are prepared, at the size of those of NAME. Its ``mean`` and ``std`` bring
them to 0..255, because WAE normalises them itself (``image_scale``, ``image_shift``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, register_model
from torch import Tensor, nn

from wae.models.bodies import is_torchvision
from wae.models.classifier import WAEClassifier
from wae.models.registry import NetworkError, build

_TORCHVISION = PretrainedCfg(interpolation="bilinear")

default_cfgs: dict[str, DefaultCfg] = {}  # register_model reads it by this name
__all__: list[str] = []  # filled by register_model


class TimmClassifier(WAEClassifier):
    """The network ``name`` with random weights, and the methods that timm's scripts call.

    Args:
        name: ``wae_NAME``.
        num_classes: the number of scores, at least 1.
        in_chans: the number of channels of the image, which must be 3.
        img_size: the size of the images, for networks that take only some sizes: the side or (H, W). None for
            that in ``pretrained_cfg``.
        options: timm's other options, such as ``drop_rate``; none may be set to anything but false or 0.

    Raises:
        NetworkError: an option is not usable, or WAE cannot be built around the network.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        if in_chans != 3:
            raise NetworkError(f"{name} takes images of 3 channels, got in_chans {in_chans}")
        if given := sorted(option for option, value in options.items() if value):
            raise NetworkError(
                f"{name} has no {given[0]}; it takes num_classes and img_size, got {', '.join(given)}"
            )
        if type(num_classes) is not int or num_classes < 1:
            raise NetworkError(f"num_classes of {name} must be 1 or more, got {num_classes!r}")
        made = build(name, num_classes, size=_sides(name, img_size))
        assert isinstance(made, WAEClassifier)
        original = _original(name)
        super().__init__(
            made.encoder,
            made.low_body,
            made.high_body,
            made.low_classifier,
            made.fusion_classifier,
            [1 / (255 * deviation) for deviation in original.std],
            [-mean / deviation for mean, deviation in zip(original.mean, original.std, strict=True)],
        )
        self.num_classes = num_classes
        self.register_load_state_dict_pre_hook(_without_decoder)

    def get_classifier(self) -> nn.ModuleList:
        """The two classifiers, whose scores are added."""
        return nn.ModuleList([self.low_classifier, self.fusion_classifier])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layers by new ones with random weights, for ``num_classes`` scores.

        Raises NetworkError if ``num_classes`` is below 1, or ``global_pool`` is given.
        """
        if num_classes < 1 or global_pool:
            raise NetworkError(
                f"WAE takes num_classes of 1 or more and no global_pool, got {num_classes}, {global_pool}"
            )
        for classifier in self.get_classifier():
            last = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)][-1]
            last.out_features = num_classes
            last.weight = nn.Parameter(last.weight.new_empty(num_classes, last.in_features))
            last.bias = nn.Parameter(last.weight.new_empty(num_classes))
            last.reset_parameters()
        self.num_classes = num_classes

    def forward_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The two bodies' features, (N, C, ...) and (N, D, ...), of ``image``, (N, 3, H, W)."""
        return self.features(image)

    def forward_head(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """The scores, (N, num_classes), from the result of :meth:`forward_features`."""
        return self.classify(*features)


def _without_decoder(module: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """Drop the decoder, which only training needs, from a checkpoint's ``tensors``."""
    for name in [name for name in tensors if name.startswith(f"{prefix}decoder.")]:
        del tensors[name]


def _original(name: str) -> PretrainedCfg:
    """How images are prepared for NAME, the network in ``name``, a ``wae_NAME``."""
    stem = name.removeprefix("wae_")
    return _TORCHVISION if is_torchvision(stem) else timm.get_pretrained_cfg(stem) or _TORCHVISION


def _input_size(name: str) -> tuple[int, int, int]:
    """The channels, height and width of the images that timm gives to the network in ``name``."""
    cfg = timm.get_pretrained_cfg(name.removeprefix("wae_")) or _TORCHVISION
    size: tuple[int, int, int] = cfg.input_size
    return size


def _sides(name: str, img_size: int | Sequence[int] | None) -> tuple[int, int]:
    """(H, W) of the images for the argument ``img_size`` of :class:`TimmClassifier`."""
    if img_size is None:
        img_size = _input_size(name)[1:]
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise NetworkError(f"img_size of {name} must be the side or (H, W), 1 or more, got {img_size!r}")
    return sides


def _register(name: str) -> None:
    original = _original(name)
    default_cfgs[name] = DefaultCfg(
        tags=deque([""]),
        cfgs={
            "": PretrainedCfg(
                input_size=_input_size(name),
                fixed_input_size=original.fixed_input_size,
                interpolation=original.interpolation,
                crop_pct=original.crop_pct,
                crop_mode=original.crop_mode,
                mean=(0.0, 0.0, 0.0),
                std=(1 / 255, 1 / 255, 1 / 255),  # of images that are 0..1
            )
        },
    )

    def make(pretrained: bool = False, features_only: bool = False, **options: Any) -> nn.Module:
        if features_only:
            raise NetworkError(
                f"{name} has no features_only: its two bodies see half the image each; "
                "model.features(image) returns the features of both"
            )
        return build_model_with_cfg(partial(TimmClassifier, name), name, pretrained, **options)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"WAE around {name.removeprefix('wae_')}: see :class:`TimmClassifier`."
    globals()[name] = register_model(make)


for _stem in timm.list_models(exclude_filters="wae_*"):
    _register(f"wae_{_stem}")
