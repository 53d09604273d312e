"""Encoder and Decoder give the results of their layers, whatever was done to the layers."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import as_tuple, needs_library
from compare import PLAIN, WINOGRAD, assert_close, tolerance
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from wae_kernels import _load
from wae_kernels import nn as wae_nn
from wae_kernels.checks import IN_16_BITS
from wae_kernels.nn import Decoder, Encoder, ScoreDecoder


def encode_by_layers(encoder: Encoder, image: Tensor) -> tuple[Tensor, Tensor]:
    x = image
    for layer in (encoder.conv1, encoder.conv2, encoder.conv3):
        x = F.relu(layer(x))
    return encoder.low(x), encoder.high(x)


def decode_by_layers(decoder: Decoder, low: Tensor, high: Tensor, size: list[int]) -> Tensor:
    x = F.relu(decoder.low(low, size) + decoder.high(high, size))
    return decoder.conv3(F.relu(decoder.conv2(F.relu(decoder.conv1(x)))))


def scores_by_layers(decoder: ScoreDecoder, low: Tensor, high: Tensor, size: list[int]) -> Tensor:
    x = F.relu(decoder.low(low, size) + decoder.high(high, size))
    return decoder.conv2(F.relu(decoder.conv1(x)))


class Adapter(nn.Module):
    """A layer with a low-rank addition, like those of fine-tuning libraries."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(layer.in_channels, 2, 3, padding=1, bias=False)
        self.up = nn.Conv2d(2, layer.out_channels, 1, bias=False)

    def forward(self, x: Tensor, *args: object) -> Tensor:
        return self.layer(x, *args) + self.up(self.down(x))


def _hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, output: 2 * output)


def _pre_hooked(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))


def _own_forward(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda *args: forward(*args) - 1  # as accelerate's offloading replaces it


def _own_convolution(layer: nn.Module) -> None:
    """Circular padding, as generators of tileable images add it: by replacing what ``forward`` calls."""

    def wrapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)

    layer._conv_forward = wrapped


def _without_bias(layer: nn.Module) -> None:
    layer.bias = None


def _tensor_as_bias(layer: nn.Module) -> None:
    """A bias that is a plain tensor, like one that another network generates."""
    bias = layer.bias.detach()
    del layer.bias
    layer.bias = 2 * bias


def _hidden_weight(layer: nn.Module) -> None:
    """A tensor among the layer's own attributes, which Python finds before the parameter."""
    vars(layer)["weight"] = 2 * layer.weight.detach()


