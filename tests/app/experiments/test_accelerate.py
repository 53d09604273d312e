"""`wae accelerate`: a real run that is killed and goes on, and everything that is refused before one."""

import base64
import copy
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scenes import write_scenes
from tiny_original import CLASSES, SIDE, build, write_crops
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

import wae
from wae import cli
from wae.data.dataset import DatasetError, InMemory
from wae.data.folder import image_folder
from wae.experiments import accelerate
from wae.experiments.accelerate import AccelerationError, Settings
from wae.experiments.acceleration import deployment, measuring, rivals, target, training, trials
from wae.experiments.acceleration.data import Sets, in_memory, readable
from wae.experiments.acceleration.folder import ORIGINAL, TRIALS, Record, open_record
from wae.experiments.acceleration.networks import begun, teacher
from wae.experiments.acceleration.plans import plan_for
from wae.experiments.acceleration.settings import NOBODY, Mimic
from wae.experiments.acceleration.task import open_task
from wae.inference.deployed import DisagreementError
from wae.inference.engines import Engine, EngineError
from wae.inference.saved import load_deployed
from wae.inference.timing import Timing
from wae.models.accelerated import Form
from wae.models.baselines import AtSize, FullResolution
from wae.models.counting import count
from wae.models.positions import fit_to
from wae.models.registry import build as named
from wae.storage.checkpoint import Input, describe, load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training.accuracy import Accuracy
from wae.training.plan import Plan, Stage, find
from wae.training.trainer import Epoch, evaluate, train

SUPPORT = Path(__file__).resolve().parents[2] / "support"
PLAIN, MIRRORED = Mimic(1.0), Mimic(1.0, mirrored=True)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.24, 0.23)


def network():
    scale, shift = [1 / (255 * std) for std in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    return FullResolution(build(), scale, shift)


@pytest.fixture
def crops(tmp_path):
    """A folder of crops, and the weights of a network that was trained on them."""
    folder = tmp_path
    write_crops(folder / "data")
    torch.manual_seed(0)
    model = network()
    sets = [image_folder(folder / "data", part, SIDE, 55, augment=part) for part in (True, False)]
    plan = Plan("tiny", (Stage("classifier", 8, 5e-3, "adamw", weight_decay=0.05),), batch=16)
    accuracy = train(model, plan, *sets)[-1].accuracy.top1
    assert accuracy > 0.8  # else there is nothing to keep
    torch.save(model.network.state_dict(), folder / "tiny.pth")
    return folder


def command(crops, output, *more, model="tiny_original:build"):
    arguments = [
        *("accelerate", "--model", model, "--weights", crops / "tiny.pth", "--data", crops / "data"),
        *("-o", output, "--input-size", SIDE, "--engine", "eager", "--precision", "float32"),
        *("--mean", *MEAN, "--std", *STD, *more),
    ]
    return [str(argument) for argument in arguments]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))


def log_of(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------ a real run


def killed_and_gone_on(crops):
    """The folder of a run that was killed (-9) while it trained; its log then; what the second printed."""
    folder = crops / "out"
    line = command(crops, folder, "--epochs", "4")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
    }
    environment["OMP_NUM_THREADS"] = "1"
    run = [sys.executable, "-m", "wae", *line]
    first = subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while len(log_of(folder)) < 3 and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = log_of(folder)
    assert first.returncode == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    again = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    return folder, before, again.stdout


def keeps_the_accuracy_and_says_so(crops, accelerated, capsys):
    folder, _, printed = accelerated
    found = json.loads((folder / "accelerate.json").read_text())["found"]
    test = image_folder(crops / "data", False, SIDE, 55)
    stock = network()
    stock.network.load_state_dict(torch.load(crops / "tiny.pth", weights_only=True))
    before = evaluate(stock, test).top1
    after = evaluate(load_classifier(folder / "model.safetensors", stock.network), test).top1
    assert found["original"]["accuracy"] == before
    assert found["training"]["accuracy"] == pytest.approx(after, abs=0.011)  # an image more or less
    assert after >= 0.95 * before
    assert found["deployed"]["accelerated"]["accuracy"] >= 0.95 * before
    assert f"the original's top-1 accuracy: {100 * before:.2f} %" in printed
    assert f"{100 * before:.2f} % to" in printed.replace("\n", " ")


