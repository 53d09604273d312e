"""Folding BatchNorm into convolutions, where that is what it computes."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import SIZE, Body, assert_close, photos, with_own_forward, with_statistics
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, ResNet

from wae.inference.deploy import deploy
from wae.inference.folding import fold
from wae.models.registry import build


def test_no_batchnorm_is_left(model):
    resnet = with_statistics(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7))
    for network, images in ((model, photos(2)), (resnet, torch.randn(2, 3, *SIZE))):
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fold(network).modules())
        assert not any(part.training for part in fold(network).modules())
        assert_close(fold(network)(images), network(images))
    behind = deploy(model, SIZE, engine="eager")._prepared._module
    assert not any(isinstance(part, nn.BatchNorm2d) for part in behind.modules())


def norms(network):
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def assert_folded(network, images, left=0):
    """Its norms but those ``left`` are gone, and it computes the same."""
    network = with_statistics(network)
    folded = fold(network)
    assert len(norms(folded)) == left < len(norms(network))
    with torch.no_grad():
        assert_close(folded(images), network(images))


class Stubborn(nn.Module):
    """What torch.fx cannot trace: it looks at numbers, and at an attribute of its part."""

    def __init__(self, part, **attributes):
        super().__init__()
        self.part = part
        for name, value in attributes.items():
            setattr(part, name, value)

    def forward(self, x):
        return self.part(x if x.mean() > -1e9 else -x) * getattr(self.part, "factor", 1)


def test_the_parts_of_what_cannot_be_traced_are_folded(model):
    model.low_body = Stubborn(Body(8))
    assert_folded(model, photos(2))
    assert_folded(Stubborn(Stubborn(Body(8), factor=3)), torch.randn(2, 3, *SIZE))
    assert_folded(build("small_photo_vgg", 4), photos(2, (64, 64)))


def test_a_batchnorm_of_a_module_that_cannot_be_traced_stays(model):
    class Alone(Body):
        def forward(self, x):
            return super().forward(x if x.mean() > -1e9 else -x)

    model.low_body = with_statistics(Alone(8))
    images = photos(2)
    assert len(norms(fold(model))) == 2
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


def test_a_transposed_convolution():
    def network(groups):
        return nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=groups), nn.BatchNorm2d(6), Body(8, 6))

    images = torch.randn(2, 4, *SIZE)
    assert_folded(network(groups=1), images)
    assert_folded(network(groups=2), images, left=1)


class NormAnd(nn.BatchNorm2d):
    """As timm has it: an assertion, the norm, an activation."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.Hardswish()

    def forward(self, x):
        torch._assert(x.ndim == 4, f"got {x.ndim} dimensions")
        own = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(self.drop(F.batch_norm(x, *own, eps=self.eps)))


class Scaled(NormAnd):
    def forward(self, x):
        return super().forward(2 * x)


class Joined(NormAnd):
    def forward(self, x):
        return super().forward(x) + x


class Behind(NormAnd):
    def forward(self, x):
        return super().forward(x) - 1


def test_a_norm_with_an_activation_in_it():
    def network(norm):
        return nn.Sequential(nn.Conv2d(3, 3, 3), norm(3), Body(8))

    images = torch.randn(2, 3, *SIZE)
    for around in (nn.Sequential, Stubborn):
        assert_folded(around(network(NormAnd)), images)
        for more in (Scaled, Joined, Behind):
            assert_folded(around(network(more)), images, left=1)


def test_a_norm_that_runs_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.body = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Body(8)

        def forward(self, x):
            return self.body(self.norm(self.norm(self.conv(x)).relu()))

    assert_folded(Twice(), torch.randn(2, 3, *SIZE), left=1)


@pytest.mark.parametrize(("name", "left"), [("mobilenetv3_small_050", 0), ("mobileone_s0", 35)])
def test_networks_of_timm(name, left):
    """In MobileOne a norm stands alone in each block that keeps the resolution."""
    timm = pytest.importorskip("timm")
    assert_folded(timm.create_model(name), torch.randn(1, 3, 64, 64), left)


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
