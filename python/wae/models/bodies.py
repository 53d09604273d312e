"""Standard networks without their classifiers, and copies of them with a fraction of the channels.

A body is any module that maps (N, 3, h, w) to features, (N, C, ...). :func:`light_body` makes a light one
of it without knowing its family: every number of channels is divided by the same rule, so that layers which
fitted together still do. Where a network holds such a number out of the rule's reach, the light copy does not
run: it is tried out, and refused with the name of the module.

torchvision is imported where one of its networks is asked for: that takes longer than a prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .evaluating import evaluating

_CLASSIFIERS = ("fc", "classifier", "head", "heads")  # what torchvision's networks call theirs
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}  # for training alone
_IMAGE_CHANNELS = 3
_HALF = (112, 112)  # what a body sees of an image of 224 x 224

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_KNOWN_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class IndivisibleError(ValueError):
    """A fraction of a body's channels is not defined. The message names the module."""


def standard_body(name: str, **options: Any) -> nn.Module:
    """The network ``name`` of torchvision, else of timm, without its classifier.

    Its parameters keep their names. ``options`` go to the library's constructor: ``weights="DEFAULT"`` for
    torchvision's trained weights, ``pretrained=True`` for timm's.

    Raises ValueError where neither library has such a network, and ModuleNotFoundError where torchvision has
    none and timm is not installed.
    """
    if is_torchvision(name):
        return without_classifier(torchvision_network(name, **options))
    return standard_network(name, num_classes=0, **options)


def standard_network(name: str, **options: Any) -> nn.Module:
    """The network ``name`` of torchvision, else of timm, made with ``options``. Raises as standard_body."""
    if is_torchvision(name):
        return torchvision_network(name, **options)
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'torchvision has no network {name!r}; for timm\'s: pip install "wae-kernels[timm]"',
            name="timm",
        ) from error
    if not timm.is_model(name):
        raise ValueError(f"name must be a network of torchvision or timm, got {name!r}")
    network: nn.Module = timm.create_model(name, **options)
    return network


def is_torchvision(name: str) -> bool:
    """Whether torchvision has a classifier of this name."""
    from torchvision import models

    return name in models.list_models(module=models)


def is_timm(name: str) -> bool:
    """Whether timm is installed and has a network of this name (not one of ours: wae.integrations.timm)."""
    try:
        import timm
    except ModuleNotFoundError:
        return False
    return bool(timm.is_model(name)) and not name.startswith("wae_")


def without_classifier(network: nn.Module) -> nn.Module:
    """``network`` with the identity in the place of its children that torchvision's networks call so.

    Changes ``network``, and returns it. Raises ValueError where it has no such child.
    """
    found = [name for name, _ in network.named_children() if name in _CLASSIFIERS]
    if not found:
        raise ValueError(
            f"{type(network).__name__} must have its classifier in one of {', '.join(_CLASSIFIERS)}"
        )
    for name in found:
        setattr(network, name, nn.Identity().train(network.training))
    return network


def torchvision_network(name: str, **options: Any) -> nn.Module:
    """The network ``name`` of torchvision, made with ``options``, with the one output that images have here.

    GoogLeNet and Inception v3 have others in training, which are left out.
    """
    from torchvision import models

    auxiliary = _AUXILIARY.get(name, ())
    if auxiliary and not options.get("weights"):
        options = {"init_weights": True, **options}  # else torchvision warns
    network: nn.Module = models.get_model(name, **options)
    if auxiliary:
        network.aux_logits = False  # type: ignore[assignment]  # torch's stubs know only tensors and modules
    for child in auxiliary:
        setattr(network, child, None)
    return network


def light_body(body: nn.Module | str, factor: int = 4, size: tuple[int, int] = _HALF) -> nn.Module:
    """A copy of ``body`` with random weights and its numbers of channels divided by ``factor``, rounded up.

    Up to three channels, the image's, stay as they are. A depthwise convolution stays one; any other grouped
    convolution keeps as many of its groups as divide its channels. Everything else is the body's own.
    The copy runs once, on a black image of ``size`` (h, w), before it is returned.

    Args:
        body: a network without its classifier, or its name: see :func:`standard_body`.
        factor: at least 1; 4 is published.
        size: of an image that the body takes.

    Raises:
        ValueError: ``factor`` is not usable, or the body takes no such image.
        IndivisibleError: ``body`` holds a module that cannot be made lighter in this way, which the message
            names.
    """
    if type(factor) is not int or factor < 1:
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
    if isinstance(body, str):
        body = standard_body(body)
    lighter: dict[int, Any] = {}
    for name, module in body.named_modules():
        lighter.update(_light_tensors(name, module, factor))
    light: nn.Module = copy.deepcopy(body, lighter)  # takes these where it would have copied the body's own
    for module in light.modules():
        for attribute, number in _light_numbers(module, factor).items():
            setattr(module, attribute, number)
    light.apply(initialize)
    _try_out(light, body, size)
    return light


