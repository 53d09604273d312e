"""torch.func and forward-mode derivatives: supported by the Python functions, refused by the plain ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import arguments_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import wae_kernels
from wae_kernels import reference
from wae_kernels.nn import Decoder, Encoder

# torch itself uses torch.jit.script when it imports its forward-mode formulas
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")

SIZE = (5, 6)


def arguments(op: str, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    return tuple(arguments_of(op, dtype=dtype, size=SIZE))


def split(op: str, values: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """The tensors, and the arguments after them."""
    return (values, ()) if op == "encode" else (values[:-1], values[-1:])


def first(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


every_op = pytest.mark.parametrize("op", ["encode", "decode", "decode_scores"])


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jvp_with_tangents_of_all_tensors(op: str, dtype: torch.dtype) -> None:
    tensors, rest = split(op, arguments(op, dtype))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    function, plain = getattr(wae_kernels, op), getattr(reference, op)
    _, out = jvp(lambda *t: first(function(*t, *rest)), tensors, tangents)
    wide = tuple(t.double() for t in tensors)
    step = 1e-6
    ahead = first(plain(*(t + step * d for t, d in zip(wide, tangents, strict=True)), *rest))
    behind = first(plain(*(t - step * d for t, d in zip(wide, tangents, strict=True)), *rest))
    expected = (ahead - behind) / (2 * step)
    assert (out - expected).norm() <= 1e-5 * expected.norm()


@every_op
def test_dual_numbers(op: str) -> None:
    tensors, rest = split(op, arguments(op))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    function = getattr(wae_kernels, op)
    expected = jvp(lambda *t: first(function(*t, *rest)), tensors, tangents)[1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
        out = forward_ad.unpack_dual(first(function(*duals, *rest))).tangent
    assert torch.equal(out, expected)


@every_op
def test_forward_and_reverse_mode_jacobians_agree(op: str) -> None:
    (x, *others), rest = split(op, arguments(op))
    call = getattr(wae_kernels, op)

    def function(x: Tensor) -> Tensor:
        return first(call(x, *others, *rest))

    forwards, backwards = jacfwd(function)(x), jacrev(function)(x)
    assert forwards.abs().max() > 0
    torch.testing.assert_close(forwards, backwards)
    cotangent = torch.randn_like(function(x))
    torch.testing.assert_close(
        vjp(function, x)[1](cotangent)[0], torch.tensordot(cotangent, backwards, cotangent.dim())
    )


def test_hessian_of_the_modules() -> None:
    module, x = Encoder(), torch.randn(1, 3, 2, 2)
    second = hessian(lambda x: module(x)[0].square().sum())(x)
    assert second.abs().max() > 0
    torch.testing.assert_close(second, second.permute(4, 5, 6, 7, 0, 1, 2, 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_per_sample(memory_format: torch.memory_format) -> None:
    modules = torch.nn.ModuleDict({"encoder": Encoder(), "decoder": Decoder()})
    images = torch.randn(3, 3, 6, 7).contiguous(memory_format=memory_format)

    class ReconstructionLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modules_ = modules

        def forward(self, image: Tensor) -> Tensor:
            low, high = modules["encoder"](image)
            return (modules["decoder"](low, high, image.shape[2:]) - image).square().mean()

    network = ReconstructionLoss()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    each = vmap(grad(lambda p, x: functional_call(network, p, (x[None],))), in_dims=(None, 0))
    found = each(parameters, images)
    for number, image in enumerate(images):
        network.zero_grad()
        network(image[None]).backward()
        for name, p in network.named_parameters():
            torch.testing.assert_close(found[name][number], p.grad, rtol=1e-4, atol=1e-6)


REFUSALS = {
    **{
        op: f"wae::{op} has no forward-mode derivative .*; wae_kernels.{op} .* have both"
        for op in ("encode", "decode", "decode_scores")
    },
    **{
        f"{op}_backward": f"wae::{op}_backward has no derivative: .* wae_kernels.reference.{op}"
        for op in ("encode", "decode", "decode_scores")
    },
    **{op: f"wae::{op} has no derivative: .*conv2d has one" for op in ("conv3x3_pack", "conv3x3")},
}


def values_of(op: str) -> tuple[Any, ...]:
    if op == "conv3x3_pack":
        return (torch.randn(4, 4, 3, 3),)
    if op == "conv3x3":
        packed = torch.ops.wae.conv3x3_pack(torch.randn(4, 4, 3, 3))
        return torch.randn(1, 4, 5, 5), packed, None, 4
    return arguments(op)


@pytest.mark.parametrize("name", list(REFUSALS))
def test_plain_ops_refuse_tangents(name: str) -> None:
    """They have no forward derivative, and tangents of zero would be wrong."""
    op, values = getattr(torch.ops.wae, name), values_of(name)
    with pytest.raises(RuntimeError, match=REFUSALS[name]), forward_ad.dual_level():
        op(forward_ad.make_dual(values[0], torch.ones_like(values[0])), *values[1:])
    with forward_ad.dual_level():
        op(*values)  # without a tangent, no error


@pytest.mark.parametrize("name", list(REFUSALS))
def test_plain_ops_refuse_gradients_in_transforms(name: str) -> None:
    x, *others = values_of(name)
    with pytest.raises(RuntimeError, match=REFUSALS[name]):
        grad(lambda x: first(getattr(torch.ops.wae, name)(x, *others)).sum())(x)


@every_op
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch calls the op for each sample
def test_plain_ops_run_in_vmap(op: str) -> None:
    """Also with parameters that require a gradient, which is then right."""
    (x, *others), rest = split(op, arguments(op))
    leaf = others[-1].requires_grad_()
    samples = torch.stack([x, 2 * x])

    def function(x: Tensor) -> Tensor:
        return first(getattr(torch.ops.wae, op)(x, *others, *rest))

    expected = torch.stack([*map(function, samples)])
    results = vmap(function)(samples)
    assert torch.equal(results, expected)
    for found, right in zip(
        torch.autograd.grad(results.square().sum(), leaf),
        torch.autograd.grad(expected.square().sum(), leaf),
        strict=True,
    ):
        torch.testing.assert_close(found, right)


@every_op
@pytest.mark.parametrize(
    ("of_first", "of_others"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
def test_autocast_accepts_several_dtypes_as_without_transforms(
    op: str, of_first: torch.dtype, of_others: torch.dtype
) -> None:
    """The op's autocast casts tensors of several dtypes; the reference refuses them."""
    tensors, rest = split(op, arguments(op, torch.float32))
    image, others = tensors[0].to(of_first), [t.to(of_others) for t in tensors[1:]]
    function = getattr(wae_kernels, op)
    with torch.autocast("cpu", torch.bfloat16):
        expected = first(function(image, *others, *rest))
        gradient, out = grad_and_value(lambda x: first(function(x, *others, *rest)).float().sum())(image)
        tangent = jvp(lambda x: first(function(x, *others, *rest)), (image,), (torch.ones_like(image),))[1]
    assert (gradient.dtype, tangent.dtype) == (of_first, expected.dtype)
    assert (out - expected.float().sum()).abs() <= 1.5e-2 * expected.float().abs().sum()
    assert (tangent.float().sum() - gradient.float().sum()).abs() <= 1.5e-2 * gradient.float().abs().sum()


