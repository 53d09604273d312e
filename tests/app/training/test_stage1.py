"""Stage 1: the loop, its checkpoints, and that training helps."""

from dataclasses import replace

import pytest
import torch

from wae.data import photos as bundled
from wae.experiments.demo import best_linear_psnr
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file
from wae.training import stage1
from wae.training.losses import psnr
from wae.training.recipe import Recipe

QUICK = Recipe(("coffee",), steps=8, batch=2, crop=16)


@pytest.fixture(scope="module")
def photos():
    return [bundled.photo("coffee")]


def states_equal(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_short_training_beats_its_linear_start(photos):
    """Seconds are enough. Measured on crops that were not trained on, of odd size."""
    recipe = Recipe(("coffee",), steps=150, batch=4, crop=32, learning_rate=5e-4)
    unseen = stage1.random_batch(photos, replace(recipe, batch=100, seed=98), 0)[:, :, :31, :31]
    start, trained = stage1.initial_model(photos, recipe.seed), stage1.train(photos, recipe)
    with torch.no_grad():
        before, after = (psnr(to_uint8(model(unseen).image), unseen) for model in (start, trained))
    assert after > before + 0.5


def test_the_energy_weight_presses_high_down(photos):
    recipe = replace(QUICK, steps=150, crop=32, learning_rate=3e-4)
    light, heavy = (
        stage1.quality(stage1.train(photos, replace(recipe, energy_weight=weight)), photos[0][:, :128, :128])
        for weight in (0.0, 0.5)
    )
    assert heavy.energy < 0.95 * light.energy


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(photos):
    assert states_equal(stage1.train(photos, QUICK), stage1.train(photos, QUICK))
    assert not states_equal(stage1.train(photos, QUICK), stage1.train(photos, replace(QUICK, seed=1)))


def test_batches_depend_on_seed_and_step_alone(photos):
    first = stage1.random_batch(photos, QUICK, 3)
    torch.manual_seed(99)
    assert torch.equal(stage1.random_batch(photos, QUICK, 3), first)
    assert first.dtype == torch.uint8
    sizes = {tuple(stage1.random_batch(photos, QUICK, step).shape[2:]) for step in range(30)}
    assert sizes == {(16, 16), (15, 16), (16, 15), (15, 15)}


def test_crops_come_in_every_turn_and_exchange_of_colours():
    """From one photo of one crop's size, whose pixels all differ: 8 turns times 6 orders of the colours."""
    photo = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    seen = set()
    for step in range(120):
        batch = stage1.random_batch([photo], replace(QUICK, batch=10, crop=3), step)
        seen |= {tuple(crop.flatten().tolist()) for crop in batch if crop.shape == (3, 3, 3)}
    assert len(seen) == 8 * 6
    assert all(sorted(crop) == list(range(27)) for crop in seen)


def test_learning_rate_rises_then_falls_to_nearly_zero():
    recipe = Recipe((), steps=1000, learning_rate=2.0)
    rates = [stage1.learning_rate(recipe, step) for step in range(1000)]
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4


class Interrupted(Exception):
    pass


def interrupt_at(number):
    def on_step(step):
        if step.number == number:
            raise Interrupted

    return on_step


def test_an_interrupted_training_goes_on_to_the_same_weights(photos, tmp_path):
    path = tmp_path / "weights"
    whole = stage1.train(photos, QUICK)
    with pytest.raises(Interrupted):
        stage1.train(photos, QUICK, interrupt_at(6), path, checkpoint_every=2)
    steps = []
    resumed = stage1.train(photos, QUICK, lambda step: steps.append(step.number), path, resume=True)
    assert steps == [5, 6, 7, 8]  # from the checkpoint of step 4
    assert states_equal(resumed, whole)

    model = AutoEncoder()
    made = weights_file.load(path, model)
    assert states_equal(model, whole)
    assert made == {
        "step": 8,
        "photos": ["coffee"],
        "steps": 8,
        "batch": 2,
        "crop": 16,
        "learning_rate": 1e-3,
        "energy_weight": 1e-3,
        "seed": 0,
    }


def test_going_on_needs_a_checkpoint_of_the_same_recipe(photos, tmp_path):
    path = tmp_path / "weights"
    with pytest.raises(weights_file.CheckpointError, match="no such file"):
        stage1.train(photos, QUICK, checkpoint_path=path, resume=True)
    with pytest.raises(Interrupted):
        stage1.train(photos, QUICK, interrupt_at(3), path, checkpoint_every=2)
    with pytest.raises(weights_file.CheckpointError, match="another batch, seed"):
        stage1.train(
            photos, replace(QUICK, seed=1, batch=3), interrupt_at(1), checkpoint_path=path, resume=True
        )
    stage1.train(photos, QUICK, checkpoint_path=path)
    with pytest.raises(weights_file.CheckpointError, match="no optimizer state"):  # it is finished
        stage1.train(photos, QUICK, checkpoint_path=path, resume=True)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "weights"
    weights_file.save(path, AutoEncoder(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
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
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": -1}, "batch must be at least 1"),
        ({"crop": 1}, "crop must be at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"energy_weight": -1.0}, "energy_weight must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unusable_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


def test_photos_must_exist_and_be_large_enough():
    with pytest.raises(ValueError, match="at least one photo"):
        stage1.train([], QUICK)
    with pytest.raises(ValueError, match="15 x 40 is smaller than a crop of 16 x 16"):
        stage1.train([torch.zeros(3, 15, 40, dtype=torch.uint8)], QUICK)


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
    """The table of the weights' card: photo, kept out, PSNR, best linear, energy."""
    lines = (weights_file.WEIGHTS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: (kept_out, *figures) for name, kept_out, *figures in rows[2:]}


def test_the_card_states_the_photos_kept_out():
    assert {name for name, row in card().items() if row[0] == "yes"} == set(bundled.KEPT_OUT)


@pytest.mark.parametrize("name", card())
def test_shipped_weights_are_as_good_as_their_card_says(shipped, name):
    """On the photos kept out: at least 1 dB above the best linear transform fitted to that very photo."""
    kept_out, stated, linear, energy = card()[name]
    photo = bundled.photo(name)
    result = stage1.quality(shipped[0], photo)
    assert result.psnr == pytest.approx(float(stated), abs=0.02)
    assert best_linear_psnr(photo) == pytest.approx(float(linear), abs=0.02)
    assert 100 * result.energy == pytest.approx(float(energy.removesuffix(" %")), abs=0.06)
    assert result.energy <= 0.05
    if kept_out == "yes":
        assert result.psnr >= best_linear_psnr(photo) + 1
