"""Imports the authors' WAE-VGG16 from their Caffe files into our model (docs/network.md, docs/caffe.md).

Caffe keeps a network in two files. The *prototxt* describes the layers and their connections; the
*caffemodel* holds the weights by layer name. Both are data that is checked; nothing in them is run.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.classifier import WAEClassifier
from wae.models.vgg16 import wae_vgg16
from wae.wording import counted
from wae_kernels.nn import Encoder

from . import caffe_proto, checkpoint
from .caffe_proto import Layer, Message, ProtoError
from .files import no_file, refuse_existing
from .signatures import recognised

_MAX_PROTOTXT = 1 << 20  # bytes; the published prototxt has 17,690
_MAX_INT = 2**31 - 1  # the largest count in Caffe
_SOME = 8  # the most names that an error lists


class CaffeError(WaeError):
    """A Caffe file cannot be read, or its network is not WAE-VGG16. The message names the file."""


def convert(prototxt: Path, caffemodel: Path, output: Path, force: bool = False) -> dict[str, Any]:
    """Convert the published network to a checkpoint for :func:`wae.storage.checkpoint.load_classifier`.

    The number of classes is that in the prototxt.

    Args:
        prototxt, caffemodel: the two files to read.
        output: the safetensors file to write, completely or not at all.
        force: replace a file that is there.

    Returns:
        What :func:`load` returns.

    Raises:
        CaffeError: see :func:`load`.
        FileExistsError: there is a file at ``output`` and ``force`` is false.
    """
    refuse_existing(output, force)
    classes = _classes(prototxt)
    with torch.device("meta"):  # no memory is allocated before the files turn out to hold that many numbers
        model = wae_vgg16(classes)
    origin = load(prototxt, caffemodel, model)
    checkpoint.save_classifier(output, model, "wae_vgg16", made={"origin": origin}, force=force)
    return origin


def load(prototxt: Path, caffemodel: Path, model: WAEClassifier) -> dict[str, Any]:
    """Load the weights in ``caffemodel`` into ``model``, if ``prototxt`` describes the same network.

    The model then takes red, green, blue, 0..255 (uint8 or floating point). The published network takes blue,
    green, red, so the input channels of the encoder's first layer are reversed. ``image_scale`` becomes 1 and
    ``image_shift`` 0. All parameters and buffers of the model are replaced by new ones on the CPU, or, after
    an error, none. The model may be on "meta".

    Args:
        prototxt: the net in Caffe's text format, of which phase TEST is used.
        caffemodel: its weights.
        model: a network of the form of :func:`wae.models.vgg16.wae_vgg16`, with any widths and number of
            blocks, and without a decoder.

    Returns:
        The origin of the weights, for the record: the names and SHA-256 digests of the files as "prototxt"
        and "caffemodel", the "input", and as "unused" the layers with weights that are not part of WAE-VGG16.

    Raises:
        CaffeError: a file cannot be read; the networks differ (the message gives the layer, what is needed
            and what was found); or a layer is missing, or has weights of another shape or not finite.
        TypeError: ``model`` is not of that form.
    """
    plan = _plan(model)
    text, weights = _map(prototxt), _map(caffemodel)
    try:
        _check_net(prototxt, _read_net(prototxt, text), plan)
    except ProtoError as error:
        raise CaffeError(f"{prototxt}: {error}") from None
    try:
        state, unused = _read_weights(caffemodel, weights, plan)
    except ProtoError as error:
        raise CaffeError(f"{caffemodel}: {error}") from None
    first = f"{plan['decom_conv1'].prefix}.weight"
    state[first] = state[first].flip(1)  # blue, green, red to red, green, blue
    state |= {"image_scale": torch.ones(3), "image_shift": torch.zeros(3)}
    model.load_state_dict(state, assign=True)
    return {
        "prototxt": _identity(prototxt, text),
        "caffemodel": _identity(caffemodel, weights),
        "input": "red, green, blue, 0..255; conv1's input channels were reversed: Caffe's are blue first",
        "unused": unused,
    }


# ------------------------------------------------------------------------------------------------------ files


def _map(path: Path) -> mmap.mmap:
    """The file's bytes, memory-mapped: they are read from the disk when they are used."""
    if why := no_file(path):
        raise CaffeError(f"{path}: {why}")
    if what := recognised(path):
        raise CaffeError(f"{path}: this is {what}")
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CaffeError(f"{path}: this file is empty") from None
    except OSError as error:
        raise CaffeError(f"{path}: {error.strerror}") from None


