"""``wae reproduce imagenette``, on a few single-coloured images in Imagenette's folders."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from reproductions import tiny_plan
from small_networks import HeadFirst
from torch import nn

from wae.cli import build_parser, main
from wae.commands import reproduce as command
from wae.data.dataset import DatasetError
from wae.difference import relative_difference
from wae.experiments import pruning, reproduce
from wae.experiments.reproduction import imagenette
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.fine_tuned import FINE_TUNED, fine_tuned
from wae.experiments.reproduction.imagenette import EQUAL_COST, Imagenette
from wae.experiments.reproduction.results import Result, read_result, weights_path
from wae.experiments.reproduction.table import recovered, rows
from wae.models.baselines import AtSize, FullResolution, HalfResolution
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.storage.checkpoint import Input, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training import plan

TINY = tiny_plan("wae_small_photo_vgg", 20, epochs=1, learning_rate=0.01)
CLAIM = Imagenette(TINY, "small_vgg", 32, False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten classes of one colour each, with 5 training and 2 test images of 40 x 48."""
    folder = tmp_path_factory.mktemp("photos")
    for part, number in (("train", 5), ("val", 2)):
        for label in range(10):
            (folder / part / f"n{label}").mkdir(parents=True)
            for i in range(number):
                image = Image.new("RGB", (48, 40), (25 * label, 250 - 25 * label, 10 * i))
                image.save(folder / part / f"n{label}" / f"{i}.jpeg")
    return folder


def test_photos_are_decoded_once_and_again_if_they_change(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "data")
    path = CLAIM.prepared(tmp_path / "data", tmp_path)
    training, test = CLAIM.sets(path, 0)
    assert (len(training), len(test), len(training.labels)) == (50, 20, 10)
    assert test.images.shape == (20, 3, 32, 32)
    assert test.targets.tolist() == [label for label in range(10) for _ in range(2)]
    assert (training.augment, training.pad, test.augment) == (True, 2, False)
    stamp = path.stat().st_mtime_ns
    assert CLAIM.prepared(tmp_path / "data", tmp_path).stat().st_mtime_ns == stamp
    (tmp_path / "data" / "train" / "n3" / "4.jpeg").unlink()
    CLAIM.prepared(tmp_path / "data", tmp_path)
    assert len(CLAIM.sets(path, 0)[0]) == 49
    Image.new("RGB", (48, 48), (1, 2, 3)).save(tmp_path / "data" / "val" / "n0" / "0.jpeg")  # the old name
    assert CLAIM.sets(CLAIM.prepared(tmp_path / "data", tmp_path), 0)[1].images[0, 0, 0, 0] == 1
    assert CLAIM.sets(path, 5)[0].seed == 5
    for damaged in (b"", path.read_bytes()[:1000]):  # decoded again; it was a traceback
        path.write_bytes(damaged)
        CLAIM.prepared(tmp_path / "data", tmp_path)
        assert len(CLAIM.sets(path, 0)[0]) == 49


def test_photos_are_known_by_the_names_and_sizes_of_their_files(photos, tmp_path):
    copied = shutil.copytree(photos, tmp_path / "elsewhere")
    known = CLAIM.on(photos).data
    assert CLAIM.on(copied).data == known
    assert replace(CLAIM, kept_aside=True).on(copied).data == known
    (copied / "val" / "n0" / "0.jpeg").write_bytes(b"another photo")
    assert plan.changed(known, CLAIM.on(copied).data) == ["file sizes of val"]
    (copied / "train" / "n3" / "4.jpeg").rename(copied / "train" / "n3" / "5.jpeg")
    assert plan.changed(known, CLAIM.on(copied).data) == ["file names of train", "file sizes of val"]


@pytest.mark.parametrize("content", ["", "3", '{"ratio": 0.5}', '{"ratio": 0.5, "time": "a second"}'])
def test_a_damaged_measurement_is_refused(tmp_path, content):
    """It is not repeated automatically, because a checkpoint may have been pruned by the old ratio."""
    path = tmp_path / "pruned.start.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"pruned.start.json: is damaged; remove it and the checkpoint"):
        imagenette._read_start(path)
    path.write_text('{"ratio": 0.5, "time": 1}')
    assert imagenette._read_start(path) == {"ratio": 0.5, "time": 1.0}


