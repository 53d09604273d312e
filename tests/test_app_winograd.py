"""The engine ``winograd``: which convolutions it replaces, and that the network computes the same."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from wae import deploy
from wae.engines import ENGINES, EngineError
from wae.winograd import Convolution, replaced
from wae_kernels import backends

pytestmark = pytest.mark.skipif(
    not backends.backend_for("cpu").startswith("cpu"), reason="the compiled kernels are not here"
)


@pytest.fixture
def image():
    return torch.randn(2, 16, 13, 10, generator=torch.Generator().manual_seed(0))


def same(module, image):
    """``module`` with its convolutions replaced, after a check that it computes the same."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        wanted, new = module(image), replaced(module, (image,))
        torch.testing.assert_close(new(image), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return new


def test_a_relu_behind_a_convolution_becomes_part_of_it(image):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(20, 17, 3, padding=1, bias=False)
    ).eval()
    new = same(module, image)
    kinds = [type(layer) for layer in new]
    assert kinds == [Convolution, nn.Identity, Convolution]
    assert [new[0].relu, new[2].relu] == [True, False]


def test_other_convolutions_stay(image):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 3, 3, padding=1),
        nn.Conv2d(3, 16, 3, padding=1),
    ).eval()
    assert [type(layer) for layer in same(module, image)] == [nn.Conv2d] * 6 + [Convolution, nn.Conv2d]


def test_a_convolution_that_runs_twice_stays(image):
    torch.manual_seed(0)
    shared = nn.Conv2d(16, 16, 3, padding=1)
    new = same(nn.Sequential(shared, nn.ReLU(), shared).eval(), image)
    assert isinstance(new[0], nn.Conv2d)


def test_a_residual_block_keeps_its_relus(image):
    torch.manual_seed(0)
    new = same(BasicBlock(16, 16).eval(), image)
    assert isinstance(new.conv1, Convolution)
    assert not new.conv1.relu


def test_the_engine_says_what_it_needs():
    with backends.use("reference"):
        assert "compiled kernels" in ENGINES["winograd"].why_not("cpu")
    assert "not on cuda" in ENGINES["winograd"].why_not("cuda")


def test_without_the_kernels_it_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with backends.use("reference"), pytest.raises(EngineError, match="compiled kernels"):
        deploy(model, size=(8, 8), engine="winograd")
