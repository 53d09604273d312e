"""The encoder and the decoders as modules.

Their layers are ordinary ``torch.nn`` convolutions, so that ``state_dict``, initialisation and optimizers
work as usual. The forward pass calls a fused op on the layers' tensors. Layers that are pruned,
re-parametrised, hooked, sharded, wrapped, replaced or patched are called one by one instead, because their
tensors alone do not determine what they compute.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_wrapper

from . import _load
from .checks import (
    DECODER_SHAPES,
    ENCODER_SHAPES,
    FLOATING,
    SCORE_DECODER_SHAPES,
    check_inputs,
    check_results,
)
from .ops import run_decode, run_decode_scores, run_encode
from .parameters import KERNEL_WIDTH
from .reference import format_of, given_as, laid_out, normalize_image, read_by

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)

_METHODS = nn.Conv2d.forward, nn.Conv2d._conv_forward, nn.ConvTranspose2d.forward
"""torch's own, unless they were replaced before this import."""


# All layers share these objects, which makes comparing them faster.
_KERNEL, _PADDING, _DILATION, _FULL, _HALF = (3, 3), (1, 1), (1, 1), (1, 1), (2, 2)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# torch.compile guards that a name is missing in keys(), but not that it is missing in an object's dictionary.
_GUARDS_KEYS = torch.__version__ >= "2.14"  # 2.10 cannot compile keys(); versions between were not tried

_Layers = tuple[tuple[str, type[nn.Module], tuple[Any, ...]], ...]
"""A module's layers as its constructor makes them: name, type, geometry."""

_Shapes = Mapping[str, tuple[int | str, ...]]
"""The shapes of the parameters that an op takes, as ``checks.py`` has them."""


def _layers(**layers: tuple[type[nn.Module], tuple[int, int]]) -> _Layers:
    """3x3 layers with padding 1 of these types and strides."""
    return tuple(
        (name, kind, (_KERNEL, stride, _PADDING, _DILATION, 1, "zeros"))
        for name, (kind, stride) in layers.items()
    )


_CONV, _BRANCH, _UPSAMPLING = (nn.Conv2d, _FULL), (nn.Conv2d, _HALF), (nn.ConvTranspose2d, _HALF)
_ENCODER = _layers(conv1=_CONV, conv2=_CONV, conv3=_CONV, low=_BRANCH, high=_BRANCH)
_DECODER = _layers(low=_UPSAMPLING, high=_UPSAMPLING, conv1=_CONV, conv2=_CONV, conv3=_CONV)
_SCORE_DECODER = _layers(low=_UPSAMPLING, high=_UPSAMPLING, conv1=_CONV, conv2=_CONV)


def _conv(channels: int, out_channels: int, stride: tuple[int, int] = _FULL) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, _KERNEL, stride, _PADDING, _DILATION)


def _upsampling(channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out_channels, _KERNEL, _HALF, _PADDING, dilation=_DILATION)


def _inputs(module: nn.Module, layers: _Layers, shapes: _Shapes, *images: Tensor) -> tuple[Any, ...] | None:
    """``images``, then the layers' weights and biases; None if the layers have to be called instead.

    Their shapes may still be others than ``shapes``: see :func:`_fused`.
    """
    methods = nn.Conv2d.forward, nn.Conv2d._conv_forward, nn.ConvTranspose2d.forward
    if any(_GLOBAL_HOOKS) or methods != _METHODS:
        return None
    modules = module._modules
    # torch.compile traces the check of the layers, so that its guards notice when a layer changes.
    compiles = torch.compiler.is_dynamo_compiling()
    inputs: tuple[Any, ...] = () if compiles else _compiled_inputs(modules, layers, Parameter, images)
    if not inputs:
        tensors = _plain_parameters(modules, layers)
        if tensors is None:
            return None
        if compiles and not _fit(shapes, tensors):
            return None  # the compiler would not let _fused catch an error of the op
        inputs = (*images, *tensors)
    # The op refuses meta parameters with a real image. If torch.fx is tracing the image, is_meta is no bool;
    # what is no tensor has none, and the op refuses it.
    if getattr(images[0], "is_meta", None) is True and not all(t.is_meta for t in inputs):
        return None
    return inputs


