"""wae.models.accelerated: how a network is split into body and last linear layer, and what is refused."""

import pytest
import torch
from torch import nn

from wae.models.accelerated import Form, accelerated, split

SIZE = (24, 24)


class OnlyOneSize(nn.Module):
    """Takes only images of 32 x 32 pixels, and calls ``fail`` for others."""

    def __init__(self, fail):
        super().__init__()
        self.linear, self.fail = nn.Linear(3, 2), fail

    def forward(self, image):
        if image.shape[2:] != (32, 32):
            self.fail(image)
        return self.linear(image.mean((2, 3)))


def assert_never(image):
    raise AssertionError


@pytest.mark.parametrize(
    ("fail", "why"),
    [(assert_never, "AssertionError"), (lambda image: image.mean(7), "Dimension out of range")],
)
def test_a_network_that_fails_on_the_size_is_refused(fail, why):
    with pytest.raises(ValueError, match=f"the network takes no images of 24 x 24: {why}"):
        split(OnlyOneSize(fail).eval(), SIZE)


class AssertsShapeInside(nn.Module):
    """Its last linear layer by name is not the last one that runs, and must not be taken for it."""

    def __init__(self):
        super().__init__()
        self.last, self.embedding = nn.Linear(8, 2), nn.Linear(3, 8)

    def forward(self, image):
        tokens = self.embedding(image.flatten(2).transpose(1, 2))
        assert tokens.shape[2] == 8
        return self.last(tokens.mean(1))


class ChangesItsInput(AssertsShapeInside):
    def forward(self, image):
        return super().forward(image.sub_(1).mul_(3))


@pytest.mark.parametrize("kind", [AssertsShapeInside, ChangesItsInput])
def test_split_finds_the_linear_layer_that_runs_last(kind):
    network = kind().eval()
    linear = network.last
    assert split(network, SIZE) == (network, linear)
    assert isinstance(network.last, nn.Identity)
    assert isinstance(network.embedding, nn.Linear)


class Returning(nn.Module):
    """Returns ``make(scores)``."""

    def __init__(self, make):
        super().__init__()
        self.linear, self.make = nn.Linear(3, 2), make

    def forward(self, image):
        return self.make(self.linear(image.mean((2, 3))))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda scores: {"logits": scores}, r"scores \(N, classes\), got dict"),
        (lambda scores: scores[:, :, None], r"scores \(N, classes\), got \(1, 2, 1\)"),
        (lambda scores: scores / 0, "finite scores, got some"),
    ],
)
def test_results_that_are_not_scores_are_refused(make, why):
    with pytest.raises(ValueError, match=f"Returning must return {why}"):
        split(Returning(make).eval(), SIZE)


def test_a_parametrized_last_layer_is_copied():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    torch.nn.utils.parametrizations.weight_norm(network[-1])
    image = torch.randn(1, 3, *SIZE)
    body, linear = split(network, SIZE)
    made = accelerated(nn.Sequential(body, linear), Form(2 * SIZE[0])).low_classifier
    with torch.no_grad():
        assert torch.allclose(made(body(image)), linear(body(image)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_parts_have_the_dtype_of_the_network(dtype):
    layers = nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    model = accelerated(network.eval(), Form(24))
    tensors = (*model.parameters(), *model.buffers())
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}
    assert model(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)).dtype == dtype
