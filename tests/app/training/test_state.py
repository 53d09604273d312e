"""wae.training.state: what a checkpoint may hold besides tensors."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
from trained import PLAN

from wae.training import state
from wae.training.accuracy import Accuracy, PixelAccuracy


@pytest.mark.parametrize(
    ("stage", "epoch", "fits"),
    [
        *((0, 0, True), (0, 1, True), (2, 1, True), (3, 0, True)),
        *((0, 2, False), (3, 1, False), (4, 0, False), (-1, 0, False), (0, -1, False)),
    ],
)
def test_the_stage_and_epoch_of_a_checkpoint_must_be_in_the_plan_or_at_its_end(stage, epoch, fits):
    made = {"plan": PLAN.as_dict(), "stage": stage, "epoch": epoch}
    with nullcontext() if fits else pytest.raises(ValueError, match=r"^(stage|epoch)$"):
        state.checked(Path("state"), made, PLAN, {}, {})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"stage": "0"}, {"kind": 1}, {"epoch": None}, {"losses": {"loss": "0.5"}}),
        *({"accuracy": ["1", 1.0, 0.5, 4]}, {"seconds": True}),
    ],
    ids=str,
)
def test_an_epoch_in_a_checkpoint_must_have_the_right_types(wrong):
    epoch = state.Epoch(0, "joint", 0, {"loss": 0.5}, Accuracy(1.0, 1.0, 0.5, 4), 1.0)
    entry = json.loads(json.dumps(asdict(epoch)))
    assert state.read_epoch(entry) == epoch
    with pytest.raises(TypeError, match=r"^history$"):
        state.read_epoch(entry | wrong)


def test_either_kind_of_accuracy_in_a_history_is_restored():
    for accuracy in (Accuracy(0.5, 0.6, 0.7, 8), PixelAccuracy(0.5, 0.6, 0.7, 0.8, 9), None):
        entry = {"stage": 0, "kind": "joint", "epoch": 1, "losses": {}, "accuracy": accuracy, "seconds": 1.0}
        found = state.read_epoch(json.loads(json.dumps(entry))).accuracy
        assert found == accuracy
        assert type(found) is type(accuracy)
