"""Folding BatchNorm into convolutions, where that is what it computes."""

import pytest
import torch
from small_networks import SIZE, Body, assert_close, photos, with_own_forward, with_statistics
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, ResNet

from wae.inference.deploy import deploy
from wae.inference.folding import fold


def test_no_batchnorm_is_left(model):
    resnet = with_statistics(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7))
    for network, images in ((model, photos(2)), (resnet, torch.randn(2, 3, *SIZE))):
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fold(network).modules())
        assert not any(part.training for part in fold(network).modules())
        assert_close(fold(network)(images), network(images))
    behind = deploy(model, SIZE, engine="eager")._prepared._module
    assert not any(isinstance(part, nn.BatchNorm2d) for part in behind.modules())


def test_what_cannot_be_traced_keeps_its_batchnorm(model):
    class Stubborn(Body):
        def forward(self, x):
            return super().forward(x if x.mean() > -1e9 else -x)

    model.low_body = with_statistics(Stubborn(8))
    images = photos(2)
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


def test_what_is_done_without_an_optional_argument_stays_done():
    """torch.fx would take it for given."""

    class Optional(Body):
        def forward(self, x, mask=None):
            return super().forward(x.relu() if mask is None else x * mask)

    network, images = with_statistics(Optional(8)), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert_close(fold(network)(images), network(images))


def test_a_convolution_used_twice_is_not_folded(model):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.body = Body(8)

        def forward(self, x):
            return self.body(self.two(self.conv(self.one(self.conv(x)))))

    model.low_body = with_statistics(Twice())
    images = photos(2)
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


class Tokens(nn.Sequential):
    """A BatchNorm over tokens, behind a matrix over their channels: as many, so that shapes do not tell."""

    def __init__(self):
        super().__init__(nn.Flatten(2), nn.Linear(SIZE[0] * SIZE[1], 3), nn.BatchNorm1d(3), nn.Flatten())


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[0].register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: network[1].register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: network.register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: prune.l1_unstructured(network[0], "weight", 0.5),
        lambda network: parametrizations.weight_norm(network[0]),
        with_own_forward,
    ],
    ids=["convolution", "norm", "network", "pruned", "weight norm", "forward"],
)
@pytest.mark.parametrize("part", ["low_body", "of its own"])
def test_what_is_more_than_its_tensors_is_not_folded(change, part, model):
    network = model if part == "low_body" else with_statistics(Body(8))
    change(getattr(network, part, network))
    images = photos(2)
    with torch.no_grad():
        expected = network.eval()(images if network is model else images.float())
    assert_close(deploy(network, SIZE, engine="eager")(images), expected)


def test_a_norm_behind_a_matrix_is_not_folded():
    network, images = with_statistics(Tokens()), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        network[2].running_mean.uniform_(1, 2)
        network[2].running_var.uniform_(2, 9)
    assert_close(deploy(network, SIZE, engine="eager")(images), network(images))
