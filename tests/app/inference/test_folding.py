"""Folding BatchNorms into convolutions, only where that does not change what the network computes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from small_networks import SIZE, Body, assert_close, photos, with_own_forward, with_statistics
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, ResNet

from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.folding import fold
from wae.inference.tracing import traced


def norms(network):
    """The number of BatchNorms in ``network``: if folding changed the scores, all would be left."""
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def folded_alike(network, images):
    """``network`` folded. It must compute the same, on images other than those given to ``fold`` too."""
    with torch.no_grad():
        folded = fold(network, images[:2])
        assert_close(folded(images), network(images))
    return folded


def test_all_batchnorms_are_folded(model):
    resnet = with_statistics(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7))
    for network, images in ((model, photos(2)), (resnet, torch.randn(2, 3, *SIZE))):
        folded = fold(network, images)
        assert norms(folded) == 0
        assert not any(part.training for part in folded.modules())
        assert_close(folded(images), network(images))
    assert norms(deploy(model, SIZE, engine="eager")._prepared._module) == 0


class Untraceable(nn.Module):
    """Holds parts that torch.fx can trace; ``call`` is what it does with them."""

    def __init__(self, call, *parts):
        super().__init__()
        self.parts, self.call = nn.ModuleList(parts), call

    def forward(self, x):
        if x.mean() > 1e9:
            raise ValueError
        return self.call(self.parts, x)


def test_a_body_that_cannot_be_traced_keeps_its_norms(model):
    class UntraceableBody(Body):
        def forward(self, x):
            return super().forward(x if x.mean() > -1e9 else -x)

    model.low_body = with_statistics(UntraceableBody(8))
    assert norms(folded_alike(model, photos(3))) == 2


def test_parts_of_what_cannot_be_traced_are_folded(model):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 3, 1), nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.BatchNorm2d(3)), Body(8)
    model.low_body = Untraceable(lambda p, x: p[2](p[1](p[0](x)).relu()), *parts)
    assert norms(folded_alike(with_statistics(model), photos(3))) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda parts, x: parts[0](x) + parts[0][0](x).mean(),
        lambda parts, x: parts[0](x) + parts[0][1](x[:, :1]).mean(),
    ],
    ids=["convolution", "norm"],
)
def test_a_part_whose_layers_are_also_called_directly_keeps_its_norm(call):
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    assert norms(folded_alike(with_statistics(Untraceable(call, part)), torch.randn(3, 3, *SIZE))) == 1


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, "with an activation"])
def test_a_part_whose_attributes_are_read_keeps_its_class(kind):
    """If its norms are functions, only a graph could replace it, which has no attributes: then they stay."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1) if kind is nn.BatchNorm2d else NormAct(1))
    part.scale = 0.5
    network = Untraceable(lambda parts, x: parts[0].scale * parts[0](x), part)
    folded = folded_alike(with_statistics(network), torch.randn(3, 3, *SIZE))
    assert norms(folded) == (0 if kind is nn.BatchNorm2d else 1)


def test_a_norm_that_runs_twice_is_folded_behind_the_convolution_alone():
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(3)
    part = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.ReLU(), shared)
    network = Untraceable(lambda parts, x: parts[0](x), part)
    folded = folded_alike(with_statistics(network), torch.randn(3, 3, *SIZE))
    assert isinstance(folded.parts[0], torch.fx.GraphModule)
    assert norms(folded) == 1


def test_a_convolution_in_two_parts_is_folded_in_the_one_with_its_norm():
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 1)
    parts = nn.Sequential(nn.ReLU(), shared), nn.Sequential(shared, nn.BatchNorm2d(3))
    network = Untraceable(lambda p, x: p[1](x) + p[0](x), *parts)
    assert norms(folded_alike(with_statistics(network), torch.randn(3, 3, *SIZE))) == 0


