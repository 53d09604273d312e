"""The plain encoder and decoder, against the fused ops' modules with the same weights."""

from __future__ import annotations

import pytest
import torch
from cases import affine, image_of, widened
from compare import assert_close, tolerance

from wae.models.haar import Haar
from wae.models.stock import StockDecoder, StockEncoder
from wae_kernels import nn as wae_nn
from wae_kernels import reference

GIVEN = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("given", GIVEN, ids=["both", "scale", "shift", "neither"])
def test_the_encoder_takes_scale_and_shift_as_the_op_does(
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


def test_the_decoder_is_the_ops() -> None:
    model, fused = StockDecoder(), wae_nn.Decoder()
    fused.load_state_dict(model.state_dict())
    low, high = image_of(2, 6, 5), image_of(2, 6, 5)
    assert_close(model(low, high, (11, 10)), fused(low, high, (11, 10)).double(), 1e-4)


@pytest.mark.parametrize("given", GIVEN, ids=["both", "scale", "shift", "neither"])
def test_haar_takes_scale_and_shift_alone(given: tuple[bool, bool]) -> None:
    model, image, pair = Haar(), image_of(1, 4, 6), affine()
    scale, shift = (t if is_given else None for t, is_given in zip(pair, given, strict=True))
    factor, offset = scale if given[0] else torch.ones(3), shift if given[1] else torch.zeros(3)
    normalized = image * factor.view(3, 1, 1) + offset.view(3, 1, 1)
    for out, ref in zip(model(image, scale, shift), model(normalized), strict=True):
        assert_close(out, ref.double(), 1e-6)
