"""The engine ``winograd``: which convolutions it replaces, and that the network computes the same."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, EngineError
from wae.inference.folding import fold
from wae.inference.winograd import Convolution, replaced
from wae.models.stock import StockEncoder
from wae.models.vgg16 import vgg16_body
from wae_kernels import backends
from wae_kernels.nn import Encoder

pytestmark = pytest.mark.skipif(
    not backends.backend_for("cpu").startswith("cpu"), reason="needs the compiled kernels"
)


@pytest.fixture
def image():
    return torch.randn(2, 16, 13, 10, generator=torch.Generator().manual_seed(0))


def same(module, image):
    """``module`` with its convolutions replaced. It must compute the same; ``module`` must not change."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        wanted, new = module(image), replaced(module)
        torch.testing.assert_close(new(image), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not relus(module)
    assert not any(part.training for part in new.modules())
    return new


def relus(module):
    """For each convolution that our op computes, whether a ReLU is part of it."""
    return [layer.relu for layer in module.modules() if isinstance(layer, Convolution)]


def test_a_relu_behind_a_convolution_becomes_part_of_it(image):
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(16, 20, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(20, 17, 3, padding=1, bias=False),
    )
    assert relus(same(nn.Sequential(*layers).eval(), image)) == [True, False]


def test_an_identity_with_a_hook_stays(image):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Identity(), nn.ReLU()).eval()
    network[1].register_forward_hook(lambda layer, given, result: result - 1)
    assert relus(same(network, image)) == [False]


def test_layers_may_be_called_with_a_keyword_argument(image):
    class Named(nn.Sequential):
        def forward(self, x):
            return self[1](input=self[0](input=x))

    assert relus(same(Named(nn.Conv2d(16, 16, 3, padding=1), nn.Identity()).eval(), image)) == [False]


def test_weights_are_packed_in_float32_inside_autocast(image):
    layer = nn.Conv2d(16, 20, 3, padding=1).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        new = replaced(layer)
    with torch.no_grad():
        torch.testing.assert_close(new(image), layer(image), rtol=1e-4, atol=1e-4)


class Untraceable(nn.Module):
    """A module that torch.fx cannot trace. It holds one that torch.fx can trace."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if x.mean() > 1e6:
            raise ValueError
        return self.inner(x)


def test_parts_of_what_cannot_be_traced_are_replaced(image):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    assert relus(same(nn.Sequential(Untraceable(inner), nn.ReLU()).eval(), image)) == [True]
    assert relus(same(Untraceable(nn.Conv2d(16, 16, 3, padding=1)).eval(), image)) == [False]


def test_other_convolutions_stay(image):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 4, 3, padding=1),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(3, 16, 3, padding=1),
    ).eval()
    kinds = [type(layer) for layer in same(module, image).children()]
    assert kinds == [nn.Conv2d] * 6 + [Convolution, nn.Conv2d, Convolution]


class Halved(nn.Conv2d):
    """A convolution with its own forward."""

    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize("kind", [Untraceable, nn.Sequential])
@pytest.mark.parametrize("which", ["convolution", "relu", "both", "own"])
def test_layers_that_are_more_than_their_tensors_stay(which, kind, image):
    torch.manual_seed(0)
    if which == "own":
        inner = Halved(16, 16, 3, padding=1)
    else:
        inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        hooked = {"convolution": inner[0], "relu": inner[1], "both": inner}[which]
        hooked.register_forward_hook(lambda layer, given, result: 2 * result)
    new = same(kind(inner).eval(), image)
    joined = kind is nn.Sequential  # a trace has the hook's operators behind both layers
    assert relus(new) == {"relu": [False], "both": [joined]}.get(which, [])


def test_a_convolution_that_runs_twice_has_no_relu(image):
    torch.manual_seed(0)
    shared = nn.Conv2d(16, 16, 3, padding=1)
    assert relus(same(nn.Sequential(shared, nn.ReLU(), shared).eval(), image)) == [False]


class ReadsWeight(nn.Module):
    """Reads its convolution's weight besides calling it. torch.fx cannot trace it, torch.compile can."""

    def __init__(self, read):
        super().__init__()
        self.convolution, self.read = nn.Conv2d(16, 16, 3, padding=1), read

    def forward(self, x, optional=None):
        return self.read(x, self.convolution.weight) + self.convolution(x)


def test_a_module_may_read_the_dtype_of_a_weight(image):
    def read(x, weight):
        assert weight.shape == (16, 16, 3, 3)
        return x.to(weight.device, weight.dtype)

    assert relus(same(ReadsWeight(read).eval(), image)) == [False]


class ReadsAttributes(Untraceable):
    def forward(self, x):
        assert self.inner.width == self.inner[0].in_channels
        return super().forward(x)


class WithWidth(nn.Sequential):
    width = 16


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.Sequential(nn.ReLU())], ids=["relu", "nested"])
def test_a_part_whose_attributes_are_read_keeps_them(relu, image):
    """A graph in its place would have none, and the network would be refused."""
    part = WithWidth(nn.Conv2d(16, 16, 3, padding=1), relu)
    assert relus(same(ReadsAttributes(part).eval(), image)) == [True]


def test_a_convolution_that_is_called_by_a_second_name_takes_its_relu(image):
    class Renamed(nn.Sequential):
        def forward(self, x):
            return self[1](self.again(x))

    part = Renamed(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    part.again = part[0]
    assert relus(same(Untraceable(part).eval(), image)) == [True]


@pytest.mark.slow
def test_a_module_that_computes_with_a_weight_directly_is_refused():
    """However little the weight matters, because the one that it reads is NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        ReadsWeight(lambda x, weight: x + 1e-9 * weight.mean()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with pytest.raises(DisagreementError, match="winograd gives scores that differ from the model's by nan"):
        deploy(model.eval(), size=(8, 8), engine="winograd")


@pytest.mark.parametrize("network", [StockEncoder, Encoder])
def test_an_encoder_gives_the_same_results(network):
    torch.manual_seed(0)
    encoder, image = network().eval(), torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        new = replaced(encoder)
        torch.testing.assert_close(new(image), encoder(image), rtol=1e-4, atol=1e-4)
    assert isinstance(new, Encoder)
    assert new.is_fused == encoder.is_fused == (network is Encoder)


def test_only_the_first_convolution_of_a_residual_block_takes_a_relu(image):
    """Once BatchNorm is folded, a ReLU follows it directly; that of the second follows the sum."""
    torch.manual_seed(0)
    assert relus(same(fold(BasicBlock(16, 16).eval(), image), image)) == [True, False]


def test_a_convolution_takes_the_relu_behind_its_folded_norm(image):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    assert relus(same(fold(Untraceable(inner).eval(), image), image)) == [True]


def test_all_relus_of_a_folded_vgg_are_in_its_convolutions():
    body = fold(vgg16_body(divisor=4).eval(), torch.randn(1, 3, 32, 32))
    assert relus(replaced(body)) == [True] * 13


@pytest.mark.slow
def test_the_engine_takes_any_number_of_images():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    deployed = deploy(model, size=(8, 8), batch=2, engine="winograd")
    for batch in (2, 5, 1, 3):
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(deployed(images), model(images).detach(), rtol=1e-4, atol=1e-4)


def test_the_engine_says_what_it_needs():
    with backends.use("reference"):
        assert "compiled kernels" in ENGINES["winograd"].why_not("cpu")
    assert "not on cuda" in ENGINES["winograd"].why_not("cuda")


def test_without_the_kernels_the_engine_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with backends.use("reference"), pytest.raises(EngineError, match="compiled kernels"):
        deploy(model, size=(8, 8), engine="winograd")
