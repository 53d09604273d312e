"""The baselines: what else the accelerated network's time could buy."""

import copy

import pytest
import torch
from accelerations import network, task_of
from tiny_original import CLASSES, SIDE, build
from torch import nn
from torchvision.models import VisionTransformer

from wae.data.dataset import InMemory
from wae.experiments import machine
from wae.experiments.acceleration import baselines
from wae.experiments.acceleration.data import Sets
from wae.experiments.acceleration.folder import Record
from wae.experiments.acceleration.networks import initialised
from wae.experiments.acceleration.settings import Recipe
from wae.experiments.pruning import PRUNED
from wae.inference.timing import Timing
from wae.models.accelerated import Form
from wae.models.baselines import FullResolution
from wae.models.counting import count
from wae.models.positions import fit_to
from wae.training.small_data import SGD
from wae.training.trainer import DivergedError


def chosen(name, stock, side, multiply_adds, batches=()):
    """The baseline's size or ratio if every network takes as long as the accelerated one."""
    return baselines.size_or_ratio(name, stock, side, multiply_adds, batches, lambda network: 1.0)


def test_baselines_of_half_resolution_and_of_equal_cost():
    stock = network()
    size = (96, 96)
    cost = count(stock, (72, 72)).multiply_adds
    found = chosen(baselines.EQUAL_COST, stock, 96, cost)
    assert found == {"side": 72}
    model = baselines.build(baselines.EQUAL_COST, found, stock, [])
    assert count(model, size).multiply_adds == cost
    half = baselines.build(baselines.HALF, {"side": 48}, stock, [])
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    small = torch.nn.functional.avg_pool2d(images.float(), 2)
    torch.testing.assert_close(half.eval()(images), stock.eval()(small), atol=1e-3, rtol=1e-3)
    assert chosen(baselines.HALF, stock, 96, cost) == {"side": 48}
    assert chosen(baselines.HALF, stock, 97, cost) == {"side": 49}
    assert chosen(baselines.EQUAL_COST, stock, 9, 1) == {"side": 5}
    own = count(stock, size).multiply_adds
    assert chosen(baselines.EQUAL_COST, stock, 96, own) == {"side": 96}
    same = baselines.build(baselines.EQUAL_COST, {"side": 96}, stock, [])
    torch.testing.assert_close(same.eval()(images), stock(images), atol=1e-3, rtol=1e-3)
    for baseline in (half, same):  # trained without changing the original
        assert baseline.network[0].weight.data_ptr() != stock.network[0].weight.data_ptr()


def test_a_network_that_needs_its_feature_size_has_no_half_resolution_baseline():
    stock = FullResolution(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 15 * 15, 2)))
    with pytest.raises(ValueError, match="does not accept images of 16 x 16"):
        chosen(baselines.HALF, stock, 32, 1)
    assert chosen(baselines.EQUAL_COST, stock, 32, 1) == {"side": 31}


def test_any_error_of_the_network_means_that_it_does_not_accept_a_size():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build()

        def forward(self, image):
            return {SIDE: self.network}[image.shape[-1]](image)  # a KeyError for any other size

    with pytest.raises(ValueError, match=r"the network does not accept images of 24 x 24"):
        chosen(baselines.HALF, FullResolution(One()), SIDE, 1000)
    with pytest.raises(ValueError, match=r"the network does not accept images of any other size"):
        chosen(baselines.EQUAL_COST, FullResolution(One()), SIDE - 1, 1000)


def test_a_baseline_has_position_embeddings_of_its_own_size():
    transformer = VisionTransformer(32, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=2)
    stock, images = FullResolution(transformer), torch.zeros(1, 3, 32, 32)
    for name, side in ((baselines.HALF, 16), (baselines.EQUAL_COST, 24)):
        cost = count(fit_to(copy.deepcopy(transformer), (side, side)), (side, side)).multiply_adds
        found = chosen(name, stock, 32, cost)
        assert found == {"side": side}
        assert stock(images).shape == (1, 2)
        assert baselines.build(name, found, stock, [])(images).shape == (1, 2)


def test_each_pruned_baseline_is_made_by_its_own_method(monkeypatch):
    stock, batches, calls = network(), [(torch.zeros(1), torch.zeros(1))], []
    monkeypatch.setattr(baselines, "pruned", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(baselines, "ratio_for", lambda prune, share: {"ratio": 0.75, "made": prune(0.25)})
    for name, method in PRUNED.items():
        baselines.build(name, chosen(name, stock, 32, 1, batches), stock, batches)
        assert calls[-2:] == [(stock, batches, method, 0.25), (stock, batches, method, 0.75)]


def test_a_baselines_time_is_relative_to_the_accelerated_network(tmp_path, monkeypatch):
    """Each runs on images of its own size, with the number of images per call that was set."""
    task, _ = task_of(tmp_path, images=2)
    seen, sizes, passed = [], [], {}

    def interleaved(calls, seconds, **options):
        for call in calls.values():
            call()
        return {"baseline": Timing(3.0, 1, 1, 1), "accelerated": Timing(2.0, 1, 1, 1)}

    def size_or_ratio(name, original, side, multiply_adds, batches, share_of_time):
        passed.update(side=side, multiply_adds=multiply_adds)
        baseline = nn.Identity()
        baseline.register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape)))
        return {"time": share_of_time(baseline)}

    ours = initialised(task, task.form).eval()
    ours.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    large = InMemory(torch.zeros(5, 3, 64, 64, dtype=torch.uint8), torch.arange(5), CLASSES, False, 0)
    task.opened[64] = Sets(large, large, large)
    monkeypatch.setattr(machine, "interleaved", interleaved)
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda others: 0.75)
    monkeypatch.setattr(baselines, "size_or_ratio", size_or_ratio)
    monkeypatch.setattr(baselines, "trained", lambda task: ours)
    assert baselines.choose(task, baselines.EQUAL_COST, Form(64)) == {"time": 1.5, "others": 0.75}
    assert (seen, sizes[-1]) == ([(2, 3, SIDE, SIDE)], (2, 3, 64, 64))
    assert passed == {"side": SIDE, "multiply_adds": count(ours, (64, 64)).multiply_adds}


def test_a_baseline_that_diverges_is_left_out(tmp_path, monkeypatch):
    """It would end the run after the accelerated network is trained, and again whenever it is resumed."""

    def fit(*_):
        raise DivergedError("the loss is nan", "; a file that goes away is the checkpoint")

    task, _ = task_of(tmp_path, compare=True)
    monkeypatch.setattr(baselines, "fit", fit)
    record = Record(tmp_path / "record.json", {}, {f"chosen: {baselines.HALF}": {"side": 24}})
    found = baselines.train_baseline(task, record, baselines.HALF, task.form, Recipe(optimizer=SGD))
    assert found == {"side": 24, "left out": "the loss is nan"}
