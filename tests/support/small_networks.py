"""Small networks with BatchNorm, with WAE and without, and helpers for tests of their deployed forms."""

import pytest
import torch
from torch import nn

from wae.inference.engines import ENGINES
from wae.models.classifier import FlatClassifier, WAEClassifier
from wae_kernels.nn import Encoder

SIZE = (20, 33)
SLOW = ("compile", "winograd")  # these compile
EACH = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in ENGINES
    if name != "tensorrt"
]
QUICK = [name for name in ENGINES if name not in ("compile", "tensorrt")]


class Body(nn.Sequential):
    """A small body with BatchNorm: two pooled features per channel."""

    def __init__(self, channels, image_channels=3):
        super().__init__(
            nn.Conv2d(image_channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3),
            nn.BatchNorm2d(channels),
            nn.AdaptiveAvgPool2d((1, 2)),
        )


class HeadFirst(nn.Sequential):
    """``head`` after ``body``, but defined first: the linear layer defined last does not make the scores."""

    def __init__(self, head, *body):
        super().__init__(head, *body)

    def forward(self, image):
        head, *body = self
        return head(nn.Sequential(*body)(image))


class WithChangedScores(nn.Module):
    """``network`` with ``change`` applied to its scores, in evaluation mode."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change
        self.eval()

    def forward(self, images):
        return self.change(self.network(images))


def with_statistics(model):
    """Give BatchNorms statistics as after training, so that results change if one is left out."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 3)
                if norm.affine:
                    norm.weight.normal_()
                    norm.bias.normal_()
    return model.eval()


def small_wae():
    return with_statistics(
        WAEClassifier(
            Encoder(),
            Body(8),
            Body(2),
            FlatClassifier(16, 12, 5),
            FlatClassifier(20, 12, 5),
            (1 / 64,) * 3,
            (-2.0,) * 3,
        )
    )


def small_stock():
    """A network without WAE."""
    return with_statistics(nn.Sequential(Body(8), nn.Flatten(), nn.Linear(16, 7)))


def photos(batch, size=SIZE):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


def needs(engine, device="cpu"):
    reason = ENGINES[engine].why_not(device)
    if reason:
        pytest.skip(reason)


def assert_close(scores, expected, tolerance=1e-5):
    assert scores.shape == expected.shape
    assert (scores - expected).norm() <= tolerance * expected.norm()


def with_own_forward(network):
    """Replace the ``forward`` of this object by one that doubles the scores."""
    network.forward = lambda x: 2 * type(network).forward(network, x)