def _identity(path: Path, data: mmap.mmap) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def _listed(names: Sequence[str]) -> str:
    """The first few of ``names``, which come from a file and may be anything, for an error."""
    shown = ", ".join(repr(name)[1:61].removesuffix("'") for name in names[:_SOME])
    return shown if len(names) <= _SOME else f"{shown} and {len(names) - _SOME} more"


def _text(name: bytes) -> str:
    """A name in a file as text, for comparisons and errors."""
    return name.decode(errors="replace")


def _missing(missing: Sequence[str], extra: Sequence[str]) -> str:
    others = f"; layers with weights that are not part of it: {_listed(extra)}" if extra else ""
    return f"WAE-VGG16 has layers that are missing here: {_listed(missing)}{others}"


# ------------------------------------------------------------------------------------ the network to be found


class _Layer(NamedTuple):
    """A layer with weights in our model: what the Caffe layer of its name has to compute."""

    module: nn.Module
    prefix: str  # of the module's tensors in the model's state
    source: str  # its input, in terms of layers with weights: "pool(relu(conv1_2_CA))"


_Plan = dict[str, _Layer]
_IMAGE = "image"


def _plan(model: WAEClassifier) -> _Plan:
    """The layers that make up ``model``, by their names in the published net."""
    prefixes = {module: name for name, module in model.named_modules()}
    plan: _Plan = {}

    def follow(source: str, modules: Iterable[nn.Module], names: Iterable[str]) -> str:
        """Enter the modules with weights into the plan; return the result of the last module."""
        name = iter(names)
        for module in modules:
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                plan[(layer := next(name))] = _Layer(module, prefixes[module], source)
                source = layer
            elif isinstance(module, nn.ReLU):
                source = f"relu({source})"
            elif isinstance(module, nn.MaxPool2d):
                source = f"pool({source})"
            elif not isinstance(module, nn.Dropout):
                raise TypeError(f"model must consist of VGG's layers, got {type(module).__name__}")
        return source

    encoder, relu = model.encoder, nn.ReLU()
    if not isinstance(encoder, Encoder):
        raise TypeError(f"model.encoder must be an Encoder, got {type(encoder).__name__}")
    trunk = (encoder.conv1, relu, encoder.conv2, relu, encoder.conv3, relu)
    source = follow(_IMAGE, trunk, ["decom_conv1", "decom_conv2", "decom_conv3"])
    low = follow(source, (encoder.low, model.low_norm), ["decom_conv_CA", "bn_CA"])
    low = follow(low, model.low_body.children(), _body_names(model.low_body, "CA"))
    high = follow(source, (encoder.high, model.high_norm), ["decom_conv_CH", "bn_CH"])
    high = follow(high, model.high_body.children(), _body_names(model.high_body, "CH"))
    follow(low, model.low_classifier.children(), [f"fc{number}_CA" for number in (6, 7, 8)])
    both = f"concat({low}, {high})"
    follow(both, model.fusion_classifier.children(), [f"fc{number}_fusion" for number in (6, 7, 8)])
    return plan


_SCORES = ("sum(fc8_CA, fc8_fusion)", "sum(fc8_fusion, fc8_CA)")


def _body_names(body: nn.Module, branch: str) -> Iterable[str]:
    """conv1_1, conv1_2, conv2_1, ...: the second number starts again after every pool."""
    block, number = 1, 0
    for module in body.children():
        if isinstance(module, nn.Conv2d):
            number += 1
            yield f"conv{block}_{number}_{branch}"
        elif isinstance(module, nn.MaxPool2d):
            block, number = block + 1, 0


# ----------------------------------------------------------------------------------------- layers and options

_Options = dict[str, Any]


def _kind(layer: Message) -> str:
    """The layer's type in lower case: "innerproduct" for "InnerProduct" and for the older INNER_PRODUCT."""
    old = layer.DESCRIPTOR.name == "V1LayerParameter"
    type_ = caffe_proto.word(layer, "type") if old else _text(layer.type)
    return "".join(filter(str.isalnum, type_)).lower().removeprefix("none")[:40]


def _two(param: Message, name: str, default: int, short: str = "") -> tuple[int, ...]:
    """A size as (height, width). Caffe writes it once for both, twice, or as one field for each direction."""
    if values := tuple(getattr(param, name)):
        return values * 2 if len(values) == 1 else values
    sides = [f"{short or name}_{side}" for side in "hw"]
    return tuple(getattr(param, side) if _has(param, side) else default for side in sides)


