"""The claim on Fashion-MNIST: its networks, and plans that differ only in what belongs to a network."""

from dataclasses import replace

from reproductions import DIGITS

from wae.experiments.reproduction import fashion_mnist
from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.models.counting import count
from wae.storage.checkpoint import Input
from wae.training.plan import Plan, Stage


def test_plans_share_waes_last_stage_except_for_waes_own_entries():
    """No entry has its default value, so that a missing one shows."""
    plain = Stage(
        "classifier", 5, 0.1, "adamw", momentum=0.8, weight_decay=0.01, schedule="step", warmup=0.5,
        step_epochs=2, step_factor=0.3, label_smoothing=0.1, class_balance=1.5, ema=0.9,
    )  # fmt: skip
    own = {"encoder_rate": 0.2, "energy_weight": 0.3, "transform_weight": 0.4}
    last = replace(plain, kind="joint", epochs=3, low_weight=0.5, **own)
    first = Stage("transform", 7, 1e-4), Stage("classifier", 2, 0.2)
    wae = Plan("wae_small_vgg", (*first, last), batch=50, precision="bfloat16", start="linear", seed=3)
    claim = FashionMnist(wae)
    for network, stage in (
        ("28 x 28", plain),
        ("14 x 14", plain),
        ("Wavelet+CNN", replace(plain, low_weight=0.5)),
        ("Decomposition+CNN", replace(last, epochs=5, transform_weight=0.0, encoder_rate=1.0)),
    ):
        assert claim.plan_of(network, 9) == Plan(network, (stage,), batch=50, precision="bfloat16", seed=9)
    assert claim.plan_of("WAE", 9) == replace(wae, seed=9)
    distilled = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
    stages = first[0], replace(first[1], **distilled), replace(last, **distilled)
    assert claim.plan_of("WAE, mimic", 9) == replace(wae, seed=9, stages=stages)


def test_costs_of_the_networks():
    """Half the resolution costs about a quarter; wavelets cost no multiply-adds, and WAE's encoder does."""
    cost = {name: count(DIGITS.build(name), DIGITS.input.shape).multiply_adds for name in DIGITS.registered}
    assert cost["14 x 14"] < 0.3 * cost["28 x 28"]
    assert cost["14 x 14"] < cost["Wavelet+CNN"] < cost["WAE"] < cost["28 x 28"]
    assert cost["Decomposition+CNN"] == cost["WAE"] == cost["WAE, mimic"]
    assert DIGITS.input == Input(28, 28, grayscale=True)


def test_longer_trainings_have_more_epochs_with_labels():
    claim, other = fashion_mnist.claim(), fashion_mnist.claim(4)
    assert [stage.epochs for stage in claim.wae.stages] == [1, 4]
    assert [stage.epochs for stage in other.wae.stages] == [1, 16]
    assert [stage.epochs for stage in fashion_mnist.claim(1 / 4).wae.stages] == [1, 1]
