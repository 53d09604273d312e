"""`wae accelerate`: a complete run that is killed and resumed, and what is refused before the training."""

import base64
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from accelerations import MEAN, MIRRORED, PLAIN, STD, network, of_two_classes, opened, task_of
from rich.console import Console
from scenes import write_scenes
from tiny_original import CLASSES, SIDE, build, write_crops
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wae
from wae import cli
from wae.data.dataset import DatasetError
from wae.data.folder import image_folder
from wae.experiments import accelerate
from wae.experiments.acceleration import baselines, deployment
from wae.experiments.acceleration.folder import Record, open_record
from wae.experiments.acceleration.settings import Settings
from wae.inference.agreement import DisagreementError
from wae.inference.engines import Engine
from wae.inference.saved import load_deployed
from wae.models.baselines import AtSize
from wae.storage.checkpoint import Input, describe, load_classifier
from wae.storage.weights_file import CheckpointError
from wae.training.accuracy import evaluate
from wae.training.plan import Plan, Stage, find
from wae.training.trainer import train

SUPPORT = Path(__file__).resolve().parents[2] / "support"
ENOUGH = 5  # epochs, also of a new head, which only guesses after 2
FAST = {
    "input_size": SIDE,
    "mimic": 0.0,
    "engine": "eager",
    "precision": "float32",
    "console": Console(quiet=True),
}


@pytest.fixture
def crops(tmp_path):
    """A folder of crops, and the weights of a network that was trained on them."""
    folder = tmp_path
    write_crops(folder / "data")
    torch.manual_seed(0)
    model = network()
    sets = [image_folder(folder / "data", part, Input(SIDE, 55), augment=part) for part in (True, False)]
    plan = Plan("tiny", (Stage("classifier", 8, 5e-3, "adamw", weight_decay=0.05),), batch=16)
    accuracy = train(model, plan, *sets)[-1].accuracy.top1
    assert accuracy > 0.8  # else there is no accuracy to keep
    torch.save(model.network.state_dict(), folder / "tiny.pth")
    return folder


def command(crops, output, *more):
    arguments = [
        *("accelerate", "--model", "tiny_original:build", "--weights", crops / "tiny.pth"),
        *("--data", crops / "data", "-o", output, "--input-size", SIDE),
        *("--engine", "eager", "--precision", "float32"),
        *("--mean", *MEAN, "--std", *STD, *more),
    ]
    return [str(argument) for argument in arguments]


def log_of(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def killed_and_resumed(crops):
    """Kill a run (-9) in training and start it again: its folder, the log before, what was printed after."""
    folder = crops / "out"
    line = command(crops, folder, "--optimizer", "adamw", "--epochs", "4")
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
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


def keeps_and_reports_the_accuracy(crops, accelerated, capsys):
    folder, _, printed = accelerated
    found = json.loads((folder / "accelerate.json").read_text())["found"]
    test = image_folder(crops / "data", False, Input(SIDE, 55))
    stock = network()
    stock.network.load_state_dict(torch.load(crops / "tiny.pth", weights_only=True))
    before = evaluate(stock, test).top1
    after = evaluate(load_classifier(folder / "model.safetensors", stock.network), test).top1
    assert found["original"]["accuracy"] == before
    assert found["training"]["accuracy"] == pytest.approx(after, abs=0.011)  # may differ by one image
    assert after >= 0.95 * before
    assert found["deployed"]["accelerated"]["accuracy"] >= 0.95 * before
    assert f"the original's top-1 accuracy: {100 * before:.2f} %" in printed
    assert f"{100 * before:.2f} % to" in printed.replace("\n", " ")


def resumed_without_loss(crops, accelerated, capsys):
    folder, before, printed = accelerated
    history = log_of(folder)
    assert len(before) >= 3
    assert history[: len(before)] == before
    epochs = [(epoch["stage"], epoch["epoch"]) for epoch in history]
    assert epochs == [(0, 0), (1, 0), *((2, i) for i in range(4))]
    assert "resuming after" in printed
    assert "trial, " not in printed  # the trials ended before the kill
    assert "stage 1/3" not in printed
    assert not (folder / "trials").exists()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    finished = command(crops, folder, "--optimizer", "adamw", "--epochs", "4")
    assert cli.main(finished) == 0  # and repeats nothing
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == stamps


def holds_checkpoint_deployed_network_and_onnx_file(crops, accelerated, capsys):
    folder, _, _ = accelerated
    described = describe(folder / "model.safetensors")
    assert described.network == "tiny_original:build"
    assert described.labels == CLASSES
    assert described.input == Input(SIDE, 55)
    images = image_folder(crops / "data", False, Input(SIDE, 55)).batch(range(4), 0)[0]
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
        CheckpointError, match=r"is built around what tiny_original:build makes, which no file may run"
    ):
        load_classifier(folder / "model.safetensors")