def initialize(module: nn.Module) -> None:
    """Give ``module`` itself random weights: He's for a convolution or matrix, 1 and 0 for a normalisation.

    Without He's, many layers of ReLU let a signal die out. Any other module keeps what it has.
    """
    if isinstance(module, _NORMS):
        module.reset_parameters()
    elif isinstance(module, (_ConvNd, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def widen_input(body: nn.Module, channels: int) -> nn.Module:
    """Make ``body``'s first convolution take ``channels`` instead of three. Its weights become random.

    Changes ``body``, and returns it. Raises ValueError where no convolution takes three.
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == _IMAGE_CHANNELS and module.groups == 1:
            module.in_channels = channels
            shape = module.out_channels, channels, *module.kernel_size
            module.weight = nn.Parameter(module.weight.new_empty(shape))
            initialize(module)
            return body
    raise ValueError(f"{_called('', body)} must have a convolution of {_IMAGE_CHANNELS} channels")


def feature_channels(body: nn.Module, size: tuple[int, int] = _HALF) -> int:
    """The C of the features, (N, C, ...), that ``body`` makes: see :func:`feature_shape`."""
    return feature_shape(body, size)[1]


def feature_shape(body: nn.Module, size: tuple[int, int] = _HALF) -> torch.Size:
    """The shape, (1, C, ...), of the features that ``body`` makes of a black image of ``size`` (h, w).

    Raises ValueError where it makes none; the message names the module that failed.
    """
    reference = next(body.parameters(), torch.empty(0))
    if reference.is_meta:  # its buffers may hold numbers, and not every operator takes both kinds
        body = without_numbers(body)
    running = [("", body)]
    image = torch.zeros(1, _IMAGE_CHANNELS, *size, dtype=reference.dtype, device=reference.device)
    with ExitStack() as hooks, torch.no_grad(), evaluating(body):
        for name, module in body.named_modules():
            entry = name, module
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, e=entry: running.append(e)))
            hooks.enter_context(module.register_forward_hook(lambda *_: running.__delitem__(-1)))
        try:
            features = body(image)
        except Exception as error:
            raise ValueError(f"{_called(*running[-1])}: {error}") from error
    if not isinstance(features, Tensor) or features.dim() < 2:
        raise ValueError(
            f"{_called('', body)} must make one tensor (N, C, ...), got {type(features).__name__}"
        )
    return features.shape


def without_numbers(body: nn.Module, device: str = "meta") -> nn.Module:
    """A copy of ``body`` whose tensors hold nothing yet; on "meta" they take no memory."""
    tensors: dict[int, Any] = {}  # taken by deepcopy where it would have copied the body's own
    for tensor in chain(body.parameters(), body.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        tensors[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(body, tensors)


def _try_out(light: nn.Module, body: nn.Module, size: tuple[int, int]) -> None:
    try:
        feature_channels(light, size)
    except ValueError as error:
        try:
            feature_channels(body, size)
        except ValueError as own:
            raise ValueError(f"the body takes no image of {size[0]} x {size[1]}: {own}") from own
        raise IndivisibleError(f"light_body cannot divide {error}") from error


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the body'} ({type(module).__name__})"


# --------------------------------------------------------------------------------------------- the rule


def _divided(channels: int, factor: int) -> int:
    return channels if channels <= _IMAGE_CHANNELS else -(-channels // factor)


def _light_numbers(module: nn.Module, factor: int) -> dict[str, Any]:
    """The attributes of a module of torch.nn that hold numbers of channels, with what they become."""
    if isinstance(module, _ConvNd):
        inputs, outputs = _divided(module.in_channels, factor), _divided(module.out_channels, factor)
        depthwise = module.groups == module.in_channels > 1
        groups = inputs if depthwise else gcd(module.groups, inputs, outputs)
        return {"in_channels": inputs, "out_channels": outputs, "groups": groups}
    if isinstance(module, nn.Linear):
        return {key: _divided(getattr(module, key), factor) for key in ("in_features", "out_features")}
    if isinstance(module, _NormBase):
        return {"num_features": _divided(module.num_features, factor)}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(_divided(n, factor) for n in module.normalized_shape)}
    if isinstance(module, nn.GroupNorm):
        channels = _divided(module.num_channels, factor)
        return {"num_channels": channels, "num_groups": gcd(module.num_groups, channels)}
    return {}


def _light_tensors(name: str, module: nn.Module, factor: int) -> Iterator[tuple[int, Tensor]]:
    """``id`` of each parameter and buffer of ``module``'s own, and what becomes of it."""
    try:
        for key, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            yield id(tensor), _light_tensor(module, key, tensor, factor)
    except ValueError as error:
        raise IndivisibleError(f"light_body cannot divide {_called(name, module)}: {error}") from None


def _light_tensor(module: nn.Module, key: str, tensor: Tensor, factor: int) -> Tensor:
    """The light part of ``tensor``, parameter or buffer ``key`` of ``module``: its first values, or none."""
    known = isinstance(module, (_ConvNd, nn.Linear, *_NORMS))
    if known and key not in _KNOWN_TENSORS:
        raise ValueError(f"what its tensor {key!r} is for is not known")
    if isinstance(module, _ConvNd) and key == "weight":
        data = tensor.new_empty(_light_kernel(module, factor))
    elif sum(size > _IMAGE_CHANNELS for size in tensor.shape) <= 1 or isinstance(module, nn.Linear):
        data = tensor.detach()[tuple(slice(_divided(size, factor)) for size in tensor.shape)].clone()
    else:
        raise ValueError(
            f"which sizes of its tensor {key!r}, {tuple(tensor.shape)}, are channels is not known"
        )
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _light_kernel(module: _ConvNd, factor: int) -> tuple[int, ...]:
    inputs, outputs, groups = _light_numbers(module, factor).values()
    if outputs % groups:
        raise ValueError(f"{outputs} channels do not divide into its {groups} groups")
    pair = (inputs, outputs // groups) if module.transposed else (outputs, inputs // groups)
    return *pair, *module.kernel_size