def goes_on_after_kill_9_and_loses_nothing(crops, accelerated, capsys):
    folder, before, printed = accelerated
    history = log_of(folder)
    assert len(before) >= 3
    assert history[: len(before)] == before
    epochs = [(epoch["stage"], epoch["epoch"]) for epoch in history]
    assert epochs == [(0, 0), (1, 0), *((2, i) for i in range(4))]
    assert "going on after" in printed
    assert "trial, " not in printed  # found before the kill
    assert "stage 1/3" not in printed
    assert not list((folder / "trials").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert cli.main(command(crops, folder, "--epochs", "4")) == 0  # all is done
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == stamps


def holds_what_a_user_needs(crops, accelerated, capsys):
    folder, _, _ = accelerated
    described = describe(folder / "model.safetensors")
    assert described.network == "tiny_original:build"
    assert described.labels == CLASSES
    assert described.input == Input(SIDE, 55)
    images = image_folder(crops / "data", False, SIDE, 55).batch(range(4), 0)[0]
    model = load_classifier(folder / "model.safetensors", build())
    with torch.no_grad():
        expected = model(images)
    deployed = load_deployed(folder / "deployed")
    scores = torch.cat([deployed(image[None]) for image in images])
    assert (scores - expected).norm() <= 1e-4 * expected.norm()
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
    (onnx,) = session.run(None, {"images": images.contiguous().numpy()})
    assert (torch.from_numpy(onnx) - expected).norm() <= 1e-4 * expected.norm()
    with pytest.raises(
        CheckpointError, match=r"is around what tiny_original:build makes, which no file may run"
    ):
        load_classifier(folder / "model.safetensors")


def has_a_report(crops, accelerated, capsys):
    folder, _, _ = accelerated
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    assert "http" not in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 1 + 4 * 4  # the plot; of four images four parts
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    for row in ("| original | PyTorch |", "| accelerated | eager, float32 |", "mimic 1"):
        assert row in text
    assert "<td>accelerated</td><td>eager, float32</td>" in page


def is_not_that_of_other_settings(crops, accelerated, capsys):
    folder, _, _ = accelerated
    assert cli.main(command(crops, folder, "--epochs", "5")) == 1
    assert "was begun with another epochs (4, not 5); --force begins anew" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on(crops, capsys):
    """One test, for a run is not made twice where tests have several processes."""
    run = killed_and_gone_on(crops)
    for check in (
        keeps_the_accuracy_and_says_so,
        goes_on_after_kill_9_and_loses_nothing,
        holds_what_a_user_needs,
        has_a_report,
        is_not_that_of_other_settings,
    ):
        check(crops, run, capsys)


def of_two_classes(number, seed):
    """Noise of 48 x 48, a third brighter in the one class; and the labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 2
    images = torch.randint(128, (number, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    return images + 60 * labels.to(torch.uint8).view(-1, 1, 1, 1), labels


@pytest.mark.slow
def test_loaders_of_other_classes_in_the_fastest_engine_and_precision(tmp_path, monkeypatch):
    """From Python: DataLoaders; a network of five classes, which gets a head for two; everything "auto"."""
    few, why_not = ("eager", "onnxruntime"), Engine.why_not  # to build all takes minutes
    monkeypatch.setattr(Engine, "why_not", lambda e, *a: why_not(e, *a) if e.name in few else "left out")
    loaders = tuple(
        DataLoader(TensorDataset(*of_two_classes(number, number)), batch_size=16) for number in (64, 32)
    )
    printed = io.StringIO()
    options = {"input_size": SIDE, "epochs": 2, "mimic": 0.0, "console": Console(file=printed, width=200)}
    path = wae.accelerate(build(), loaders, tmp_path / "out", **options)
    text = " ".join(printed.getvalue().split())
    assert "knows 5 classes, the data has 2: it gets a new head, which is trained first" in text
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    assert found["original"]["accuracy"] > 0.9
    assert found["deployed"]["accelerated"]["accuracy"] > 0.9
    assert describe(path).classes == 2
    deployed = load_deployed(tmp_path / "out" / "deployed")
    images, labels = of_two_classes(8, 3)
    scores = torch.cat([deployed(image[None]) for image in images])
    assert (scores.argmax(1) == labels).float().mean() > 0.8
    stamp = (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns
    wae.accelerate(build(), loaders, tmp_path / "out", **options)  # all is done, the head too
    assert (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_rivals_are_trained_and_reported(tmp_path):
    loaders = tuple([of_two_classes(number, number)] for number in (64, 32))
    options = {"input_size": SIDE, "epochs": 2, "mimic": 0.0, "engine": "eager", "precision": "float32"}
    wae.accelerate(build(), loaders, tmp_path / "out", compare=True, console=Console(quiet=True), **options)
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    text = (tmp_path / "out" / "report.md").read_text()
    for rival in rivals.NAMES:
        if reason := found[f"rival: {rival}"].get("left out"):
            assert "Torch-Pruning is not installed" in reason
            assert f"- {rival} is left out: {reason}" in text
        else:
            assert found["deployed"][rival]["accuracy"] > 0.8
            assert text.count(f"| {rival} |") == 2
    assert found["rival: half resolution"]["side"] == SIDE // 2
    adds = {name: side["multiply_adds"] for name, side in found["deployed"].items() if name != "images"}
    assert adds["half resolution"] < 0.3 * adds["original"]
    assert adds["half, equal cost"] <= min(adds["accelerated"], adds["original"])


def test_the_rival_of_equal_cost_is_found():
    stock = network()
    size = (96, 96)
    cost = count(stock, (72, 72)).multiply_adds
    found = rivals.find(rivals.EQUAL_COST, stock, 96, cost, [], lambda network: 1.0)
    assert found == {"side": 72}
    model = rivals.build(rivals.EQUAL_COST, found, stock, [])
    assert count(model, size).multiply_adds == cost
    half = rivals.build(rivals.HALF, {"side": 48}, stock, [])
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    small = torch.nn.functional.avg_pool2d(images.float(), 2)
    torch.testing.assert_close(half.eval()(images), stock.eval()(small), atol=1e-3, rtol=1e-3)
    assert rivals.find(rivals.HALF, stock, 96, cost, [], lambda network: 1.0) == {"side": 48}
    assert rivals.find(rivals.HALF, stock, 97, cost, [], lambda network: 1.0) == {"side": 49}
    assert rivals.find(rivals.EQUAL_COST, stock, 9, 1, [], lambda network: 1.0) == {"side": 5}
    own = count(stock, size).multiply_adds
    assert rivals.find(rivals.EQUAL_COST, stock, 96, own, [], lambda network: 1.0) == {"side": 96}
    same = rivals.build(rivals.EQUAL_COST, {"side": 96}, stock, [])
    torch.testing.assert_close(same.eval()(images), stock(images), atol=1e-3, rtol=1e-3)
    for rival in (half, same):  # which is trained, and the original not with it
        assert rival.network[0].weight.data_ptr() != stock.network[0].weight.data_ptr()


def test_a_network_of_one_size_has_no_rival_of_another():
    stock = FullResolution(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 15 * 15, 2)))
    with pytest.raises(ValueError, match="takes no images of 16 x 16"):
        rivals.find(rivals.HALF, stock, 32, 1, [], lambda network: 1.0)
    assert rivals.find(rivals.EQUAL_COST, stock, 32, 1, [], lambda network: 1.0) == {"side": 31}


def test_a_network_that_raises_what_it_likes_has_no_rival_of_another_size():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build()

        def forward(self, image):
            return {SIDE: self.network}[image.shape[-1]](image)  # KeyError

    with pytest.raises(ValueError, match=r"the network takes no images of 24 x 24"):
        rivals.find(rivals.HALF, FullResolution(One()), SIDE, 1000, [], lambda network: 1.0)
    with pytest.raises(ValueError, match=r"the network takes images of no other size"):
        rivals.find(rivals.EQUAL_COST, FullResolution(One()), SIDE - 1, 1000, [], lambda network: 1.0)


def test_a_rival_has_positions_of_its_own_size():
    transformer = VisionTransformer(32, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=2)
    stock, images = FullResolution(transformer), torch.zeros(1, 3, 32, 32)
    for name, side in ((rivals.HALF, 16), (rivals.EQUAL_COST, 24)):
        cost = count(fit_to(copy.deepcopy(transformer), (side, side)), (side, side)).multiply_adds
        found = rivals.find(name, stock, 32, cost, [], lambda network: 1.0)
        assert found == {"side": side}
        assert stock(images).shape == (1, 2)
        assert rivals.build(name, found, stock, [])(images).shape == (1, 2)


def test_a_pruned_rival_is_made_by_its_own_method(monkeypatch):
    stock, batches, asked = network(), [(torch.zeros(1), torch.zeros(1))], []
    monkeypatch.setattr(rivals, "pruned", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(rivals, "ratio_for", lambda prune, share: {"ratio": 0.75, "made": prune(0.25)})
    for name, method in rivals.PRUNED.items():
        rivals.build(name, rivals.find(name, stock, 32, 1, batches, lambda network: 1.0), stock, batches)
        assert asked[-2:] == [(stock, batches, method, 0.25), (stock, batches, method, 0.75)]


@pytest.mark.slow
def test_a_rival_that_no_engine_runs_is_left_out(tmp_path, monkeypatch):
    def fastest(task, network, size):
        if isinstance(network, AtSize):
            raise DisagreementError("eager is off by 1")
        return whole(task, network, size)

    whole = deployment.fastest
    monkeypatch.setattr(deployment, "fastest", fastest)
    loaders = tuple([of_two_classes(number, number)] for number in (64, 32))
    options = {"input_size": SIDE, "epochs": 1, "mimic": 0.0, "engine": "eager", "precision": "float32"}
    wae.accelerate(build(), loaders, tmp_path / "out", compare=True, console=Console(quiet=True), **options)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- half, equal cost is left out: eager is off by 1" in text
    assert text.count("| half resolution |") == 2


@pytest.mark.slow
def test_int8_from_end_to_end(tmp_path):
    pytest.importorskip("onnxruntime")
    loaders = tuple([of_two_classes(number, number)] for number in (64, 32))
    options = {"input_size": SIDE, "epochs": 2, "mimic": 0.0, "precision": "int8", "engine": "onnxruntime"}
    wae.accelerate(build(), loaders, tmp_path / "out", console=Console(quiet=True), max_drop=0.1, **options)
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    assert found["deployed"]["accelerated"]["precision"] == "int8"
    assert found["deployed"]["accelerated"]["accuracy"] > 0.9
    deployed = load_deployed(tmp_path / "out" / "deployed")
    assert (deployed.engine, deployed.precision) == ("onnxruntime", "int8")


# ------------------------------------------------------------------------------------------------- refused


@pytest.mark.slow
def test_nothing_is_written_where_an_argument_is_wrong(tmp_path, capsys):
    write_crops(tmp_path / "data", 2, 1)
    cases = {
        "there is no network resnet5; known are": ("--model", "resnet5"),
        "weights: resnet18 is to be a trained network": ("--model", "resnet18"),
        "torchvision has no weights|there is no such file": ("--model", "resnet18", "--weights", "no.pth"),
        "nosuch:build cannot be called": ("--model", "nosuch:build"),
        "must return a torch.nn.Module, got str": ("--model", "os:getcwd"),
        "no.safetensors: there is no such file": ("--model", "no.safetensors"),
        "its own; leave --weights away": ("--model", "no.safetensors", "--weights", "x.pth"),
        "target and target_ms: give one": (
            "--model",
            "tiny_original:build",
            "--target",
            "2x",
            "--target-ms",
            "3",
        ),
        "size must be an integer from 2 to 2048": ("--model", "tiny_original:build", "--size", "5000"),
        "factor must be an integer from 1 to 64": ("--model", "tiny_original:build", "--factor", "65"),
        "is neither a file nor one of the plans": ("--model", "tiny_original:build", "--plan", "nosuch"),
        "none.st: there is no such file": ("--model", "tiny_original:build", "--start", "none.st"),
    }
    for message, arguments in cases.items():
        line = ["accelerate", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "out"), *arguments]
        assert cli.main(line) == 1, arguments
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_every_option_arrives(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(accelerate, "run", lambda settings, console, force: seen.append((settings, force)))
    line = (
        "--model m --data d --weights w --plan digits --epochs 3 --learning-rate 0.2 --batch 5 --seed 7 "
        "--start linear --compare --mimic 0.5 --mimic-mirrored --size 96 --factor 2 --target-ms 3.5 "
        "--precision bfloat16 --engine eager --images 2 --max-drop 0.02 --input-size 64 "
        "--interpolation bicubic --mean 1 2 3 --std 4 5 6 --on-corrupt skip --max-pixels 99 "
        "--workers 8 --device cpu --force"
    )
    assert cli.main(["accelerate", "-o", str(tmp_path / "out"), *line.split()]) == 0
    options = {"epochs": 3, "learning_rate": 0.2, "batch": 5, "seed": 7, "start": "linear", "compare": True}
    options |= {"mimic": 0.5, "mimic_mirrored": True, "size": 96, "factor": 2, "target_ms": 3.5}
    options |= {"precision": "bfloat16", "engine": "eager", "images": 2, "max_drop": 0.02, "input_size": 64}
    options |= {"interpolation": "bicubic", "mean": (1, 2, 3), "std": (4, 5, 6), "on_corrupt": "skip"}
    options |= {"max_pixels": 99, "workers": 8, "device": "cpu"}
    wanted = Settings("m", "d", tmp_path / "out", "w", find("digits"), **options)
    assert seen == [(wanted, True)]
    assert [f.name for f in fields(Settings) if getattr(wanted, f.name) == f.default] == ["target"]
    assert cli.main("accelerate -o o --model m --data d --target 2.5x".split()) == 0
    assert seen[1] == (Settings("m", "d", Path("o"), target=2.5), False)


@pytest.mark.parametrize("arguments", [("--target", "1x"), ("--target", "fast"), ("--engine", "warp")])
def test_wrong_usage(tmp_path, arguments, capsys):
    line = ["accelerate", "--model", "resnet18", "--data", "digits", "-o", str(tmp_path / "out"), *arguments]
    with pytest.raises(SystemExit, match="2") if arguments[0] == "--target" else pytest.MonkeyPatch.context():
        assert cli.main(line) == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_stays(tmp_path, capsys):
    write_crops(tmp_path / "data", 2, 1)
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "thesis.txt"):  # one might be of a training
        (tmp_path / "out" / name).write_text("precious")
    for more in ((), ("--force",)):
        line = ["accelerate", "--model", "tiny_original:build", "--data", str(tmp_path / "data")]
        assert cli.main([*line, "--input-size", "48", "-o", str(tmp_path / "out"), *more]) == 1
        assert "holds no acceleration; name another folder\n" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "thesis.txt"}


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--weights", "original.safetensors"),
        ("--model", "model.safetensors"),
        ("--start", "model.safetensors"),
    ],
)
def test_a_file_to_begin_with_is_not_in_the_folder_whose_files_are_replaced(tmp_path, option, name, capsys):
    """--force removed it first, and then there was nothing to go on with after a stop."""
    out = tmp_path / "out"
    out.mkdir()
    for made in ("accelerate.json", name):
        (out / made).write_text("{}")
    line = ["accelerate", "--model", "tiny_original:build", option, str(out / name), "--data", "digits"]
    assert cli.main([*line, "-o", str(out), "--force"]) == 1
    assert f"{option} {out / name} is in {out}, whose files are replaced" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"accelerate.json", name}


def test_data_of_pixels_is_refused(tmp_path, capsys):
    write_scenes(tmp_path / "data", (("train", 2), ("val", 1)))
    line = ["accelerate", "--model", "tiny_original:build", "--data", str(tmp_path / "data")]
    assert cli.main([*line, "-o", str(tmp_path / "out")]) == 1
    assert "has classes of pixels; classifiers alone are accelerated" in capsys.readouterr().err


@pytest.mark.slow
def test_images_that_cannot_be_read_may_be_the_first(tmp_path):
    """Each step takes some images as examples; with the first left out, deploying failed, after training."""
    write_crops(tmp_path / "data", 8, 6)
    for part in ("train", "val"):
        for path in sorted((tmp_path / "data" / part / CLASSES[0]).iterdir())[:-1]:
            path.write_bytes(b"no image")
    wae.accelerate(
        build(),
        tmp_path / "data",
        tmp_path / "out",
        on_corrupt="skip",
        input_size=SIDE,
        epochs=1,
        mimic=0.0,
        engine="eager",
        precision="float32",
        console=Console(quiet=True),
    )
    assert (tmp_path / "out" / "report.md").exists()


def test_where_no_image_can_be_read_nothing_begins(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="none of 5 images that were tried can be read"):
        wae.accelerate(
            build(),
            tmp_path / "data",
            tmp_path / "out",
            on_corrupt="skip",
            input_size=SIDE,
            console=Console(),
        )
    assert not (tmp_path / "out").exists()


def test_one_image_to_train_on_is_found_out_before_the_training(tmp_path):
    """Of which none can be kept aside: a trial divided by zero, and without one the deployment failed."""
    loader = [of_two_classes(1, 0)]
    with pytest.raises(DatasetError, match=r"the images to train on: needs 2 or more, .* got 1"):
        wae.accelerate(
            build(), (loader, loader), tmp_path / "out", input_size=SIDE, console=Console(quiet=True)
        )
    assert not (tmp_path / "out").exists()


def test_a_network_that_does_not_end_in_a_matrix(tmp_path):
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    loader = [(images, torch.arange(8) % 2)]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1))
    with pytest.raises(ValueError, match=r"Sequential must end in a torch.nn.Linear, after pooled features"):
        wae.accelerate(network, (loader, loader), tmp_path / "out", input_size=8, console=Console(quiet=True))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "engine: tensorrt runs on cuda, not on cpu"),
        ({"engine": "winograd", "precision": "bfloat16"}, "engine: winograd computes in float32, not in bfl"),
    ],
)
def test_an_engine_that_cannot_run_is_found_out_before_the_training(tmp_path, options, message):
    with pytest.raises(AccelerationError, match=message):
        task_of(tmp_path, **options)


class Masked(nn.Module):
    """A network with a buffer of a kind that no checkpoint may hold."""

    def __init__(self):
        super().__init__()
        self.network = build()
        self.register_buffer("mask", torch.ones(3, 1, 1, dtype=torch.bool))

    def forward(self, image):
        return self.network(image * self.mask)


def test_what_does_not_come_back_from_a_file_is_found_out_before_the_training(tmp_path):
    images, labels = of_two_classes(8, 0)
    loader = [(images, labels)]
    with pytest.raises(CheckpointError, match=r"its tensors must be of .*, got BOOL"):
        wae.accelerate(
            Masked(), (loader, loader), tmp_path, input_size=SIDE, epochs=1, console=Console(quiet=True)
        )
    assert {path.name for path in tmp_path.iterdir()} == {"accelerate.json"}


@pytest.mark.parametrize("options", [{"mimic": 0.0}, {"plan": find("digits")}], ids=["mimic", "plan"])
def test_nobody_teaches_by_mirror_images_where_nobody_teaches(options):
    with pytest.raises(ValueError, match=r"mimic_mirrored needs a mimic above 0, got 0"):
        Settings("resnet18", "digits", Path("out"), mimic_mirrored=True, **options)


def test_a_plan_without_labels_is_found_out_before_the_training():
    with pytest.raises(ValueError, match=r"at least one stage of kind classifier or joint, got transform"):
        Settings("resnet18", "digits", Path("out"), plan=Plan("x", (Stage("transform", 1, 0.1),)))


# ---------------------------------------------------------------------------------------- steps by themselves


def opened(settings):
    return open_task(settings, Console(quiet=True), torch.device("cpu"))


def task_of(tmp_path, training=20, test=7, **options):
    """To accelerate the network of five classes, on noise in memory; and its images to train on."""
    sets = [
        InMemory(
            torch.randint(256, (number, 3, SIDE, SIDE), dtype=torch.uint8),
            torch.arange(number) % 5,
            CLASSES,
            augment,
            seed=0,
        )
        for number, augment in ((training, True), (test, False))
    ]
    return opened(Settings(build(), tuple(sets), tmp_path, input_size=SIDE, **options)), sets[0]


def test_a_trial_is_trained_and_tested_on_training_images_alone(tmp_path, monkeypatch):
    """Each fifth is kept aside, and not augmented; the test images are not looked at."""
    task, images = task_of(tmp_path)
    seen = []

    def train(model, plan, training, test, *, teacher, **options):
        seen.append((plan, training, test, teacher))
        return [Epoch(0, "joint", 0, {}, Accuracy(top1, 1.0, 1.0, 4), 1.0) for top1 in (0.5, 0.75, 0.25)]

    monkeypatch.setattr(training, "train", train)
    record = Record(tmp_path / "record.json", {})
    assert [trials.trial(task, record, task.form, mimic) for mimic in (NOBODY, PLAIN, PLAIN)] == [0.25] * 3
    names = [f"trial: size 48, factor 4, mimic {weight}" for weight in (0, 1)]
    assert list(record.found) == names  # as in folders of every version, which go on
    (_, _, _, none), (plan, others, kept, taught_by) = seen  # the second trial with 1 is read from the record
    rest = [number for number in range(20) if number % 5]
    assert torch.equal(kept.images, images.images[::5])
    assert torch.equal(others.images, images.images[rest])
    assert (others.augment, kept.augment) == (True, False)
    whole = plan_for(task, 16, PLAIN)
    assert [s.epochs for s in plan.stages] == [max(1, round(s.epochs / 4)) for s in whole.stages]
    assert plan.stages[-1].mimic_weight == 1.0
    assert none is None
    with torch.no_grad():
        assert torch.equal(taught_by(kept.images), task.original.classifier()(kept.images))


def test_a_folder_is_trained_on_augmented_and_tested_on_its_other_part(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    settings = Settings(build(), tmp_path / "data", tmp_path / "out", input_size=SIDE, seed=4)
    sets = opened(settings).sets(SIDE)
    parts = [(Path(data.samples[0][0]).parts[-3], len(data)) for data in sets]
    assert parts == [("train", 10), ("train", 10), ("val", 5)]
    changes = [not torch.equal(*(data.batch([0], epoch)[0] for epoch in (0, 1))) for data in sets]
    assert changes == [True, False, False]
    assert sets.training.seed == 4


def test_classes_are_in_the_order_of_the_original(tmp_path):
    path = tmp_path / "original.safetensors"
    save_classifier(path, named("small_photo_vgg", 3), "small_photo_vgg", ("c", "a", "b"), Input(SIDE))
    images = torch.randint(256, (6, 3, SIDE, SIDE), dtype=torch.uint8)
    held = InMemory(images, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), False, 0)
    for data in opened(Settings(str(path), (held, held), tmp_path / "out")).sets(SIDE):
        assert data.labels == ("c", "a", "b")
        assert data.batch(range(6), 0)[1].tolist() == [1, 1, 2, 2, 0, 0]


def test_a_line_says_that_classes_without_names_are_taken_by_number(tmp_path):
    task, _ = task_of(tmp_path, mimic=0.0)
    printed = io.StringIO()
    task = replace(task, console=Console(file=printed))
    done = {"original": {"accuracy": 0.5}, "training": {}}
    accelerate.train_all(task, Record(tmp_path / "record.json", {}, done))
    line = "sequential:given: has no names of classes; they are taken by number\n"
    assert line in printed.getvalue()


def test_the_original_is_measured_on_the_test_images(tmp_path):
    """Which are labelled here as it finds, those to train on as it does not."""
    task, images = task_of(tmp_path)
    held = (images, task.sets(SIDE).test)
    with torch.no_grad():
        found = [task.original.classifier()(data.images).argmax(1) for data in held]
    labelled = [
        InMemory(data.images, (classes + wrong) % 5, CLASSES, False, 0)
        for data, classes, wrong in zip(held, found, (1, 0), strict=True)
    ]
    settings = Settings(build(), tuple(labelled), tmp_path, input_size=SIDE)
    measured = measuring.measure_original(opened(settings))
    assert measured["accuracy"] == 1.0
    assert [entry["right"] for entry in measured["classes"]] == torch.bincount(found[1], minlength=5).tolist()
    assert measured["multiply_adds"] == count(network(), (SIDE, SIDE)).multiply_adds


@pytest.mark.parametrize("mimic", [NOBODY, PLAIN, MIRRORED], ids=str)
@pytest.mark.parametrize("who", ["accelerated", rivals.HALF])
def test_the_network_and_its_rivals_see_the_same_images_and_teacher(tmp_path, monkeypatch, who, mimic):
    task, _ = task_of(tmp_path)
    seen = []

    def train(model, plan, *sets, teacher, **options):
        seen.append((plan, sets, teacher))
        raise InterruptedError

    monkeypatch.setattr(training, "train", train)
    record = Record(tmp_path / "record.json", {}, {f"chosen: {rivals.HALF}": {"side": SIDE // 2}})
    step = (
        training.train_accelerated
        if who == "accelerated"
        else partial(rivals.train_rival, record=record, name=who)
    )
    with pytest.raises(InterruptedError):
        step(task, form=task.form, mimic=mimic)
    (plan, sets, taught_by), whole = seen[0], plan_for(task, 20, mimic)
    assert sets == (task.sets(SIDE).training, task.sets(SIDE).test)
    assert (taught_by is not None) == bool(mimic.weight)
    assert all(stage.mimic_mirrored == mimic.mirrored for stage in plan.stages)
    if who == "accelerated":
        assert plan == whole
    else:  # as many epochs with labels
        assert plan.stages == tuple(replace(stage, kind="classifier") for stage in whole.stages[1:])


def test_of_a_network_with_a_new_head_that_alone_is_trained_first(tmp_path):
    images, labels = of_two_classes(8, 0)
    held = InMemory(images, labels, ("dark", "light"), False, 0)
    task = opened(Settings(build(), (held, held), tmp_path, input_size=SIDE))
    free = {name: p.shape[0] for name, p in task.original.network.named_parameters() if p.requires_grad}
    assert set(free.values()) == {2}  # classes
    assert len(free) == 2


def test_a_new_head_is_trained_as_long_as_the_network_at_a_higher_rate(tmp_path, monkeypatch):
    images, labels = of_two_classes(8, 0)
    held = InMemory(images, labels, ("dark", "light"), False, 0)
    task = opened(Settings(build(), (held, held), tmp_path, input_size=SIDE, epochs=6, seed=3))
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
    assert joint.learning_rate < 1e-3
    assert (tmp_path / ORIGINAL).is_file()
    assert [path.stem for path in (tmp_path / TRIALS).iterdir()] == ["head"]
    training.forget(task, "head")  # when it is on the record
    assert not list((tmp_path / TRIALS).iterdir())


def test_a_rivals_checkpoint_stays_until_its_result_is_on_the_record(tmp_path, monkeypatch):
    """A run that was stopped in between trained the rival again, from its first epoch."""
    task, _ = task_of(tmp_path, plan=Plan("x", (Stage("joint", 1, 1e-3),), batch=10), compare=True)
    monkeypatch.setattr(rivals, "NAMES", (rivals.HALF,))
    monkeypatch.setattr(rivals, "find", lambda *arguments: {"side": SIDE // 2})
    recorded, write = [], Record.write

    def write_it(record):
        recorded.append((set(record.found), {path.stem for path in (tmp_path / "trials").glob("*.saf*")}))
        write(record)

    monkeypatch.setattr(Record, "write", write_it)
    accelerate.train_all(task, open_record(tmp_path, task.as_dict()))
    assert recorded[-1] == (recorded[-2][0] | {f"rival: {rivals.HALF}"}, {rivals.HALF})
    assert not list((tmp_path / "trials").iterdir())


def test_all_is_trained_of_a_network_that_was_frozen_and_the_users_own_stays(tmp_path):
    original = build().train().requires_grad_(False)
    images, labels = of_two_classes(8, 0)
    sets = tuple(InMemory(images, labels + shift, CLASSES, False, 0) for shift in (0, 1))
    task = opened(Settings(original, sets, tmp_path, input_size=SIDE))
    for network in (begun(task, task.form), rivals.made(task, rivals.HALF, {"side": SIDE // 2})):
        assert all(parameter.requires_grad for parameter in network.parameters())
    assert original.training
    assert not any(parameter.requires_grad for parameter in original.parameters())


def test_an_onnx_file_that_disagrees_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def export(*arguments, **options):
        raise DisagreementError("the onnx file is off by 1\nand more")

    monkeypatch.setattr(deployment, "export", export)
    task, _ = task_of(tmp_path)
    assert deployment.write_onnx(task, begun(task, task.form), SIDE) == {
        "not written": "the onnx file is off by 1"
    }


@pytest.mark.parametrize(
    ("of_nobody", "of_plain", "of_mirrored", "best"),
    [
        (0.5, 0.6, 0.7, MIRRORED),
        (0.5, 0.6, 0.6, PLAIN),  # for one pass of the original less
        (0.5, 0.6, 0.4, PLAIN),
        (0.6, 0.5, None, NOBODY),  # a teacher that does not help is not asked twice
        (0.5, 0.5, None, NOBODY),
    ],
)
def test_the_best_of_the_trials_says_how_the_original_teaches(
    tmp_path, monkeypatch, of_nobody, of_plain, of_mirrored, best
):
    task, _ = task_of(tmp_path)
    kept = {NOBODY: of_nobody, PLAIN: of_plain, MIRRORED: of_mirrored}
    monkeypatch.setattr(trials, "trial", lambda task, record, form, mimic: kept[mimic])
    assert trials.best_mimic(task, None, task.form) == {
        "weight": best.weight,
        "mirrored": best.mirrored,
        "accuracies": {str(mimic): accuracy for mimic, accuracy in kept.items() if accuracy is not None},
    }


@pytest.mark.parametrize("entries", [{"flip": False}, {"augment": False}], ids=str)
def test_what_is_not_flipped_to_train_on_has_no_mirrored_teacher(tmp_path, monkeypatch, entries):
    task, images = task_of(tmp_path)
    for name, value in entries.items():
        setattr(images, name, value)
    monkeypatch.setattr(trials, "trial", lambda task, record, form, mimic: {NOBODY: 0.5, PLAIN: 0.6}[mimic])
    assert not trials.best_mimic(task, None, task.form)["mirrored"]


def test_a_mirrored_teacher_that_is_asked_for_is_the_one_that_is_tried(tmp_path, monkeypatch):
    task, _ = task_of(tmp_path, mimic_mirrored=True)
    kept = {Mimic(0.0, mirrored=True): 0.5, MIRRORED: 0.6}
    monkeypatch.setattr(trials, "trial", lambda task, record, form, mimic: kept[mimic])
    found = trials.best_mimic(task, None, task.form)
    assert (found["weight"], found["mirrored"]) == MIRRORED
    assert list(found["accuracies"]) == ["mimic 0", "mimic 1, mirrored"]


@pytest.mark.parametrize(
    ("options", "found", "taken"),
    [
        ({}, {"weight": 1.0, "mirrored": True}, MIRRORED),
        ({}, {"weight": 1.0}, PLAIN),  # of before the mirrored teacher was tried
        ({"mimic_mirrored": True}, {"weight": 1.0}, MIRRORED),
        ({"mimic": 1.0}, None, PLAIN),
        ({"mimic": 1.0, "mimic_mirrored": True}, None, MIRRORED),
    ],
    ids=str,
)
def test_the_original_teaches_as_was_asked_for_or_found(tmp_path, monkeypatch, options, found, taken):
    task, _ = task_of(tmp_path, **options)
    printed, seen = io.StringIO(), []
    task = replace(task, console=Console(file=printed))
    monkeypatch.setattr(accelerate, "train_accelerated", lambda task, form, mimic: seen.append(mimic))
    monkeypatch.setattr(accelerate, "rehearse", lambda *arguments: None)
    done = {"original": {"accuracy": 0.5}, **({} if found is None else {"mimic": found})}
    accelerate.train_all(task, Record(tmp_path / "record.json", {}, done))
    assert seen == [taken]
    assert (f"chosen by the trials: {taken}\n" in printed.getvalue()) == (found is not None)


def test_the_plan_keeps_what_the_original_knows_and_takes_what_a_user_asks_for(tmp_path):
    task, _ = task_of(tmp_path, epochs=6, seed=3)
    labelled = {"optimizer": "adamw", "weight_decay": 0.05, "mimic_weight": 0.5, "mimic_temperature": 2.0}
    # 2000 steps of 32 images were 64 epochs, of which 30 are enough; 3, 10 and 30 become 1, 2 and 6
    stages = (
        Stage("transform", 1, 3e-4, "adam", warmup=0.1),
        Stage("classifier", 2, 1e-3, warmup=1.5, **labelled),
        Stage("joint", 6, 3e-4, warmup=1.5, encoder_rate=0.1, **labelled),
    )
    name = "sequential:given"
    assert plan_for(task, 1000, Mimic(0.5)) == Plan(name, stages, batch=32, norm_statistics="kept", seed=3)
    own = Plan(
        "x", (Stage("transform", 1, 0.1), Stage("joint", 4, 0.2, mimic_weight=3.0)), 64, start="linear"
    )
    task, _ = task_of(tmp_path, plan=own, learning_rate=0.5, batch=10)
    given = plan_for(task, 1000)
    assert (given.model, given.batch, given.start) == (name, 10, "random")
    assert [(s.epochs, s.learning_rate, s.mimic_weight) for s in given.stages] == [(1, 0.5, 0), (4, 0.5, 3)]
    task, _ = task_of(tmp_path, plan=own, mimic=0.0)
    assert plan_for(task, 1000).stages[1].mimic_weight == 0.0
    assert not any(stage.mimic_mirrored for stage in given.stages)
    task, _ = task_of(tmp_path, plan=own, mimic_mirrored=True)
    assert plan_for(task, 1000, task.settings.asked_mimic).stages[1] == replace(
        own.stages[1], mimic_mirrored=True
    )


def test_a_teacher_sees_images_of_its_own_size(tmp_path):
    task, _ = task_of(tmp_path)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    small = torch.nn.functional.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    with torch.no_grad():
        found, wanted = teacher(task, 64, PLAIN).eval()(images), task.original.classifier()(small)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_network_begins_with_the_same_weights_each_time(tmp_path):
    task, _ = task_of(tmp_path)
    one, other = (begun(task, task.form).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_preprocessing_that_is_asked_for_is_taken(tmp_path):
    task, images = task_of(tmp_path, mean=MEAN, std=STD, interpolation="bicubic")
    assert task.original.input.interpolation == "bicubic"
    with torch.no_grad():
        found, wanted = (one.eval()(images.images) for one in (task.original.classifier(), network()))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_rivals_time_is_a_share_of_the_accelerated_networks(tmp_path, monkeypatch):
    """Each on images of its own size, as many as a call has."""
    task, _ = task_of(tmp_path, images=2)
    seen, sizes, asked = [], [], {}

    def interleaved(calls, seconds, **options):
        for call in calls.values():
            call()
        return {"other": Timing(3.0, 1, 1, 1), "ours": Timing(2.0, 1, 1, 1)}

    def find(name, stock, size, multiply_adds, batches, share_of_time):
        asked.update(size=size, multiply_adds=multiply_adds)
        other = nn.Identity()
        other.register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape)))
        return {"time": share_of_time(other)}

    ours = begun(task, task.form).eval()
    ours.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    large = InMemory(torch.zeros(5, 3, 64, 64, dtype=torch.uint8), torch.arange(5), CLASSES, False, 0)
    task.opened[64] = Sets(large, large, large)
    monkeypatch.setattr(measuring, "interleaved", interleaved)
    monkeypatch.setattr(rivals, "find", find)
    monkeypatch.setattr(rivals, "trained", lambda task: ours)
    assert rivals.find_for(task, rivals.EQUAL_COST, Form(64)) == {"time": 1.5}
    assert (seen, sizes[-1]) == ([(2, 3, SIDE, SIDE)], (2, 3, 64, 64))
    assert asked == {"size": SIDE, "multiply_adds": count(ours, (64, 64)).multiply_adds}


def test_each_side_is_deployed_timed_and_tested_by_itself(tmp_path, monkeypatch):
    """On test images that are labelled as the original finds; those to train on are not."""
    task, images = task_of(tmp_path, engine="eager", precision="float32", images=2)
    test, stock = task.sets(SIDE).test, task.original.classifier()
    with torch.no_grad():
        test.targets[:] = stock(test.images).argmax(1)
        images.targets[:] = (stock(images.images).argmax(1) + 1) % 5
    ours = begun(task, task.form).eval()
    with torch.no_grad():
        share = (ours(test.images).argmax(1) == test.targets).float().mean().item()
    names = ("original, PyTorch", "original, deployed", "accelerated, PyTorch", "accelerated, deployed")
    shapes = []

    def interleaved(calls, *_, **__):
        assert tuple(calls) == names
        shapes.extend(len(call()) for call in calls.values())
        return {
            name: Timing(seconds, 0, 0, 1) for name, seconds in zip(names, (4.0, 3.0, 2.0, 1.0), strict=True)
        }

    monkeypatch.setattr(measuring, "interleaved", interleaved)
    found = deployment.deploy_all(task, Record(tmp_path / "record.json", {}), ours, SIDE)
    assert shapes == [2] * 4
    sides = [found[name] for name in ("original", "accelerated")]
    assert [(side["eager seconds"], side["seconds"]) for side in sides] == [(4.0, 3.0), (2.0, 1.0)]
    assert [side["accuracy"] for side in sides] == [1.0, pytest.approx(share)]
    costs = [count(network, (SIDE, SIDE)).multiply_adds for network in (stock, ours)]
    assert [side["multiply_adds"] for side in sides] == costs
    assert sum(entry["right"] for entry in sides[1]["classes"]) == round(share * len(test))
    assert load_deployed(tmp_path / "deployed").size == (SIDE, SIDE)


def test_images_are_taken_from_all_over_a_set(tmp_path):
    numbers = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    data = InMemory(numbers, torch.zeros(200, dtype=torch.int64), ("a",), False, 0)
    taken = readable(data, 4)[:, 0, 0, 0].tolist()
    assert taken == [0, 50, 100, 150]


@pytest.mark.parametrize("has_all", [0, 1])
def test_loaders_become_images_as_they_are(has_all):
    """Of the same classes, though one of them has not images of all."""
    images, labels = of_two_classes(8, 0)
    loaders = [[(images[:5], labels[:5]), (images[5:], labels[5:])] for _ in range(2)]
    loaders[1 - has_all] = [(images[::2], labels[::2])]
    held = in_memory(*loaders)
    for data, step in zip(held, (1, 2) if has_all == 0 else (2, 1), strict=True):
        for epoch in (0, 1):
            found = data.batch(range(len(data)), epoch)
            assert torch.equal(found[0], images[::step])
            assert torch.equal(found[1], labels[::step])
        assert data.labels == ("0", "1")
    with pytest.raises(DatasetError, match="a loader must give images and labels, got one that gives noth"):
        in_memory(loaders[0], [])


def test_images_are_counted_by_class_and_those_that_fill_a_batch_are_not():
    class Deployed(nn.Module):
        """Of three images, no more and no fewer: the class that the first pixel names."""

        batch = 3

        def forward(self, images):
            assert len(images) == 3
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 5).float()

    images = torch.tensor([0, 1, 1, 0, 0, 3, 3], dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 2, 2)
    data = InMemory(images.clone(), torch.tensor([0, 0, 1, 1, 0, 3, 2]), CLASSES, False, 0)
    filled = deployment.Filled(Deployed())
    found = measuring.by_class(filled, data, 5, torch.device("cpu"))
    pairs = [(entry["right"], entry["of"]) for entry in found]
    assert pairs == [(2, 3), (1, 2), (0, 1), (1, 1), (0, 0)]
    assert evaluate(filled, data, 5).top1 == pytest.approx(4 / 7)


def test_all_settings_but_those_of_the_machine_decide_whether_a_run_goes_on():
    entries = Settings("resnet18", "digits", Path("out")).as_dict().keys()
    machines = {"model", "data", "folder", "workers", "device"}  # of the first two there are fingerprints
    assert entries == {entry.name for entry in fields(Settings)} - machines


def test_a_run_goes_on_with_its_own_test_images_alone(tmp_path):
    """Else the report would compare a network's accuracy on some with the other's on others."""
    task, _ = task_of(tmp_path)
    record = open_record(tmp_path, task.as_dict())
    task.opened[SIDE] = task.sets(SIDE)._replace(test=task.sets(SIDE).test.subset(range(6)))
    with pytest.raises(CheckpointError, match="was begun with another test data; --force begins anew"):
        open_record(tmp_path, task.as_dict())
    del record.settings["test data"]  # a folder of before it was known
    record.write()
    assert open_record(tmp_path, task.as_dict()).settings["test data"]["number of images"] == 6


def test_a_folder_of_before_there_was_a_setting_had_its_default(tmp_path):
    (task, other) = (task_of(tmp_path, mimic_mirrored=mirrored)[0] for mirrored in (False, True))
    record = open_record(tmp_path, task.as_dict())
    del record.settings["mimic_mirrored"]
    record.found["head"] = 1
    record.write()
    assert open_record(tmp_path, task.as_dict()).found == {"head": 1}
    other.opened.update(task.opened)  # the same images
    with pytest.raises(CheckpointError, match=r"another mimic_mirrored \(False, not True\)"):
        open_record(tmp_path, other.as_dict())


# ------------------------------------------------------------------------------------------------- the target


CURVE = [(96, 2, 0.9), (96, 4, 0.6), (64, 2, 0.5), (64, 4, 0.4), (32, 8, 0.1)]
KEPT = {(96, 2): 0.99, (96, 4): 0.7, (64, 2): 0.9, (64, 4): 0.8, (32, 8): 0.95}


def met(monkeypatch, tmp_path, curve=CURVE, **options):
    """The target's outcome where these are the times and the trials' accuracies."""
    curve = [{"size": size, "factor": factor, "seconds": seconds} for size, factor, seconds in curve]
    tried = []

    def trial(task, record, form, mimic):
        tried.append((form.size, form.factor))
        mimics.append(mimic)
        return KEPT[form.size, form.factor]

    mimics = []
    times = {"original": 1.2, "engine": "eager", "curve": curve}
    monkeypatch.setattr(target, "timed_forms", lambda task: times)
    monkeypatch.setattr(target, "trial", trial)
    write_crops(tmp_path / "data", 2, 1)
    settings = Settings("tiny_original:build", tmp_path / "data", tmp_path / "out", input_size=48, **options)
    record = Record(tmp_path / "record.json", {})
    return target.meet_target(opened(settings), record), tried, mimics


@pytest.mark.parametrize("asked", [{"target": 2.0}, {"target_ms": 600.0}], ids=str)
def test_of_the_slowest_that_meet_the_target_the_best_is_taken(monkeypatch, tmp_path, asked):
    outcome, tried, mimics = met(monkeypatch, tmp_path, **asked)
    assert tried == [(96, 4), (64, 2), (64, 4)]
    assert outcome["form"] == {"size": 64, "factor": 2}
    assert outcome["allowed"] == pytest.approx(0.6)
    assert [entry.get("kept") for entry in outcome["curve"]] == [None, 0.7, 0.9, 0.8, None]
    assert mimics == [NOBODY] * 3


@pytest.mark.parametrize(("options", "weight"), [({}, 0.5), ({"mimic": 0.25}, 0.25)], ids=str)
def test_the_original_teaches_in_a_targets_trials_as_the_plan_says(monkeypatch, tmp_path, options, weight):
    plan = Plan("x", (Stage("joint", 1, 1e-3, mimic_weight=0.5),), batch=10)
    assert met(monkeypatch, tmp_path, target=2.0, plan=plan, **options)[2] == [Mimic(weight)] * 3


def test_a_form_that_the_engine_does_not_run_is_no_choice(monkeypatch, tmp_path):
    deploy = target.deploy

    def some(model, size, *arguments, **options):
        if size[0] == 32:
            raise EngineError("not this one")
        return deploy(model, size, *arguments, **options)

    monkeypatch.setattr(target, "deploy", some)
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (4,))
    write_crops(tmp_path / "data", 2, 1)
    options = {"input_size": 64, "engine": "eager", "precision": "float32"}
    settings = Settings("tiny_original:build", tmp_path / "data", tmp_path / "out", **options)
    times = target.timed_forms(opened(settings))
    assert [(entry["size"], entry["factor"]) for entry in times["curve"]] == [(64, 4)]


def test_images_in_memory_have_forms_of_their_own_size(monkeypatch, tmp_path):
    """Sizes were multiples of 32 alone, so digits, of 28 x 28, never met a target."""
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (2, 4))
    times = target.timed_forms(task_of(tmp_path, engine="eager", precision="float32")[0])
    assert [(entry["size"], entry["factor"]) for entry in times["curve"]] == [(SIDE, 2), (SIDE, 4)]


def test_images_that_are_larger_than_any_may_be_are_no_choice(monkeypatch, tmp_path):
    """1.25 times 1792 pixels, say."""
    monkeypatch.setattr(target, "SECONDS", 0.01)
    monkeypatch.setattr(target, "_FACTORS", (4,))
    monkeypatch.setattr(target, "_SCALES", (64.0,))
    times = target.timed_forms(task_of(tmp_path, engine="eager", precision="float32")[0])
    assert [entry["size"] for entry in times["curve"]] == [SIDE]


def test_a_target_that_has_no_form(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"needs a form that takes these images and runs in eager, got none"):
        met(monkeypatch, tmp_path, (), target=2.0)


def test_a_target_that_nothing_meets(monkeypatch, tmp_path):
    with pytest.raises(
        ValueError, match=r"at most 1.00 ms, the fastest form .* takes 100.00 ms \(images of 32"
    ):
        met(monkeypatch, tmp_path, target_ms=1.0)


@pytest.mark.slow
def test_the_forms_of_a_target_are_measured(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    settings = Settings(
        "tiny_original:build",
        tmp_path / "data",
        tmp_path / "out",
        input_size=64,
        engine="eager",
        precision="float32",
    )
    times = target.timed_forms(opened(settings))
    assert {(e["size"], e["factor"]) for e in times["curve"]} == {(s, f) for s in (64, 32) for f in (2, 4, 8)}
    assert all(entry["seconds"] > 0 for entry in times["curve"])
    assert times["original"] > 0
