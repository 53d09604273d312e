"""BatchNorm statistics: re-estimated on images without augmentation, or synchronised while training."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from trained import PLAN, image_set, network, run

from wae.data.dataset import InMemory
from wae.training import norms, trainer
from wae.training.accuracy import evaluate
from wae.training.norms import kept_norms, remeasure_norms, synchronized


def noise(count: int, seed: int = 0) -> InMemory:
    images = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return InMemory(
        images.to(torch.uint8), torch.zeros(count, dtype=torch.int64), "a", augment=True, seed=seed
    )


class Small(nn.Module):
    """A BatchNorm, others whose statistics must not change, and dropout, which must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.without = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        self.frozen, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "Small":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.frozen(self.norm(self.drop(images / 255)))
        return self.auxiliary(scores) if self.training else scores


def seen_by(norm: nn.Module) -> list[torch.Tensor]:
    """A list to which the inputs of ``norm`` are added from now on."""
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    return seen


@pytest.mark.parametrize(("count", "used"), [(12, 12), (13, 12), (3, 3)])
def test_statistics_are_means_over_full_batches_of_images_without_augmentation(count, used):
    data, model = noise(count), Small()
    seen = seen_by(model.norm)
    model.norm.running_mean.fill_(7.0)
    remeasure_norms(model, data.plain(), 4)
    assert [len(images) for images in seen] == [4] * (used // 4) + [used] * (used < 4)
    pixels = {tuple(image.flatten().tolist()) for image in (data.images / 255).double()}
    assert {tuple(image.flatten().tolist()) for images in seen for image in images} <= pixels
    for name, of in (("running_mean", torch.mean), ("running_var", torch.var)):
        wanted = torch.stack([of(images, (0, 2, 3)) for images in seen]).mean(0)
        torch.testing.assert_close(getattr(model.norm, name).double(), wanted, rtol=1e-5, atol=1e-6)
    assert (model.training, model.norm.training, model.norm.momentum) == (True, True, 0.1)


def test_images_that_follow_each_other_are_measured_in_different_batches():
    """They are often alike, as those of a class in a folder, and a batch of them would vary too little."""
    data, model = noise(32), Small()
    data.images = (8 * torch.arange(32, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    seen = seen_by(model.norm)
    remeasure_norms(model, data.plain(), 4)
    within = torch.stack([images[:, 0, 0, 0].var() for images in seen]).mean()
    assert within > 0.5 * torch.cat(seen)[:, 0, 0, 0].var()


def test_kept_norms_keep_their_statistics():
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert kept_norms(model, PLAN) == kept_norms(Small(), replace(PLAN, norm_statistics="kept")) == []
    kept = [kept_norms(model, replace(PLAN, norm_statistics=how)) for how in ("kept", "fixed")]
    assert kept == [[model.low_norm, model.high_norm]] * 2
    remeasure_norms(model, image_set().plain(), 8, kept=[model.low_norm])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "high_norm.running_var" in changed
    assert not any(name.startswith("low_norm") for name in changed)
    assert all("running" in name or "num_batches" in name for name in changed)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["frozen", "auxiliary"])
def test_frozen_and_auxiliary_norms_keep_their_statistics(name):
    model = Small().train()
    norm = getattr(model, name)
    norm.running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    remeasure_norms(model, noise(8).plain(), 4)
    torch.testing.assert_close(dict(norm.state_dict()), before)
    assert (norm.training, norm.momentum) == (name == "auxiliary", 0.1)


def test_a_failure_restores_mode_and_momentum():
    model = Small()
    model.frozen.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remeasure_norms(model, noise(8).plain(), 4)
    assert (model.training, model.norm.momentum) == (True, 0.1)


def test_a_batch_is_full_even_if_few_images_are_measured(monkeypatch):
    """Behind a global pool a single image has no variance."""
    monkeypatch.setattr(norms, "_SAMPLE", 1)
    model = Small()
    seen = seen_by(model.norm)
    remeasure_norms(model, noise(8).plain(), 4)
    assert [len(images) for images in seen] == [4]


def test_processes_that_share_batches_measure_different_images():
    """A SyncBatchNorm that got the same images from each of them would underestimate the variance."""
    found = []
    for part in ((0, 1), (0, 2), (1, 2)):
        model = Small()
        found.append(seen_by(model.norm))
        remeasure_norms(model, noise(8).plain(), 4, part=part)
    for batch, one, other in zip(*found, strict=True):
        assert torch.equal(torch.stack((one, other), 1).flatten(0, 1), batch)


def test_no_data_is_read_for_a_network_without_batchnorms():
    data = noise(8)
    data.batch = None
    remeasure_norms(nn.Flatten(), data, 4)


def test_data_without_a_method_plain_is_refused_before_training():
    class AlwaysAugmented:
        labels = "rgb"
        __len__ = batch = renumbered = lambda self, *_: 32

    with pytest.raises(ValueError, match=r"^remeasure_norms: .*; AlwaysAugmented has no method plain"):
        run(replace(PLAN, remeasure_norms=True), data=AlwaysAugmented())


def test_only_the_last_stage_remeasures(monkeypatch):
    calls = []
    monkeypatch.setattr(trainer, "remeasure_norms", lambda *_: calls.append(_))
    run(replace(PLAN, stages=PLAN.stages[-1:] * 2, remeasure_norms=True))
    assert len(calls) == 1


@pytest.mark.parametrize(("world", "synchronizes", "batch"), [(1, False, 8), (2, False, 4), (2, True, 8)])
def test_remeasuring_has_the_batch_of_a_step_and_keeps_constants(monkeypatch, world, synchronizes, batch):
    asked = []
    monkeypatch.setattr(trainer, "remeasure_norms", lambda *arguments: asked.append(arguments))
    plan = replace(PLAN, batch=16, accumulate=2, norm_statistics="kept")
    training = trainer._Run(
        network(), plan, image_set(), None, None, {}, None, trainer.Observer(), 0, "cpu", None
    )
    training.rank, training.world, training.synchronizes = world - 1, world, synchronizes
    training._remeasure_norms(training.model)
    assert asked[0][2] == batch
    assert asked[0][4] == [training.model.low_norm, training.model.high_norm]
    assert asked[0][5] == ((1, 2) if synchronizes else (0, 1))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_training_remeasures_at_its_end_and_evaluates_the_result(ema):
    """The last epoch's accuracy is that of the final network. No other epoch and no weight changes."""
    last = replace(PLAN.stages[-1], ema=ema)
    plan = replace(PLAN, stages=(*PLAN.stages[:-1], last))
    models = [network() for _ in range(2)]
    without, with_them = (
        run(replace(plan, remeasure_norms=remeasures), model)[1]
        for model, remeasures in zip(models, (False, True), strict=True)
    )
    assert [epoch.losses for epoch in without] == [epoch.losses for epoch in with_them]
    assert [epoch.accuracy for epoch in without[:-1]] == [epoch.accuracy for epoch in with_them[:-1]]
    remeasure_norms(models[0], image_set().plain(), plan.batch)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name
    found = evaluate(models[1], image_set(augment=False))
    assert with_them[-1].accuracy.loss == pytest.approx(found.loss, rel=1e-5)
    assert without[-1].accuracy.loss != pytest.approx(found.loss, rel=1e-3)


def test_synchronized_norms_are_batchnorms_again_after_training():
    """SyncBatchNorms would not be folded when the network is deployed."""
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(shared, nn.ReLU()), shared).eval()
    before = [model[0], model[1][0], model[2]]
    images = torch.rand(4, 3, 2, 2)
    with synchronized(model):
        model.train()
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in (model[0], model[1][0], model[2]))
        model(images)
    after = [model[0], model[1][0], model[2]]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert all(norm.training and norm.num_batches_tracked > 0 for norm in after)
    assert model[0].running_mean.norm() > 0
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
