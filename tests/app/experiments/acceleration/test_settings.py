"""The settings of an acceleration."""

from dataclasses import fields
from pathlib import Path

import pytest
from torch.nn import Linear

from wae.experiments.acceleration.settings import Settings
from wae.training.plan import Plan, Stage, find

NAN, INF = float("nan"), float("inf")
INVALID_NUMBERS = [NAN, INF, -INF, -1.0, "2", True]
COUNTS = ("images", "epochs", "batch", "max_pixels")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("target", value) for value in (*INVALID_NUMBERS, 0, 0.0, 1.0)),  # 0 was taken as 1
        *(("target_ms", value) for value in (*INVALID_NUMBERS, 0)),
        *(("max_drop", value) for value in (*INVALID_NUMBERS, 1.5)),
        *((entry, value) for entry in ("mimic", "learning_rate") for value in INVALID_NUMBERS),
        *((entry, value) for entry in COUNTS for value in (*INVALID_NUMBERS, 0, 2.0)),
        *(("workers", value) for value in (*INVALID_NUMBERS, 2.0)),
        *((entry, None) for entry in ("max_drop", "images", "max_pixels", "workers")),
        ("mean", (0.5, INF, 0.5)),
        ("mean", (0.5,)),
        ("mean", 0.5),
        ("mean", ("0.5", "0.5", "0.5")),
        ("std", (0.2, 0.0, 0.2)),
        ("engine", "warp"),
        ("precision", "int9"),
        ("optimizer", "adam"),
        ("seed", "one"),
        *(("input_size", value) for value in (0, 96.0, 4096)),
        ("plan", "digits"),
        ("weights", {"fc.weight": 0}),
        ("compare", "no"),
    ],
)
def test_invalid_settings_are_refused(entry, value):
    with pytest.raises(ValueError, match=f"{entry} must be"):
        Settings("resnet18", "digits", Path("out"), **{entry: value})


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Linear, "digits", "model must be a network, .*, got the class Linear: call it"),
        (lambda: Linear(1, 1), "digits", "model must be a network, .*, got function"),
        ("resnet18", [], "data must be a folder, a name, or two loaders, got list"),
    ],
)
def test_a_wrong_model_or_data_is_refused(model, data, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Settings(model, data, Path("out"))


@pytest.mark.parametrize(
    "options",
    [
        {"target": 1.001, "mimic": 0, "learning_rate": 0.0, "max_drop": 1, "workers": 0},
        {"target_ms": 1e-3, "max_drop": 0.0, **dict.fromkeys(COUNTS, 1)},
        {"target": 1e6, "mimic": 1e6, "learning_rate": 1e6},
    ],
)
def test_settings_accept_values_at_their_limits(options):
    settings = Settings("resnet18", "digits", Path("out"), **options)
    assert {name: getattr(settings, name) for name in options} == options


@pytest.mark.parametrize("options", [{"mimic": 0.0}, {"plan": find("digits")}], ids=["mimic", "plan"])
def test_mirrored_distillation_needs_distillation(options):
    with pytest.raises(ValueError, match=r"mimic_mirrored needs a mimic above 0, got 0"):
        Settings("resnet18", "digits", Path("out"), mimic_mirrored=True, **options)


@pytest.mark.parametrize("target", [{"target": 2.0}, {"target_ms": 5.0}], ids=str)
@pytest.mark.parametrize("chosen", [{"size": 96}, {"factor": 2}, {"factor": 4}], ids=str)
def test_what_a_target_chooses_cannot_be_set_as_well(target, chosen):
    """Not even to the default."""
    with pytest.raises(ValueError, match=f"^{min(chosen)} cannot be combined with a target"):
        Settings("resnet18", "digits", Path("out"), **target, **chosen)


def test_giving_the_default_factor_is_the_same_setting():
    """Also in records of versions that could not tell whether it was given."""
    default, given = (Settings("resnet18", "digits", Path("out"), **more) for more in ({}, {"factor": 4}))
    assert default.as_dict() == given.as_dict()
    assert default.as_dict()["factor"] == 4


def test_an_optimizer_beside_a_plan_is_refused():
    with pytest.raises(ValueError, match=r"optimizer: the plan already names .*; give one of the two"):
        Settings("resnet18", "digits", Path("out"), plan=find("digits"), optimizer="sgd")


def test_a_plan_without_a_labelled_stage_is_refused():
    with pytest.raises(ValueError, match=r"at least one stage of kind classifier or joint, got transform"):
        Settings("resnet18", "digits", Path("out"), plan=Plan("x", (Stage("transform", 1, 0.1),)))


def test_a_run_resumes_only_with_the_same_settings_but_those_of_the_machine():
    entries = Settings("resnet18", "digits", Path("out")).as_dict().keys()
    machines = {"model", "data", "folder", "workers", "device"}  # fingerprints compare the first two
    assert entries == {entry.name for entry in fields(Settings)} - machines