def _has(param: Message, field: str) -> bool:
    return field in param.DESCRIPTOR.fields_by_name and bool(param.HasField(field))


def _convolution(layer: Message) -> _Options:
    param = layer.convolution_param
    return {
        "num_output": param.num_output,
        "kernel_size": _two(param, "kernel_size", 0, "kernel"),
        "stride": _two(param, "stride", 1),
        "pad": _two(param, "pad", 0),
        "dilation": _two(param, "dilation", 1),
        "group": param.group,
        "axis": param.axis,
        "bias_term": param.bias_term,
    }


def _inner_product(layer: Message) -> _Options:
    param = layer.inner_product_param
    return {name: getattr(param, name) for name in ("num_output", "bias_term", "axis", "transpose")}


def _batch_norm(layer: Message) -> _Options:
    param = layer.batch_norm_param
    return {"use_global_stats": param.use_global_stats, "eps": _float32(param.eps)}


def _float32(number: float) -> float:
    """``number`` rounded to six digits, because Caffe stores float32."""
    return float(f"{number:.6g}")


def _pooling(layer: Message) -> _Options:
    param = layer.pooling_param
    rounds_down = param.torch_pooling or not param.ceil_mode
    return {
        "pool": caffe_proto.word(param, "pool"),
        "kernel_size": _two(param, "kernel_size", 0, "kernel"),
        "stride": _two(param, "stride", 1),
        "pad": _two(param, "pad", 0),
        "global_pooling": param.global_pooling,
        "round_mode": "FLOOR" if rounds_down else caffe_proto.word(param, "round_mode"),
    }


_KINDS = {nn.Conv2d: "convolution", nn.Linear: "innerproduct", nn.BatchNorm2d: "batchnorm"}
_OPTIONS = {"convolution": _convolution, "innerproduct": _inner_product, "batchnorm": _batch_norm}


def _needed(module: nn.Module) -> _Options:
    """The options of the Caffe layer that computes what ``module`` does."""
    if isinstance(module, nn.Conv2d):
        return {
            "num_output": module.out_channels,
            "kernel_size": module.kernel_size,
            "stride": module.stride,
            "pad": module.padding,
            "dilation": module.dilation,
            "group": module.groups,
            "axis": 1,
            "bias_term": True,
        }
    if isinstance(module, nn.Linear):
        return {"num_output": module.out_features, "bias_term": True, "axis": 1, "transpose": False}
    assert isinstance(module, nn.BatchNorm2d)
    return {"use_global_stats": True, "eps": _float32(module.eps)}


def _check_type(path: Path, name: str, layer: Message, module: nn.Module) -> None:
    """Raise CaffeError if the type of ``layer`` is not that of ``module``."""
    needed, found = _KINDS[type(module)], _kind(layer)
    if found != needed:
        raise CaffeError(f"{path}: {name} must be of type {needed}, got {found or 'none'}")


def _check_options(path: Path, name: str, layer: Message, module: nn.Module) -> None:
    """Raise CaffeError if an option of ``layer``, whose type is right, is not what ``module`` needs."""
    options = _OPTIONS[_KINDS[type(module)]](layer)
    for option, needed in _needed(module).items():
        if options[option] != needed:
            got = str(options[option])[:80]
            raise CaffeError(f"{path}: {name}: {option} must be {needed}, got {got}")


# ----------------------------------------------------------------------------------------------- the prototxt


def _read_net(path: Path, data: mmap.mmap) -> Message:
    if len(data) > _MAX_PROTOTXT:
        raise CaffeError(f"{path}: this file has {len(data)} bytes, a prototxt at most {_MAX_PROTOTXT}")
    return caffe_proto.read_text(data[:])


def _classes(path: Path) -> int:
    """The number of scores of the net in ``path``."""
    try:
        net = _read_net(path, _map(path))
    except ProtoError as error:
        raise CaffeError(f"{path}: {error}") from None
    for layer in _layers(net):
        if layer.name == b"fc8_CA":
            classes = int(layer.inner_product_param.num_output)
            if 1 <= classes <= _MAX_INT:
                return classes
            raise CaffeError(f"{path}: fc8_CA: num_output must be 1 or more, got {classes}")
    raise CaffeError(f"{path}: {_missing(['fc8_CA'], [])}")