def test_a_photo_is_scaled_by_its_shorter_side_without_a_margin(photos, tmp_path):
    """A white frame of an eighth of the height, which a margin for the crop would cut off, is kept."""
    shutil.copytree(photos, tmp_path / "data")
    image = Image.new("RGB", (56, 40), "white")
    image.paste("black", (0, 5, 56, 35))
    for part, kept in (("train", 0), ("val", 1)):
        image.save(tmp_path / "data" / part / "n0" / "0.jpeg", quality=100)
        pixels = CLAIM.sets(CLAIM.prepared(tmp_path / "data", tmp_path), 0)[kept].images[0]
        assert (pixels[:, :2] > 250).all()
        assert (pixels[:, 6:26] < 5).all()
        assert (pixels[:, 30:] > 250).all()


def test_a_fifth_of_the_training_images_is_held_out_instead_of_the_test_images(photos, tmp_path):
    path = CLAIM.prepared(photos, tmp_path)
    training, kept = replace(CLAIM, kept_aside=True).sets(path, 0)
    assert (len(training), len(kept)) == (40, 10)
    assert (training.augment, kept.augment) == (True, False)
    everything = CLAIM.sets(path, 0)[0].images
    assert torch.equal(kept.images, everything[4::5])
    rest = [number for number in range(50) if number % 5 != 4]
    assert torch.equal(training.images, everything[rest])
    assert replace(CLAIM, kept_aside=True).settings() != CLAIM.settings()


def test_another_number_of_classes_is_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "data", ignore=shutil.ignore_patterns("n7"))
    with pytest.raises(DatasetError, match="has 10 classes, got 9"):
        CLAIM.prepared(tmp_path / "data", tmp_path)


@pytest.mark.parametrize(("network", "size"), [("small_vgg", 64), ("resnet18", 128), ("resnet50", 128)])
def test_a_claim_follows_its_arguments(network, size):
    claim, other = imagenette.claim(network), imagenette.claim(network, 96, kept_aside=True, times=2)
    assert (claim.size, claim.full, claim.half) == (size, f"{size} x {size}", f"{size // 2} x {size // 2}")
    assert claim.input == Input(size, size)
    assert other.settings() == {"network": network, "size": 96, "kept aside": True}
    assert claim.wae.model == other.wae.model == f"wae_{imagenette.NETWORKS[network]}"
    shipped = plan.find("imagenette" if network == "small_vgg" else "imagenette_resnet")
    assert claim.wae == replace(shipped, model=claim.wae.model)
    assert [stage.epochs for stage in other.wae.stages] == [
        stage.epochs * (1 if stage.kind == "transform" else 2) for stage in shipped.stages
    ]


@pytest.mark.parametrize(
    "network",
    ["small_vgg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet50"))],
)
def test_kinds_and_costs_of_the_networks(network):
    claim = imagenette.claim(network)
    size = (claim.size,) * 2
    models = {
        name: on_meta(lambda name=name: claim.build(name)) for name, stem in claim.registered.items() if stem
    }
    costs = {name: count(model, size).multiply_adds for name, model in models.items()}
    assert costs[EQUAL_COST] == pytest.approx(costs["WAE"], rel=0.15)  # a ResNet's cost rises in steps
    assert costs[claim.half] < 0.3 * costs[claim.full]
    assert costs[claim.half] < costs["WAE"] < 0.6 * costs[claim.full]
    kinds = {claim.full: FullResolution, claim.half: HalfResolution, EQUAL_COST: AtSize}
    assert all(type(models[name]) is kind for name, kind in kinds.items())
    assert models["WAE"].decoder is not None


def test_baselines_of_other_sizes_between_half_and_full_can_be_added():
    claim, without = imagenette.claim(also_at=(48, 40, 48)), imagenette.claim()
    assert claim.registered.keys() - without.registered.keys() == {
        *("40 x 40", "48 x 48", "40 x 40, fine-tuned", "48 x 48, fine-tuned")
    }
    assert claim.build("40 x 40").side == claim.build("40 x 40, fine-tuned").side == 40
    assert claim.needs("40 x 40, fine-tuned") == claim.full
    assert claim.settings() == without.settings()  # so results without them stay valid
    for side in (32, 64):  # included already
        with pytest.raises(ValueError, match=f"also_at: must be between 32 and 64, .* got {side}"):
            imagenette.claim(also_at=(40, side))