def _fused(run: Callable[..., Any], shapes: _Shapes, inputs: tuple[Any, ...], images: int) -> Any:
    """What an op gives for ``inputs``, the parameters after ``images`` images.

    None if it does not take parameters of these shapes, of layers that were replaced by wider or narrower
    ones: they have to be called. That is found out after a failure, because it takes time.
    """
    try:
        return run(inputs)
    except RuntimeError:
        if _fit(shapes, inputs[images : images + len(shapes)]):
            raise
        return None


def _fit(shapes: _Shapes, tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors have these shapes, with one number for each name."""
    sizes: dict[int | str, int] = {}
    for wanted, tensor in zip(shapes.values(), tensors, strict=True):
        if len(wanted) != tensor.dim():
            return False
        for size, got in zip(wanted, tensor.shape, strict=True):
            if got != (size if isinstance(size, int) else sizes.setdefault(size, got)):
                return False
    return True


def _plain_parameters(modules: Mapping[str, Any], layers: _Layers) -> list[Any] | None:
    """The layers' weights and biases; None if a layer may compute something that they do not determine."""
    tensors: list[Any] = []
    for name, kind, geometry in layers:
        layer = modules[name]
        if type(layer) is not kind:
            return None
        variables = layer.__dict__
        names = variables.keys() if _GUARDS_KEYS else variables
        now = (  # a loop over the names would take several times as long
            variables["kernel_size"],
            variables["stride"],
            variables["padding"],
            variables["dilation"],
            variables["groups"],
            variables["padding_mode"],
        )
        if (
            now != geometry
            or variables["_forward_hooks"]
            or variables["_forward_pre_hooks"]
            or variables["_backward_hooks"]
            or variables["_backward_pre_hooks"]
            or "forward" in names
            or "_conv_forward" in names
            or "weight" in names  # hides the parameter
            or "bias" in names
        ):
            return None
        parameters = variables["_parameters"]
        if "weight" not in parameters or "bias" not in parameters:  # pruned, or re-parametrised
            return None
        weight, bias = parameters["weight"], parameters["bias"]
        if not (_is_plain(weight) and _is_plain(bias)):
            return None
        tensors += (weight, bias)
    return tensors


def _load_compiled_inputs() -> Callable[..., Any]:
    """The C++ version of :func:`_plain_parameters` (``csrc/python.cpp``), which takes a fifth of the time.

    It knows only layers as the constructors make them. For any others it returns False, and
    :func:`_plain_parameters` decides.
    """
    loaded = _load.CPU.library
    with_lock = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    library = ctypes.PyDLL(loaded._name) if loaded is not None and with_lock else None
    if library is None or not hasattr(library, "wae_python_inputs_of"):  # an older library
        return lambda *_: False
    library.wae_python_inputs_of.restype = ctypes.py_object
    inputs_of: Callable[..., Any] = library.wae_python_inputs_of()
    return inputs_of


_compiled_inputs = _load_compiled_inputs()


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether the ops can take the tensor itself: it exists, wraps no other tensors and overrides nothing."""
    return type(tensor) is Parameter or (
        tensor is not None and not _overrides_functions(type(tensor)) and not is_wrapper(tensor)
    )


def _override_of(kind: type) -> object:
    """What functions of torch call instead of computing themselves, for tensors of this type."""
    override = getattr(kind, "__torch_function__", None)
    return getattr(override, "__func__", override)


_NO_OVERRIDES = (_override_of(Tensor), _override_of(Parameter), None)


def _overrides_functions(kind: type) -> bool:
    return kind is not Tensor and _override_of(kind) not in _NO_OVERRIDES


def _is_as_made(module: nn.Module, kind: type[nn.Module], layers: _Layers, shapes: _Shapes) -> bool:
    """Whether ``module`` computes what ``kind`` does: no hooks, and an unchanged forward and layers."""
    variables = vars(module)
    first = next(module.parameters(), None)  # None in a replica of DataParallel
    if first is None or type(module).forward is not kind.forward or "forward" in variables:
        return False
    inputs = None if any(variables[hooks] for hooks in _HOOKS) else _inputs(module, layers, shapes, first)
    return inputs is not None and _fit(shapes, inputs[1:])


def _dtype_of(module: Any, image: Tensor) -> torch.dtype:
    """The dtype of an encoder's or a decoder's parameters; of its ``image`` if it has none.

    Parameters of other dtypes do not count: a layer that was replaced may store its weight as integers.
    """
    # A replica of DataParallel has no parameters: its layers hold plain tensors.
    tensors = (*module.parameters(), getattr(module.conv1, "weight", None), image)
    dtypes = [t.dtype for t in tensors if isinstance(t, Tensor) and t.dtype in FLOATING]
    return dtypes[0] if dtypes else torch.float32


def _decoded(
    op: str, module: Any, low: Tensor, high: Tensor, output_size: Sequence[int], *convolutions: nn.Module
) -> Tensor:
    """A decoder's result, the same as that of ``op``, computed by calling its layers."""
    check_inputs(op, low=low, high=high, output_size=output_size)
    size = list(output_size)
    wide_low, wide_high = read_by(_dtype_of(module, low), low, high)
    x = F.relu(module.low(wide_low, size) + module.high(wide_high, size))
    *trunk, last = convolutions
    for layer in trunk:
        x = F.relu(layer(x))
    return given_as(low, last(x))


class Encoder(nn.Module):
    """Splits an image into ``low`` and ``high`` of half its resolution (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.conv1 = _conv(3, width)
        self.conv2 = _conv(width, width)
        self.conv3 = _conv(width, width)
        self.low = _conv(width, 3, _HALF)
        self.high = _conv(width, 3, _HALF)

    @property
    def is_fused(self) -> bool:
        """Whether a call is only the fused op on the layers' tensors.

        This is so as long as the module and its layers are as the constructor made them, without hooks for
        example.
        """
        return _is_as_made(self, Encoder, _ENCODER, ENCODER_SHAPES)

    def forward(
        self,
        image: Tensor,
        image_scale: Tensor | None = None,
        image_shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of a (N, 3, H, W) image; see :func:`wae_kernels.encode`."""
        inputs = _inputs(self, _ENCODER, ENCODER_SHAPES, image)
        if inputs is not None:
            if dtype is not None or memory_format is not None:
                inputs += (image_scale, image_shift, dtype, memory_format)
            elif image_scale is not None or image_shift is not None:
                inputs += (image_scale, image_shift)  # passing two Nones would take time, too
            results: tuple[Tensor, Tensor] | None = _fused(run_encode, ENCODER_SHAPES, inputs, 1)
            if results is not None:
                return results
        affine = {"image_scale": image_scale, "image_shift": image_shift}
        check_inputs("encode", image=image, **{n: t for n, t in affine.items() if t is not None})
        check_results(dtype, memory_format)
        x = normalize_image(image, _dtype_of(self, image), image_scale, image_shift)
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.relu(layer(x))
        parts = [branch(x) for branch in (self.low, self.high)]
        layout = memory_format or format_of(image)
        low, high = (laid_out(part.to(dtype or part.dtype), layout) for part in parts)
        return low, high


class Decoder(nn.Module):
    """Reconstructs an image from ``low`` and ``high`` (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.low = _upsampling(3, width)
        self.high = _upsampling(3, width)
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        self.conv3 = _conv(width, 3)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, 3, H, W) image of ``output_size`` (H, W); see :func:`wae_kernels.decode`."""
        inputs = _inputs(self, _DECODER, DECODER_SHAPES, low, high)
        if inputs is not None:
            fused: Tensor | None = _fused(run_decode, DECODER_SHAPES, (*inputs, output_size), 2)
            if fused is not None:
                return fused
        return _decoded("decode", self, low, high, output_size, self.conv1, self.conv2, self.conv3)


class ScoreDecoder(nn.Module):
    """Upsamples class scores to full resolution, guided by features (docs/network.md).

    Args:
        classes: channels of the scores.
        features: channels of the features.
        width: channels of the trunk; the compiled kernels need 16, and up to 32 classes and features.
    """

    def __init__(self, classes: int, features: int, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.low = _upsampling(classes, width)
        self.high = _upsampling(features, width)
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, classes)

    @property
    def is_fused(self) -> bool:
        """See :attr:`Encoder.is_fused`."""
        return _is_as_made(self, ScoreDecoder, _SCORE_DECODER, SCORE_DECODER_SHAPES)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, classes, H, W) scores of ``output_size`` (H, W); see :func:`wae_kernels.decode_scores`."""
        inputs = _inputs(self, _SCORE_DECODER, SCORE_DECODER_SHAPES, low, high)
        if inputs is not None:
            fused: Tensor | None = _fused(run_decode_scores, SCORE_DECODER_SHAPES, (*inputs, output_size), 2)
            if fused is not None:
                return fused
        return _decoded("decode_scores", self, low, high, output_size, self.conv1, self.conv2)
