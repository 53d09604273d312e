"""int8 and other precisions from the command line: `wae eval --deployed`, `wae predict`, `wae export`."""

import json
import re

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from printed_tables import rich_cells
from tiny_classifier import tiny

import wae
from wae.data.images import read_image
from wae.data.input import evaluation_resize
from wae.experiments import evaluation, machine
from wae.inference import deploy as deploying
from wae.inference import predict as prediction
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError
from wae.inference.engines import ENGINES, EngineError
from wae.inference.export import metadata
from wae.inference.footprint import Footprint
from wae.inference.predict import prepare
from wae.storage import checkpoint
from wae.storage.checkpoint import Input
from wae.training import processes

SIZE = 16
LABELS = ("first", "second", "third")
INT8 = ("--engine", "openvino", "--precision", "int8")
PATIENT = ("--max-drop", 1)  # with random weights, many predictions on noise are nearly ties


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(checkpoint._NETWORKS, "tiny", tiny)
    torch.manual_seed(36)  # a network that tells the third class from the others
    path = tmp_path / "tiny.safetensors"
    checkpoint.save_classifier(path, tiny(), "tiny", LABELS, Input(SIZE, evaluation_resize(SIZE)))
    return path


@pytest.fixture
def data(tmp_path):
    """201 training images, enough to calibrate int8 on, and 9 test images, too few for that."""
    folder, random = tmp_path / "data", np.random.default_rng(0)
    for part, each in (("train", 67), ("val", 3)):
        for number, label in enumerate(LABELS):
            (folder / part / label).mkdir(parents=True)
            for i in range(each):
                pixels = random.integers(0, 100, (20, 20, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    return folder


def needs_int8(engine):
    reason = ENGINES[engine].why_not("cpu", "int8")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def any_warnings():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.filters", [])  # the libraries warn about themselves
        yield


# ------------------------------------------------------------------------------------------------- evaluating


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def deployed_rows(capsys, precisions):
    found = [row for row in rich_cells(capsys.readouterr().out) if row[1] in precisions]
    for network, _, _, accuracy, milliseconds, per_second, megabytes in found:
        assert not megabytes or 0 < float(megabytes) < 2_000
        assert network.startswith("tiny (")
        assert re.fullmatch(r"\d+\.\d\d %", accuracy)
        assert float(milliseconds) > 0
        # 4 images per call; the printed figures are rounded
        assert float(per_second) == pytest.approx(4e3 / float(milliseconds), rel=0.1, abs=0.1)
    return found


@pytest.fixture
def measured_once(monkeypatch):
    """Measure memory once for each engine and precision: every measurement starts a process."""
    measure, taken = evaluation.footprint_of, {}

    def footprint_of(deployed):
        kind = deployed.engine, deployed.precision
        if kind not in taken:
            taken[kind] = measure(deployed)
        return taken[kind]

    monkeypatch.setattr(evaluation, "footprint_of", footprint_of)


@pytest.mark.slow
def test_eval_measures_deployed_networks(weights, data, wide, measured_once, capsys):
    arguments = ("eval", weights, weights, "--data", data, "--batch", 4, "--seconds", 0.05)
    assert run(*arguments, "--deployed", "bfloat16", "float32", "--engine", "eager") == 0
    found = deployed_rows(capsys, ("bfloat16", "float32"))
    assert [row[1:3] for row in found] == 2 * [["bfloat16", "eager"], ["float32", "eager"]]
    described = checkpoint.describe(weights).input
    files = sorted((data / "val").glob("*/*.png"))
    images = torch.stack([prepare(read_image(path), described) for path in files])
    with torch.no_grad():
        right = checkpoint.load_classifier(weights)(images).argmax(1) == torch.arange(3).repeat_interleave(3)
    assert found[1][3] == found[3][3] == f"{100 * right.double().mean():.2f} %"


def test_eval_as_json(weights, data, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "footprint_of", lambda deployed: Footprint(0.5, 20.0, 30.0))
    others = [0.75, 0.5]
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda _: others.pop())
    arguments = ("eval", weights, weights, "--data", data, "--batch", 4, "--seconds", 0.05, "--json")
    assert run(*arguments, "--deployed", "float32", "--engine", "eager") == 0
    found = json.loads(capsys.readouterr().out)
    for entry in (*found["networks"], *found["deployed"]):
        assert entry["network"] == "tiny"
        assert 0 <= entry["top1"] <= entry["top5"] <= 1
        assert entry["images"] == 9
    assert [entry["engine"] for entry in found["deployed"]] == ["eager", "eager"]
    assert [entry["megabytes"] for entry in found["deployed"]] == [30, 30]
    assert all(entry["seconds_per_image"] > 0 for entry in found["networks"])
    assert (found["others"], others) == (0.75, [])
    assert found["machine"] == machine.machine(torch.device("cpu"))


@pytest.mark.parametrize(("cores", "said"), [(0.5, 1), (0.05, 0), (None, 0)])
def test_eval_says_that_the_machine_was_busy(weights, data, capsys, monkeypatch, cores, said):
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda others: cores)
    assert run("eval", weights, "--data", data, "--seconds", 0) == 0
    printed = capsys.readouterr().out
    assert printed.count("Other programs used 0.5 cores meanwhile: do not rely on these times.\n") == said