def has_a_report(crops, accelerated, capsys):
    folder, _, _ = accelerated
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    assert "http" not in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 1 + 4 * 4  # the plot, and four parts of each of four images
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    for row in ("| original | PyTorch |", "| accelerated | eager, float32 |", "mimic 1"):
        assert row in text
    assert "<td>accelerated</td><td>eager, float32</td>" in page


def refuses_other_settings(crops, accelerated, capsys):
    folder, _, _ = accelerated
    assert cli.main(command(crops, folder, "--optimizer", "adamw", "--epochs", "5")) == 1
    assert "was begun with other settings: epochs (4, not 5); --force starts over" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed(crops, capsys):
    """One test: several might be spread over pytest's worker processes, which would each repeat the run."""
    run = killed_and_resumed(crops)
    for check in (
        keeps_and_reports_the_accuracy,
        resumed_without_loss,
        holds_checkpoint_deployed_network_and_onnx_file,
        has_a_report,
        refuses_other_settings,
    ):
        check(crops, run, capsys)


def loaders():
    """A batch for training and one for testing."""
    return tuple([of_two_classes(number, number)] for number in (64, 32))


@pytest.mark.slow
def test_dataloaders_of_other_classes_with_automatic_engine_and_precision(tmp_path, monkeypatch):
    """A network of five classes gets a new head for two."""
    few, why_not = ("eager", "onnxruntime"), Engine.why_not  # building all engines takes minutes
    monkeypatch.setattr(Engine, "why_not", lambda e, *a: why_not(e, *a) if e.name in few else "left out")
    data = tuple(
        DataLoader(TensorDataset(*of_two_classes(number, number)), batch_size=16) for number in (64, 32)
    )
    printed = io.StringIO()
    options = {
        "input_size": SIDE,
        "epochs": ENOUGH,
        "mimic": 0.0,
        "console": Console(file=printed, width=200),
    }
    path = wae.accelerate(build(), data, tmp_path / "out", **options)
    text = " ".join(printed.getvalue().split())
    assert "has 5 classes, the data has 2; it gets a new head, which is trained first" in text
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    assert found["original"]["accuracy"] > 0.9
    assert found["deployed"]["accelerated"]["accuracy"] > 0.9
    assert describe(path).classes == 2
    deployed = load_deployed(tmp_path / "out" / "deployed")
    images, labels = of_two_classes(8, 3)
    scores = torch.cat([deployed(image[None]) for image in images])
    assert (scores.argmax(1) == labels).float().mean() > 0.8
    stamp = (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns
    wae.accelerate(build(), data, tmp_path / "out", **options)  # nothing left to do, the head included
    assert (tmp_path / "out" / "original.safetensors").stat().st_mtime_ns == stamp


def test_the_signature_has_every_option_and_others_are_refused(tmp_path):
    known = inspect.signature(wae.accelerate).parameters
    assert known.keys() == {"force", "console", *(entry.name for entry in fields(Settings))}
    with pytest.raises(TypeError, match=r"^accelerate has no option epoch; known are weights, .*epochs"):
        wae.accelerate(build(), "digits", tmp_path, epoch=1)


def test_two_loaders_are_needed(tmp_path):
    with pytest.raises(
        DatasetError, match=r"^data: needs two loaders, one for training and one for testing, got 3$"
    ):
        wae.accelerate(build(), (*loaders(), []), tmp_path)


def test_names_and_paths_are_accepted_as_by_the_command(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(accelerate, "run", lambda settings, *_: seen.append(settings))
    network, start = Path("net.safetensors"), Path("encoder.safetensors")
    wae.accelerate(network, "digits", tmp_path, plan="digits", start=start)
    assert seen == [Settings(str(network), "digits", tmp_path, plan=find("digits"), start=str(start))]


@pytest.mark.slow
def test_baselines_are_trained_and_reported(tmp_path):
    options = {"epochs": ENOUGH, "optimizer": "sgd", "compare": True}
    wae.accelerate(build(), loaders(), tmp_path / "out", **options, **FAST)
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    text = (tmp_path / "out" / "report.md").read_text()
    for baseline in baselines.NAMES:
        if reason := found[f"baseline: {baseline}"].get("left out"):
            assert "Torch-Pruning is not installed" in reason
            assert f"- {baseline} is left out: {reason}" in text
        else:
            assert found["deployed"][baseline]["accuracy"] > 0.8
            assert text.count(f"| {baseline} |") == 2
    assert found["baseline: half resolution"]["side"] == SIDE // 2
    deployed = [name for name in ("original", "accelerated", *baselines.NAMES) if name in found["deployed"]]
    adds = {name: found["deployed"][name]["multiply_adds"] for name in deployed}
    assert adds["half resolution"] < 0.3 * adds["original"]
    assert adds["half, equal cost"] <= min(adds["accelerated"], adds["original"])


@pytest.mark.slow
def test_a_baseline_that_no_engine_runs_is_left_out(tmp_path, monkeypatch):
    def fastest(task, network, size):
        if isinstance(network, AtSize):
            raise DisagreementError("eager is off by 1")
        return real(task, network, size)

    real = deployment.fastest
    monkeypatch.setattr(deployment, "fastest", fastest)
    options = {"epochs": 1, "optimizer": "adamw", "compare": True}
    wae.accelerate(build(), loaders(), tmp_path / "out", **options, **FAST)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- half, equal cost is left out: eager is off by 1" in text
    assert text.count("| half resolution |") == 2


@pytest.mark.slow
def test_int8_end_to_end(tmp_path):
    pytest.importorskip("onnxruntime")
    options = {**FAST, "engine": "onnxruntime", "precision": "int8", "optimizer": "adamw", "max_drop": 0.1}
    wae.accelerate(build(), loaders(), tmp_path / "out", epochs=ENOUGH, **options)
    found = json.loads((tmp_path / "out" / "accelerate.json").read_text())["found"]
    assert found["deployed"]["accelerated"]["precision"] == "int8"
    assert found["deployed"]["accelerated"]["accuracy"] > 0.9
    deployed = load_deployed(tmp_path / "out" / "deployed")
    assert (deployed.engine, deployed.precision) == ("onnxruntime", "int8")


@pytest.mark.slow
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, capsys):
    write_crops(tmp_path / "data", 2, 1)
    own = ("--model", "tiny_original:build")
    cases = {
        "there is no network resnet5; need a NAME": ("--model", "resnet5"),
        "weights: resnet18 needs trained ones, a FILE.*; got none": ("--model", "resnet18"),
        "torchvision has no weights|there is no such file": ("--model", "resnet18", "--weights", "no.pth"),
        "nosuch:build cannot be called": ("--model", "nosuch:build"),
        "must return a torch.nn.Module, got str": ("--model", "os:getcwd"),
        "no.safetensors: there is no such file": ("--model", "no.safetensors"),
        "its own; omit --weights": ("--model", "no.safetensors", "--weights", "x.pth"),
        "target and target_ms: give one": (*own, "--target", "2x", "--target-ms", "3"),
        "is neither a file nor one of the plans": (*own, "--plan", "nosuch"),
        "none.st: there is no such file": (*own, "--start", "none.st"),
    }
    for message, arguments in cases.items():
        line = ["accelerate", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "out"), *arguments]
        assert cli.main(line) == (1 if message.endswith("no such file") else 2), arguments
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("resnet5",), "there is no network resnet5; need a NAME"),
        (("resnet18",), "weights: resnet18 needs trained ones"),
        (("resnet18", "--weights", "timm.pth"), "nowhere: is neither a folder"),
        (("googlenet", "--weights", "timm"), "weights: timm has none for googlenet"),
        (("no.safetensors", "--weights", "x.pth"), "its own; omit --weights"),
    ],
)
def test_an_unknown_network_is_named_before_the_data_are_read(more, message, tmp_path, monkeypatch, capsys):
    """Listing the files of a large data set takes long."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["accelerate", "--data", "nowhere", "-o", "out", "--model", *more]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_folder_of_other_files_is_refused(tmp_path, capsys):
    write_crops(tmp_path / "data", 2, 1)
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "thesis.txt"):  # the first could be from a training
        (tmp_path / "out" / name).write_text("precious")
    for more in ((), ("--force",)):
        line = ["accelerate", "--model", "tiny_original:build", "--data", str(tmp_path / "data")]
        assert cli.main([*line, "--input-size", "48", "-o", str(tmp_path / "out"), *more]) == 1
        wanted = "is neither empty nor the folder of an acceleration; name another folder\n"
        assert wanted in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "thesis.txt"}


@pytest.mark.parametrize(("more", "resumed"), [((), ""), (("--force",), "without --force ")])
def test_an_interrupted_run_says_how_to_resume(more, resumed, tmp_path, monkeypatch, capsys):
    """With --force the same command would remove what was trained."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerate, "run", interrupt)
    command = ("accelerate", "--model", "small_vgg", "--data", "digits", "-o", str(tmp_path), *more)
    assert cli.main(command) == 130
    assert capsys.readouterr().err == f"wae: interrupted; the same command {resumed}resumes from there\n"


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--weights", "original.safetensors"),
        ("--model", "model.safetensors"),
        ("--start", "model.safetensors"),
        ("--plan", "plan.toml"),
    ],
)
def test_an_input_file_in_the_output_folder_is_refused(tmp_path, option, name, capsys):
    """--force would remove it first, so a run that is then stopped could not be resumed."""
    out = tmp_path / "out"
    out.mkdir()
    for made in ("accelerate.json", name):
        (out / made).write_text("{}")
    line = ["accelerate", "--model", "tiny_original:build", option, str(out / name), "--data", "digits"]
    assert cli.main([*line, "-o", str(out), "--force"]) == 1
    assert f"{option} {out / name} is in {out}, whose files are replaced" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"accelerate.json", name}


