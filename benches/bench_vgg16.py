"""A whole classifier: WAE-VGG16 against the VGG16 it makes faster. Weights are random, only time is meant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from networks import OURS, images
from torchvision.models import vgg16

from wae.models.classifier import fold_normalization
from wae.models.stock import StockEncoder
from wae.models.vgg16 import wae_vgg16


@pytest.mark.parametrize("batch", [1, 8])
@torch.no_grad()
def bench_vgg16(compare: Callable[..., None], device: torch.device, batch: int) -> None:
    torch.manual_seed(0)
    wae = fold_normalization(wae_vgg16()).to(device)
    stock_ops = fold_normalization(wae_vgg16(encoder=StockEncoder())).to(device)
    stock_ops.load_state_dict(wae.state_dict())
    stock = vgg16().eval().to(device)
    image = images(batch, 224, device)
    torch.testing.assert_close(wae(image), stock_ops(image), rtol=1e-3, atol=1e-3)
    sides = {
        f"WAE-VGG16, {OURS}": partial(wae, image),
        "WAE-VGG16, stock ops": partial(stock_ops, image),
        "VGG16 at 224": partial(stock, image),
    }
    # VGG16 computes something else: that is the point
    compare(f"WAE-VGG16, {OURS}", sides, device=device, check=False, table="VGG16", images=batch)