class Renamed(nn.Sequential):
    """Calls its convolution by a second name."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.again = self[0]

    def forward(self, x):
        return self[1](self.again(x))


def test_a_convolution_that_is_called_by_its_second_name_is_folded():
    """Replaced under its first name alone, it would not run, and the scores would be wrong."""
    torch.manual_seed(0)
    network = Untraceable(lambda parts, x: parts[0](x), Renamed())
    assert norms(folded_alike(with_statistics(network), torch.randn(3, 3, *SIZE))) == 0


class NormAct(nn.BatchNorm2d):
    """As timm's: it reads the number of dimensions and applies an activation. It has its own epsilon."""

    def forward(self, x):
        torch._assert(x.ndim == 4, "four dimensions")
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.5).relu()


def test_a_norm_with_an_activation_is_folded_with_its_own_epsilon():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3, bias=False), NormAct(5), nn.ConvTranspose2d(5, 4, 3, stride=2), NormAct(4)
    folded = folded_alike(with_statistics(nn.Sequential(*layers)), torch.randn(3, 3, *SIZE))
    assert not folded.graph.find_nodes(op="call_function", target=F.batch_norm)


class Normalising(nn.Module):
    """A convolution with which ``call`` computes, and behind it layers that are folded."""

    def __init__(self, call):
        super().__init__()
        self.call, self.conv = call, nn.Conv2d(3, 3, 1)
        self.behind = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)

    def forward(self, x):
        return self.behind(self.call(self, x))


@pytest.mark.parametrize(
    "call",
    [
        lambda own, x: F.batch_norm(own.conv(x), own.mean, own.variance, training=True),
        lambda own, x: F.batch_norm(own.conv(x), None, None, training=True),
        lambda own, x: F.batch_norm(own.conv(x), own.mean + x.mean(), own.variance),
        lambda own, x: F.batch_norm(own.conv(x), own.mean, own.variance) + F.conv2d(x, own.conv.weight),
        lambda own, x: F.batch_norm(y := own.conv(x), own.mean, own.variance) + y,
        lambda own, x: F.instance_norm(own.conv(x), own.mean, own.variance),
    ],
    ids=["training", "batch statistics", "computed", "weight", "result", "another"],
)
def test_a_function_that_is_not_just_a_norm_behind_a_convolution_is_not_folded(call):
    torch.manual_seed(0)
    network = with_statistics(Normalising(call))
    folded = folded_alike(network, torch.randn(2, 3, *SIZE))
    assert norms(folded) == 0  # those behind it
    assert torch.equal(folded.conv.weight, network.conv.weight)


def test_a_norm_behind_a_grouped_transposed_convolution_is_not_folded():
    torch.manual_seed(0)
    layers = nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    assert norms(folded_alike(with_statistics(nn.Sequential(*layers)), torch.randn(3, 4, *SIZE))) == 1


def test_a_body_with_an_optional_argument_is_not_traced(model):
    """torch.fx would trace it as if the argument were given."""

    class Optional(Body):
        def forward(self, x, mask=None):
            return super().forward(x.relu() if mask is None else x * mask)

    model.low_body = with_statistics(Optional(8))
    assert norms(folded_alike(model, photos(3))) == 2


def test_a_convolution_that_runs_twice_is_not_folded(model):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.body = Body(8)

        def forward(self, x):
            return self.body(self.two(self.conv(self.one(self.conv(x)))))

    model.low_body = with_statistics(Twice())
    assert norms(folded_alike(model, photos(3))) == 2


class AsksForType(Body):
    """torch.fx traces it to something else, without an error: the images are not tensors then."""

    def forward(self, x):
        return super().forward(x.sub_(1).mul_(2) if isinstance(x, torch.Tensor) else x)


class Casting(nn.Sequential):
    """Enters autocast itself."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_network_that_enters_autocast_still_does():
    """A trace would leave that out silently, and the folded network would compute in float32."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    network, images = with_statistics(Casting(part, nn.ReLU())), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        folded = fold(network, images)
        assert folded(images).dtype == network(images).dtype == torch.bfloat16
    assert norms(folded) == 0


