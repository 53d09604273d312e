"""The training loop: what each stage trains, and that interrupting and resuming changes nothing."""

import copy
import itertools
import json
import math
import resource
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from tiny_classifier import tiny
from torch import nn
from trained import (
    FIXED,
    JOINT,
    PLAN,
    SHARED,
    StopAt,
    image_set,
    network,
    partly_counted,
    run,
    run_in_processes,
    with_gaps,
)

from wae.data import photos
from wae.data.dataset import DatasetError, InMemory
from wae.data.folder import ImageFolder
from wae.data.input import Input
from wae.models.autoencoder import AutoEncoder
from wae.models.baselines import wavelet_cnn
from wae.models.stock import StockDecoder, StockEncoder
from wae.storage import weights_file
from wae.storage.weights_file import CheckpointError
from wae.training import accuracy, norms, trainer
from wae.training.accuracy import evaluate
from wae.training.losses import energy_ratio, mimic_loss, transform_loss
from wae.training.objective import Objective, trained
from wae.training.plan import Plan, Stage
from wae.training.sparsity import Masks
from wae.training.state import Epoch
from wae.training.trainer import DivergedError, Observer, TrainingError, train
from wae_kernels.nn import Decoder, Encoder


class Steps(Observer):
    """Records the losses of every step."""

    def __init__(self):
        self.losses = []

    def step(self, number, losses):
        self.losses.append({name: loss.item() for name, loss in losses.items()})


def only(stage, **options):
    return Plan("tiny", (stage,), **{"batch": 8, **options})


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


# --------------------------------------------------------------------------------------- losses and schedules


def test_the_transform_loss_is_the_papers():
    decoded, image, high = (
        torch.full((1, 3, 2, 2), 3.0),
        torch.ones(1, 3, 2, 2),
        torch.full((1, 3, 1, 1), 2.0),
    )
    assert transform_loss(decoded, image, high, 0.5) == (6.0, 4.0, 4.0)


def test_the_energy_of_low_is_its_variance_over_all_images():
    low = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1) + torch.tensor([0.0, 50, 9]).view(
        3, 1, 1
    )
    assert energy_ratio(low, torch.full((2, 3, 1, 1), 3.0)) == pytest.approx(9 / 1)


def test_the_loss_of_a_joint_stage_is_the_sum_of_all_its_parts():
    """Each part has a different weight."""
    parts = {"energy_weight": 0.2, "transform_weight": 0.3, "low_weight": 0.4, "mimic_weight": 0.5}
    stage = Stage("joint", 1, 0.1, label_smoothing=0.1, mimic_temperature=2.0, **parts)
    torch.manual_seed(5)
    teacher, model, (images, labels) = tiny(), network().eval(), image_set().batch(range(6), 0)
    model.image_shift.copy_(torch.tensor([-1.0, 0.5, -2.0]))
    weights = torch.tensor([1.0, 2.0, 4.0])
    losses = Objective(model, stage, teacher, weights)(images, labels)
    low, high = model.decompose(images)
    units = images * model.image_scale.view(3, 1, 1) + model.image_shift.view(3, 1, 1)
    error, energy = ((model.decoder(low, high, (8, 8)) - units) ** 2).mean(), (high**2).mean()
    low_scores, more = model.both_scores(*model.features_of(low, high))
    entropy, low_entropy = (
        torch.nn.functional.cross_entropy(scores, labels, weights, label_smoothing=0.1)
        for scores in (low_scores + more, low_scores)
    )
    wanted, given = ((scores / 2).softmax(1) for scores in (teacher(images), low_scores + more))
    distance = 4 * (wanted * (wanted / given).log()).sum(1).mean()
    transform = error + 0.2 * energy
    total = entropy + 0.3 * transform + 0.4 * low_entropy + 0.5 * distance
    expected = {
        "loss": total,
        "cross entropy": entropy,
        "mimic": distance,
        "low cross entropy": low_entropy,
        "transform": transform,
        "reconstruction": error,
        "energy": energy,
    }
    torch.testing.assert_close(losses, expected)
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_mimic_loss_is_a_kl_divergence():
    scores, wanted = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (wanted / 3).softmax(1), (scores / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(mimic_loss(scores, wanted, 3.0), expected)
    assert mimic_loss(wanted + 1, wanted, 3.0) < 1e-12  # the same probabilities


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_mimic_loss_of_16_bit_scores_is_computed_in_float32(precision):
    """Its gradient is wrong by its own rounding at most; with logarithms in bfloat16, by a fifth."""
    random = torch.Generator().manual_seed(0)
    wanted = (3 * torch.randn(64, 1000, generator=random)).to(precision)
    scores = (wanted + 0.3 * torch.randn(64, 1000, generator=random)).to(precision)
    gradients = []
    for dtype in (torch.float64, precision):
        ours = scores.to(dtype).requires_grad_()
        with torch.autocast("cpu", precision, enabled=dtype == precision):
            loss = mimic_loss(ours, wanted.to(dtype), 4.0)
        (loss * 2**10).backward()  # scaled, because float16 has fewer digits below 6e-5
        gradients.append(ours.grad.double())
    exact, found = gradients
    assert (found - exact).norm() <= torch.finfo(precision).eps * exact.norm()


@pytest.mark.parametrize(("precision", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_reconstruction_in_16_bits_is_compared_with_the_exact_image(precision, most):
    """A rounded image differs as much as a good reconstruction: gradients would be wrong by up to 280 %."""
    model = AutoEncoder()
    weights_file.load(weights_file.AUTOENCODER, model)
    images = photos.photo("coffee")[None, :, :256, :256]
    exact, found = [], []
    for gradients, is_in_16_bits in ((exact, False), (found, True)):
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=is_in_16_bits):
            losses = Objective(model, Stage("transform", 1, 0.1))(images, torch.zeros(1))
        (losses["loss"] * 2**14).backward()
        for part in (model.encoder, model.decoder):
            gradients.append(torch.cat([p.grad.flatten() for p in part.parameters()]))
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).norm() <= most * theirs.norm()


def one_step(kind="joint", optimizer="sgd", **options):
    """By how much one step changes each parameter, and the parameters before it."""
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    stage = Stage(kind, 1, 0.01, optimizer, **{"momentum": 0.0, **options})
    run(only(stage, batch=32), model)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}, before


