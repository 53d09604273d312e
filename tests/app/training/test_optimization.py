"""The optimizer of a stage and its learning rate."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from wae.models.bodies import standard_network
from wae.training.optimization import learning_rate, optimizer_for, spared_from_decay
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


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("vit_b_32", {"class_token": 1, "pos_embedding": 1}),
        ("swin_t", {"relative_position_bias_table": 12}),
        ("swin_v2_t", {"logit_scale": 12}),
        ("convnext_tiny", {"layer_scale": 18}),
        ("vit_tiny_patch16_224", {"cls_token": 1, "pos_embed": 1}),
        ("swin_tiny_patch4_window7_224", {"relative_position_bias_table": 12}),
        ("levit_128s", {"attention_biases": 11}),
        ("xcit_nano_12_p16_224", {"cls_token": 1, "temperature": 12, "weight": 1}),
        ("resnet18", {}),
    ],
)
def test_tokens_position_tables_and_scales_do_not_decay(name, spared):
    """As in timm, whose networks name them, also with wildcards (XCiT), and in torchvision's trainings."""
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"low_body": standard_network(name)})
    parameters = dict(model.named_parameters())
    stage = Stage("classifier", 1, 0.1, "adamw", weight_decay=0.5)
    groups = optimizer_for(stage, parameters, spared_from_decay(model)).param_groups
    free = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    found = [name.rpartition(".")[2] for name, p in parameters.items() if p.dim() > 1 and id(p) in free]
    assert Counter(found) == spared


def test_sgd_uses_nesterov_momentum():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    (group,) = optimizer_for(Stage("classifier", 1, 0.1, momentum=0.5), {"weight": weight}).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
