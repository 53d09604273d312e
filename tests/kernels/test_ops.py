"""The documented Python functions, `wae_kernels.encode` and `decode`, and how the modules run the ops."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import arguments_of, as_tuple, decoder, encoder, image_of, names_of
from torch import nn
from torch.overrides import TorchFunctionMode

import wae_kernels


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_functions_equal_the_ops(op: str) -> None:
    function, arguments = getattr(wae_kernels, op), arguments_of(op)
    schema = getattr(torch.ops.wae, op).default._schema
    assert list(inspect.signature(function).parameters) == [argument.name for argument in schema.arguments]
    expected = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    named = dict(zip(names_of(op), arguments, strict=True))
    for outputs in (function(*arguments), function(**named)):
        assert all(map(torch.equal, as_tuple(outputs), expected))


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_gradients_flow(op: str) -> None:
    arguments = arguments_of(op, requires_grad=True)
    sum(out.square().mean() for out in as_tuple(getattr(wae_kernels, op)(*arguments))).backward()
    assert all(a.grad is not None for a in arguments if isinstance(a, torch.Tensor))


def test_bad_input_gives_the_messages_of_the_ops() -> None:
    with pytest.raises(RuntimeError, match=r"^wae::encode: image must"):
        wae_kernels.encode(image_of(1, 4, 4)[:, :2], *encoder())
    with pytest.raises(RuntimeError, match=r"^wae::decode: output_size"):
        wae_kernels.decode(image_of(1, 2, 2), image_of(1, 2, 2), *decoder(), (9, 9))


@pytest.mark.parametrize(
    ("module", "op"), [(wae_kernels.nn.Encoder, "encode"), (wae_kernels.nn.Decoder, "decode")]
)
def test_modules_run_the_ops_with_the_tensors_of_their_layers(
    module: type[nn.Module], op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Sequence[Any]] = []
    monkeypatch.setattr(wae_kernels.nn, f"run_{op}", calls.append)
    arguments = arguments_of(op)
    model = module()
    outer = len(arguments) - 12 if op == "encode" else 2
    model(*arguments[:outer], *arguments[outer + 10 :])
    (given,) = calls
    layers = {name.replace(".", "_"): t for name, t in model.named_parameters()}
    by_name = dict(zip(names_of(op), given, strict=True))
    assert all(by_name[name] is tensor for name, tensor in layers.items())


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_functions_compile(op: str) -> None:
    arguments = arguments_of(op)
    compiled = torch.compile(getattr(wae_kernels, op), fullgraph=True, backend="eager")
    for out, ref in zip(
        as_tuple(compiled(*arguments)), as_tuple(getattr(wae_kernels, op)(*arguments)), strict=True
    ):
        assert torch.equal(out, ref)


def test_scores_compile_if_the_reference_runs() -> None:
    arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments_of("decode_scores")]
    compiled = torch.compile(wae_kernels.decode_scores, fullgraph=True, backend="eager")
    assert compiled(*arguments).shape == wae_kernels.decode_scores(*arguments).shape


class ScaledImages(TorchFunctionMode):
    """Multiplies the image of every op by ``factor``, which requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones((), requires_grad=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload):
            args = (self.factor * args[0], *args[1:])
        return func(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    """A tensor that passes another one to the ops."""

    wrapped: torch.Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(a.wrapped if isinstance(a, Wrapper) else a for a in args), **(kwargs or {}))


@pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])
def test_overrides_of_torch_functions_are_recorded_by_autograd(op: str) -> None:
    """Even if no input requires a gradient."""
    function, arguments = getattr(wae_kernels, op), arguments_of(op)
    with ScaledImages() as mode:
        as_tuple(function(*arguments))[0].sum().backward()
    assert mode.factor.grad is not None
    image = arguments[0].clone().as_subclass(Wrapper)
    image.wrapped = arguments[0].clone().requires_grad_()
    as_tuple(function(image, *arguments[1:]))[0].sum().backward()
    assert image.wrapped.grad is not None


class FixedSizeDecoder(nn.Module):
    """A decoder of scores for images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = wae_kernels.nn.ScoreDecoder(5, 7)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.decoder(low, high, (5, 6))
        return scores


def test_torch_fx_traces_a_decoder_of_scores() -> None:
    """Its proxies have no device."""
    model, images = FixedSizeDecoder(), [image_of(1, 3, 3, channels=n) for n in (5, 7)]
    assert torch.equal(torch.fx.symbolic_trace(model)(*images), model(*images))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # its category differs between torch's versions
def test_torch_jit_traces_with_gradients() -> None:
    """It traces again without gradients and compares the traces, including the lines that called each op."""
    encoder, image = wae_kernels.nn.Encoder(), image_of(1, 5, 6)
    traced = torch.jit.trace(encoder, image)
    larger = image_of(2, 8, 7)
    assert all(map(torch.equal, traced(larger), encoder(larger)))


class EncoderByReference(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = wae_kernels.nn.Encoder()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return wae_kernels.reference.encode(image, *self.encoder.parameters())


class EncoderByLayers(wae_kernels.nn.Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.conv1.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("kind", [EncoderByReference, EncoderByLayers])
def test_torch_jit_traces_plain_operators_without_a_warning(kind: type[torch.nn.Module]) -> None:
    """While it traces, sizes are tensors, and it warns of decisions by them."""
    encoder, image, larger = kind(), image_of(1, 5, 6), image_of(2, 8, 7)
    traced = torch.jit.trace(encoder, image)
    assert all(map(torch.equal, traced(larger), encoder(larger)))