@pytest.mark.parametrize("kind", ["transform", "joint"])
def test_encoder_rate_applies_to_encoder_and_decoder_in_joint_stages(kind):
    (same, _), (slow, _) = one_step(kind), one_step(kind, encoder_rate=0.25)
    for name, change in slow.items():
        share = 0.25 if kind == "joint" and name.startswith(("encoder.", "decoder.")) else 1.0
        torch.testing.assert_close(change, share * same[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_spares_biases_encoder_and_decoder(optimizer):
    (free, before), (decayed, _) = (
        one_step(optimizer=optimizer),
        one_step(optimizer=optimizer, weight_decay=0.5),
    )
    for name, change in decayed.items():
        decays = (
            name.endswith("weight") and before[name].dim() > 1 and not name.startswith(("encoder", "decoder"))
        )
        torch.testing.assert_close(
            change - free[name], -0.01 * 0.5 * before[name] * decays, rtol=1e-3, atol=1e-7
        )


def test_a_training_spares_what_a_network_says_from_weight_decay():
    """Without a gradient only the decay would change the parameter."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model.table, model.pos_embed, model.other = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    model.no_weight_decay = lambda: {"tab*"}
    model.forward = lambda images: (
        model[1](model[0](images.float()))
        + 0 * sum(table.sum() for table in (model.table, model.pos_embed, model.other))
    )
    train(model, only(Stage("classifier", 1, 1e-3, "adamw", weight_decay=0.5)), image_set(), image_set())
    assert (model.table == 1).all()
    assert (model.pos_embed == 1).all()
    assert (model.other < 1).all()


def test_the_low_classifier_has_its_own_loss_if_low_weight_is_set():
    stage = replace(JOINT, low_weight=0.5, transform_weight=0.0)
    model, images, labels = network(), *image_set().batch(range(4), 0)
    losses = Objective(model, stage)(images, labels)
    low, _ = model.features(images)
    expected = torch.nn.functional.cross_entropy(model.low_classifier(low), labels)
    torch.testing.assert_close(losses["low cross entropy"], expected)
    torch.testing.assert_close(losses["loss"], losses["cross entropy"] + 0.5 * expected)
    losses["low cross entropy"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.fusion_classifier.parameters())
    assert all(p.grad.any() for p in model.low_classifier.parameters())


# ------------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        (PLAN.stages[0], {"encoder", "decoder"}),
        (PLAN.stages[1], {"low_body", "high_body", "low_classifier", "fusion_classifier"}),
        (
            JOINT,
            {"encoder", "decoder", "low_body", "high_body", "low_classifier", "fusion_classifier"},
        ),
        (
            replace(JOINT, transform_weight=0.0),
            {"encoder", "low_body", "high_body", "low_classifier", "fusion_classifier"},
        ),
    ],
    ids=["transform", "classifier", "joint", "joint without the transform loss"],
)
def test_each_stage_trains_its_own_parts(stage, changed):
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    run(only(stage), model)
    differs = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {name.partition(".")[0] for name in differs} == changed
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_frozen_weights_and_a_decoder_without_a_loss_do_not_change(weight):
    model, stage = network(), replace(JOINT, transform_weight=weight)
    frozen = model.low_body[0].weight.requires_grad_(False)
    before, names = frozen.clone(), {name for name, _ in model.named_parameters()} - {"low_body.0.weight"}
    with trained(model, stage) as parameters:
        assert parameters.keys() == {name for name in names if weight or not name.startswith("decoder.")}
    history = run(only(stage), model)[1]
    assert ("transform" in history[0].losses) == (weight > 0)
    assert torch.equal(frozen, before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names


def test_training_lowers_the_losses_and_raises_the_accuracy():
    first, last = run(replace(PLAN, stages=(PLAN.stages[0], replace(JOINT, epochs=30))))[1][2:][::29]
    assert last.losses["cross entropy"] < 0.5 * first.losses["cross entropy"]
    assert last.losses["reconstruction"] < first.losses["reconstruction"]
    assert last.accuracy.top1 > 0.9
    assert last.accuracy.top5 == 1.0  # of three classes
    assert last.accuracy.images == 32


def test_any_classifier_can_be_trained_on_labels_alone():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).double()
    images = image_set()
    images.batch = lambda indices, epoch: (
        images.images[list(indices)].double() / 99,
        images.targets[list(indices)],
    )
    history = train(model, only(replace(PLAN.stages[1], epochs=5)), images, images)
    assert history[-1].accuracy.top1 == 1.0
    assert model.training


def test_the_learning_rate_changes_with_every_step(monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "learning_rate", lambda stage, epoch: asked.append(epoch) or 0.01)
    run(only(JOINT))
    assert list(dict.fromkeys(asked)) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_the_losses_of_an_epoch_are_the_means_of_its_steps():
    steps = Steps()
    history = run(only(JOINT), observer=steps)[1]
    for number, epoch in enumerate(history):
        four = steps.losses[4 * number : 4 * number + 4]
        assert epoch.losses == pytest.approx({name: sum(s[name] for s in four) / 4 for name in NAMES})


def test_accumulation_gives_the_gradient_of_the_full_batch():
    plan = only(JOINT, norm_statistics="fixed")
    (full, history), (parts, other) = run(plan), run(replace(plan, accumulate=4))
    for epoch, same in zip(history, other, strict=True):
        assert same.losses == pytest.approx(epoch.losses, rel=1e-4)
    for one, other in zip(full.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def some_of(data, count):
    """``data`` with only the first ``count`` images of a batch, as if the others could not be read."""
    whole = data.batch
    data.batch = lambda indices, epoch: whole(list(indices)[:count], epoch)
    return data


@pytest.mark.parametrize("count", [5, 6, 7])
def test_accumulation_over_unequal_parts_gives_the_gradient_of_the_full_batch(count):
    """Five images of eight make parts of 3 and 2: each image counts the same, to 1e-6 in float64."""
    plan, trained = only(JOINT, norm_statistics="fixed"), []
    for accumulate in (1, 4):
        model = network()
        model.encoder, model.decoder = StockEncoder(), StockDecoder()
        model.load_state_dict(network().state_dict())
        trained.append(model.double())
        data = some_of(image_set(), count)
        train(model, replace(plan, accumulate=accumulate), data, image_set(augment=False))
    for one, other in zip(*(model.parameters() for model in trained), strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()


class Floats(nn.Module):
    def forward(self, images):
        return images.float()


@pytest.mark.parametrize(("count", "accumulate"), [(7, 4), (5, 4), (3, 4), (7, 8)])
def test_parts_hold_two_images_for_batchnorm_if_images_were_left_out(count, accumulate):
    """BatchNorm refuses a single number per channel."""
    seen = []
    model = nn.Sequential(
        Floats(), nn.Flatten(), nn.Linear(192, 4), *[nn.BatchNorm1d(4)] * (accumulate < 8), nn.Linear(4, 3)
    )
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if module.training else None
    )
    data, stage = some_of(image_set(), count), Stage("classifier", 1, 0.1)
    train(model, Plan("flat", (stage,), batch=8, accumulate=accumulate), data, image_set(augment=False))
    assert sum(seen) == 4 * count
    assert min(seen) >= min(2, 8 // accumulate)


@pytest.mark.parametrize(("batch", "norm", "taken"), [(1, False, 30), (2, True, 14), (2, False, 16)])
def test_a_step_with_too_few_readable_images_is_not_taken(batch, norm, taken):
    """Two of 32 images cannot be read, and they are in different steps. BatchNorm refuses a single image.

    The mean loss is that of the steps that were taken.
    """
    layers = nn.Linear(192, 4), *[nn.BatchNorm1d(4)] * norm, nn.Linear(4, 3)
    model, data, steps = nn.Sequential(Floats(), nn.Flatten(), *layers), image_set(augment=False), Steps()
    whole = data.batch
    data.batch = lambda indices, epoch: whole([i for i in indices if i not in (5, 20)], epoch)
    stage = Stage("classifier", 1, 1e-3, ema=0.5)
    (epoch,) = train(model, Plan("flat", (stage,), batch=batch), data, image_set(), observer=steps)
    assert len(steps.losses) == taken
    assert epoch.losses["loss"] == pytest.approx(sum(step["loss"] for step in steps.losses) / taken)


def test_an_epoch_without_images_ends_a_training_but_not_an_evaluation():
    data = image_set(augment=False)
    whole = data.batch
    data.batch = lambda indices, epoch: whole([i for i in indices if i >= 8], epoch)
    assert evaluate(network(), data, batch=8).images == 24
    flat, stage = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), PLAN.stages[1]
    with pytest.raises(TrainingError, match=r"^epoch 1 of stage 1 \(classifier\): too few images"):
        train(flat, only(stage), some_of(image_set(), 0), data)
    with pytest.raises(DatasetError, match="none of the 32 images tried can be read"):
        train(network(), only(JOINT, start="linear"), some_of(image_set(), 0), data)


def test_other_images_are_measured_if_the_first_ones_cannot_be_read(monkeypatch):
    """Otherwise the training would end, though it could continue."""
    monkeypatch.setattr(norms, "_SAMPLE", 4)
    data = image_set(augment=False)
    images, _ = data.batch(range(4, 8), 0)
    whole = data.batch
    data.batch = lambda indices, epoch: whole([i for i in indices if 4 <= i < 8], epoch)
    seen = []
    monkeypatch.setattr(trainer, "measure_norms", lambda model, images, low: seen.append(images))
    train(network(), only(JOINT, norm_statistics="kept"), data, data)
    assert torch.equal(seen[0], images)


def test_a_large_seed_is_accepted():
    history = run(only(replace(JOINT, epochs=1), seed=2**31))[1]
    assert math.isfinite(history[0].losses["loss"])


class Watched(torch.nn.Sequential):
    """Records, in training, the first pixel of each image and a random number that it draws."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        self.seen, self.drawn = [], []

    def forward(self, images):
        if self.training:
            self.seen += images[:, 0, 0, 0].tolist()
            self.drawn.append(torch.rand(()).item())
        return super().forward(images.float() / 255)


def test_every_epoch_has_its_own_order_and_random_numbers():
    """They depend on seed, stage and epoch alone, so that a training can resume from any epoch.

    Each epoch leaves out three of the 19 images, because they do not fill a batch.
    """
    numbers = torch.arange(19, dtype=torch.uint8)
    data = InMemory(numbers.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone(), numbers.long() % 2, "ab", False, 0)
    stage = Stage("classifier", 2, 1e-3)

    def watched(seed):
        model = Watched()
        torch.rand(3)
        train(model, Plan("watched", (stage, stage), batch=8, seed=seed), data, data)
        return [tuple(model.seen[at : at + 16]) for at in range(0, 64, 16)], model.drawn

    (orders, drawn), (other_orders, other_drawn) = watched(0), watched(1)
    assert all(len(set(order)) == 16 for order in orders)
    assert len({*orders, *other_orders, tuple(range(16))}) == 4 + 4 + 1
    assert len({*drawn, *other_drawn}) == 8 + 8
    assert watched(0) == (orders, drawn)


@pytest.mark.parametrize("start", [{"start": "linear"}, {"norm_statistics": "fixed"}], ids=str)
@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_all_classes_are_measured(monkeypatch, start, in_memory):
    """The images of a class are neighbours in a folder, and often in memory."""
    samples = [(f"{number}.png", number // 16) for number in range(32)]
    data = image_set() if in_memory else ImageFolder(samples, ("dark", "light"), Input(8, 8), False, 0)
    taken, colours = [], image_set(augment=False)

    def batch(indices, epoch):
        taken.append(list(indices))
        return colours.batch(indices, epoch)

    monkeypatch.setattr(norms, "_SAMPLE", 8)
    if in_memory:
        monkeypatch.setattr(data, "batch", batch)
    else:
        monkeypatch.setattr(data, "read", lambda indices, epoch: (*batch(indices, epoch), []))
    train(network(), only(replace(JOINT, epochs=1), **start), data, image_set(augment=False))
    assert taken[0] == list(range(0, len(data), len(data) // 8))


@pytest.mark.parametrize(("side", "count"), [(8, 8), (224, 8), (448, 2), (2048, 1)])
def test_fewer_images_are_measured_if_they_are_large(monkeypatch, side, count):
    monkeypatch.setattr(norms, "_SAMPLE", 8)
    folder = ImageFolder([("a.png", 0)] * 32, "a", Input(side, side), augment=False, seed=0)
    assert norms._most(folder) == count


@pytest.mark.parametrize("low", [True, False])
def test_statistics_are_measured_a_few_images_at_a_time(monkeypatch, low):
    monkeypatch.setattr(norms, "_AT_ONCE", 5)
    model, sample, counts = network(), image_set(augment=False).batch(range(32), 0)[0], []
    before, decompose = state(model), model.decompose
    wanted = {
        f"{name}_norm.running_{of}": getattr(part, of)((0, 2, 3))
        for name, part in zip(
            ("low", "high") if low else ("high",), decompose(sample)[not low :], strict=True
        )
        for of in ("mean", "var")
    }
    monkeypatch.setattr(model, "decompose", lambda x: counts.append(len(x)) or decompose(x))
    norms.measure_norms(model, sample, low=low)
    assert counts == [5] * 6 + [2]
    torch.testing.assert_close(dict(model.state_dict()), before | wanted)


def test_statistics_of_all_details_of_the_haar_transform_are_measured():
    """It has nine, not three."""
    model, images = wavelet_cnn(network()), image_set(augment=False).images
    norms.measure_norms(model, images, low=True)
    for norm, part in zip((model.low_norm, model.high_norm), model.decompose(images), strict=True):
        torch.testing.assert_close(norm.running_mean, part.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, part.var((0, 2, 3)))


@pytest.mark.parametrize("statistics", ["fixed", "kept"])
def test_statistics_are_measured_before_a_stage_and_do_not_change_in_it(statistics):
    """They are of the encoder as the first stage left it. With "kept", those of ``low`` never change."""
    model = network()
    before = state(model)
    stages = PLAN.stages[0], replace(PLAN.stages[1], learning_rate=0.0)
    run(replace(PLAN, stages=stages, norm_statistics=statistics), model)
    parts = model.decompose(image_set().batch(range(32), 0)[0])
    for name, part in zip(("low_norm", "high_norm"), parts, strict=True):
        norm = model.get_submodule(name)
        wanted = part.mean((0, 2, 3)), part.var((0, 2, 3))
        if (statistics, name) == ("kept", "low_norm"):
            wanted = before["low_norm.running_mean"], before["low_norm.running_var"]
        torch.testing.assert_close((norm.running_mean, norm.running_var), wanted)


def test_a_linear_start_has_the_most_energy_in_low_possible_for_a_linear_transform():
    """The energies are eigenvalues of the second moments of 2 x 2 blocks, in the model's units."""
    model = network()
    model.image_scale.copy_(torch.tensor([1.0, 2.0, 3.0]) / 128)
    model.image_shift.copy_(torch.tensor([-1.0, 0.5, -2.0]))
    run(only(Stage("transform", 1, 0.0), start="linear"), model)
    images = image_set().batch(range(32), 0)[0]
    units = images * model.image_scale.view(3, 1, 1) + model.image_shift.view(3, 1, 1)
    blocks = torch.nn.functional.unfold(units, 2, stride=2).double().transpose(1, 2).flatten(0, 1)
    energies = torch.linalg.eigvalsh(blocks.T @ blocks / len(blocks)).flip(0)
    for part, wanted in zip(model.decompose(images), (energies[:3], energies[3:6]), strict=True):
        assert 4 * part.square().mean((0, 2, 3)).sum().item() == pytest.approx(wanted.sum().item(), rel=1e-3)


def test_low_starts_as_a_small_image_if_the_plan_says_so():
    smooth = torch.arange(8).view(8, 1) + torch.arange(8) + torch.randint(20, (32, 3, 1, 1))
    data = InMemory((4 * smooth).to(torch.uint8), torch.zeros(32, dtype=torch.long), "a", False, seed=0)
    model = run(only(Stage("transform", 1, 0.0), start="small_image"), data=data)[0]
    images = data.images * model.image_scale.view(3, 1, 1) + model.image_shift.view(3, 1, 1)
    small = torch.nn.functional.avg_pool2d(images, 2)
    low, _ = model.decompose(data.images)
    assert (low - small).norm() <= 1e-5 * small.norm()


def test_only_the_first_stage_has_a_linear_start(monkeypatch):
    """Later stages measure statistics too, but keep what was learned."""
    fitted, start_linear = [], trainer.start_linear
    monkeypatch.setattr(trainer, "start_linear", lambda *a, **k: fitted.append(1) or start_linear(*a, **k))
    stage = replace(JOINT, epochs=1)
    run(Plan("tiny", (stage, stage), batch=32, start="linear", norm_statistics="fixed"))
    assert fitted == [1]


def test_a_record_of_any_length_is_kept(tmp_path):
    """The metadata may have 4 MiB, which would not hold that of 10,000 epochs."""
    path, plan = tmp_path / "state", only(replace(JOINT, epochs=10**5))
    with suppress(KeyboardInterrupt):
        run(plan, state=path, observer=StopAt(2))
    (entry,) = weights_file.read_record(path)
    record = b"".join(Epoch(**{**entry, "epoch": epoch}).as_line() for epoch in range(20_000))
    recipe, optimizer = weights_file.read_recipe(path), load_file(path)
    tensors = {**optimizer, "record.": torch.frombuffer(bytearray(record), dtype=torch.uint8)}
    path.write_bytes(to_bytes(tensors, {"recipe": json.dumps({**recipe, "epoch": 20_000})}))
    with suppress(KeyboardInterrupt):
        run(plan, state=path, resume=True, observer=StopAt(2))
    assert [entry["epoch"] for entry in weights_file.read_record(path)] == [*range(20_001)]


@pytest.mark.parametrize("record", [b"", b"{}\n", b"[]\n", b"1\n\xff\n"])
def test_a_checkpoint_whose_record_is_missing_or_damaged_is_refused(tmp_path, record):
    path = tmp_path / "state"
    run(PLAN, state=path)
    weights_file.save(path, network(), weights_file.read_recipe(path), force=True, record=record)
    with pytest.raises(CheckpointError, match=r"^\S+state: (this is not the checkpoint|its record cannot)"):
        run(PLAN, state=path, resume=True)


def test_the_history_in_a_checkpoint_of_an_older_version_is_kept(tmp_path):
    path = tmp_path / "state"
    with suppress(KeyboardInterrupt):
        run(PLAN, state=path, observer=StopAt(4))
    recipe, tensors = weights_file.read_recipe(path), load_file(path)
    recipe["history"] = list(weights_file.read_record(path))
    del tensors["record."]
    path.write_bytes(to_bytes(tensors, {"recipe": json.dumps(recipe)}))
    assert len(run(PLAN, state=path, resume=True)[1]) == 6
    assert [*weights_file.read_record(path)][:3] == recipe["history"]


def test_workers_load_training_and_test_images(monkeypatch):
    asked, batches = [], trainer.batches

    def spy(*arguments, **options):
        *others, workers = arguments
        asked.append((arguments[4], workers))
        return batches(*others, 0, **options)

    for module in (trainer, accuracy):
        monkeypatch.setattr(module, "batches", spy)
    run(only(replace(JOINT, epochs=1)), workers=3)
    assert asked == [(True, 3), (False, 3)]


def test_mixed_precision_on_the_cpu():
    history = run(only(JOINT, precision="bfloat16"))[1]
    exact = run(only(JOINT))[1]
    assert history[-1].losses["loss"] == pytest.approx(exact[-1].losses["loss"], rel=0.05)
    assert history[-1].losses != exact[-1].losses


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_matrices_are_multiplied_in_the_precision_of_the_plan(precision):
    model, seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), set()
    model[1].register_forward_hook(lambda matrix, given, scores: seen.add(scores.dtype))
    images = image_set()
    images.batch = lambda indices, epoch: (images.images[list(indices)] / 99, images.targets[list(indices)])
    train(model, only(replace(PLAN.stages[1], epochs=1), precision=precision), images, images)
    assert seen == {torch.float32, getattr(torch, precision)}  # float32 in the evaluation


def test_the_scale_of_losses_in_float16_is_resumed(tmp_path):
    plan = only(JOINT, precision="float16")
    before, resumed = (
        trainer._Run(
            network(), plan, image_set(), None, tmp_path / "state", {}, None, Observer(), 0, "cpu", None
        )
        for _ in range(2)
    )
    before.scaler.load_state_dict({**before.scaler.state_dict(), "scale": 8.0})
    before._save(0, 0, None, None)
    resumed._reached()
    assert resumed.scaler.get_scale() == 8


def test_a_training_resumes_whose_steps_were_all_skipped_in_float16(tmp_path, monkeypatch):
    """The first scale may be too large. After an epoch of few steps the optimizer then has no state yet."""

    class StopAtSecond(Observer):
        def start(self, plan, stage, epoch, steps):
            if epoch == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    path, plan = tmp_path / "state", only(replace(JOINT, optimizer="adam"), batch=32, precision="float16")
    with pytest.raises(KeyboardInterrupt):
        run(plan, state=path, observer=StopAtSecond())
    assert not any(name.startswith("optimizer.") for name in load_file(path))
    _, history = run(plan, network(seed=7), state=path, resume=True)
    assert len(history) == 2


def test_small_losses_train_in_float16():
    """Without scaling, gradients below 6e-8 are zero: the transform loss would train nothing."""
    stage = Stage("joint", 1, 1.0, momentum=0.0, transform_weight=1e-5)

    def change(precision):
        model = run(only(stage, batch=32, precision=precision))[0]
        pairs = zip(model.decoder.parameters(), network().decoder.parameters(), strict=True)
        return torch.cat([(after - before).flatten() for after, before in pairs])

    exact, found = map(change, ("float32", "float16"))
    assert (found - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.slow
def test_training_with_our_ops_gives_the_losses_of_stock_ones():
    """200 steps with all losses: float32 through the fused ops against float64 through PyTorch's ops.

    At first they differ by rounding alone, at most 1e-5, the bound of one Winograd pass. Training then
    amplifies any difference, most where a ReLU switches. A third training shows by how much: float64 through
    PyTorch's ops, with the weights of encoder and decoder changed by a millionth. Ours must differ less.
    """

    def losses(encoder, decoder, dtype, change=0.0):
        model, steps = network(), Steps()
        start = state(model)
        model.encoder, model.decoder = encoder(), decoder()
        model.load_state_dict(start)
        with torch.no_grad():
            for parameter in (*model.encoder.parameters(), *model.decoder.parameters()):
                parameter.mul_(1 + change * torch.randn_like(parameter))
        stage = replace(JOINT, epochs=50, learning_rate=0.005, transform_weight=0.5)
        run(only(stage), model.to(dtype), observer=steps)
        return {name: torch.tensor([s[name] for s in steps.losses], dtype=torch.float64) for name in NAMES}

    stock = losses(StockEncoder, StockDecoder, torch.float64)
    torch.manual_seed(3)
    changed = losses(StockEncoder, StockDecoder, torch.float64, change=1e-6)
    fused = losses(Encoder, Decoder, torch.float32)
    for name, expected in stock.items():
        ours, theirs = ((other[name] - expected).abs() / expected for other in (fused, changed))
        assert len(ours) == 200
        assert ours[:20].max() < 1e-5, name
        assert ours.max() < theirs.max(), name


NAMES = ("loss", "cross entropy", "transform", "reconstruction", "energy")


# --------------------------------------------------------------- dense-sparse-dense, distillation, averages

DSD = (JOINT, replace(JOINT, sparsity=0.5), JOINT)


def zeros(model):
    """The share of exact zeros in each convolution and matrix."""
    return {n: (p == 0).float().mean().item() for n, p in model.named_parameters() if p.dim() > 1}


def test_an_integer_sparsity_is_a_share_and_not_a_count():
    model = network()
    Masks(model, 1)
    assert set(zeros(model).values()) == {1.0}


def test_masks_zero_the_smallest_weights_but_no_frozen_weights_or_biases():
    model = network()
    frozen = model.low_body[0].weight.requires_grad_(False)
    before = state(model)
    Masks(model, 0.25)
    assert torch.equal(frozen, before["low_body.0.weight"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            sizes = before[name].abs()
            kept = sizes > sizes.flatten().sort()[0][round(sizes.numel() / 4) - 1]
            assert torch.equal(parameter, before[name] * kept)
        else:
            assert torch.equal(parameter, before[name])


def test_masks_are_found_again_after_training_even_if_all_weights_were_zero():
    """As some are after a linear start. Weights that were not masked may still be zero."""
    model, masked = nn.Linear(50, 50, bias=False), []
    weight = model.weight.data
    weight.zero_()
    for _ in range(2):
        masks = Masks(model, 0.3)
        weight.fill_(1.0)
        masks.apply()
        masked.append(weight == 0)
        weight[:, ::7] = 0
    assert masked[0].sum() == 750
    assert torch.equal(*masked)


def test_dense_sparse_dense():
    (sparse, _), (dense, _) = run(replace(PLAN, stages=DSD[:2])), run(replace(PLAN, stages=DSD))
    assert zeros(sparse) == pytest.approx(dict.fromkeys(zeros(sparse), 0.5), abs=0.05)
    left = zeros(dense).values()  # some zeros, in units that are never active
    assert sum(left) / len(left) < 0.1


def test_distillation_brings_a_student_nearer_to_its_teacher():
    teacher = run(replace(PLAN, stages=(replace(JOINT, epochs=20),)))[0]
    images = image_set(augment=False).images

    def distance(weight):
        stage = replace(JOINT, epochs=10, learning_rate=0.01, mimic_weight=weight, mimic_temperature=2.0)
        student, history = run(only(stage), network(seed=5), teacher=teacher)
        assert ("mimic" in history[0].losses) == (weight > 0)
        with torch.no_grad():
            return mimic_loss(student.eval()(images), teacher.eval()(images)).item()

    before = state(teacher)
    assert distance(2.0) < 0.7 * distance(0.0)
    assert_same(state(teacher), before)


@pytest.mark.parametrize("pixels", [False, True], ids=["images", "pixels"])
def test_a_mirrored_teacher_also_scores_the_mirror_images(pixels):
    """The target is the mean of both scores; scores of pixels are mirrored back."""
    torch.manual_seed(5)
    student, teacher = (
        torch.nn.Conv2d(3, 3, 3, padding=1)
        if pixels
        else torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        for _ in range(2)
    )
    images, shape = torch.randn(4, 3, 8, 8), (4, 8, 8) if pixels else (4,)
    labels = torch.randint(3, shape)
    stage = Stage("classifier", 1, 0.1, mimic_weight=1.0, mimic_temperature=2.0)
    mirrored = teacher(images.flip(3))
    both = (teacher(images) + (mirrored.flip(3) if pixels else mirrored)) / 2
    for is_mirrored, wanted in ((False, teacher(images)), (True, both)):
        losses = Objective(student, replace(stage, mimic_mirrored=is_mirrored), teacher)(images, labels)
        expected = mimic_loss(student(images), wanted, 2.0)
        torch.testing.assert_close(losses["mimic"], expected)


def test_a_moving_average_is_evaluated_and_returned():
    """0.75 of it and 0.25 of the weights and statistics after each step; it starts as those of the first."""
    model, averages, reported = network(), [], []

    class Watch(Observer):
        def step(self, number, losses):
            now = state(model)
            last = averages[-1] if averages else now
            averages.append({n: 0.75 * last[n] + 0.25 * t for n, t in now.items() if t.is_floating_point()})

        def end(self, epoch, evaluated):
            reported.append((epoch.accuracy.loss, evaluate(evaluated, image_set(augment=False)).loss))
            torch.testing.assert_close({n: evaluated.state_dict()[n] for n in averages[-1]}, averages[-1])

    run(only(replace(JOINT, ema=0.75)), model, observer=Watch())
    assert len(averages) == 2 * 4
    torch.testing.assert_close({name: state(model)[name] for name in averages[-1]}, averages[-1])
    assert [one for one, _ in reported] == pytest.approx([other for _, other in reported])


def test_the_moving_average_does_not_change_integers():
    """Swin has indices in a buffer: an average with a decay of 0.9 would lower every fourth by one."""
    model, indices = network(), torch.arange(1000)
    model.register_buffer("indices", indices.clone())
    run(only(replace(JOINT, epochs=1, ema=0.9)), model)
    assert torch.equal(model.get_buffer("indices"), indices)


class NoBatches(list):
    failed = ()


def test_the_seed_of_dropout_differs_between_processes_epochs_and_stages(monkeypatch):
    run_ = trainer._Run(
        network(), PLAN, image_set(), image_set(augment=False), None, {}, None, Observer(), 0, "cpu", None
    )
    monkeypatch.setattr(trainer, "batches", lambda *_, **__: NoBatches())
    seeds = set()
    for run_.rank, stage, epoch in itertools.product(range(2), range(3), range(2)):
        run_._epoch(nn.Identity(), stage, epoch, None, None, None)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 2 * 3 * 2


# ------------------------------------------------------------------------------------------------ resuming

VARIED = replace(
    PLAN,
    stages=(
        PLAN.stages[0],
        replace(PLAN.stages[1], schedule="step", step_epochs=1, label_smoothing=0.1, ema=0.9),
        replace(JOINT, optimizer="adamw", learning_rate=1e-3, sparsity=0.3, epochs=3),
    ),
    accumulate=2,
    start="linear",
)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", range(1, 8))
def test_resume_after_interruption_gives_the_same_weights(tmp_path, epoch):
    path = tmp_path / "state"
    expected, uninterrupted = run(VARIED)
    with pytest.raises(KeyboardInterrupt):
        run(VARIED, state=path, observer=StopAt(epoch))
    model, history = run(VARIED, network(seed=7), state=path, resume=True)  # its own weights are not used
    assert_same(state(model), state(expected))
    assert [e.losses for e in history] == [e.losses for e in uninterrupted]
    again, same = run(VARIED, network(seed=8), state=path, resume=True)  # nothing is left to do
    assert_same(state(again), state(expected))
    assert same == history


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_without_momentum_resumes(tmp_path, optimizer):
    path = tmp_path / "state"
    plan = only(replace(JOINT, optimizer=optimizer, momentum=0.0))
    expected, uninterrupted = run(plan)
    with pytest.raises(KeyboardInterrupt):
        run(plan, state=path, observer=StopAt(2))
    model, history = run(plan, network(seed=7), state=path, resume=True)
    assert_same(state(model), state(expected))
    assert [e.losses for e in history] == [e.losses for e in uninterrupted]


def test_an_optimizer_with_a_state_does_not_resume_without_it(tmp_path):
    path, model = tmp_path / "state", torch.nn.Linear(2, 2)
    weights_file.save(path, model, {}, torch.optim.SGD(model.parameters(), 0.1))
    weights = list(model.parameters())
    for needs in (torch.optim.SGD(weights, 0.1, momentum=0.9), torch.optim.Adam(weights)):
        with pytest.raises(CheckpointError, match="there is no optimizer state"):
            weights_file.load(path, model, needs)


def save_with_adam(path):
    """Save a small network and its optimizer after a step of Adam; returns the network."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    weights_file.save(path, model, {}, optimizer)
    return model


@pytest.mark.filterwarnings("ignore:for .*no-op")
def test_the_state_of_an_optimizer_goes_to_the_device_of_the_parameters(tmp_path):
    """Tested with a device that every machine has. Only Adam's count of steps stays on the CPU."""
    path = tmp_path / "state"
    save_with_adam(path)
    elsewhere = torch.nn.Linear(2, 2, device="meta")
    restored = torch.optim.Adam(elsewhere.parameters())
    weights_file.load(path, elsewhere, restored)
    for parameter in elsewhere.parameters():
        devices = {name: tensor.device.type for name, tensor in restored.state[parameter].items()}
        assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_the_state_of_an_optimizer_gets_the_strides_of_the_parameters(tmp_path):
    """Files keep none, and with others a GPU updates the parameters one by one."""
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer, restored = (torch.optim.Adam(model.parameters()) for _ in range(2))
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    weights_file.save(tmp_path / "state", model, {}, optimizer)
    weights_file.load(tmp_path / "state", model, restored)
    for name in ("exp_avg", "exp_avg_sq"):
        before, after = (o.state[model.weight][name] for o in (optimizer, restored))
        assert torch.equal(before, after)
        assert after.stride() == model.weight.stride()


ABSURD = [
    None,
    True,
    -1,
    10**30,
    1.5,
    math.inf,
    math.nan,
    "",
    "x",
    [],
    [1],
    [[]],
    {},
    {"": {}},
    [{}],
    10**400,
]


def places(value, path=()):
    """The paths of all parts of a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


@pytest.mark.slow
def test_absurd_values_in_a_checkpoint_raise_only_checkpoint_errors(tmp_path):
    """If they raise one at all: an epoch's seconds, for example, may be any number."""
    path, good = tmp_path / "state", tmp_path / "good"
    plan = only(replace(JOINT, epochs=2, ema=0.5))
    with suppress(KeyboardInterrupt):
        run(plan, state=good, observer=StopAt(2))
    recipe = weights_file.read_recipe(good)
    tensors = load_file(good)
    run_ = trainer._Run(
        network(), plan, image_set(), image_set(augment=False), path, {}, None, Observer(), 0, "cpu", None
    )
    refused = []
    whole = {"recipe": recipe, "record": [*weights_file.read_record(good)]}
    for place in places(whole):
        for value in ABSURD if place else ():
            made = replaced(whole, place, value)
            lines = made["record"] if isinstance(made["record"], list) else [made["record"]]
            record = bytearray("\n".join(map(json.dumps, lines)).encode() or b"\n")
            tensors["record."] = torch.frombuffer(record, dtype=torch.uint8)
            path.write_bytes(to_bytes(tensors, {"recipe": json.dumps(made["recipe"])}))
            try:
                run_._reached()
            except CheckpointError as error:
                refused.append(str(error))
    assert len(refused) > 300
    assert all(str(path) in message and len(message) < 1000 for message in refused)


def test_absurd_tensors_of_an_optimizer_raise_checkpoint_errors(tmp_path):
    path = tmp_path / "state"
    model = save_with_adam(path)
    tensors = load_file(path)
    name = "optimizer.weight.exp_avg"
    for changed, message in (
        ({name: torch.zeros(3, 3)}, r"its optimizer has for weight a exp_avg of .* shape \(3, 3\)"),
        ({name: torch.zeros(())}, r"a exp_avg of torch.float32 and shape \(\)"),
        ({name: torch.zeros(2, 2, dtype=torch.complex64)}, "a exp_avg of torch.complex64"),
        ({name: torch.zeros(2, 2, dtype=torch.int64)}, "a exp_avg of torch.int64"),
        ({"optimizer.weight.step": torch.zeros(2, 2)}, r"a step of torch.float32 and shape \(2, 2\)"),
        ({name: None}, "its optimizer is not a Adam: for weight it kept exp_avg_sq, step"),
        ({"optimizer.other.exp_avg": torch.zeros(1)}, "trained 'other', which the model has not"),
        ({"weight": torch.zeros(2, 2, dtype=torch.complex64)}, "weight is of torch.complex64"),
    ):
        kept = {key: tensor for key, tensor in (tensors | changed).items() if tensor is not None}
        path.write_bytes(to_bytes(kept, {"recipe": "{}"}))
        before = state(model)
        with pytest.raises(CheckpointError, match=message):
            weights_file.load(path, model, torch.optim.Adam(model.parameters()))
        assert_same(state(model), before)


def test_a_moving_average_is_saved_and_loaded(tmp_path):
    path, (model, average, one, other) = tmp_path / "state", (torch.nn.Linear(2, 2) for _ in range(4))
    weights_file.save(path, model, {}, average=average)
    weights_file.load(path, one, average=other)
    assert_same(state(one), state(model))
    assert_same(state(other), state(average))
    weights_file.save(path, model, {}, force=True)
    with pytest.raises(CheckpointError, match="training cannot resume from it: there is no average state"):
        weights_file.load(path, one, average=other)


def test_weights_and_averages_of_other_shapes_are_refused(tmp_path):
    path, model, other = tmp_path / "state", torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)
    weights_file.save(path, model, {}, average=torch.nn.Linear(2, 2))
    message = r"not those of the network: weight is \(2, 2\), not \(3, 2\), bias is \(2,\), not \(3,\)$"
    before = state(model)
    for given in ({"model": other}, {"model": model, "average": other}):
        with pytest.raises(CheckpointError, match=message):
            weights_file.load(path, **given)
    assert_same(state(model), before)


def test_submodules_may_have_the_names_of_the_parts_of_a_checkpoint(tmp_path):
    one, other = (nn.ModuleDict({"average": nn.Linear(1, 1), "optimizer": nn.Linear(1, 1)}) for _ in range(2))
    weights_file.save(tmp_path / "state", one, {}, average=one)
    weights_file.load(tmp_path / "state", other, average=copy.deepcopy(other))
    assert_same(state(one), state(other))


def test_resume_needs_a_checkpoint_of_the_same_training(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(CheckpointError, match="there is no such file"):
        run(state=path, resume=True)
    run(only(JOINT), state=path)
    kept = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"different plan: batch \(8, not 16\), epochs \(2, not 3\)$"):
        run(only(replace(JOINT, epochs=3), batch=16), state=path, resume=True)
    other = network()
    other.low_classifier = nn.Identity()
    with pytest.raises(CheckpointError, match=r"its tensors are not those of the network: low_classifier"):
        run(only(JOINT), other, state=path, resume=True)
    assert path.read_bytes() == kept


def test_resume_needs_the_same_data(tmp_path):
    path, test = tmp_path / "state", image_set(augment=False)
    run(only(JOINT), state=path)
    kept, same, changed = path.read_bytes(), image_set(), image_set()
    changed.images[3, 0, 2, 1] ^= 1
    for data, different in (
        (changed, "pixels"),
        (image_set(40), r"number of images \(32, not 40\), pixels, targets"),
    ):
        with pytest.raises(CheckpointError, match=f"made on training data that differs in {different}$"):
            train(network(), only(JOINT), data, test, state=path, resume=True)
    assert path.read_bytes() == kept
    assert len(train(network(), only(JOINT), same, test, state=path, resume=True)) == 2

    recipe = weights_file.read_recipe(path)  # as older versions wrote it, without the data
    recipe["history"] = list(weights_file.read_record(path))
    del recipe["data"]
    weights_file.save(path, network(), recipe, force=True)
    known = {"--weights": "a digest"}
    assert len(train(network(), only(JOINT), changed, test, state=path, resume=True, sources=known)) == 2


def test_a_nan_loss_ends_the_training_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "state"
    plan = only(replace(JOINT, epochs=4))
    poisoned = network()

    class Poison(Observer):
        def start(self, plan, stage, epoch, steps):
            if epoch == 2:
                poisoned.low_body[0].weight.data.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"nan, in step 1 of epoch 3 of stage 1 .*the epoch before$"):
        run(plan, poisoned, state=path, observer=Poison())
    finite = network()
    with suppress(KeyboardInterrupt):
        run(plan, finite, state=path, resume=True, observer=StopAt(1))
    assert all(tensor.isfinite().all() for tensor in state(finite).values())


@pytest.mark.parametrize("stage", PLAN.stages, ids=lambda stage: stage.kind)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_that_is_not_finite_ends_the_training_before_it_changes_a_weight(tmp_path, stage, bad):
    data, model, taken = image_set(), network(), []

    def batch(indices, epoch):
        images = data.images[list(indices)].float()
        images[0, 1, 3, 4] = bad
        return images, data.targets[list(indices)]

    class Count(Observer):
        def step(self, number, losses):
            taken.append(number)

    data.batch = batch
    before = state(model)
    kept, test = tmp_path / "state", image_set(augment=False)
    with pytest.raises(TrainingError, match=r"not finite.* in step 1 of epoch 1 of stage 1 .*too high$"):
        train(model, only(stage), data, test, state=kept, observer=Count())
    assert taken == []
    trained = dict(model.named_parameters())  # not the statistics: the BatchNorms have seen the image
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.items())


def test_a_gradient_that_is_not_finite_ends_the_training_before_it_changes_a_weight():
    """Even if the loss is: a square root, for example, has no derivative at zero."""
    model = network()
    before = state(model)
    model.low_body[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"gradients are not finite, and the loss is [0-9.]+, in step 1 "):
        run(only(JOINT), model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_weights_that_the_last_step_made_nan_are_not_saved(tmp_path):
    """No training loss shows it, and NaN scores have an accuracy all the same."""
    path, broken = tmp_path / "state", network()

    class BreakWeights(Observer):
        def step(self, number, losses):
            if number == self.steps and self.epoch == 1:
                broken.low_body[0].weight.data.fill_(math.nan)

        def start(self, plan, stage, epoch, steps):
            self.epoch, self.steps = epoch, steps

    with pytest.raises(DivergedError, match=r"test images is nan after epoch 2 of stage 1 .*epoch before$"):
        run(only(replace(JOINT, epochs=3)), broken, state=path, observer=BreakWeights())
    assert weights_file.read_recipe(path)["epoch"] == 1


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(VARIED, state=path, observer=StopAt(2))
    kept = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run(VARIED, state=path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert_same(state(run(VARIED, state=path, resume=True)[0]), state(run(VARIED)[0]))


@pytest.mark.parametrize(
    ("plan", "model", "message"),
    [
        (only(JOINT, batch=64), network, "at most the 32 images of the training set, got 64"),
        (
            only(JOINT, batch=8, accumulate=3),
            network,
            "a multiple of 3, the number of processes times accumulate, got 8",
        ),
        (only(JOINT), tiny, "needs a decoder, but the model has none"),
        (only(JOINT), lambda: torch.nn.Flatten(), "needs a WAE network, got Flatten"),
        (only(replace(JOINT, mimic_weight=1.0)), network, "mimic_weight needs a teacher"),
        (
            only(replace(JOINT, kind="classifier", low_weight=1.0)),
            lambda: torch.nn.Flatten(),
            "low_weight needs a WAE network, got Flatten",
        ),
        (
            only(replace(JOINT, kind="classifier"), start="linear"),
            tiny,
            "a linear start needs a model with a learned encoder and a decoder",
        ),
    ],
    ids=["batch", "parts", "decoder", "network", "teacher", "low classifier", "start"],
)
def test_a_plan_that_does_not_fit_is_refused(plan, model, message):
    with pytest.raises(ValueError, match=message):
        run(plan, model())


def test_what_a_later_stage_lacks_is_an_error_before_the_first(tmp_path):
    """The stages before may take hours."""
    path = tmp_path / "state"
    for entries, message in (({"mimic_weight": 1.0}, "needs a teacher"), ({"class_balance": 2.0}, "pixel")):
        with pytest.raises(ValueError, match=message):
            run(replace(PLAN, stages=(PLAN.stages[0], replace(JOINT, **entries))), state=path)
        assert not path.exists()


def test_a_teacher_is_in_evaluation_mode_while_training_and_in_its_own_mode_afterwards():
    """So is each of its modules: a frozen BatchNorm, for example, stays frozen."""
    modes = []
    teacher = tiny().train()
    teacher.low_norm.eval()
    teacher.low_norm.register_forward_hook(lambda *_: modes.append({m.training for m in teacher.modules()}))
    stage = Stage("classifier", 1, 0.01, mimic_weight=1.0)
    run(only(stage, batch=32), teacher=teacher)
    assert modes == [{False}]
    assert teacher.training
    assert not teacher.low_norm.training


# ------------------------------------------------------------------------------------------ many processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder of checkpoints that two processes wrote."""
    folder = tmp_path_factory.mktemp("shared")
    run_in_processes(2, folder)
    return folder


@pytest.mark.slow  # three processes that import torch
@pytest.mark.filterwarnings("ignore:.* images could not be read")
@pytest.mark.parametrize(
    ("name", "changed"),
    [("fixed", lambda data: data), ("gaps", with_gaps), ("counted", partly_counted)],
    ids=["all", "some images left out", "some labels not counted"],
)
def test_two_processes_give_the_losses_of_one(name, changed, shared):
    """Every label counts the same, whichever process has it. Sums are in another order.

    Nothing in this plan depends on the statistics of a batch.
    """
    two = [epoch["losses"] for epoch in weights_file.read_record(shared / name)]
    one = [epoch.losses for epoch in run(FIXED, data=changed(image_set()))[1]]
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
def test_a_step_in_which_a_process_has_no_image_is_taken_by_none(shared):
    """Each process has one image of a step, and every fourth image cannot be read."""
    (epoch,) = weights_file.read_record(shared / "single")
    assert 0 < epoch["losses"]["loss"] < 2


@pytest.mark.slow
def test_processes_with_unequal_shares_take_a_step_in_equally_many_parts(shared):
    """Their BatchNorms wait for each other on GPUs, which would be forever."""
    one, two = ((shared / f"passes of {rank}").read_text() for rank in range(2))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_the_accuracy_counted_by_two_processes_is_that_of_the_saved_weights(shared, name):
    """Even if each process has its own BatchNorm statistics."""
    model = network()
    weights_file.load(shared / name, model)
    loss = evaluate(model, image_set(augment=False)).loss
    assert [*weights_file.read_record(shared / name)][-1]["accuracy"][2] == pytest.approx(loss, rel=1e-6)