def test_segmentation_data_is_refused(tmp_path, capsys):
    write_scenes(tmp_path / "data", (("train", 2), ("val", 1)))
    line = ["accelerate", "--model", "tiny_original:build", "--data", str(tmp_path / "data")]
    assert cli.main([*line, "-o", str(tmp_path / "out")]) == 1
    assert "has classes of pixels; only classifiers are accelerated" in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_images_may_be_unreadable(tmp_path):
    """Each step takes the first images as examples."""
    write_crops(tmp_path / "data", 8, 6)
    for part in ("train", "val"):
        for path in sorted((tmp_path / "data" / part / CLASSES[0]).iterdir())[:-1]:
            path.write_bytes(b"no image")
    wae.accelerate(build(), tmp_path / "data", tmp_path / "out", on_corrupt="skip", epochs=1, **FAST)
    assert (tmp_path / "out" / "report.md").exists()


def test_a_test_set_without_a_readable_image_is_refused(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    options = {"on_corrupt": "skip", "input_size": SIDE, "console": Console()}
    with pytest.raises(DatasetError, match="none of the 5 images tried can be read"):
        wae.accelerate(build(), tmp_path / "data", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_single_training_image_is_refused(tmp_path):
    """It cannot be held out."""
    loaders = [of_two_classes(1, 0)], [of_two_classes(2, 1)]
    options = {"input_size": SIDE, "console": Console(quiet=True)}
    with pytest.raises(DatasetError, match=r"the images to train on: needs 2 or more, .* got 1"):
        wae.accelerate(build(), loaders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(tmp_path):
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    loader = [(images, torch.arange(8) % 2)]
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1))
    with pytest.raises(ValueError, match=r"Sequential must end in a torch.nn.Linear, after pooled features"):
        wae.accelerate(network, (loader, loader), tmp_path / "out", input_size=8, console=Console(quiet=True))


class Auxiliary(nn.Module):
    """Like GoogLeNet, a network that returns more scores in training mode."""

    def __init__(self, result):
        super().__init__()
        self.network, self.result = build(), result

    def forward(self, image):
        scores = self.network(image)
        return self.result(scores) if self.training else scores


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda scores: (scores, scores),
            "must return .* in training mode too, got tuple: switch off its aux",
        ),
        (lambda scores: scores[99], "must run in training mode too, but: index 99 is out of bounds"),
    ],
    ids=["a tuple", "an error"],
)
def test_a_network_that_does_not_return_scores_in_training_mode_is_refused(tmp_path, result, message):
    loader = [of_two_classes(8, 0)]
    with pytest.raises(ValueError, match=f"^Auxiliary {message}"):
        wae.accelerate(
            Auxiliary(result), (loader, loader), tmp_path, input_size=SIDE, console=Console(quiet=True)
        )
    assert not any(tmp_path.iterdir())