def _check_net(path: Path, net: Message, plan: _Plan) -> None:
    """Raise CaffeError unless ``net`` computes the scores as ``plan`` does."""
    layers = _layers(net)
    kinds = {_text(layer.name): _kind(layer) for layer in layers}
    missing = [name for name in plan if name not in kinds]
    if missing:
        extra = [name for name, kind in kinds.items() if kind in _OPTIONS and name not in plan]
        raise CaffeError(f"{path}: {_missing(missing, extra)}")
    _check_connections(path, net, layers, plan)


def _layers(net: Message) -> list[Message]:
    """The layers of phase TEST, in order. Layers of the older form have the same fields."""
    return [layer for layer in [*net.layers, *net.layer] if _is_included(layer)]


def _is_included(layer: Message) -> bool:
    if layer.include:
        return any(_is_met(rule) for rule in layer.include)
    return not any(_is_met(rule) for rule in layer.exclude)


def _is_met(rule: Message) -> bool:
    """Whether ``rule`` holds in phase TEST, level 0, without a stage."""
    phase = caffe_proto.word(rule, "phase") if rule.HasField("phase") else "TEST"
    return phase == "TEST" and rule.min_level <= 0 <= rule.max_level and not rule.stage


def _check_connections(path: Path, net: Message, layers: list[Message], plan: _Plan) -> None:
    """Follow every blob through the net; compare the layers in ``plan``, and their inputs, with the plan."""
    blobs = _inputs(net.input)
    for layer in layers:
        name, sources = _text(layer.name), []
        for bottom in layer.bottom:
            if bottom not in blobs:
                here, blob = _listed([name]), _listed([_text(bottom)])
                raise CaffeError(f"{path}: {here}: no layer before it gives {blob!r}")
            sources.append(blobs[bottom])
        if name in plan:
            module, _, source = plan[name]
            _check_type(path, name, layer, module)
            _check_options(path, name, layer, module)
            if sources != [source]:
                raise CaffeError(f"{path}: {name} must take {source}, got {_joined(sources)}")
            blobs |= dict.fromkeys(layer.top, name)
        elif sources:
            blobs |= dict.fromkeys(layer.top, _expression(layer, sources))
        else:
            _check_input(path, layer)
            blobs |= _inputs(layer.top)
    if not any(scores in blobs.values() for scores in _SCORES):
        raise CaffeError(f"{path}: no layer gives the scores, {_SCORES[0]}")


def _inputs(tops: Sequence[bytes]) -> dict[bytes, str]:
    """The inputs of a net: the image first, then labels or others."""
    return {top: "another input" if index else _IMAGE for index, top in enumerate(tops)}


def _joined(sources: Sequence[str]) -> str:
    """``sources`` as text, for comparisons and errors; cut if it is longer than any in WAE-VGG16."""
    joined = ", ".join(sources[:_SOME])
    return joined if len(joined) <= 200 and len(sources) <= _SOME else f"{joined[:200]}..."


def _check_input(path: Path, layer: Message) -> None:
    """Raise CaffeError if the input layer changes the pixels: the published net takes them unchanged."""
    for kind in ("transform_param", "data_param", "image_data_param", "window_data_param"):
        param, where = getattr(layer, kind), f"{path}: {_listed([_text(layer.name)])}"
        for option in ("mean_file", "mean_value", "force_gray"):
            if getattr(param, option):
                raise CaffeError(f"{where}: {option} must not be given: pixels are 0..255")
        if param.scale != 1:
            raise CaffeError(f"{where}: scale must be 1, got {param.scale:.6g}: pixels are 0..255")


def _expression(layer: Message, sources: list[str]) -> str:
    """The output of a layer without weights, as text. It names options that WAE-VGG16 does not have."""
    kind = _kind(layer)
    if kind in ("split", "dropout"):  # the identity, in phase TEST
        return sources[0]
    operation = kind
    options: _Options = {}
    needed: _Options = {}
    if kind == "relu":
        options = {"negative_slope": layer.relu_param.negative_slope}
        needed = {"negative_slope": 0.0}
    elif kind == "pooling":
        operation, options, needed = "pool", _pooling(layer), _MAX_POOL
    elif kind == "concat":
        param = layer.concat_param
        options = {"axis": param.axis if param.HasField("axis") else param.concat_dim}
        needed = {"axis": 1}
    elif kind == "eltwise":
        param = layer.eltwise_param
        operation = "sum"
        options = {"operation": caffe_proto.word(param, "operation"), "coeff": bool(param.coeff)}
        needed = {"operation": "SUM", "coeff": False}
    others = ", ".join(f"{option} {value!r}" for option, value in options.items() if value != needed[option])
    return f"{operation}{others and f'[{others[:80]}]'}({_joined(sources)})"