class Scaled(nn.Parameter):
    """A parameter that convolutions read doubled, like those that libraries store in other formats."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = (
            args if func not in (F.conv2d, F.conv_transpose2d) else (args[0], 2 * args[1].detach(), *args[2:])
        )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _scaled_weight(layer: nn.Module) -> None:
    layer.weight = Scaled(layer.weight.detach())


def _other_padding(layer: nn.Module) -> None:
    layer.padding_mode, layer._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "bias no parameter": _tensor_as_bias,
    "weight hidden": _hidden_weight,
    "weight with overrides": _scaled_weight,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "forward hook": _hooked,
    "forward pre-hook": _pre_hooked,
    "forward replaced": _own_forward,
    "no bias": _without_bias,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["conv1", "conv2", "low"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_layer_of_the_encoder_takes_effect(change: str, name: str) -> None:
    encoder, image = Encoder(), torch.randn(2, 3, 12, 13)
    before = encoder(image)[0]
    CHANGES[change](encoder.get_submodule(name))
    encoder.eval()
    for out, ref in zip(encoder(image), encode_by_layers(encoder, image), strict=True):
        assert_close(out, ref.double(), PLAIN)
    if not change.endswith("norm"):  # these start with the same, or nearly the same, weights
        assert (encoder(image)[0] - before).norm() > 1e-3 * before.norm()


def test_called_layers_give_the_requested_dtype_and_memory_format_as_the_op() -> None:
    encoder, image = Encoder(), torch.randn(2, 3, 12, 13)
    affine = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, -1.0])
    requested = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    expected, fused = encoder(image, *affine), encoder(image, *affine, **requested)
    encoder.conv2.register_forward_hook(lambda module, args, output: output)
    assert not encoder.is_fused
    called = encoder(image, *affine, **requested)
    for out, ref in zip((*called, *fused), expected * 2, strict=True):
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, ref.double(), tolerance(torch.bfloat16))


@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
def test_called_layers_accept_16_bit_images(dtype: torch.dtype) -> None:
    """With float32 parameters, as the ops do."""
    for module, channels in ((Decoder(), (3, 3)), (ScoreDecoder(5, 7), (5, 7))):
        low, high = (torch.randn(2, n, 6, 7).to(dtype) for n in channels)
        low = low.contiguous(memory_format=torch.channels_last)
        expected = module(low, high, [12, 13])
        module.conv1.register_forward_hook(lambda module, args, output: output)
        called = module(low, high, [12, 13])
        assert (called.dtype, called.stride()) == (dtype, expected.stride())
        assert_close(called, expected.double(), tolerance(dtype))


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_called_layers_refuse_images_of_two_dtypes(other: torch.dtype) -> None:
    """As the ops do, with and without a hook."""
    decoder = Decoder()
    low, high = torch.randn(1, 3, 4, 4).half(), torch.randn(1, 3, 4, 4).to(other)
    for _ in range(2):
        for parts in ((low, high), (high, low)):
            with pytest.raises(RuntimeError):
                decoder(*parts, (8, 8))
        decoder.conv1.register_forward_hook(lambda module, args, output: output)


def test_called_layers_give_the_dtype_of_autocast() -> None:
    """Whatever the images' dtype, as the op does."""
    decoder = Decoder()
    decoder.conv1.register_forward_hook(lambda module, args, output: output)
    for dtype in (torch.float32, *IN_16_BITS):
        low, high = (torch.randn(1, 3, 4, 4).to(dtype) for _ in range(2))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert decoder(low, high, (8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(12, 13), (1, 1)], ids=str)
@pytest.mark.parametrize("options", [(), (None, None, torch.bfloat16, torch.channels_last)], ids=str)
def test_called_layers_are_compiled_to_channels_last(options: tuple[Any, ...], size: tuple[int, int]) -> None:
    encoder, image = Encoder(), torch.randn(2, 3, *size).to(memory_format=torch.channels_last)
    parametrizations.weight_norm(encoder.conv2)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)(image, *options)
    for out, ref in zip(compiled, encoder(image, *options), strict=True):
        assert (out.dtype, out.stride()) == (ref.dtype, ref.stride())
        assert_close(out, ref.double(), tolerance(out.dtype))


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("wrong", [{"dtype": torch.int32}, {"memory_format": torch.preserve_format}], ids=str)
def test_called_layers_refuse_what_the_op_refuses(wrong: dict[str, Any], is_fused: bool) -> None:
    encoder, image = Encoder(), torch.randn(2, 3, 12, 13)
    if not is_fused:
        encoder.conv2.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(RuntimeError, match=f"wae::encode: {next(iter(wrong))} must be"):
        encoder(image, **wrong)


IMAGE, HALF = torch.randn(2, 3, 12, 13), torch.randn(2, 3, 6, 7)

