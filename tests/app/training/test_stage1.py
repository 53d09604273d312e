"""Stage 1 alone: the plan for a number of steps, its checkpoints, and that training helps."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from wae.data import photos as bundled
from wae.data.crops import Crops
from wae.data.dataset import DatasetError
from wae.experiments.demo import best_linear_psnr
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file
from wae.training import stage1
from wae.training.losses import psnr
from wae.training.plan import PlanError
from wae.training.stage1 import schedule
from wae.training.trainer import Observer

QUICK = schedule(8, batch=2)


@pytest.fixture(scope="module")
def photos():
    return [bundled.photo("coffee")]


@pytest.fixture
def short_epochs(monkeypatch):
    """An epoch, and so a checkpoint, every two steps."""
    monkeypatch.setattr(stage1, "EPOCH_STEPS", 2)
    return schedule(8, batch=2)


def states_equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    ("steps", "epochs", "longest"),
    [(None, 80, 500), (40_000, 80, 500), (1, 1, 1), (500, 1, 500), (501, 2, 251), (1234, 3, 412)],
)
def test_steps_become_epochs(steps, epochs, longest):
    found = schedule(steps, batch=3, energy_weight=0.5)
    plan = found.plan
    assert (plan.stages[0].epochs, found.longest, plan.batch) == (epochs, longest, 3)
    assert found.steps == (steps or 40_000)
    assert (plan.stages[0].energy_weight, plan.stages[0].warmup) == (0.5, pytest.approx(epochs / 100))


def test_a_short_training_beats_its_linear_start(photos):
    """After seconds, on unseen crops of odd size."""
    unseen = Crops(photos, 32, 100, seed=98).batch(range(100), 0)[0][:, :, :31, :31]
    plan = schedule(150, batch=4, learning_rate=5e-4)
    start, trained = stage1.initial_model(photos, 0), stage1.train(photos, plan, crop=32)
    with torch.no_grad():
        before, after = (psnr(to_uint8(model(unseen).image), unseen) for model in (start, trained))
    assert after > before + 0.5


def test_the_energy_weight_lowers_the_energy_of_high(photos):
    light, heavy = (
        stage1.quality(
            stage1.train(photos, schedule(150, batch=2, learning_rate=3e-4, energy_weight=weight), crop=32),
            photos[0][:, :128, :128],
        )
        for weight in (0.0, 0.5)
    )
    assert heavy.energy < 0.95 * light.energy


def test_the_same_plan_gives_the_same_weights_and_another_seed_others(photos):
    one = stage1.train(photos, QUICK, crop=16)
    assert states_equal(one, stage1.train(photos, QUICK, crop=16))
    assert not states_equal(one, stage1.train(photos, schedule(8, batch=2, seed=1), crop=16))


class Interrupted(Exception):
    pass


class StopAt(Observer):
    """Interrupts after step ``last``, counted over all epochs from 1; records the steps that were taken."""

    def __init__(self, last=None):
        self.last, self.taken, self.before = last, [], 0

    def start(self, plan, stage, epoch, steps):
        self.before = epoch * steps

    def step(self, number, losses):
        self.taken.append(self.before + number)
        if self.taken[-1] == self.last:
            raise Interrupted


class Count(Observer):
    """Counts steps."""

    steps = 0

    def step(self, number, losses):
        self.steps += 1


def test_resume_after_interruption_gives_the_same_weights(photos, tmp_path, short_epochs):
    path, options = tmp_path / "weights", {"crop": 16, "names": ["coffee"]}
    uninterrupted = stage1.train(photos, short_epochs, **options)
    with pytest.raises(Interrupted):
        stage1.train(photos, short_epochs, path=path, observer=StopAt(6), **options)
    weights_file.load(path, AutoEncoder())  # weights of the step that was reached
    steps = StopAt()
    resumed = stage1.train(photos, short_epochs, path=path, resume=True, observer=steps, **options)
    assert steps.taken == [5, 6, 7, 8]  # from the checkpoint of step 4
    assert states_equal(resumed, uninterrupted)

    model = AutoEncoder()
    made = weights_file.load(path, model)
    assert states_equal(model, uninterrupted)
    assert made["plan"] == short_epochs.plan.as_dict()
    assert made["photos"] == ["coffee"]

    steps = StopAt()  # none is left
    again = stage1.train(photos, short_epochs, path=path, resume=True, observer=steps, **options)
    assert (steps.taken, states_equal(again, uninterrupted)) == ([], True)


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_a_number_of_steps_that_epochs_cannot_share_equally(photos, tmp_path, monkeypatch, steps):
    """Exactly these are taken, and a training of one step more, whose epochs are as long, is another one."""
    monkeypatch.setattr(stage1, "EPOCH_STEPS", 2)
    path = tmp_path / "weights"
    for last in (1, None):  # a checkpoint, and finished weights
        with pytest.raises(Interrupted) if last else nullcontext():
            stage1.train(photos, schedule(steps, batch=2), 16, path=path, resume=True, observer=StopAt(last))
        with pytest.raises(weights_file.CheckpointError, match=f"other options: --steps .*{steps}"):
            stage1.train(photos, schedule(steps + 1, batch=2), 16, path=path, resume=True)
    assert weights_file.read_recipe(path)["sources"] == {"--steps": str(steps)}
    taken = Count()
    stage1.train(photos, schedule(steps, batch=2), 16, observer=taken)
    assert taken.steps == steps


def test_resume_without_a_checkpoint_starts_a_training(photos, tmp_path):
    path = tmp_path / "weights"
    trained = stage1.train(photos, QUICK, crop=16, path=path, resume=True)
    assert states_equal(trained, stage1.train(photos, QUICK, crop=16))


def test_resume_needs_a_checkpoint_of_the_same_training(photos, tmp_path, monkeypatch):
    path = tmp_path / "weights"
    monkeypatch.setattr(stage1, "EPOCH_STEPS", 2)
    plan, other = schedule(8, batch=2), schedule(8, batch=3, learning_rate=0.5)
    for last in (3, None):  # a checkpoint, and finished weights
        with pytest.raises(Interrupted) if last else nullcontext():
            stage1.train(photos, plan, 16, path=path, observer=StopAt(last))
        kept = path.read_bytes()
        with pytest.raises(
            weights_file.CheckpointError, match=r"batch \(2, not 3\), learning_rate \(0.001, "
        ):
            stage1.train(photos, other, 16, path=path, resume=True)
        with pytest.raises(weights_file.CheckpointError, match=r"data that differs in crop \(16, not 15\)$"):
            stage1.train(photos, plan, 15, path=path, resume=True)
        assert path.read_bytes() == kept


def test_weights_of_version_0_1_are_read_but_not_resumed_from(photos, tmp_path):
    """Its checkpoints have `step`, `steps`, `crop` and so on, but no plan."""
    path, old = tmp_path / "weights", {"step": 4, "photos": ["coffee"], "steps": 8, "batch": 2, "crop": 16}
    model = stage1.initial_model(photos, 0)
    weights_file.save(path, model, old, torch.optim.Adam(model.parameters()))
    assert weights_file.load(path, AutoEncoder()) == old
    with pytest.raises(weights_file.CheckpointError, match="of an older version; training cannot resume"):
        stage1.train(photos, QUICK, 16, path=path, resume=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam])
def test_a_checkpoint_is_not_needed_once_it_is_loaded(kind, tmp_path):
    """Reading from it later would keep it on the disk, though the training replaces it."""
    path, model = tmp_path / "state", torch.nn.Linear(2, 2)
    optimizer = kind(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    weights_file.save(path, model, {}, optimizer)
    weights_file.load(path, model, optimizer)
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "weights"
    weights_file.save(path, AutoEncoder(), {})
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(weights_file.CheckpointError, match="not a checkpoint"):
        weights_file.load(path, AutoEncoder())
    weights_file.save(path, torch.nn.Linear(2, 2), {}, force=True)
    with pytest.raises(weights_file.CheckpointError, match=r"encoder\.conv1\.weight"):
        weights_file.load(path, AutoEncoder())
    with pytest.raises(FileExistsError):
        weights_file.save(path, AutoEncoder(), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "batch must be an integer from 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"energy_weight": -1.0}, "energy_weight must be"),
        ({"crop_size": 3}, "unexpected keyword argument 'crop_size'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unusable_numbers_are_refused(change, message):
    with pytest.raises((PlanError, TypeError), match=message):
        schedule(8, **change)


def test_photos_must_be_large_enough():
    with pytest.raises(DatasetError, match="15 x 40 is smaller than a crop of 16 x 16"):
        stage1.train([torch.zeros(3, 15, 40, dtype=torch.uint8)], QUICK, 16)


# ------------------------------------------------------------------------------------ the shipped weights


@pytest.fixture(scope="module")
def shipped():
    model = AutoEncoder()
    recipe = weights_file.load(weights_file.WEIGHTS / "autoencoder.safetensors", model)
    return model, recipe


def test_shipped_weights_carry_their_recipe(shipped):
    model, recipe = shipped
    assert recipe["photos"] == list(bundled.TRAINING)
    assert recipe["step"] == recipe["steps"]
    assert sum(p.numel() for p in model.parameters()) == 11_929


def card():
    """The rows of the weights' card by photo: held out, PSNR, best linear, energy."""
    lines = (weights_file.WEIGHTS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: figures for name, *figures in rows[2:]}


def test_the_card_states_which_photos_are_held_out():
    assert {name for name, row in card().items() if row[0] == "yes"} == set(bundled.HELD_OUT)


@pytest.mark.parametrize("name", card())
def test_shipped_weights_are_as_good_as_their_card_says(shipped, name):
    """On held-out photos: at least 1 dB above the best linear transform, fitted to that photo itself."""
    held_out, stated, linear, energy = card()[name]
    photo = bundled.photo(name)
    result = stage1.quality(shipped[0], photo)
    assert result.psnr == pytest.approx(float(stated), abs=0.02)
    assert best_linear_psnr(photo) == pytest.approx(float(linear), abs=0.02)
    assert 100 * result.energy == pytest.approx(float(energy.removesuffix(" %")), abs=0.06)
    assert result.energy <= 0.05
    if held_out == "yes":
        assert result.psnr >= best_linear_psnr(photo) + 1
