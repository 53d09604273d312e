"""wae.models.last_layer: which layer is split off, and which networks are refused."""

from functools import partial

import pytest
from tiny_original import build
from torch import nn

from wae.models.last_layer import split_last_linear, with_classes

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
        split_last_linear(OnlyOneSize(fail).eval(), SIZE)


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
    assert split_last_linear(network, SIZE) == (network, linear)
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
        split_last_linear(Returning(make).eval(), SIZE)


@pytest.mark.parametrize("training", [False, True])
def test_a_body_without_its_last_layer_keeps_the_training_mode(training):
    for part in (split_last_linear, partial(with_classes, classes=2)):
        body, _ = part(build().train(training), size=(24, 24))
        assert {module.training for module in body.modules()} == {training}
