"""The image size and the light body that meet a target."""

import pytest
from accelerations import opened, task_of
from tiny_original import SIDE, write_crops

from wae.experiments import machine
from wae.experiments.acceleration import target
from wae.experiments.acceleration.folder import Record
from wae.experiments.acceleration.settings import NO_TEACHER, Recipe, Settings
from wae.inference.engines import EngineError
from wae.training.plan import Plan, Stage
from wae.training.trainer import TrainingError

CURVE = [(96, 2, 0.9), (96, 4, 0.6), (64, 2, 0.5), (64, 4, 0.4), (32, 8, 0.1)]
KEPT = {(96, 2): 0.99, (96, 4): 0.7, (64, 2): 0.9, (64, 4): 0.8, (32, 8): 0.95}


def timed_briefly(monkeypatch, folder, size):
    """The measured forms of factor 4 of a tiny network that takes images of ``size``."""
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (4,))
    write_crops(folder / "data", 2, 1)
    options = {"input_size": size, "engine": "eager", "precision": "float32"}
    settings = Settings("tiny_original:build", folder / "data", folder / "out", **options)
    return target.timed_forms(opened(settings))


def met(monkeypatch, tmp_path, curve=CURVE, others=None, **options):
    """The outcome with these times and accuracies; the forms tried, and the recipes of their trials."""
    curve = [{"size": size, "factor": factor, "seconds": seconds} for size, factor, seconds in curve]
    tried, recipes = [], []

    def trial(task, record, form, recipe):
        tried.append((form.size, form.factor))
        recipes.append(recipe)
        return KEPT[form.size, form.factor]

    where = {"engine": "eager", "precision": "float32"}
    times = {**where, "original": 1.2, "curve": curve, "others": others}
    monkeypatch.setattr(target, "timed_forms", lambda task: times)
    monkeypatch.setattr(target, "trial", trial)
    write_crops(tmp_path / "data", 2, 1)
    settings = Settings("tiny_original:build", tmp_path / "data", tmp_path / "out", input_size=48, **options)
    record = Record(tmp_path / "record.json", {})
    return target.meet_target(opened(settings), record), tried, recipes


@pytest.mark.parametrize("options", [{"target": 2.0}, {"target_ms": 600.0}], ids=str)
def test_the_best_of_the_slowest_forms_that_meet_the_target_is_chosen(monkeypatch, tmp_path, options):
    outcome, tried, recipes = met(monkeypatch, tmp_path, **options)
    assert tried == [(96, 4), (64, 2), (64, 4)]
    assert outcome["form"] == {"size": 64, "factor": 2}
    assert outcome["allowed"] == pytest.approx(0.6)
    assert (outcome["engine"], outcome["precision"]) == ("eager", "float32")
    assert [entry.get("kept") for entry in outcome["curve"]] == [None, 0.7, 0.9, 0.8, None]
    assert recipes == [NO_TEACHER] * 3


@pytest.mark.parametrize(("options", "weight"), [({}, 0.5), ({"mimic": 0.25}, 0.25)], ids=str)
def test_the_trials_of_a_target_distil_as_plan_and_settings_say(monkeypatch, tmp_path, options, weight):
    plan = Plan("x", (Stage("joint", 1, 1e-3, mimic_weight=0.5),), batch=10)
    assert met(monkeypatch, tmp_path, target=2.0, plan=plan, **options)[2] == [Recipe(weight)] * 3


def test_the_trials_of_a_target_use_the_given_optimizer(monkeypatch, tmp_path):
    recipes = met(monkeypatch, tmp_path, target=2.0, optimizer="sgd")[2]
    assert recipes == [NO_TEACHER._replace(optimizer="sgd")] * 3


def test_if_the_trials_of_all_forms_diverge_none_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "KEPT", dict.fromkeys(KEPT))
    with pytest.raises(TrainingError, match="learning_rate must be lower, got those of the plan"):
        met(monkeypatch, tmp_path, target=2.0)