COMPILED = {
    "grad": lambda call, x: grad(lambda x: call(x).square().sum())(x),
    "jvp": lambda call, x: jvp(call, (x,), (x,))[1],
    "vmap": lambda call, x: vmap(call)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda call, x: vmap(grad(lambda x: call(x).square().sum()))(torch.stack([x, 2 * x])),
    "jacrev": lambda call, x: jacrev(call)(x),
}


@pytest.mark.slow
@every_op
@pytest.mark.parametrize("transform", list(COMPILED))
def test_compiled(transform: str, op: str) -> None:
    (x, *others), rest = split(op, arguments(op))

    def function(x: Tensor) -> Tensor:
        return COMPILED[transform](lambda x: first(getattr(wae_kernels, op)(x, *others, *rest)), x)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.slow
def test_compiled_module_in_a_transform() -> None:
    """Compiled before it is called in the transform, whose gradients and tangents must not be zero."""
    module, x = Encoder(), torch.randn(1, 3, 6, 6)
    compiled = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    tangent = jvp(lambda x: module(x)[0], (x,), (x,))[1]
    torch.testing.assert_close(jvp(lambda x: compiled(x)[0], (x,), (x,))[1], tangent)
    expected = grad(lambda x: module(x)[0].square().sum())(x)
    torch.testing.assert_close(grad(lambda x: compiled(x)[0].square().sum())(x), expected)
    with forward_ad.dual_level():
        low = compiled(forward_ad.make_dual(x, x))[0]
        torch.testing.assert_close(forward_ad.unpack_dual(low).tangent, tangent)
