"""What a user may ask of an acceleration."""

from dataclasses import fields
from pathlib import Path

import pytest

from wae.experiments.acceleration.settings import Settings
from wae.training.plan import Plan, Stage, find


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("mimic", -1.0),
        ("images", 0),
        ("epochs", 0),
        ("target", float("nan")),
        ("max_drop", float("nan")),
        ("mean", (0.5, float("inf"), 0.5)),
        ("mean", (0.5,)),
        ("std", (0.2, 0.0, 0.2)),
        ("engine", "warp"),
        ("precision", "int9"),
    ],
)
def test_settings_that_make_no_sense(entry, value):
    with pytest.raises(ValueError, match=f"{entry} must be"):
        Settings("resnet18", "digits", Path("out"), **{entry: value})


@pytest.mark.parametrize("options", [{"mimic": 0.0}, {"plan": find("digits")}], ids=["mimic", "plan"])
def test_nobody_teaches_by_mirror_images_where_nobody_teaches(options):
    with pytest.raises(ValueError, match=r"mimic_mirrored needs a mimic above 0, got 0"):
        Settings("resnet18", "digits", Path("out"), mimic_mirrored=True, **options)


def test_a_plan_without_labels_is_found_out_before_the_training():
    with pytest.raises(ValueError, match=r"at least one stage of kind classifier or joint, got transform"):
        Settings("resnet18", "digits", Path("out"), plan=Plan("x", (Stage("transform", 1, 0.1),)))


def test_all_settings_but_those_of_the_machine_decide_whether_a_run_goes_on():
    entries = Settings("resnet18", "digits", Path("out")).as_dict().keys()
    machines = {"model", "data", "folder", "workers", "device"}  # of the first two there are fingerprints
    assert entries == {entry.name for entry in fields(Settings)} - machines