@pytest.mark.slow
def test_eval_calibrates_int8_on_the_training_images(weights, data, wide, any_warnings, capsys):
    """The test images would be too few."""
    needs_int8("openvino")  # the engine whose int8 is prepared fastest
    arguments = ("eval", weights, "--data", data, "--batch", 4, "--seconds", 0.05, "--engine", "openvino")
    assert run(*arguments, "--deployed", "int8", "float32") == 0
    found = deployed_rows(capsys, ("int8", "float32"))
    assert [row[1:3] for row in found] == [["int8", "openvino"], ["float32", "openvino"]]


def test_eval_passes_the_training_images_to_int8_only(weights, data, monkeypatch):
    given = {}

    def deploy(model, size, batch, engine, *, precision, calibration, max_drop):
        given[precision] = calibration
        if precision == "int8":
            raise ValueError("enough")
        return wae.deploy(model, size, batch, "eager", precision=precision)

    monkeypatch.setattr(evaluation, "deploy", deploy)
    assert run("eval", weights, "--data", data, "--seconds", 0.05, "--deployed", "float32", "int8") == 1
    assert given["float32"] is None
    paths = [path for path, _ in given["int8"].samples]
    assert len(paths) == 201
    assert all(path.startswith(str(data / "train")) for path in paths)


