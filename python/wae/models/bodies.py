"""Standard networks without their classifiers, and copies of them with a fraction of the channels.

A body is any module that maps (N, 3, h, w) to features, (N, C, ...). :func:`light_body` makes a light copy of
a body without knowing its family: it divides every number of channels by the same rule, so that layers that
fitted together still do. A network may hold a number of channels where the rule cannot reach it. Then the
light copy does not run; it is tried out, and refused with the name of the module.

torchvision is imported only when one of its networks is needed, because the import takes longer than a
prediction.
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
from .meta import empty_copy

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""The names of the classifiers in torchvision's networks."""

AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""torchvision's networks with auxiliary classifiers, which are used only in training: the names of these."""
_IMAGE_CHANNELS = 3
_HALF = (112, 112)  # the size of low for an image of 224 x 224

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_KNOWN_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class IndivisibleError(ValueError):
    """The channels of a body cannot be divided. The message names the module."""


def standard_body(name: str, **options: Any) -> nn.Module:
    """The network ``name`` from torchvision, or else from timm, without its classifier.

    Its parameters keep their names.

    Args:
        name: the library's name of the network.
        options: passed to the library's constructor. ``weights="DEFAULT"`` loads torchvision's trained
            weights, ``pretrained=True`` timm's.

    Raises:
        ValueError: neither library has such a network.
        ModuleNotFoundError: torchvision has no such network, and timm is not installed.
    """
    if is_torchvision(name):
        return without_classifier(torchvision_network(name, **options))
    return standard_network(name, num_classes=0, **options)


def standard_network(name: str, **options: Any) -> nn.Module:
    """The network ``name`` from torchvision, or else from timm, made with ``options``.

    Raises ValueError and ModuleNotFoundError as :func:`standard_body` does.
    """
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
    """Whether timm is installed and has a network of this name, other than ours (wae.integrations.timm)."""
    try:
        import timm
    except ModuleNotFoundError:
        return False
    return bool(timm.is_model(name)) and not name.startswith("wae_")


def without_classifier(network: nn.Module) -> nn.Module:
    """``network`` with its classifier replaced by the identity. Changes ``network`` and returns it.

    The classifier is every child that has one of the names in :data:`CLASSIFIERS`.

    Raises:
        ValueError: ``network`` has no such child.
    """
    found = [name for name, _ in network.named_children() if name in CLASSIFIERS]
    if not found:
        raise ValueError(
            f"{type(network).__name__} must have its classifier in one of {', '.join(CLASSIFIERS)}"
        )
    for name in found:
        setattr(network, name, nn.Identity().train(network.training))
    return network


def torchvision_network(name: str, **options: Any) -> nn.Module:
    """The network ``name`` from torchvision, made with ``options``, with a single output.

    The auxiliary classifiers that GoogLeNet and Inception v3 use in training are removed. With torchvision's
    weights these two would rescale their input, which no file of weights says, so a network that is loaded
    from a file would compute something else: images have to be prepared with a mean and deviation of 0.5.
    """
    from torchvision import models

    auxiliary = AUXILIARY.get(name, ())
    if auxiliary:
        options = {"transform_input": False, **options}
    if auxiliary and not options.get("weights"):
        options = {"init_weights": True, **options}  # without it torchvision warns
    network: nn.Module = models.get_model(name, **options)
    if auxiliary:
        network.aux_logits = False  # type: ignore[assignment]  # torch's stubs allow only tensors and modules
    for child in auxiliary:
        setattr(network, child, None)
    return network


def light_body(body: nn.Module | str, factor: int = 4, size: tuple[int, int] = _HALF) -> nn.Module:
    """A copy of ``body`` with random weights and every number of channels divided by ``factor``, rounded up.

    Numbers up to three, the channels of an image, are not divided. A depthwise convolution stays depthwise.
    Any other grouped convolution gets the largest divisor of its groups that also divides its channels.
    Everything else is copied. Before the copy is returned it runs once, on a black image.

    Args:
        body: a network without its classifier, or its name: see :func:`standard_body`.
        factor: an integer of at least 1; the paper's is 4.
        size: (h, w) of an image that the body takes.

    Raises:
        ValueError: ``factor`` is not such an integer, or the body does not take such an image.
        IndivisibleError: a module of ``body``, which the message names, cannot be divided.
    """
    if type(factor) is not int or factor < 1:
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
    if isinstance(body, str):
        body = standard_body(body)
    lighter: dict[int, Any] = {}
    for name, module in body.named_modules():
        lighter.update(_light_tensors(name, module, factor))
    light: nn.Module = copy.deepcopy(body, lighter)  # takes these tensors instead of copying the body's
    for module in light.modules():
        for attribute, number in _light_numbers(module, factor).items():
            setattr(module, attribute, number)
    light.apply(initialize)
    _try_out(light, body, size)
    return light


