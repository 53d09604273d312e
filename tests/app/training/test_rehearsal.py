"""wae.training.rehearsal: what is tried out before a training."""

import pytest
import torch
from torch import nn

from wae.data.input import Input
from wae.models.bodies import initialize
from wae.models.registry import build
from wae.storage.weights_file import CheckpointError
from wae.training.rehearsal import rehearse, try_out

FAMILIES = (
    "densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf "
    "regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t"
).split()
LABELS = ["no\u00a0break", "ideographic\u3000space", "tab\t\x1b[2J", "long " * 40]


@pytest.mark.parametrize("name", ["wae_small_vgg", "wavelet_small_vgg", "wae_squeezenet1_1", "mnasnet0_5"])
def test_a_network_is_saved_and_loaded_before_it_is_trained(tmp_path, name):
    rehearse(tmp_path, build(name, 4), name, LABELS, Input(900, 1029, False))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_computes_something_else_when_it_is_loaded_is_refused(tmp_path):
    """Its attributes are not in the file."""
    model, images = build("googlenet", 4), torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    model.apply(initialize)  # otherwise the scores hardly depend on the image
    rehearse(tmp_path, model, "googlenet", LABELS, Input(), images=images)
    model.network.transform_input = True
    with pytest.raises(CheckpointError, match=r"^googlenet: its scores change when it is saved and loaded$"):
        rehearse(tmp_path, model, "googlenet", LABELS, Input(), images=images)
    assert not list(tmp_path.iterdir())


def test_nan_weights_are_refused(tmp_path):
    model = build("small_vgg_half", 4)
    next(model.parameters()).data[0] = torch.nan
    with pytest.raises(ValueError, match=r"finite numbers only, but network.* has some"):
        rehearse(tmp_path, model, "small_vgg_half", LABELS, Input())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_is_saved_and_loaded(tmp_path, name):
    model = build(name, 4)
    rehearse(tmp_path, model, name, LABELS, Input())


def test_images_of_a_wrong_size_are_refused_before_anything_is_computed():
    """In a network that fits only in its last layer, large images would first be computed for minutes."""

    class Costly(nn.Linear):
        def forward(self, images):
            assert images.is_meta
            return super().forward(images)

    with pytest.raises(ValueError, match="costly takes no images of 4 x 6 "):
        try_out(Costly(5, 2), "costly", torch.zeros(1, 3, 4, 6))


@pytest.mark.parametrize("error", [AssertionError, IndexError])
def test_an_error_without_a_message_is_named(error):
    class Silent(nn.Module):
        def forward(self, images):
            raise error

    with pytest.raises(ValueError, match=rf"silent takes no images of 4 x 5 \({error.__name__}\)"):
        try_out(Silent(), "silent", torch.zeros(1, 3, 4, 5))