WRONG: dict[str, tuple[type[nn.Module], tuple[Any, ...], str]] = {
    "one image": (Encoder, (IMAGE[0],), r"image must have shape .*, got \(3, 12, 13\)"),
    "no rows": (Encoder, (IMAGE[:, :, :0],), r"image must have shape .*, got \(2, 3, 0, 13\)"),
    "complex": (Encoder, (IMAGE.to(torch.complex64),), "image must be .*, got complex64"),
    "integers": (Encoder, (IMAGE.long(),), "image must be .*, got int64"),
    "sparse": (Encoder, (IMAGE.to_sparse(),), "image must be a dense tensor, got torch.sparse_coo"),
    "shape of the scale": (Encoder, (IMAGE, torch.ones(1, 3, 1, 1)), r"image_scale must have shape \(3\)"),
    "dtype of the shift": (Encoder, (IMAGE, None, torch.ones(3).int()), "image_shift must be .*, got int32"),
    "four channels": (Decoder, (torch.randn(2, 4, 6, 7), HALF, (12, 13)), "low must have shape .*4, 6, 7"),
    "another size": (Decoder, (HALF, HALF[:, :, 1:], (12, 13)), r"high must have shape \(2, 3, 6, 7\)"),
    "bytes": (Decoder, (HALF, HALF.byte(), (12, 13)), "high must be .*, got uint8"),
    "one image of scores": (ScoreDecoder, (HALF[0], HALF, (12, 13)), "low must have shape .*, got .3, 6, 7"),
    "too many rows": (Decoder, (HALF, HALF, (13, 13)), r"output_size must be \(11 or 12, 13 or 14\)"),
    "the shape of scores": (
        ScoreDecoder,
        (HALF, HALF, (2, 3, 12, 13)),
        r"output_size must .*\(2, 3, 12, 13\)",
    ),
}


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("wrong", list(WRONG))
def test_called_layers_refuse_inputs_that_the_op_refuses(wrong: str, is_fused: bool) -> None:
    """The layers alone would take complex images and drop the imaginary part."""
    kind, arguments, message = WRONG[wrong]
    module = kind(3, 3) if kind is ScoreDecoder else kind()
    if not is_fused:
        module.conv2.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(RuntimeError, match=f"wae::.*: {message}"):
        module(*arguments)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("size", [(12.0, 13.0), 12, None, "12"], ids=repr)
def test_decoders_name_an_output_size_that_is_not_two_integers(size: Any, is_fused: bool) -> None:
    for module in (Decoder(), ScoreDecoder(3, 3)):
        if not is_fused:
            module.conv2.register_forward_hook(lambda module, args, output: output)
        with pytest.raises(RuntimeError, match="output_size"):
            module(HALF, HALF, size)
        assert module(HALF, HALF, (np.int64(12), torch.tensor(13))).shape[2:] == (12, 13)
        with pytest.raises(RuntimeError, match="output_size"):
            torch.vmap(module, (0, None, None))(HALF[None], HALF, size)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("value", [np.zeros((1, 3, 4, 4), np.float32), [1.0]], ids=["array", "list"])
def test_modules_name_an_argument_that_is_no_tensor(value: Any, is_fused: bool) -> None:
    modules = Encoder(), Decoder(), ScoreDecoder(3, 3)
    if not is_fused:
        for module in modules:
            module.conv1.register_forward_hook(lambda module, args, output: output)
    encoder, *decoders = modules
    image, half = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)
    wrong = [("image", encoder, (value,)), ("image_scale", encoder, (image, value))]
    wrong += [("low", decoder, (value, half, (4, 4))) for decoder in decoders]
    wrong += [("high", decoder, (half, value, (4, 4))) for decoder in decoders]
    for name, module, arguments in wrong:
        kind = type(value).__name__
        with pytest.raises(
            RuntimeError, match=rf"wae::.* {name} must be a tensor, got {kind}|'{name}'.*'{kind}'"
        ):
            module(*arguments)


