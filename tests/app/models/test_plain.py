"""wae.models.plain: what is more than a class and its tensors is seen."""

import pytest
from torch import nn
from torch.nn.utils import parametrizations, prune

from wae.models.plain import is_plain


def own_forward(layer):
    layer.forward = lambda x: x


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        own_forward,
    ],
    ids=["hook", "hook before", "pruned", "parametrized", "forward"],
)
def test_what_is_more_than_its_class_and_tensors(change):
    layer = nn.Conv2d(3, 4, 3)
    assert is_plain(layer)
    change(layer)
    assert not is_plain(layer)
    assert is_plain(nn.Sequential(layer))
