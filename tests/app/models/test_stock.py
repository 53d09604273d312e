"""wae.models.stock: the plain encoder and decoders, compared with the fused ops for the same weights."""

from __future__ import annotations

import pytest
import torch
from cases import affine, image_of, recorded, widened
from compare import assert_close, tolerance
from default_dtype import with_default_dtype
from torch import fx, nn

from wae.models.haar import Haar
from wae.models.stock import StockDecoder, StockEncoder, StockScoreDecoder, portable
from wae_kernels import nn as wae_nn
from wae_kernels import reference

GIVEN = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("given", GIVEN, ids=["both", "scale", "shift", "neither"])
def test_the_encoder_applies_scale_and_shift_like_the_op(
    given: tuple[bool, bool], dtype: torch.dtype
) -> None:
    model = StockEncoder()
    image = image_of(2, 9, 12, dtype)
    pair = affine(of_bytes=dtype == torch.uint8)
    scale, shift = (t if is_given else None for t, is_given in zip(pair, given, strict=True))
    layers = (model.conv1, model.conv2, model.conv3, model.low, model.high)
    tensors = [t.detach() for layer in layers for t in (layer.weight, layer.bias)]
    expected = reference.encode(*widened([image, *tensors, scale, shift]))
    for out, ref in zip(model(image, scale, shift), expected, strict=True):
        assert_close(out, ref, tolerance(torch.float32))


def test_the_encoder_returns_the_requested_dtype_and_memory_format() -> None:
    model, image = StockEncoder(), image_of(2, 9, 12)
    outputs = model(image, dtype=torch.bfloat16, memory_format=torch.channels_last)
    for out, ref in zip(outputs, model(image), strict=True):
        assert torch.equal(out, ref.bfloat16())
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_torch_fx_traces_the_encoder() -> None:
    """Arguments may be None, but a trace cannot branch on them."""
    model, image = StockEncoder(), image_of(2, 9, 12)
    traced = fx.symbolic_trace(model, {"image_scale": None, "image_shift": None})
    for arguments in ((), (None, None, torch.bfloat16, torch.channels_last)):
        for out, ref in zip(traced(image, *arguments), model(image, *arguments), strict=True):
            assert torch.equal(out, ref)
            assert (out.dtype, out.stride()) == (ref.dtype, ref.stride())


def test_the_decoder_matches_the_op() -> None:
    model, fused = StockDecoder(), wae_nn.Decoder()
    fused.load_state_dict(model.state_dict())
    low, high = image_of(2, 6, 5), image_of(2, 6, 5)
    assert_close(model(low, high, (11, 10)), fused(low, high, (11, 10)).double(), 1e-4)


def test_the_score_decoder_matches_the_op() -> None:
    model, fused = StockScoreDecoder(5, 7), wae_nn.ScoreDecoder(5, 7)
    fused.load_state_dict(model.state_dict())
    low, high = image_of(2, 6, 5, channels=5), image_of(2, 6, 5, channels=7)
    assert_close(model(low, high, (11, 10)), fused(low, high, (11, 10)).double(), 1e-4)


def test_a_portable_network_gives_the_same_scores_without_our_ops() -> None:
    network = nn.ModuleDict({"encoder": wae_nn.Encoder(), "end": wae_nn.ScoreDecoder(3, 3)})
    encoder, end = network["encoder"], network["end"]
    image = image_of(1, 13, 18)
    # Hooks must be kept: on the op's module, and on layers, which are then called in place of the op.
    for changed in (), (end,), (encoder.conv2, end.conv1):
        for part in changed:
            part.register_forward_hook(lambda part, args, output: 2 * output)
        plain = portable(network)
        halves = network["encoder"](image)
        expected = network["end"](*halves, (13, 18))
        with recorded() as profile:
            scores = plain["end"](*plain["encoder"](image), (13, 18))
        assert not [event.name for event in profile.events() if event.name.startswith("wae::")]
        assert_close(scores, expected.double(), 1e-4)


@pytest.mark.parametrize("own", [torch.float32, torch.float64], ids=str)
def test_a_portable_network_has_the_same_weights_whatever_torch_s_default_dtype_is(own: torch.dtype) -> None:
    for part in (wae_nn.Encoder().to(own), wae_nn.ScoreDecoder(3, 3).to(own)):
        with with_default_dtype(torch.bfloat16):
            plain = portable(nn.Sequential(part))[0].state_dict()
        for name, tensor in part.state_dict().items():
            assert torch.equal(plain[name], tensor), name


@pytest.mark.parametrize("given", GIVEN, ids=["both", "scale", "shift", "neither"])
def test_haar_takes_scale_or_shift_alone(given: tuple[bool, bool]) -> None:
    model, image, pair = Haar(), image_of(1, 4, 6), affine()
    scale, shift = (t if is_given else None for t, is_given in zip(pair, given, strict=True))
    factor, offset = scale if given[0] else torch.ones(3), shift if given[1] else torch.zeros(3)
    normalized = image * factor.view(3, 1, 1) + offset.view(3, 1, 1)
    for out, ref in zip(model(image, scale, shift), model(normalized), strict=True):
        assert_close(out, ref.double(), 1e-6)