@pytest.mark.parametrize("name", ["low", "high", "conv1", "conv3"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_layer_of_the_decoder_takes_effect(change: str, name: str) -> None:
    decoder, low, high = Decoder(), torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    CHANGES[change](decoder.get_submodule(name))
    decoder.eval()
    for size in ([12, 13], [11, 14]):
        ref = decode_by_layers(decoder, low, high, size)
        assert_close(decoder(low, high, size), ref.double(), PLAIN)


@pytest.mark.parametrize("name", ["low", "high", "conv1", "conv2"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_layer_of_the_score_decoder_takes_effect(change: str, name: str) -> None:
    decoder, low, high = ScoreDecoder(5, 7), torch.randn(2, 5, 6, 7), torch.randn(2, 7, 6, 7)
    assert decoder.is_fused
    CHANGES[change](decoder.get_submodule(name))
    decoder.eval()
    assert not decoder.is_fused
    for size in ([12, 13], [11, 14]):
        ref = scores_by_layers(decoder, low, high, size)
        assert_close(decoder(low, high, size), ref.double(), PLAIN)


@pytest.mark.parametrize("change", ["forward hook", "forward pre-hook", "forward replaced"])
def test_module_with_a_hook_or_another_forward_is_not_fused(change: str) -> None:
    """A call runs it, and ``is_fused`` tells others not to use the tensors instead of the module."""
    for module in (Encoder(), ScoreDecoder(5, 7)):
        CHANGES[change](module)
        assert not module.is_fused


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("where", ["", "conv2"], ids=["module", "layer"])
def test_not_fused_with_hooks_of_the_backward_pass(where: str, register: str) -> None:
    encoder = Encoder()
    getattr(encoder.get_submodule(where), register)(lambda *_: None)
    assert not encoder.is_fused


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_not_fused_with_a_wrapper_subclass_as_parameter(name: str) -> None:
    """A sharded tensor, for example, which the ops would treat as a plain one."""
    encoder = Encoder()
    tensor = getattr(encoder.conv2, name).detach()
    setattr(encoder.conv2, name, nn.Parameter(TwoTensor(tensor, tensor)))
    assert not encoder.is_fused


def test_subclass_with_its_own_forward_is_not_fused() -> None:
    class Own(Encoder):
        def forward(self, image: Tensor, *affine: Tensor | None) -> tuple[Tensor, Tensor]:
            low, high = super().forward(image, *affine)
            return low, 2 * high

    class Same(Encoder):
        pass

    assert Same().is_fused
    assert not Own().is_fused


@pytest.mark.parametrize("name", ["conv1", "conv2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_wrapped_layer_trains(dtype: torch.dtype, name: str) -> None:
    encoder = Encoder()
    setattr(encoder, name, Adapter(getattr(encoder, name)))
    image = torch.randint(256, (1, 3, 9, 10), dtype=torch.uint8).to(dtype)
    scale, shift = torch.full((3,), 1 / 127.5), torch.full((3,), -1.0)
    low, high = encoder(image.contiguous(memory_format=torch.channels_last), scale, shift)
    expected = encode_by_layers(encoder, image * scale[:, None, None] + shift[:, None, None])
    assert_close(low, expected[0].double(), PLAIN)
    assert low.is_contiguous(memory_format=torch.channels_last)
    (low.square().mean() + high.mean()).backward()
    assert getattr(encoder, name).up.weight.grad.abs().max() > 0


class Quantized(nn.Module):
    """A layer that stores its weight as small numbers, as libraries for quantization do."""

    def __init__(self, layer: nn.Module, stored: torch.dtype) -> None:
        super().__init__()
        step = layer.weight.detach().abs().max() / 127
        number = (layer.weight.detach() / step).round()
        self.number = nn.Parameter(number.to(stored), requires_grad=False)
        self.register_buffer("step", step)
        self.bias = layer.bias
        self.layer = [layer]  # not a submodule

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        parameters = {"weight": self.number.float() * self.step, "bias": self.bias}
        result: Tensor = torch.func.functional_call(self.layer[0], parameters, (x, *args))
        return result


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e5m2], ids=str)
def test_layer_that_stores_its_weight_in_another_dtype(stored: torch.dtype) -> None:
    """The images keep their digits: the dtype of the stored numbers is not the network's."""
    encoder, image = Encoder(), torch.rand(2, 3, 8, 9)
    encoder.conv1 = Quantized(encoder.conv1, stored)
    assert_close(encoder(image)[0], encode_by_layers(encoder, image)[0].double(), PLAIN)
    for module, by_layers in ((Decoder(), decode_by_layers), (ScoreDecoder(3, 3), scores_by_layers)):
        module.low = Quantized(module.low, stored)
        low = HALF.bfloat16()
        out, ref = module(low, low, [12, 13]), by_layers(module, low.float(), low.float(), [12, 13])
        assert out.dtype == torch.bfloat16
        assert_close(out, ref.double(), tolerance(torch.bfloat16))


def test_another_stride_and_padding_take_effect() -> None:
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    _other_padding(encoder.conv1)
    assert_close(encoder(image)[0], encode_by_layers(encoder, image)[0].double(), PLAIN)
    encoder = Encoder()
    encoder.low.stride = (1, 1)
    assert encoder(image)[0].shape == (1, 3, 8, 8)


def test_replaced_convolution_takes_effect() -> None:
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    _own_convolution(encoder.conv2)
    assert not encoder.is_fused
    assert_close(encoder(image)[0], encode_by_layers(encoder, image)[0].double(), PLAIN)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)], ids=str)
def test_layers_of_other_widths_take_effect(compiles: bool) -> None:
    """The op refuses their weights; the layers compute with them."""
    encoder, wider, decoder, scores = Encoder(), Encoder(), Decoder(), ScoreDecoder(3, 3)
    encoder.conv2, encoder.conv3 = nn.Conv2d(16, 10, 3, padding=1), nn.Conv2d(10, 16, 3, padding=1)
    wider.low = nn.Conv2d(16, 7, 3, 2, padding=1)
    decoder.conv1, decoder.conv2 = nn.Conv2d(16, 10, 3, padding=1), nn.Conv2d(10, 16, 3, padding=1)
    scores.conv2 = nn.Conv2d(16, 7, 3, padding=1)
    assert not any(module.is_fused for module in (encoder, wider, scores))
    by_layers: Any
    for module, by_layers, arguments in (
        (encoder, encode_by_layers, (IMAGE,)),
        (wider, encode_by_layers, (IMAGE,)),
        (decoder, decode_by_layers, (HALF, HALF, [12, 13])),
        (scores, scores_by_layers, (HALF, HALF, [12, 13])),
    ):
        call = torch.compile(module, backend="aot_eager", fullgraph=True) if compiles else module
        outs, refs = as_tuple(call(*arguments)), as_tuple(by_layers(module, *arguments))
        for out, ref in zip(outs, refs, strict=True):
            assert_close(out, ref.double(), PLAIN)
    with pytest.raises(RuntimeError, match="wae::encode: image must have shape"):
        Encoder()(IMAGE[:, :2])


class Doubled(dict[str, Any]):
    """Parameters that are fetched when they are accessed, as in sharding libraries; here, doubled."""

    def __getitem__(self, name: str) -> Any:
        kept = super().__getitem__(name)
        return 2 * kept if isinstance(kept, Tensor) else kept


def test_parameters_are_read_through_their_dictionary() -> None:
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    encoder.conv2._parameters = Doubled(encoder.conv2._parameters)
    assert_close(encoder(image)[0], encode_by_layers(encoder, image)[0].double(), WINOGRAD)


def test_backward_hooks_and_global_hooks_are_called() -> None:
    encoder, image, called = Encoder(), torch.randn(1, 3, 8, 8, requires_grad=True), []
    encoder.conv2.register_full_backward_hook(lambda module, *grads: called.append("backward"))
    encoder(image)[0].sum().backward()
    assert called == ["backward"]
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        called.clear()
        register = getattr(nn.modules.module, f"register_module_{kind}_hook")
        handle = register(lambda module, *_: called.append(type(module)))
        try:
            sum(part.sum() for part in Encoder()(image)).backward()
        finally:
            handle.remove()
        assert called.count(nn.Conv2d) == 5, kind


def test_scale_or_shift_alone() -> None:
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    tensors, some = list(encoder.parameters()), torch.tensor([0.5, 1.5, 2.0])
    for given in ((some, None), (None, some)):
        assert torch.equal(encoder(image, *given)[0], torch.ops.wae.encode(image, *tensors, *given)[0])


def test_pruned_weights_are_not_trained() -> None:
    """With the fused op, a second step would fail or train the pruned weights."""
    encoder, image = Encoder(), torch.randn(2, 3, 8, 8)
    prune.l1_unstructured(encoder.conv2, "weight", 0.5)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(image)[0].square().mean().backward()
        optimizer.step()
    assert encoder.conv2.weight_orig.grad[encoder.conv2.weight_mask == 0].abs().max() == 0


class Other(nn.Conv2d):
    """Another type of layer, although it behaves the same."""


def _set(name: str, value: object) -> Callable[[nn.Module], None]:
    return lambda layer: setattr(layer, name, value)


ATTRIBUTES: dict[str, Callable[[nn.Module], object]] = {
    "kernel size": _set("kernel_size", (5, 5)),
    "stride": _set("stride", (3, 3)),
    "padding": _set("padding", "same"),
    "dilation": _set("dilation", (2, 2)),
    "groups": _set("groups", 2),
    "padding mode": _set("padding_mode", "reflect"),
    "forward hook": _set("_forward_hooks", {1: print}),
    "forward pre-hook": _set("_forward_pre_hooks", {1: print}),
    "backward hook": _set("_backward_hooks", {1: print}),
    "backward pre-hook": _set("_backward_pre_hooks", {1: print}),
    "forward": _set("forward", print),
    "convolution": _set("_conv_forward", print),
    "weight hidden": lambda layer: vars(layer).update(weight=print),
    "bias hidden": lambda layer: vars(layer).update(bias=print),
    "no bias": _set("bias", None),
    "no weight": lambda layer: layer._parameters.pop("weight"),
    "another type": _set("__class__", Other),
}


@pytest.mark.parametrize("name", ["conv1", "high"])
@pytest.mark.parametrize("change", list(ATTRIBUTES))
def test_both_checks_detect_a_changed_layer(change: str, name: str) -> None:
    """The compiled check must not accept a layer that the check in Python refuses."""
    encoder, images = Encoder(), (torch.randn(1, 3, 4, 4),)

    def compiled_inputs() -> Any:
        return wae_nn._compiled_inputs(encoder._modules, wae_nn._ENCODER, nn.Parameter, images)

    tensors = wae_nn._plain_parameters(encoder._modules, wae_nn._ENCODER)
    assert [*map(id, tensors)] == [*map(id, encoder.parameters())]
    if _load.CPU.library is not None:
        assert [*map(id, compiled_inputs())] == [*map(id, images), *map(id, tensors)]
    ATTRIBUTES[change](encoder.get_submodule(name))
    assert wae_nn._plain_parameters(encoder._modules, wae_nn._ENCODER) is None
    assert not compiled_inputs()


class Ambiguous:
    """An object whose truth value and comparisons raise."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    def __eq__(self, other: object) -> bool:
        return bool(self)


@needs_library
def test_compiled_check_survives_unusual_values() -> None:
    """It does not raise for values for which Python's check does, and it leaks and drops no reference."""
    encoder, images = Encoder(), (torch.randn(1, 3, 4, 4),)
    modules = dict(encoder._modules)

    def compiled_inputs(modules: dict[str, Any]) -> Any:
        return wae_nn._compiled_inputs(modules, wae_nn._ENCODER, nn.Parameter, images)

    ambiguous, attributes = Ambiguous(), vars(encoder.high)
    objects = [images[0], encoder.conv1.weight, encoder.high.bias, encoder.high, ambiguous]
    before = [*map(sys.getrefcount, objects)]
    for _ in range(100):
        assert compiled_inputs(modules)
        assert not compiled_inputs({})
        assert not compiled_inputs({**modules, "high": 3})
        assert not compiled_inputs(Doubled(modules))
        for name in ("stride", "_backward_hooks"):
            original, attributes[name] = attributes[name], ambiguous
            assert not compiled_inputs(modules)
            del attributes[name]
            assert not compiled_inputs(modules)
            attributes[name] = original
    assert [*map(sys.getrefcount, objects)] == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wae_kernels._load.CPU", _load.Loaded(None, "")),
        ("sys.implementation", SimpleNamespace(name="pypy")),
        ("sysconfig.get_config_var", lambda name: 1),
        ("ctypes.PyDLL", lambda name: SimpleNamespace()),
    ],
    ids=["no library", "no CPython", "no GIL", "a library without it"],
)
def test_python_checks_without_the_compiled_check(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(name, value)
        inputs_of = wae_nn._load_compiled_inputs()
    assert not inspect.isbuiltin(inputs_of)
    assert inputs_of() is False


@pytest.mark.parametrize("fails", [False, True])
def test_nested_call_leaves_autograd_enabled(fails: bool) -> None:
    """When both calls shared one guard, autograd stayed off in this thread afterwards."""
    encoder, image = Encoder(), torch.randn(1, 3, 6, 7)

    class NestedCall(TorchDispatchMode):
        nested = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not self.nested:
                self.nested = 1
                encoder(image[:, :2] if fails else image)
            return func(*args, **(kwargs or {}))

    refused = pytest.raises(RuntimeError, match="wae::encode: image must")
    with torch.no_grad(), refused if fails else contextlib.nullcontext(), NestedCall():
        encoder(image)
    sum(out.sum() for out in encoder(image)).backward()
    assert all(p.grad is not None for p in encoder.parameters())


PATCHED = [(nn.Conv2d, "forward"), (nn.Conv2d, "_conv_forward"), (nn.ConvTranspose2d, "forward")]


@pytest.mark.parametrize(("kind", "name"), PATCHED, ids=str)
def test_a_method_patched_on_the_class_takes_effect(
    kind: type[nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all layers at once, as libraries do that make all images tileable."""
    encoder, decoder, score_decoder = Encoder(), Decoder(), ScoreDecoder(3, 3)
    image, half = torch.randn(2, 3, 12, 13), torch.randn(2, 3, 6, 7)
    original = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *args: 2 * original(*args))
    assert not score_decoder.is_fused
    found = *encoder(image), decoder(half, half, [12, 13]), score_decoder(half, half, [12, 13])
    wanted = (
        *encode_by_layers(encoder, image),
        decode_by_layers(decoder, half, half, [12, 13]),
        scores_by_layers(score_decoder, half, half, [12, 13]),
    )
    for out, ref in zip(found, wanted, strict=True):
        assert_close(out, ref.double(), PLAIN)


def test_untouched_layers_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder, image = Encoder(), Decoder(), torch.randn(1, 3, 8, 8)
    score_decoder, scores, features = ScoreDecoder(5, 7), torch.randn(1, 5, 4, 4), torch.randn(1, 7, 4, 4)
    expected = encode_by_layers(encoder, image)
    monkeypatch.setattr(nn.modules.conv, "F", None)  # layers cannot be called
    low, high = encoder(image)
    assert_close(low, expected[0].double(), WINOGRAD)
    decoder(low, high, (8, 8))
    score_decoder(scores, features, (8, 8))


@pytest.mark.slow
def test_untouched_layers_are_fused_when_compiled() -> None:
    """The graph has the op, and neither the layers nor the reference's convolutions."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compile(Encoder(), backend=keep, fullgraph=True)(torch.randn(1, 3, 8, 8))
    (calls,) = ([n.target for n in g.graph.nodes if n.op == "call_function"] for g in graphs)
    assert torch.ops.wae.encode.default in calls
    assert not any("conv" in str(call) for call in calls)


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="older torch.compile does not guard all of these")
@pytest.mark.parametrize(
    "change",
    [
        *(CHANGES["pruned"], _hooked, _pre_hooked, _own_forward, _own_convolution),
        *(_without_bias, _hidden_weight, _other_padding),
    ],
)
def test_compiled_module_notices_changed_layers(change: Callable[[nn.Module], object]) -> None:
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    compiled = torch.compile(encoder, backend="eager")
    before = compiled(image)[0]
    change(encoder.conv2)
    after = compiled(image)[0]
    assert (after - before).norm() > 1e-3 * before.norm()
    assert_close(after, encode_by_layers(encoder, image)[0].double(), PLAIN)


def test_meta_parameters_that_a_hook_fills() -> None:
    """Libraries that store weights elsewhere load them in the layer's hooks."""
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    expected = encoder(image)[0]
    stored = {name: p.detach().clone() for name, p in encoder.conv2.named_parameters()}

    def fill(layer: nn.Module, args: object) -> None:
        for name, value in stored.items():
            setattr(layer, name, nn.Parameter(value))

    for name in stored:
        setattr(encoder.conv2, name, nn.Parameter(getattr(encoder.conv2, name).to("meta")))
    encoder.conv2.register_forward_pre_hook(fill)
    assert_close(encoder(image)[0], expected.double(), WINOGRAD)


def test_meta_parameters_that_nothing_fills_are_refused() -> None:
    """The layers, called one by one, would silently return a meta tensor for a real image."""
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    encoder.conv2.bias = nn.Parameter(encoder.conv2.bias.to("meta"))
    with pytest.raises(RuntimeError, match="conv2_bias must be on image's device cpu"):
        encoder(image)


def test_a_meta_image_gives_shapes() -> None:
    for encoder in (Encoder(), Encoder().to("meta")):
        low, high = encoder(torch.empty(2, 3, 9, 8, device="meta"))
        assert low.is_meta
        assert low.shape == high.shape == (2, 3, 5, 4)


@pytest.mark.parametrize("changed", ["conv1", "conv3"])
def test_changes_of_layers_between_calls_take_effect(changed: str) -> None:
    """No property of a layer is cached between calls."""
    encoder, image = Encoder(), torch.randn(1, 3, 8, 8)
    plain, layer, calls = encoder(image), encoder.get_submodule(changed), []
    handle = layer.register_forward_hook(lambda *_: calls.append(changed))
    for out, ref in zip(encoder(image), plain, strict=True):
        assert_close(out, ref.double(), WINOGRAD)
    handle.remove()
    encoder(image)
    layer._forward_hooks = {1: lambda *_: calls.append("another dictionary")}
    encoder(image)
    layer._forward_hooks = {}
    setattr(encoder, changed, Adapter(layer))
    for out, ref in zip(encoder(image), encode_by_layers(encoder, image), strict=True):
        assert_close(out, ref.double(), PLAIN)
    setattr(encoder, changed, layer)
    assert torch.equal(encoder(image)[0], plain[0])
    assert calls == [changed, "another dictionary"]


def replica_of(module: nn.Module) -> nn.Module:
    """A replica as DataParallel makes one on each GPU: its layers have plain tensors, not parameters."""
    replica = module._replicate_for_data_parallel()
    for name, layer in module.named_children():
        copy = layer._replicate_for_data_parallel()
        for key, tensor in layer.named_parameters():
            setattr(copy, key, tensor.detach().clone())
        setattr(replica, name, copy)
    return replica


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_replica_of_data_parallel_gives_the_same_results(dtype: torch.dtype) -> None:
    encoder, image = Encoder(), torch.randint(256, (1, 3, 8, 9)).to(dtype)
    for out, expected in zip(replica_of(encoder)(image), encoder(image), strict=True):
        assert_close(out, expected, WINOGRAD)


def test_replica_of_data_parallel_is_not_fused() -> None:
    """Its layers are called, because they have plain tensors in place of parameters."""
    for module in (Encoder(), ScoreDecoder(5, 7)):
        assert not replica_of(module).is_fused
