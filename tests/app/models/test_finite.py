"""wae.models.finite: which numbers a network may hold, where they are loaded, trained and deployed."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from trained import image_set

from wae.inference.deploy import deploy
from wae.models.finite import not_finite
from wae.storage import weights_file
from wae.storage.weights_file import CheckpointError
from wae.training.plan import Plan, Stage
from wae.training.trainer import train

NAN, INF = float("nan"), float("inf")


class Masked(nn.Module):
    """Attention of each row of pixels to those above it, by a mask that is part of the state."""

    def __init__(self, size=28):
        super().__init__()
        self.scale = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3 * size, 3)
        self.register_buffer("mask", torch.full((size, size), -INF).triu(1))

    def forward(self, images):
        rows = self.scale(images.float() / 255).permute(0, 2, 1, 3).flatten(2)
        shares = (rows @ rows.mT + self.mask).softmax(2)
        return self.linear(shares @ rows).mean(1)


def test_a_mask_is_saved_loaded_and_deployed(tmp_path):
    model = Masked().eval()
    weights_file.save(tmp_path / "w", model, {})
    loaded = Masked().eval()
    loaded.mask.zero_()
    weights_file.load(tmp_path / "w", loaded)
    assert torch.equal(loaded.mask, model.mask)
    images = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(deploy(loaded, (28, 28), 2, "eager")(images), model(images))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("linear.weight", value) for value in (NAN, INF, -INF)],
        *[("scale.running_var", value) for value in (NAN, INF, -INF)],
        *[("mask", value) for value in (NAN, INF)],
    ],
)
def test_other_numbers_that_are_not_finite_are_refused(tmp_path, name, value):
    model = Masked().eval()
    model.state_dict()[name].view(-1)[0] = value
    assert not_finite(model) == name
    weights_file.save(tmp_path / "w", model, {})
    with pytest.raises(CheckpointError, match=f"w: {name} has numbers that are not finite"):
        weights_file.load(tmp_path / "w", Masked())
    with pytest.raises(ValueError, match=f"finite numbers only, but {name} has some"):
        deploy(model, (28, 28))


def test_a_mask_that_excludes_everything_is_refused():
    """A softmax over it is NaN."""
    model = Masked()
    model.mask.fill_(-INF)
    assert not_finite(model) == "mask"


def test_a_moving_average_keeps_a_mask():
    """The average of two infinite numbers would be NaN."""
    model, data = Masked(size=8), image_set(augment=False)
    stage = replace(Stage("classifier", 1, 0.01), ema=0.9)
    train(model, Plan("masked", (stage,), batch=32), data, data)
    assert torch.equal(model.mask, Masked(size=8).mask)
    assert not not_finite(model)