def test_images_are_scaled_by_imagenets_deviations():
    model = CLAIM.build("WAE")
    assert torch.allclose(model.image_scale * 255, 1 / torch.tensor([0.229, 0.224, 0.225]))


def write_result(folder, claim, network, seed, **more):
    job = Job(network, seed)
    of_plan = claim.plan_of(network, seed).as_dict()
    result = Result(network, seed, 0.5, 1.0, [0.5], of_plan, claim.settings(), 10, **more)
    (folder / f"{job.stem}.json").write_text(json.dumps(asdict(result)))
    return job


def test_a_run_needs_only_the_results_of_finished_trainings(photos, tmp_path):
    """Without weights, as in the repository. If all results exist, nothing is trained."""
    wanted = [write_result(tmp_path, CLAIM, name, seed) for name in (CLAIM.full, "WAE") for seed in (0, 1)]
    messages = []
    results = reproduce.run(tmp_path, photos, wanted, CLAIM, 1, tell=messages.append)
    assert [(r.network, r.seed) for r in results] == wanted
    assert not messages
    assert reproduce.open_jobs(tmp_path, [*wanted, Job("WAE", 2)], CLAIM) == [Job("WAE", 2)]


def test_pruning_repeats_the_training_of_the_network_if_only_its_result_is_left(tmp_path):
    full = write_result(tmp_path, CLAIM, CLAIM.full, 0)
    pruned = Job("pruned, Taylor", 0)
    assert reproduce.open_jobs(tmp_path, [full, pruned], CLAIM) == [full, pruned]
    assert reproduce._ready([pruned, full], {full: None, pruned: None}, CLAIM) == [full]
    result = read_result(tmp_path, full, CLAIM)
    assert reproduce._ready([pruned], {full: result, pruned: None}, CLAIM) == [pruned]
    weights_path(tmp_path, full).touch()
    assert reproduce.open_jobs(tmp_path, [full, pruned], CLAIM) == [pruned]
    write_result(tmp_path, CLAIM, *pruned)
    weights_path(tmp_path, full).unlink()
    assert reproduce.open_jobs(tmp_path, [full, pruned], CLAIM) == []


@pytest.mark.parametrize(("size", "version"), [(64, "160px"), (160, "160px"), (161, "320px")])
def test_the_smallest_version_that_is_large_enough_is_downloaded(tmp_path, monkeypatch, size, version):
    from torchvision import datasets

    calls = []
    monkeypatch.setattr(datasets, "Imagenette", lambda folder, **options: calls.append((folder, options)))
    with pytest.raises(DatasetError, match="has 0 and 0 photos, need 9469 and 3925"):
        imagenette.download(tmp_path, size)
    assert calls == [(tmp_path, {"size": version, "download": True})]


def test_a_failed_download_is_one_line_and_an_incomplete_folder_is_named(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    def fail(folder, **options):
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets, "Imagenette", fail)
    line = ["reproduce", "imagenette", "--data", str(tmp_path), "--download", "-o", str(tmp_path / "out")]
    assert main(line) == 1
    there = tmp_path / "imagenette2-160"
    assert capsys.readouterr().err == f"wae: {there}: could not be downloaded: File not found or corrupted.\n"
    there.mkdir()
    assert main(line) == 1
    assert "remove the folder to download it again" in capsys.readouterr().err


def test_pruned_networks_have_the_first_seed_only():
    wanted = CLAIM.jobs([4, 2])
    assert {job.seed for job in wanted if job.network in imagenette.PRUNED} == {2}
    assert len(wanted) == 2 * len(CLAIM.registered) - len(imagenette.PRUNED)


def test_results_of_other_settings_are_refused(tmp_path):
    job = write_result(tmp_path, CLAIM, "WAE", 0)
    with pytest.raises(CheckpointError, match="comes from other settings"):
        read_result(tmp_path, job, replace(CLAIM, kept_aside=True))
    with pytest.raises(CheckpointError, match=r"comes from another plan: batch \(20, not 10\); use another"):
        read_result(tmp_path, job, replace(CLAIM, wae=replace(TINY, batch=10)))