def test_a_form_that_the_engine_does_not_run_is_left_out(monkeypatch, tmp_path):
    deploy = target.deploy

    def some(model, size, *arguments, **options):
        if size[0] == 32:
            raise EngineError("not this one")
        return deploy(model, size, *arguments, **options)

    monkeypatch.setattr(target, "deploy", some)
    times = timed_briefly(monkeypatch, tmp_path, 64)
    assert [(entry["size"], entry["factor"]) for entry in times["curve"]] == [(64, 4)]


def test_images_in_memory_have_forms_of_their_own_size(monkeypatch, tmp_path):
    """Digits are 28 x 28, so multiples of 32 would never do."""
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (2, 4))
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda others: 0.75)
    times = target.timed_forms(task_of(tmp_path, engine="eager", precision="float32")[0])
    assert [(entry["size"], entry["factor"]) for entry in times["curve"]] == [(SIDE, 2), (SIDE, 4)]
    assert times["others"] == 0.75
    assert times["runs"] >= 9  # with three, chance chose the form on a busy machine


def test_sizes_beyond_the_limit_are_left_out(monkeypatch, tmp_path):
    """Such as 1.25 times 1792 pixels."""
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (4,))
    monkeypatch.setattr(target, "_SCALES", (64.0,))
    times = target.timed_forms(task_of(tmp_path, engine="eager", precision="float32")[0])
    assert [entry["size"] for entry in times["curve"]] == [SIDE]


@pytest.mark.parametrize("options", [{"target": 20}, {"target_ms": 60.0}], ids=str)
@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ((), "needs a form that accepts these images and runs in eager, got none"),
        (
            CURVE,
            r"needs at most 60 ms, but the fastest .* takes 100 ms \(images of 32, factor 8\)",
        ),
    ],
    ids=["none", "too slow"],
)
def test_a_target_that_no_form_meets_is_refused(monkeypatch, tmp_path, options, curve, message):
    with pytest.raises(ValueError, match=f"^{min(options)}: {message}$"):
        met(monkeypatch, tmp_path, curve, **options)


def test_a_target_that_is_missed_by_little_names_two_times(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"at most 5\.9999 ms, but the fastest form measured takes 6 ms"):
        met(monkeypatch, tmp_path, [(64, 2, 0.006)], target_ms=5.9999)


@pytest.mark.parametrize(
    ("cores", "said"),
    [(0.05, ""), (0.5, "; other programs used 0.5 cores meanwhile: .* these times, --force measures again")],
)
def test_a_target_that_was_missed_on_a_busy_machine_can_be_measured_again(monkeypatch, tmp_path, cores, said):
    """Otherwise the same command would read these times from its record."""
    with pytest.raises(ValueError, match=rf"factor 8\){said}$"):
        met(monkeypatch, tmp_path, others=cores, target=20)


def test_the_sizes_for_a_small_original_are_small_too():
    assert target._sizes(224) == [288, 224, 192, 160, 128]
    assert target._sizes(64) == [64, 32]
    assert target._sizes(48) == [60, 48, 40, 36, 32, 24]
    assert target._sizes(28) == [36, 28, 24, 20, 18, 14]
    assert target._sizes(8) == [10, 8, 7, 6, 5, 4]
    assert target._sizes(1) == [1]


def test_forms_of_few_pixels_are_measured(monkeypatch, tmp_path):
    times = timed_briefly(monkeypatch, tmp_path, 20)
    assert [entry["size"] for entry in times["curve"]] == target._sizes(20)
    assert (times["engine"], times["precision"]) == ("eager", "float32")


@pytest.mark.slow
def test_the_forms_of_a_target_are_measured(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    options = {"input_size": 64, "engine": "eager", "precision": "float32"}
    settings = Settings("tiny_original:build", tmp_path / "data", tmp_path / "out", **options)
    times = target.timed_forms(opened(settings))
    assert {(e["size"], e["factor"]) for e in times["curve"]} == {(s, f) for s in (64, 32) for f in (2, 4, 8)}
    assert all(entry["seconds"] > 0 for entry in times["curve"])
    assert times["original"] > 0
