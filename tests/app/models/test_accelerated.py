"""wae.models.accelerated: where a network of any kind is divided, and what is refused."""

import pytest
import torch
from torch import nn

from wae.models.accelerated import Form, accelerated, split

SIZE = (24, 24)


class OfOneSize(nn.Module):
    """Takes 32 x 32 pixels alone, and says so in the way of ``failing``."""

    def __init__(self, failing):
        super().__init__()
        self.matrix, self.failing = nn.Linear(3, 2), failing

    def forward(self, image):
        if image.shape[2:] != (32, 32):
            self.failing(image)
        return self.matrix(image.mean((2, 3)))


def asserting(image):
    raise AssertionError


@pytest.mark.parametrize(
    ("failing", "why"),
    [(asserting, "AssertionError"), (lambda image: image.mean(7), "Dimension out of range")],
)
def test_a_network_that_takes_no_such_images(failing, why):
    with pytest.raises(ValueError, match=f"the network takes no images of 24 x 24: {why}"):
        split(OfOneSize(failing).eval(), SIZE)


class AssertsInTheMiddle(nn.Module):
    """Its last matrix by name is not the one it ends in, and must not be taken away."""

    def __init__(self):
        super().__init__()
        self.last, self.embedding = nn.Linear(8, 2), nn.Linear(3, 8)

    def forward(self, image):
        tokens = self.embedding(image.flatten(2).transpose(1, 2))
        assert tokens.shape[2] == 8
        return self.last(tokens.mean(1))


class ChangesItsInput(AssertsInTheMiddle):
    def forward(self, image):
        return super().forward(image.sub_(1).mul_(3))


@pytest.mark.parametrize("kind", [AssertsInTheMiddle, ChangesItsInput])
def test_the_matrix_that_a_network_ends_in_is_found(kind):
    network = kind().eval()
    matrix = network.last
    assert split(network, SIZE) == (network, matrix)
    assert isinstance(network.last, nn.Identity)
    assert isinstance(network.embedding, nn.Linear)


class Giving(nn.Module):
    """Gives what ``make`` makes of the scores."""

    def __init__(self, make):
        super().__init__()
        self.matrix, self.make = nn.Linear(3, 2), make

    def forward(self, image):
        return self.make(self.matrix(image.mean((2, 3))))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda scores: {"logits": scores}, r"scores \(N, classes\), got dict"),
        (lambda scores: scores[:, :, None], r"scores \(N, classes\), got \(1, 2, 1\)"),
        (lambda scores: scores / 0, "finite scores, got some"),
    ],
)
def test_scores_of_another_kind_are_what_is_refused(make, why):
    with pytest.raises(ValueError, match=f"Giving must return {why}"):
        split(Giving(make).eval(), SIZE)


def test_a_last_matrix_that_is_made_of_parts():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    torch.nn.utils.parametrizations.weight_norm(network[-1])
    image = torch.randn(1, 3, *SIZE)
    body, matrix = split(network, SIZE)
    made = accelerated(nn.Sequential(body, matrix), Form(2 * SIZE[0])).low_classifier
    with torch.no_grad():
        assert torch.allclose(made(body(image)), matrix(body(image)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_of_it_has_the_network_s_dtype(dtype):
    layers = nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    model = accelerated(network.eval(), Form(24))
    numbers = (*model.parameters(), *model.buffers())
    assert {number.dtype for number in numbers if number.is_floating_point()} == {dtype}
    assert model(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)).dtype == dtype