class Masked(nn.Module):
    """A network with a buffer of a dtype that checkpoints cannot hold."""

    def __init__(self):
        super().__init__()
        self.network = build()
        self.register_buffer("mask", torch.ones(3, 1, 1, dtype=torch.complex64))

    def forward(self, image):
        return self.network(image * self.mask.real)


def test_tensors_that_checkpoints_cannot_hold_are_refused_before_training(tmp_path):
    loader = [of_two_classes(8, 0)]
    options = {"input_size": SIDE, "epochs": 1, "console": Console(quiet=True)}
    with pytest.raises(CheckpointError, match=r"its tensors must be of .*, got C64"):
        wae.accelerate(Masked(), (loader, loader), tmp_path, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"accelerate.json"}


def measured(accuracy):
    """The original's entry in the record, for ten test images of each of two classes."""
    return {"accuracy": accuracy, "classes": [{"right": round(10 * accuracy), "of": 10}] * 2}


def printed_by_train_all(task, found):
    """What ``train_all`` prints if the record already holds ``found``."""
    task = replace(task, console=Console(file=(printed := io.StringIO())))
    accelerate.train_all(task, Record(task.settings.folder / "record.json", {}, found))
    return printed.getvalue()


@pytest.mark.parametrize(("accuracy", "guesses"), [(0.5, True), (0.9, False)])
def test_an_original_that_only_guesses_is_reported(tmp_path, accuracy, guesses):
    """As with a new head after too few epochs: the table compared WAE with chance without saying so."""
    task, _ = task_of(tmp_path, mimic=0.0)
    printed = printed_by_train_all(task, {"original": measured(accuracy), "training": {}})
    line = f"top-1 accuracy: {100 * accuracy:.2f} %\nthe original is hardly better than guessing: 50.00 %"
    assert (line in printed) == guesses


