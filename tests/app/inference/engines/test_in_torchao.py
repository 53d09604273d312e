"""torchao's int8 computes what the network does where BatchNorms cannot be folded into convolutions."""

import pytest
import torch
from torch import nn

from wae.difference import relative_difference
from wae.inference import precision
from wae.inference.engines import ENGINES, EngineError, in_torchao

pytestmark = pytest.mark.slow

_IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def _norm():
    """A BatchNorm that changes its input much."""
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight, 2, 0.5)
    nn.init.normal_(norm.bias, 1)
    return norm


class PreActivation(nn.Module):
    """A sum reads the convolution in front of a BatchNorm, as in networks with pre-activation."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), _norm(), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image):
        x = self.first(image)
        return x + self.second(self.norm(x).relu())


class TwoNorms(nn.Module):
    """Two BatchNorms read one convolution, or with ``twice`` two calls of it."""

    def __init__(self, twice):
        super().__init__()
        self.layer, self.norms, self.twice = nn.Conv2d(3, 8, 3), nn.ModuleList([_norm(), _norm()]), twice

    def forward(self, image):
        x = self.layer(image)
        y = self.layer(image.flip(3)) if self.twice else x
        return self.norms[0](x) + self.norms[1](y)


class Plain(nn.Sequential):
    """Its BatchNorm can be folded."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), _norm(), nn.ReLU())


NETWORKS = {
    "plain": Plain,
    "pre-activation": PreActivation,
    "two norms": lambda: TwoNorms(False),
    "called twice": lambda: TwoNorms(True),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    if reason := ENGINES["compile"].why_not("cpu", "int8"):
        pytest.skip(reason)
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


@torch.no_grad()
def test_norms_that_others_share_are_not_folded(network):
    """Results would be wrong by a third and more."""
    program, simulation = in_torchao.quantized(network, [_IMAGES[:1]], [[_IMAGES]], [_IMAGES])
    assert relative_difference(program.module()(_IMAGES), network(_IMAGES)) < 0.03
    assert simulation.movements
    assert all(0 < movement.difference < 0.05 for movement in simulation.movements)  # it was 3.6 in "plain"
    assert torch.equal(simulation.exact[0], network(_IMAGES))
    assert torch.equal(simulation.results[0], program.module()(_IMAGES))
    norms = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    kept = sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    assert len(norms) == (0 if isinstance(network, Plain) else kept)


@torch.no_grad()
def test_forms_that_only_training_makes_are_not_looked_for(monkeypatch):
    """For each of its 96, torchao would export a network, half a second each."""
    if reason := ENGINES["compile"].why_not("cpu", "int8"):
        pytest.skip(reason)
    export, exports = torch.export.export, []
    monkeypatch.setattr(
        torch.export, "export", lambda *args, **kw: exports.append(args) or export(*args, **kw)
    )
    in_torchao.quantized(TwoNorms(False).eval(), [_IMAGES[:1]], [[_IMAGES]], [_IMAGES])
    assert len(exports) <= 2  # the network and the quantized network


class Sum(nn.Module):
    """Python's ``sum`` adds its first term to 0."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)])

    def forward(self, image):
        return sum(layer(image) for layer in self.layers)


class Swish(nn.Module):
    """A hard swish as some networks write it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, image):
        return self.second(nn.functional.relu6(self.first(image) + 3))


@torch.no_grad()
@pytest.mark.parametrize("make", [Sum, Swish])
def test_a_number_may_be_added_to_the_result_of_a_layer(make):
    """torchao's quantizer would assert that it is a tensor."""
    if reason := ENGINES["compile"].why_not("cpu", "int8"):
        pytest.skip(reason)
    torch.manual_seed(0)
    network = make().eval()
    program, simulation = in_torchao.quantized(network, [_IMAGES[:1]], [[_IMAGES]], [_IMAGES])
    assert relative_difference(program.module()(_IMAGES), network(_IMAGES)) < 0.03
    assert len(simulation.movements) == 2


@torch.no_grad()
def test_images_have_7_bits_if_sums_saturate(monkeypatch):
    """With 8, results of two convolutions would be wrong by 38 % without VNNI."""
    if reason := ENGINES["compile"].why_not("cpu", "int8"):
        pytest.skip(reason)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    for native, largest in ((True, 255), (False, 127)):
        monkeypatch.setattr(precision, "native", lambda *_, native=native: native)
        program, _ = in_torchao.quantized(network, [_IMAGES[:1]], [[_IMAGES]], [_IMAGES])
        steps = [node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)]
        assert {node.args[4] for node in steps} == {largest}
    found = in_torchao.lowered(program, len(_IMAGES))(_IMAGES)
    assert relative_difference(found, network(_IMAGES)) < 0.05


def test_a_graph_that_computes_something_else_is_not_quantized(network, monkeypatch):
    if isinstance(network, Plain):
        pytest.skip("it is folded rightly")
    monkeypatch.setattr(in_torchao, "_set_norms_apart", lambda module: None)
    with pytest.raises(EngineError, match=r"compile does not run .*computes something else than the network"):
        ENGINES["compile"].make(network, [_IMAGES[:1]], "int8", [[_IMAGES]], [_IMAGES])


@torch.no_grad()
def test_a_view_of_channels_last_images():
    """The graph in int8 had views that only contiguous images have."""
    engine, images = ENGINES["compile"], _IMAGES.contiguous(memory_format=torch.channels_last)
    if reason := engine.why_not("cpu", "int8"):
        pytest.skip(reason)
    network = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 8)).eval()
    prepared = engine.make(network, [images], "int8", [[images]], [images])
    found = engine.open(prepared, len(images), [images])(images)
    assert relative_difference(found, network(images)) < 0.05
