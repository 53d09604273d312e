"""What a claim trains: which networks, with which seeds, by which plans."""

import pytest
import torch
from reproductions import DIGITS

from wae.experiments.reproduction import fashion_mnist, imagenette
from wae.experiments.reproduction.claim import Job, longer
from wae.training.plan import find

CLAIMS = {
    "fashion-mnist": fashion_mnist.claim(),
    "imagenette": imagenette.claim(),
    "resnet18": imagenette.claim("resnet18"),
}
SLOW = {"resnet18"}


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, marks=pytest.mark.slow if name in SLOW else (), id=name)
        for name, claim in CLAIMS.items()
    ],
)
def test_all_networks_are_trained_with_labels_for_the_same_epochs_at_the_same_rates(claim):
    labelled = {}
    for network in claim.registered:
        stages = [s for s in claim.plan_of(network, 1).stages if s.kind != "transform"]
        labelled[network] = sum(stage.epochs for stage in stages)
        assert {(s.learning_rate, s.weight_decay, s.label_smoothing, s.ema) for s in stages} == {
            (s.learning_rate, s.weight_decay, s.label_smoothing, s.ema)
            for s in claim.wae.stages
            if s.kind != "transform"
        }
    assert len(set(labelled.values())) == 1
    stage = claim.plan_of("Decomposition+CNN", 0).stages[0]
    assert (stage.kind, stage.transform_weight) == ("joint", 0)


@pytest.mark.parametrize(("times", "epochs"), [(0.25, [1, 2, 22]), (0.7, [1, 7, 63]), (0.01, [1, 1, 1])])
def test_epochs_are_multiplied_and_rounded_down(times, epochs):
    """In floating point 0.7 times 90 is less than 63."""
    assert [stage.epochs for stage in longer(find("camvid"), times).stages] == epochs


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_jobs_are_all_networks_with_all_seeds_but_pruned_ones_with_one(claim):
    wanted = claim.jobs(range(3))
    pruned = sum(name is None for name in claim.registered.values())
    assert len(wanted) == len(set(wanted)) == 3 * len(claim.registered) - 2 * pruned
    assert len({job.stem for job in wanted}) == len(wanted)
    assert {job.network for job in wanted[:3]} == {claim.full, claim.half, "WAE"}


def test_initial_weights_depend_on_the_seed_only(tmp_path):
    def initial_weights(seed):
        torch.rand(2)
        model, _ = DIGITS.start(Job("WAE", seed), tmp_path, None)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(initial_weights(3), initial_weights(3))
    assert not torch.equal(initial_weights(3), initial_weights(4))