def test_matching_unnamed_classes_by_number_is_reported(tmp_path):
    task, _ = task_of(tmp_path, mimic=0.0)
    printed = printed_by_train_all(task, {"original": measured(0.5), "training": {}})
    assert "sequential:given: has no class names; its classes are matched by number\n" in printed


def test_files_left_out_of_a_folder_are_reported(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    (tmp_path / "data" / "val" / "retina" / "new.heic").touch()
    chosen = {"input_size": SIDE, "mimic": 0.0, "optimizer": "adamw"}  # nothing to try
    task = opened(Settings(build(), tmp_path / "data", tmp_path, **chosen))
    printed = printed_by_train_all(task, {"original": measured(0.5), "training": {}})
    assert f"{tmp_path}/data/val: left out: 1 of other types (.heic)\n" in printed


def test_a_baselines_checkpoint_is_kept_until_its_result_is_recorded(tmp_path, monkeypatch):
    """A run that is stopped in between resumes the baseline."""
    task, _ = task_of(tmp_path, plan=Plan("x", (Stage("joint", 1, 1e-3),), batch=10), compare=True)
    monkeypatch.setattr(baselines, "NAMES", (baselines.HALF,))
    monkeypatch.setattr(baselines, "size_or_ratio", lambda *arguments: {"side": SIDE // 2})
    recorded, write = [], Record.write

    def write_it(record):
        recorded.append((set(record.found), {path.stem for path in (tmp_path / "trials").glob("*.saf*")}))
        write(record)

    monkeypatch.setattr(Record, "write", write_it)
    accelerate.train_all(task, open_record(tmp_path, task.as_dict()))
    assert recorded[-1] == (recorded[-2][0] | {f"baseline: {baselines.HALF}"}, {baselines.HALF})
    assert not (tmp_path / "trials").exists()


def test_when_all_is_trained_no_checkpoint_is_left(tmp_path):
    """Nor one from which nothing resumes."""
    task, _ = task_of(tmp_path, mimic=0.0)
    stale = tmp_path / "trials" / "size 48, factor 4, mimic 1.safetensors"
    stale.parent.mkdir()
    stale.touch()
    accelerate.train_all(
        task, Record(tmp_path / "record.json", {}, {"original": measured(0.9), "training": {}})
    )
    assert not stale.parent.exists()


@pytest.mark.parametrize(
    ("options", "found", "taken"),
    [
        ({}, {"weight": 1.0, "mirrored": True}, MIRRORED),
        ({}, {"weight": 1.0, "mirrored": False}, PLAIN),
        ({"mimic": 1.0}, None, PLAIN),
        ({"mimic": 1.0, "mimic_mirrored": True}, None, MIRRORED),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("given", "tried", "optimizer"),
    [
        ({"optimizer": "sgd"}, False, "sgd"),
        ({}, True, "sgd"),
        ({"learning_rate": 0.1}, False, "adamw"),
        ({"learning_rate": 0.1, "optimizer": "sgd"}, False, "sgd"),
    ],
    ids=str,
)
def test_the_recipe_follows_the_settings_and_the_trials(
    tmp_path, monkeypatch, options, found, taken, given, tried, optimizer
):
    task, _ = task_of(tmp_path, **options, **given)
    seen = []
    monkeypatch.setattr(accelerate, "train_accelerated", lambda task, form, recipe: seen.append(recipe))
    monkeypatch.setattr(accelerate, "rehearse", lambda *arguments: None)
    done = {"original": {**measured(0.5), "multiply_adds": 10**6}}
    if tried:
        done["optimizer"] = {"name": "sgd"}
    if found is not None:
        done["mimic"] = found
    printed = printed_by_train_all(task, done)
    recipe = taken._replace(optimizer=optimizer)
    assert seen == [recipe]
    chosen = ["sgd"] * tried + [str(taken)] * (found is not None)
    line = f"chosen by the trials: {', '.join(chosen)}\n" if chosen else ""
    assert "".join(re.findall("chosen by.*\n", printed)) == line