def test_pruned_networks_are_listed_with_their_time_relative_to_wae(monkeypatch):
    def result(network, accuracy, **more):
        return Result(network, 0, accuracy, 1.0, [accuracy], {}, {}, 10, **more)

    results = [
        result("WAE", 0.79),
        result(CLAIM.full, 0.8),
        result(CLAIM.half, 0.7),
        result("pruned, Taylor", 0.75, start={"ratio": 0.3, "time": 0.5}),
    ]
    seconds = {CLAIM.full: 4e-6, CLAIM.half: 1e-6, "WAE": 3e-6}
    monkeypatch.setattr(
        "wae.experiments.reproduction.table.timed",
        lambda models, claim, _: {name: seconds[name] for name in models},
    )
    table = rows(results, CLAIM, seconds=0)
    assert [row.network for row in table] == [CLAIM.full, CLAIM.half, "WAE", "pruned, Taylor"]
    assert [row.microseconds for row in table] == pytest.approx([4, 1, 3, 0.5 * 3])
    assert recovered(table, CLAIM, "WAE") == pytest.approx(0.9)


# ------------------------------------------------------------------------------------------------- fine-tuned


@pytest.mark.parametrize("own", ["WAE", CLAIM.half, EQUAL_COST])
def test_fine_tuning_is_training_from_scratch_with_a_teacher(own):
    name = fine_tuned(own)
    last, alone = CLAIM.plan_of(name, 1).stages[-1], CLAIM.plan_of(own, 1).stages[-1]
    assert replace(last, mimic_weight=0.0, mimic_temperature=1.0, mimic_mirrored=False) == alone
    assert (last.mimic_weight, last.mimic_temperature, last.mimic_mirrored) == (1.0, 4.0, True)
    assert CLAIM.plan_of(name, 1).seed == 1
    assert CLAIM.needs(name) == CLAIM.full
    assert CLAIM.registered[name] == CLAIM.registered[own]


def test_fine_tuning_wae_preserves_the_trained_network():
    """No start of its own, kept BatchNorm statistics, a low rate in stage 1; the rest is WAE's plan."""
    made, own = CLAIM.plan_of(FINE_TUNED, 1), CLAIM.plan_of("WAE", 1)
    first, last = own.stages
    stages = (
        replace(first, learning_rate=3e-4),
        replace(last, mimic_weight=1.0, mimic_temperature=4.0, mimic_mirrored=True),
    )
    assert own.start == "linear"
    assert made == replace(own, start="random", norm_statistics="kept", stages=stages)


def trained_full(claim, photos, folder):
    """The network at full resolution, saved as that of seed 3, and the training images."""
    torch.manual_seed(1)
    full = claim.build(claim.full)
    training, _ = claim.sets(claim.prepared(photos, folder), 0)
    path = weights_path(folder, Job(claim.full, 3))
    save_classifier(path, full, claim.registered[claim.full], training.labels, claim.input, {})
    return full, training


@pytest.mark.parametrize("network", ["small_vgg", "resnet18"])
def test_fine_tuned_networks_start_as_the_trained_network_on_a_smaller_image(network, photos, tmp_path):
    """WAE's scores are only close to those at half resolution: ``low`` is not exactly the mean of 2 x 2."""
    claim = replace(CLAIM, network=network)
    full, training = trained_full(claim, photos, tmp_path)
    models = [
        claim.start(Job(name, 3), tmp_path, training)[0].eval()
        for name in (FINE_TUNED, fine_tuned(claim.half), fine_tuned(EQUAL_COST))
    ]
    with torch.no_grad():
        wae, half, equal = (model(training.images) for model in models)
        same = HalfResolution(full.network, full.image_scale.tolist(), full.image_shift.tolist()).eval()
        assert torch.equal(half, same(training.images))
        same = AtSize(full.network, models[2].side, full.image_scale.tolist(), full.image_shift.tolist())
        assert torch.equal(equal, same.eval()(training.images))
    assert relative_difference(wae, half) < 0.05