_MAX_POOL = {
    "pool": "MAX",
    "kernel_size": (2, 2),
    "stride": (2, 2),
    "pad": (0, 0),
    "global_pooling": False,
    "round_mode": "CEIL",
}


# --------------------------------------------------------------------------------------------- the caffemodel


def _read_weights(path: Path, data: mmap.mmap, plan: _Plan) -> tuple[dict[str, Tensor], str]:
    """The model's state, without ``image_scale`` and ``image_shift``, and the names of unused layers."""
    layers: dict[str, Layer] = {}
    for layer in caffe_proto.read_layers(data):
        name = _text(layer.parameters.name)
        if layer.blobs:
            if name in layers:
                raise CaffeError(f"{path}: there are two layers {_listed([name])} with weights")
            layers[name] = layer
    extra = [name for name in layers if name not in plan]
    missing = [name for name in plan if name not in layers]
    if missing:
        raise CaffeError(f"{path}: {_missing(missing, extra)}")
    state: dict[str, Tensor] = {}
    for name, (module, prefix, _) in plan.items():
        _check_trained_as(path, name, layers[name].parameters, module)
        tensors = _tensors(path, name, layers[name].blobs, module)
        state |= {f"{prefix}.{key}": tensor for key, tensor in tensors.items()}
    return state, _listed(extra)


def _check_trained_as(path: Path, name: str, layer: Message, module: nn.Module) -> None:
    """Raise CaffeError if the caffemodel's own description of ``layer``, which is optional, disagrees."""
    if _kind(layer):
        _check_type(path, name, layer, module)
    if layer.HasField("convolution_param") or layer.HasField("inner_product_param"):
        _check_options(path, name, layer, module)


def _tensors(path: Path, name: str, blobs: Sequence[memoryview], module: nn.Module) -> dict[str, Tensor]:
    """The layer's weights, by their names in ``module``."""
    if isinstance(module, nn.BatchNorm2d):
        width = module.num_features
        shapes: dict[str, tuple[int, ...]] = {"mean": (width,), "variance": (width,), "scale factor": (1,)}
    else:
        shapes = {key: tuple(tensor.shape) for key, tensor in module.named_parameters()}
    if len(blobs) != len(shapes):
        wanted = ", ".join(shapes)
        raise CaffeError(f"{path}: {name} must have {wanted}, got {counted(len(blobs), 'blob')}")
    tensors = {
        key: _tensor(f"{path}: {name}: {key}", blob, shape)
        for blob, (key, shape) in zip(blobs, shapes.items(), strict=True)
    }
    return _normalization(path, name, tensors) if isinstance(module, nn.BatchNorm2d) else tensors


def _normalization(path: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm's statistics. Caffe stores decaying sums of means and variances, and the sums' weight.

    The weight is 0 before any training.
    """
    weight = tensors["scale factor"].double()
    factor = torch.where(weight == 0, 0.0, 1 / weight)
    mean, variance = ((tensors[key].double() * factor).float() for key in ("mean", "variance"))
    if not (variance >= 0).all() or not (mean + variance).isfinite().all():
        raise CaffeError(f"{path}: {name}: divided by its scale factor, a variance is below 0 or not finite")
    return {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}


def _tensor(where: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
    """The blob as a float32 tensor of ``shape``. Raises CaffeError, starting with ``where``, if it is not."""
    try:
        blob = caffe_proto.read_blob(data)
        found = _shape(blob, len(shape))
    except ProtoError as error:
        raise CaffeError(f"{where}: {error}") from None
    if found != shape:
        raise CaffeError(f"{where} must have the shape {shape}, got {found}"[:500])
    values = blob.double_data or blob.data
    if len(values) != math.prod(shape):
        raise CaffeError(f"{where} needs {counted(math.prod(shape), 'number')}, got {len(values)}")
    with np.errstate(over="ignore"):  # an overflow is reported below
        numbers = np.array(values).astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise CaffeError(f"{where} has numbers that are not finite in float32")
    return torch.from_numpy(numbers).view(shape)


def _shape(blob: Message, rank: int) -> tuple[int, ...]:
    """The blob's shape. The older form always has four sizes, of which unused ones in front are 1."""
    names = ("num", "channels", "height", "width")
    if not any(blob.HasField(name) for name in names):
        return caffe_proto.read_shape(blob.shape)
    sizes = tuple(getattr(blob, name) for name in names)
    front = 4 - rank
    return sizes[front:] if sizes[:front] == (1,) * front else sizes
