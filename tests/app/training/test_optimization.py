"""The optimizer of a stage and its learning rate."""

from dataclasses import replace

import pytest
import torch

from wae.training.optimization import learning_rate, optimizer_for
from wae.training.plan import Stage


def test_learning_rate_schedules():
    cosine = Stage("joint", 10, 0.4, warmup=2.0)
    assert learning_rate(cosine, 1.0) == pytest.approx(0.202)
    short = replace(cosine, warmup=0.01)
    assert [learning_rate(short, epoch) for epoch in (0.0, 0.005, 0.01)] == pytest.approx([0.02, 0.22, 0.4])
    assert learning_rate(cosine, 6.0) == pytest.approx(0.2)
    assert learning_rate(cosine, 9.99) < 1e-5
    step = replace(cosine, schedule="step", step_epochs=3)
    rates = [learning_rate(step, epoch) for epoch in (2.0, 3.0, 9.0)]
    assert rates == pytest.approx([0.4, 0.04, 0.0004])
    assert learning_rate(replace(cosine, schedule="constant"), 9.0) == 0.4


def test_the_encoder_of_another_network_decays_like_its_other_weights():
    """As in U-Nets and transformers."""
    parameters = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("encoder.weight", "decoder.weight")}
    (group,) = optimizer_for(Stage("classifier", 1, 0.1, weight_decay=0.5), parameters).param_groups
    assert (group["weight_decay"], group["share"], len(group["params"])) == (0.5, 1.0, 2)


def test_sgd_uses_nesterov_momentum():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    (group,) = optimizer_for(Stage("classifier", 1, 0.1, momentum=0.5), {"weight": weight}).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