@pytest.mark.parametrize("error", [CalibrationError, EngineError, DisagreementError])
def test_eval_reports_the_other_precisions_if_one_cannot_be_deployed(
    weights, data, wide, error, monkeypatch, capsys
):
    def deploy(model, size, batch, engine, *, precision, **options):
        if precision == "bfloat16":
            raise error("no engine runs it\nhere")
        return wae.deploy(model, size, batch, "eager", precision=precision)

    monkeypatch.setattr(evaluation, "deploy", deploy)
    monkeypatch.setattr(evaluation, "footprint_of", lambda deployed: None)
    arguments = ("eval", weights, "--data", data, "--seconds", 0, "--deployed", "bfloat16", "float32")
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    rows = [row for row in rich_cells(printed.out) if row[1] in ("bfloat16", "float32")]
    assert [row[1] for row in rows] == ["float32"]
    assert printed.err.endswith(f"wae: {weights} in bfloat16: no engine runs it\n")
    assert run(*arguments, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [entry["precision"] for entry in found["deployed"]] == ["float32"]
    (missing,), (network,) = found["left_out"], found["networks"]
    named = {"network": network["network"], "path": str(weights)}
    assert missing == {**named, "precision": "bfloat16", "reason": "no engine runs it"}


def test_eval_deployed_refuses_wrong_options(weights, data, capsys, monkeypatch):
    arguments = ("eval", weights, "--data", data, "--seconds", 0.05)
    assert run(*arguments, "--engine", "eager") == 2
    assert "--engine: needs --deployed" in capsys.readouterr().err
    assert run(*arguments, "--deployed", "int8", "--engine", "eager") == 1
    assert re.search(r"eager computes in .*, not in int8", capsys.readouterr().err)
    (data / "train").rename(data / "other")
    assert run(*arguments, "--deployed", "int8") == 1
    assert re.search("train.*no such folder|no folder.*train", capsys.readouterr().err)
    monkeypatch.setattr(processes, "processes", lambda: 2)
    assert run(*arguments, "--deployed", "float32") == 1
    assert "--deployed: needs a single process" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- predicting, exporting


def probabilities(text):
    return [
        [entry["probability"] for entry in sorted(json.loads(line)["classes"], key=lambda e: e["class"])]
        for line in text.splitlines()
    ]


@pytest.mark.slow
def test_predict_in_int8(weights, data, any_warnings, capsys):
    needs_int8("openvino")
    arguments = ("predict", data / "val", "--weights", weights, "--batch", 4)
    assert run(*arguments) == 0
    expected = probabilities(capsys.readouterr().out)
    assert run(*arguments, *INT8, "--calibrate", data / "train", *PATIENT) == 0
    found = probabilities(capsys.readouterr().out)
    assert found != expected  # so int8 was used
    assert np.allclose(found, expected, atol=0.02)


def test_predict_in_another_precision(weights, data, capsys):
    arguments = ("predict", data / "val", "--weights", weights, "--engine", "eager")
    found = {}
    for precision in ("float32", "bfloat16"):
        assert run(*arguments, "--precision", precision) == 0
        found[precision] = probabilities(capsys.readouterr().out)
    assert found["bfloat16"] != found["float32"]
    assert np.allclose(found["bfloat16"], found["float32"], atol=0.02)


def test_predict_checks_agreement_of_an_engine_on_the_calibration_images(weights, data, monkeypatch, capsys):
    arguments = ("predict", data / "val", "--weights", weights, "--calibrate", data / "train")
    assert run(*arguments) == 2
    assert "--calibrate: needs --engine or --precision" in capsys.readouterr().err
    real = deploying.agreement
    monkeypatch.setattr(deploying, "agreement", lambda *given: real(*given) | {"drop": 0.02})
    assert run(*arguments, "--engine", "eager", "--max-drop", 0.01) == 1
    assert "loses 2.00% of agreement with it on 101 images" in capsys.readouterr().err
    assert run(*arguments, "--engine", "eager", "--max-drop", 0.02) == 0


@pytest.mark.parametrize("invert", [False, True])
def test_predict_calibrates_on_images_as_it_sees_them(weights, data, monkeypatch, capsys, invert):
    """Of the other polarity, they would give other scales, and say nothing about the images to predict."""
    seen = []

    def runner(*_, calibration, **__):
        seen.append(torch.cat(list(calibration)))
        return lambda images: torch.zeros(len(images), 3)

    monkeypatch.setattr(prediction, "runner", runner)
    some = ("--invert",) if invert else ()
    arguments = ("predict", data / "val", "--weights", weights, "--calibrate", data / "train")
    assert run(*arguments, "--engine", "eager", *some) == 0
    described = checkpoint.describe(weights).input
    paths = sorted((data / "train").glob("*/*.png"))
    wanted = {prepare(read_image(path), described, invert).numpy().tobytes() for path in paths}
    assert {image.numpy().tobytes() for image in seen[0]} == wanted


def test_every_option_of_export_is_passed_on(weights, data, tmp_path, monkeypatch, capsys):
    from wae.inference import export

    seen = []

    def exported(model, *arguments, calibration, **options):
        seen.append((arguments, sum(map(len, calibration)), options))
        return {"difference": 0.0, "agreement": 0.5, "checked_images": 4}

    monkeypatch.setattr(export, "export", exported)
    line = "--format onnx --size 20x30 --batch 3 --images float32 --precision int8 --max-drop 0.1 --force"
    target = tmp_path / "out"
    assert run("export", weights, "-o", target, *line.split(), "--calibrate", data / "train") == 0
    ((arguments, images, options),) = seen
    assert arguments == (target, "onnx", (20, 30), 3, torch.float32, True)
    assert images == len(list((data / "train").glob("*/*.png")))
    described = checkpoint.describe(weights)
    assert options == {"precision": "int8", "max_drop": 0.1, "described": described}
    assert "It predicts the model's class on 50.00% of 4 images." in capsys.readouterr().out


@pytest.mark.slow
def test_export_in_int8(weights, data, any_warnings, tmp_path, capsys):
    needs_int8("onnxruntime")
    import onnxruntime

    path = tmp_path / "model.onnx"
    arguments = ("export", weights, "-o", path, "--precision", "int8")
    assert run(*arguments, "--calibrate", data / "train", *PATIENT) == 0
    assert re.search(r"predicts the model's class on \d+\.\d\d% of 101 images", capsys.readouterr().out)
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(path)
    expected_metadata = metadata(checkpoint.describe(weights), (SIZE, SIZE), torch.uint8)
    stored = session.get_modelmeta().custom_metadata_map  # the quantizer adds its own entries
    assert expected_metadata.items() <= stored.items()
    scores = session.run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        expected = checkpoint.load_classifier(weights)(images)
    assert 0 < (torch.from_numpy(scores) - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("command", ["predict", "export"])
def test_int8_needs_enough_images_to_calibrate_on(command, weights, data, tmp_path, capsys):
    target = tmp_path / "model.onnx"
    arguments = {
        "predict": ("predict", data / "val", "--weights", weights, "--engine", "openvino"),
        "export": ("export", weights, "-o", target),
    }[command] + ("--precision", "int8")
    assert run(*arguments) == 2
    assert "int8 takes its scales from images, which --calibrate names" in capsys.readouterr().err
    assert run(*arguments, "--calibrate", tmp_path / "none") == 1
    assert f"--calibrate: {tmp_path / 'none'} is not a folder" in capsys.readouterr().err
    assert run(*arguments, "--calibrate", data / "val") == 1
    assert "need at least 200 images, 100 to calibrate on" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("line", ["predict nowhere --weights nothing", "export nothing -o out.onnx"])
def test_int8_without_images_is_refused_before_anything_is_read(line, capsys):
    arguments = (*line.split(), "--precision", "int8")
    assert run(*arguments) == 2
    assert "int8 takes its scales from images, which --calibrate names" in capsys.readouterr().err
    assert run(*arguments, "--calibrate", "no/folder") == 1
    assert capsys.readouterr().err == "wae: --calibrate: no/folder is not a folder\n"
