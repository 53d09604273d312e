"""The trainings of an acceleration."""

from dataclasses import replace
from functools import partial

import pytest
from accelerations import MIRRORED, PLAIN, task_of, with_new_head
from tiny_original import SIDE

from wae.experiments.acceleration import baselines, training
from wae.experiments.acceleration.folder import ORIGINAL, TRIALS, Record
from wae.experiments.acceleration.plans import plan_for
from wae.experiments.acceleration.settings import NO_TEACHER
from wae.storage import weights_file
from wae.training.state import Epoch


@pytest.mark.parametrize("recipe", [NO_TEACHER, PLAIN, MIRRORED], ids=str)
@pytest.mark.parametrize("who", ["accelerated", baselines.HALF])
def test_the_network_and_its_baselines_see_the_same_images_and_teacher(tmp_path, monkeypatch, who, recipe):
    task, _ = task_of(tmp_path)
    seen = []

    def train(model, plan, *sets, teacher, **options):
        seen.append((plan, sets, teacher))
        raise InterruptedError

    monkeypatch.setattr(training, "train", train)
    record = Record(tmp_path / "record.json", {}, {f"chosen: {baselines.HALF}": {"side": SIDE // 2}})
    step = (
        training.train_accelerated
        if who == "accelerated"
        else partial(baselines.train_baseline, record=record, name=who)
    )
    with pytest.raises(InterruptedError):
        step(task, form=task.form, recipe=recipe)
    (plan, sets, teacher), own_plan = seen[0], plan_for(task, 20, recipe)
    assert sets == (task.sets(SIDE).training, task.sets(SIDE).test)
    assert (teacher is not None) == bool(recipe.weight)
    assert all(stage.mimic_mirrored == recipe.mirrored for stage in plan.stages)
    if who == "accelerated":
        assert plan == own_plan
    else:  # the same number of epochs with labels
        assert plan.stages == tuple(replace(stage, kind="classifier") for stage in own_plan.stages[1:])


def test_a_checkpoint_of_another_plan_is_refused_with_the_remedy(tmp_path):
    task = task_of(tmp_path)[0]
    plan = plan_for(task, 20, NO_TEACHER)
    plan = replace(plan, stages=(replace(plan.stages[-1], kind="classifier"),))
    state = tmp_path / TRIALS / "head.safetensors"
    state.parent.mkdir()
    weights_file.save(state, task.original.network, {"plan": replace(plan, batch=plan.batch + 1).as_dict()})
    sets = task.sets(SIDE)
    with pytest.raises(
        weights_file.CheckpointError,
        match=r"head\.safetensors: .* batch .*; remove this file to repeat that training",
    ):
        training.fit(task, "head", task.original.network, plan, sets.training, sets.test)


def test_a_new_head_is_trained_as_long_as_the_network_at_a_higher_rate(tmp_path, monkeypatch):
    task = with_new_head(tmp_path, epochs=6, seed=3)
    seen = []

    def train(model, plan, *sets, state, **options):
        seen.append((model, plan, sets, options["resume"], options.get("teacher")))
        state.touch()
        model.train()
        return [Epoch(0, "classifier", 0, {}, None, 1.0)] * 5

    monkeypatch.setattr(training, "train", train)
    assert training.train_head(task) == {"epochs": 5}
    ((model, plan, *others),) = seen
    assert model.network is task.original.network
    assert not model.training
    assert others == [(task.sets(SIDE).training, task.sets(SIDE).test), False, None]
    *_, joint = plan_for(task, 8).stages
    (stage,) = plan.stages
    assert (stage.kind, stage.learning_rate, plan.batch, plan.seed) == ("classifier", 1e-2, 8, 3)
    assert (stage.epochs, stage.warmup) == (6, 0.3)  # instead of 30 and 1.5
    assert joint.learning_rate < 1e-3
    assert (tmp_path / ORIGINAL).is_file()
    assert [path.stem for path in (tmp_path / TRIALS).iterdir()] == ["head"]
    training.forget(task, "head")  # once it is recorded
    assert not list((tmp_path / TRIALS).iterdir())
