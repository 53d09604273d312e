"""wae.models.plain: hooks, pruning and other changes of a layer are detected, and wrappers removed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from wae.models.plain import Wrapper, is_plain, unwrapped


def replace_forward(layer):
    layer.forward = lambda x: x


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        replace_forward,
    ],
    ids=["hook", "pre-hook", "pruned", "parametrized", "forward"],
)
def test_a_changed_layer_is_not_plain(change):
    layer = nn.Conv2d(3, 4, 3)
    assert is_plain(layer)
    change(layer)
    assert not is_plain(layer)
    assert is_plain(nn.Sequential(layer))


class Doubled(Wrapper):
    def forward(self, image):
        return 2 * super().forward(image)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel, AveragedModel, torch.compile])
def test_a_wrapper_is_removed_unless_it_does_more(wrap):
    network = nn.Conv2d(3, 4, 3)
    wrapper = wrap(network)
    inside = unwrapped(nn.DataParallel(wrapper))
    assert type(inside) is nn.Conv2d
    assert torch.equal(inside.weight.cpu(), network.weight.cpu())  # DataParallel moves to a GPU
    wrapper.register_forward_hook(lambda *_: None)
    assert unwrapped(wrapper) is wrapper
    assert unwrapped(network) is network
    assert type(unwrapped(Doubled(network))) is Doubled
