"""Statistics of BatchNorms, measured anew on images that are not augmented."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from trained import PLAN, image_set, network, run

from wae.data.dataset import InMemory
from wae.training.norms import kept_norms, remeasure_norms
from wae.training.trainer import evaluate


def noise(count: int, seed: int = 0) -> InMemory:
    images = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return InMemory(
        images.to(torch.uint8), torch.zeros(count, dtype=torch.int64), "a", augment=True, seed=seed
    )


class Small(nn.Module):
    """Two normalisations, of which the second is frozen, and dropout, which must not be drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.drop(images / 255))


@pytest.mark.parametrize(("count", "used"), [(12, 12), (13, 12), (3, 3)])
def test_they_are_the_means_of_whole_batches_of_the_images_as_they_are(count, used):
    data, model, seen = noise(count), Small(), []
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    model.norm.running_mean.fill_(7.0)
    remeasure_norms(model, data.plain(), 4)
    assert [len(images) for images in seen] == [4] * (used // 4) + [used] * (used < 4)
    pixels = {tuple(image.flatten().tolist()) for image in (data.images / 255).double()}
    assert {tuple(image.flatten().tolist()) for images in seen for image in images} <= pixels
    for name, of in (("running_mean", torch.mean), ("running_var", torch.var)):
        wanted = torch.stack([of(images, (0, 2, 3)) for images in seen]).mean(0)
        torch.testing.assert_close(getattr(model.norm, name).double(), wanted, rtol=1e-5, atol=1e-6)
    assert (model.training, model.norm.training, model.norm.momentum) == (True, True, 0.1)


def test_what_is_kept_stays():
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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_training_measures_them_at_its_end_and_tests_with_them(ema):
    """The last epoch's accuracy is that of the network that is left; no other weight or epoch is touched."""
    last = replace(PLAN.stages[-1], ema=ema)
    plan = replace(PLAN, stages=(*PLAN.stages[:-1], last))
    models = [network() for _ in range(2)]
    without, with_them = (
        run(replace(plan, remeasure_norms=anew), model)[1]
        for model, anew in zip(models, (False, True), strict=True)
    )
    assert [epoch.losses for epoch in without] == [epoch.losses for epoch in with_them]
    assert [epoch.accuracy for epoch in without[:-1]] == [epoch.accuracy for epoch in with_them[:-1]]
    remeasure_norms(models[0], image_set().plain(), plan.batch)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name
    found = evaluate(models[1], image_set(augment=False))
    assert with_them[-1].accuracy.loss == pytest.approx(found.loss, rel=1e-5)
    assert without[-1].accuracy.loss != pytest.approx(found.loss, rel=1e-3)