def initialize(module: nn.Module) -> None:
    """Reset the parameters of ``module`` itself: He initialisation (fan-out) for convolutions and linear
    layers, 1 and 0 for normalisations. Any other module keeps its parameters.

    With PyTorch's own initialisation a signal dies out in many layers of ReLU.
    """
    if isinstance(module, _NORMS):
        module.reset_parameters()
    elif isinstance(module, (_ConvNd, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def widen_input(body: nn.Module, channels: int) -> nn.Module:
    """Make the first convolution of ``body`` with three inputs take ``channels``, with random weights.

    Changes ``body`` and returns it. Raises ValueError if no convolution takes three channels.
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == _IMAGE_CHANNELS and module.groups == 1:
            module.in_channels = channels
            shape = module.out_channels, channels, *module.kernel_size
            module.weight = nn.Parameter(module.weight.new_empty(shape))
            initialize(module)
            return body
    raise ValueError(f"{_called('', body)} must have a convolution that takes {_IMAGE_CHANNELS} channels")


def feature_channels(body: nn.Module, size: tuple[int, int] = _HALF) -> int:
    """The number of channels C of the features, (N, C, ...), of ``body``: see :func:`feature_shape`."""
    return feature_shape(body, size)[1]


def feature_shape(body: nn.Module, size: tuple[int, int] = _HALF) -> torch.Size:
    """The shape, (1, C, ...), of the features of ``body`` for a black image of ``size`` (h, w).

    Raises ValueError if it makes no such features; the message names the module that failed.
    """
    reference = next(body.parameters(), torch.empty(0))
    if reference.is_meta:  # its buffers may hold values, and not every operator takes both kinds of tensors
        body = empty_copy(body)
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
            f"{_called('', body)} must return one tensor (N, C, ...), got {type(features).__name__}"
        )
    return features.shape


def _try_out(light: nn.Module, body: nn.Module, size: tuple[int, int]) -> None:
    try:
        wanted = feature_shape(body, size)
    except ValueError as error:
        raise ValueError(f"the body takes no image of {size[0]} x {size[1]}: {error}") from error
    try:
        made = feature_shape(light, size)
    except ValueError as error:
        raise IndivisibleError(f"light_body cannot divide {error}") from error
    if made[2:] != wanted[2:]:  # the body holds a number of channels in its code, for a view for example
        features = f"features {tuple(wanted)} into {tuple(made)}"
        raise IndivisibleError(f"light_body cannot divide {_called('', body)}: it turned its {features}")


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the body'} ({type(module).__name__})"


# --------------------------------------------------------------------------------------------- the rule


def _divided(channels: int, factor: int) -> int:
    return channels if channels <= _IMAGE_CHANNELS else -(-channels // factor)


def _light_numbers(module: nn.Module, factor: int) -> dict[str, Any]:
    """The attributes in which a torch.nn module holds numbers of channels, with their divided values."""
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
    """The ``id`` of each parameter and buffer of ``module`` itself, with its light part."""
    try:
        for key, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            yield id(tensor), _light_tensor(module, key, tensor, factor)
    except ValueError as error:
        raise IndivisibleError(f"light_body cannot divide {_called(name, module)}: {error}") from None


def _light_tensor(module: nn.Module, key: str, tensor: Tensor, factor: int) -> Tensor:
    """The light part of ``tensor``, the parameter or buffer ``key`` of ``module``: its first values.

    A convolution's kernel has no values yet. Raises ValueError if the channels in ``tensor`` are not known.
    """
    known = isinstance(module, (_ConvNd, nn.Linear, *_NORMS))
    if known and key not in _KNOWN_TENSORS:
        raise ValueError(f"the meaning of its tensor {key!r} is not known")
    if isinstance(module, _ConvNd) and key == "weight":
        data = tensor.new_empty(_light_kernel(module, factor))
    elif sum(size > _IMAGE_CHANNELS for size in tensor.shape) <= 1 or isinstance(module, nn.Linear):
        data = tensor.detach()[tuple(slice(_divided(size, factor)) for size in tensor.shape)].clone()
    else:
        raise ValueError(
            f"it is not known which sizes of its tensor {key!r}, {tuple(tensor.shape)}, are channels"
        )
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _light_kernel(module: _ConvNd, factor: int) -> tuple[int, ...]:
    inputs, outputs, groups = _light_numbers(module, factor).values()
    if outputs % groups:
        raise ValueError(f"its {outputs} output channels are not divisible by its {groups} groups")
    pair = (inputs, outputs // groups) if module.transposed else (outputs, inputs // groups)
    return *pair, *module.kernel_size