def test_what_torch_fx_traces_wrongly_is_not_folded():
    network, images = with_statistics(AsksForType(8)), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = network(images.clone())
        folded = fold(network, images)
        assert_close(folded(images), expected)
    assert norms(folded) == 2


class Averaging(nn.Module):
    """Subtracts a moving average of its scores; a trace leaves in its buffer what is no tensor."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x):
        scores = self.norm(self.convolution(x)).mean((2, 3))
        self.average = 0.9 * self.average + 0.1 * scores.mean(0)
        return scores - self.average


def test_a_network_that_updates_a_buffer_is_not_folded():
    network = Averaging().eval()
    assert norms(fold(network, torch.randn(2, 3, *SIZE))) == 1
    with pytest.raises(DisagreementError, match="gives scores that differ from the model's"):
        deploy(network, SIZE, engine="eager")  # the model's own scores differ in every call


def test_folding_does_not_change_a_network_in_training_mode():
    network = with_statistics(Untraceable(lambda parts, x: parts[0](x), Body(8))).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert norms(fold(network, torch.randn(2, 3, *SIZE))) == 0
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_part_with_two_names_becomes_a_graph_under_one_and_stays_under_the_other():
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3))
    network = Untraceable(lambda p, x: p[0](x) + 2 * p[1](x), part, part)
    folded = folded_alike(with_statistics(network), torch.randn(3, 3, *SIZE))
    assert isinstance(folded.parts[0], torch.fx.GraphModule)
    assert norms(folded.parts[1]) == 1


def doubled(layer, given, result):
    return 2 * result


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda network: network[0].register_forward_hook(doubled), 1),
        (lambda network: network[1].register_forward_hook(doubled), 1),
        (lambda network: network.register_forward_hook(doubled), 2),
        (lambda network: prune.l1_unstructured(network[0], "weight", 0.5), 1),
        (lambda network: parametrizations.weight_norm(network[0]), 1),
        (with_own_forward, 2),
    ],
    ids=["convolution", "norm", "network", "pruned", "weight norm", "forward"],
)
@pytest.mark.parametrize("part", ["low_body", "network"])
def test_layers_that_are_more_than_their_tensors_are_not_folded(change, left, part, model):
    network = model if part == "low_body" else with_statistics(Body(8))
    change(getattr(network, part, network))
    images = photos(2)
    with torch.no_grad():
        expected = network.eval()(images if network is model else images.float())
    deployed = deploy(network, SIZE, engine="eager")
    assert_close(deployed(images), expected)
    assert norms(deployed._prepared._module) == left


def test_a_norm_over_tokens_is_not_folded_into_the_matrix_before_it():
    """The norm is over tokens, the matrix over channels. There are three of each, so the shapes would fit."""
    layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten(2), nn.Linear(SIZE[0] * SIZE[1], 3)
    network = with_statistics(nn.Sequential(*layers, nn.BatchNorm1d(3), nn.Flatten()))
    with torch.no_grad():
        network[4].running_mean.uniform_(1, 2)
        network[4].running_var.uniform_(2, 9)
    deployed, images = deploy(network, SIZE, engine="eager"), torch.randn(2, 3, *SIZE)
    assert_close(deployed(images), network(images))
    assert norms(deployed._prepared._module) == 0  # that behind the convolution


class CallingElsewhere(nn.Module):
    """Calls ``other`` in another thread while its own forward pass runs, or is traced."""

    def __init__(self, other):
        super().__init__()
        self.layer, self.others = nn.Conv2d(3, 4, 3), []
        self._call = lambda images: self.others.append(other(images))

    def forward(self, image):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._call, torch.ones(1, 3, *SIZE)).result()
        return self.layer(image)


def test_a_trace_leaves_calls_in_other_threads_alone(stock):
    """torch.fx replaces the call of every module in the process."""
    network = CallingElsewhere(stock).eval()
    assert [node.target for node in traced(network).graph.nodes] == ["image", "layer", "output"]
    assert_close(*network.others, stock(torch.ones(1, 3, *SIZE)))