def test_the_light_body_of_a_fine_tuned_network_depends_on_the_seed_only(photos, tmp_path):
    _, training = trained_full(CLAIM, photos, tmp_path)
    one, other = (CLAIM.start(Job(FINE_TUNED, 3), tmp_path, training)[0].high_body for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_fine_tuning_follows_the_training_of_the_network(photos, tmp_path):
    wanted = [Job(FINE_TUNED, 0), Job(fine_tuned(CLAIM.half), 0), Job(CLAIM.full, 0)]
    messages = []
    results = reproduce.run(tmp_path, photos, wanted, CLAIM, 1, tell=messages.append)
    assert messages[0].job == Job(CLAIM.full, 0)
    assert [(r.network, r.seed) for r in results] == wanted
    assert all(r.epochs for r in results)


# ---------------------------------------------------------------------------------------------------- pruning


def test_a_resumed_run_prunes_by_the_measured_ratio_without_measuring_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenette, "pruned", lambda model, batches, method, ratio: (method, ratio))
    monkeypatch.setattr(Imagenette, "_share_of_time", lambda claim, network: 2 - 2 * network[1])
    training, _ = CLAIM.sets(CLAIM.prepared(photos, tmp_path), 0)
    path = weights_path(tmp_path, Job(CLAIM.full, 0))
    save_classifier(path, CLAIM.build(CLAIM.full), "small_photo_vgg", training.labels, CLAIM.input)
    job = Job("pruned, Taylor", 0)
    made, found = CLAIM.start(job, tmp_path, training)
    assert made == ("Taylor", found["ratio"])
    assert 0.5 <= found["ratio"] < 0.515
    monkeypatch.setattr(imagenette, "ratio_for", lambda *_: pytest.fail("was measured again"))
    assert CLAIM.start(job, tmp_path, training) == (made, found)


def test_pruning_sees_photos_of_all_classes_without_augmentation(photos, tmp_path, monkeypatch):
    """They are sorted by class: the first 640 are of one."""
    seen = []
    monkeypatch.setattr(imagenette, "_PRUNING_IMAGES", 10)
    monkeypatch.setattr(imagenette, "ratio_for", lambda *_: {"ratio": 0.5, "time": 1.0})
    monkeypatch.setattr(imagenette, "pruned", lambda model, batches, *_: seen.extend(batches))
    training, _ = CLAIM.sets(CLAIM.prepared(photos, tmp_path), 0)
    path = weights_path(tmp_path, Job(CLAIM.full, 0))
    save_classifier(path, CLAIM.build(CLAIM.full), "small_photo_vgg", training.labels, CLAIM.input)
    CLAIM.start(Job("pruned, Taylor", 0), tmp_path, training)
    ((images, labels),) = seen
    assert labels.tolist() == [*range(10)]
    assert torch.equal(images, training.plain().batch(range(0, 50, 5), 0)[0])


def test_a_baselines_time_is_relative_to_waes(monkeypatch):
    def timed(models, *_):
        return {name: 3.0 if isinstance(model, nn.Identity) else 2.0 for name, model in models.items()}

    monkeypatch.setattr(imagenette, "timed", timed)
    assert CLAIM._share_of_time(nn.Identity()) == 1.5


def test_the_smallest_ratio_that_is_fast_enough_is_found():
    found = pruning.ratio_for(lambda ratio: ratio, lambda ratio: 1.6 - 2 * ratio)
    assert 0.3 <= found["ratio"] < 0.315
    assert found["time"] == pytest.approx(1.6 - 2 * found["ratio"])
    with pytest.raises(pruning.PruningError, match=r"pruned by 90% the network still takes 1\.10 times"):
        pruning.ratio_for(lambda ratio: ratio, lambda ratio: 2 - ratio)


def small_network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return FullResolution(nn.Sequential(*layers, *pool), [1 / 64] * 3, [-2.0] * 3)


@pytest.mark.parametrize("method", pruning.METHODS)
def test_the_least_important_channels_are_removed(method):
    pytest.importorskip("torch_pruning")
    model = small_network()
    with torch.no_grad():
        model.network[3].weight[4:] *= 1e-4  # by either method, 12 of the 16 hardly matter
        model.network[3].bias[4:] = 0
        model.network[0].weight *= 100
    batch = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8), torch.arange(8)
    lighter = pruning.pruned(model, [batch], method, 0.5)
    kept = lighter.network[3].weight
    assert len(kept) <= 8
    strong = (kept.flatten(1).norm(dim=1) > 0.01).sum()
    assert strong == 4
    assert lighter.network[-1].out_features == 10
    assert lighter(batch[0]).shape == (8, 10)
    assert len(model.network[3].weight) == 16  # a copy was pruned
    again = pruning.pruned(model.requires_grad_(False), [batch], method, 0.5)  # frozen
    assert torch.equal(again(batch[0]), lighter(batch[0]))


@pytest.mark.parametrize(
    ("method", "ratio", "first", "second"),
    [("Taylor", 0.33, slice(4), 12), ("L1 groups", 0.5, slice(4, None), 8)],
)
def test_taylor_ranks_all_channels_by_the_loss_and_l1_those_of_a_layer_by_weights(
    method, ratio, first, second
):
    """The last four channels of the first layer have large weights, but the second layer does not use them.

    Those of the second layer add the same to all classes, which changes the scores but not the loss.
    """
    pytest.importorskip("torch_pruning")
    model = small_network().train()
    with torch.no_grad():
        model.network[0].weight[4:] *= 100
        model.network[0].bias.zero_()
        model.network[3].weight[:, 4:] = 0
        for parameter in model.network[3].parameters():
            parameter[12:] *= 0.03
        model.network[-1].weight[:, 12:] = 1
    labels, images = torch.arange(8), torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8)
    grey = torch.full_like(images, 128)  # 0 once normalised, so the first layer's outputs are 0
    lighter = pruning.pruned(model, [(grey, labels), (images, labels)], method, ratio)
    assert torch.equal(lighter.network[0].weight, model.network[0].weight[first])
    assert len(lighter.network[3].weight) == second
    assert (lighter.network[-1].weight == 1).any() == (method != "Taylor")
    assert not any(module.training for module in lighter.modules())
    assert lighter.network[1].num_batches_tracked == 0  # BatchNorm statistics stay as they were
    assert all(p.requires_grad and p.grad is None for p in lighter.parameters())
    assert model.training


def test_the_layer_that_makes_the_scores_keeps_its_classes():
    """It need not be the linear layer defined last."""
    pytest.importorskip("torch_pruning")
    network = HeadFirst(nn.Linear(16, 10), *small_network().network[:-1], nn.Linear(16, 16))
    batch = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8), torch.arange(8)
    lighter = pruning.pruned(FullResolution(network), [batch], "L1 groups", 0.5)
    assert lighter(batch[0]).shape == (8, 10)
    assert lighter.network[-1].out_features == 8


@pytest.mark.slow
def test_a_pruned_network_is_trained_after_the_network_it_is_pruned_from(photos, tmp_path, monkeypatch):
    pytest.importorskip("torch_pruning")
    wanted = [Job(CLAIM.full, 0), Job("pruned, L1 groups", 0)]
    messages = []
    full, pruned = reproduce.run(tmp_path, photos, wanted, CLAIM, 2, tell=messages.append)
    assert [progress.job for progress in messages] == wanted
    assert pruned.start["time"] <= 1
    assert 0 < pruned.start["ratio"] < 1
    assert pruned.multiply_adds < full.multiply_adds
    assert pruned.made["versions"]["torch"] in torch.__version__
    assert pruned.settings == {"network": "small_vgg", "size": 32, "kept aside": False}


# ----------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenette",), "--data: needs the folder"),
        (("imagenette", "--data", "nowhere"), "nowhere: there is no such folder"),
        (
            ("imagenette", "--data", "nowhere", "--only", "WAEE"),
            "there is no network WAEE; known are 64 x 64",
        ),
        (("imagenette", "--size", "64x96"), "--size: must be one of 64, 96, 128, 224, got 64x96"),
        (("fashion-mnist", "--size", "64"), "--size: is only for imagenette and camvid"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, capsys):
    status = 1 if message.endswith("no such folder") else 2
    assert main(["reproduce", *arguments, "-o", str(tmp_path / "out")]) == status
    assert message in capsys.readouterr().err


def test_a_square_may_be_given_by_both_sides():
    options = build_parser().parse_args(["reproduce", "imagenette", "--size", "96x96"])
    assert command._claim(options) == imagenette.claim(size=96)
