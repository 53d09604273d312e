"""Segmentation networks: deployed, saved, exported and in int8, as classifiers are."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_networks import assert_close, needs, photos, with_statistics
from test_int8 import INT8
from torch import Tensor, nn

import wae
import wae_kernels
from wae.inference.agreement import DisagreementError, agreement
from wae.inference.calibration import Calibration
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES
from wae.inference.export import FORMATS, export
from wae.inference.folding import fold
from wae.inference.saving import ABOUT, END, SavedError
from wae.models.segmentation.segmenter import WAESegmenter, wae_segmenter

SIZE = (21, 34)


class Pixels(nn.Sequential):
    """A small segmentation network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )


@pytest.fixture
def model() -> WAESegmenter:
    torch.manual_seed(0)
    segmenter = wae_segmenter(Pixels(), image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3)
    with_statistics(segmenter)
    return segmenter


def images(count: int) -> Tensor:
    """Images with a dark and a light half, and noise."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 40, (count, 3, *SIZE), generator=random)
    noise[:, :, :, SIZE[1] // 2 :] += 200
    return noise.to(torch.uint8)


@pytest.mark.parametrize(
    "engine", ["eager", "onnxruntime", "openvino", pytest.param("winograd", marks=pytest.mark.slow)]
)
def test_scores_are_the_models_for_any_batch(engine: str, model: WAESegmenter) -> None:
    needs(engine)
    deployed = deploy(model, SIZE, batch=2, engine=engine)
    assert deployed.difference <= 1e-5
    for batch in (2, 1, 3):
        given = photos(batch, SIZE)
        scores = deployed(given)
        assert scores.shape == (batch, 3, *SIZE)
        assert_close(scores, model(given))
    with_nan = photos(2, SIZE).float()
    with_nan[1, 0, 3, 4] = torch.nan
    scores = deployed(with_nan)
    assert scores[0].isfinite().all()
    assert scores[1].isnan().all()


@pytest.mark.parametrize("engine", [pytest.param("onnxruntime", marks=pytest.mark.slow), "openvino"])
def test_our_op_runs_the_full_resolution_end_behind_a_foreign_engine(
    engine: str, model: WAESegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine runs the rest at half the resolution. This also holds for a saved and loaded network."""
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine)
    deployed.save(tmp_path / "net")
    about = json.loads((tmp_path / "net" / ABOUT).read_text())
    assert about["format"] == 2  # older versions would leave the end out, so they must refuse it
    loaded = wae.load_deployed(tmp_path / "net")
    given, calls = photos(2, SIZE), []
    expected = model(given)
    run = wae_kernels.nn.run_decode_scores
    monkeypatch.setattr(
        wae_kernels.nn, "run_decode_scores", lambda inputs: calls.append(inputs) or run(inputs)
    )
    for ours in (deployed, loaded):
        assert_close(ours(given), expected)
    assert len(calls) == 2
    assert [tuple(half.shape) for half in calls[1][:2]] == [(2, 3, 11, 17), (2, 16, 11, 17)]


@pytest.mark.slow
def test_the_engine_runs_an_end_that_has_no_kernel(model: WAESegmenter, tmp_path: Path) -> None:
    """It has too many classes, or hooks on itself or a layer, which a file of tensors cannot hold."""
    needs("onnxruntime")
    many = wae_segmenter(nn.Conv2d(3, 33, 3, padding=1)).eval()
    hooked = copy.deepcopy(model)
    hooked.fusion.register_forward_hook(lambda fusion, args, output: 2 * output)
    model.fusion.conv1.register_forward_hook(lambda layer, args, output: 2 * output)
    for network, classes in ((many, 33), (hooked, 3), (model, 3)):
        deployed = deploy(network, SIZE, engine="onnxruntime")
        deployed.save(tmp_path / "net", force=True)
        assert not (tmp_path / "net" / END).exists()
        given = photos(1, SIZE)
        scores = wae.load_deployed(tmp_path / "net")(given)
        assert scores.shape == (1, classes, *SIZE)
        assert_close(scores, network(given))


def test_a_folder_of_a_version_without_ends_is_read(tmp_path: Path) -> None:
    """Its JSON file has no entry for the end. An entry without the file is an error."""
    needs("onnxruntime")
    many = wae_segmenter(nn.Conv2d(3, 33, 3, padding=1)).eval()
    deploy(many, SIZE, engine="onnxruntime").save(tmp_path / "net")
    about = json.loads((tmp_path / "net" / ABOUT).read_text())
    assert about.pop("end") is False
    assert about["format"] == 1
    (tmp_path / "net" / ABOUT).write_text(json.dumps(about))
    given = photos(1, SIZE)
    assert_close(wae.load_deployed(tmp_path / "net")(given), many(given))
    (tmp_path / "net" / ABOUT).write_text(json.dumps({**about, "end": True}))
    with pytest.raises(SavedError, match=f"{END} is damaged"):
        wae.load_deployed(tmp_path / "net")


def test_all_batchnorms_are_folded(model: WAESegmenter) -> None:
    given = photos(2, SIZE)
    folded = fold(model, given)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert_close(folded(given), model(given))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_a_segmenter_is_saved_and_loaded(engine: str, model: WAESegmenter, tmp_path: Path) -> None:
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine)
    deployed.save(tmp_path / "net")
    loaded = wae.load_deployed(tmp_path / "net")
    given = photos(1, SIZE)
    assert_close(loaded(given), deployed(given))
    assert_close(loaded(photos(2, SIZE).fill_(9)), model(photos(2, SIZE).fill_(9)))


@pytest.mark.parametrize("file_format", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_segmenter_is_exported(file_format: str, model: WAESegmenter, tmp_path: Path) -> None:
    if file_format == "onnx":
        needs("onnxruntime")
    path = tmp_path / f"net{FORMATS[file_format].suffix}"
    report = export(model, path, file_format, SIZE)
    assert report["difference"] <= 1e-4
    run = FORMATS[file_format].load(path.read_bytes())
    given = photos(1, SIZE)
    assert_close(run(given), model(given), 1e-4)


@pytest.mark.parametrize("engine", INT8)
def test_int8_predicts_the_models_classes_of_most_pixels(engine: str, model: WAESegmenter) -> None:
    if reason := ENGINES[engine].why_not("cpu", "int8"):
        pytest.skip(reason)
    data = images(48)
    torch.manual_seed(9)
    for layer in model.fusion.children():  # initially the classes are too far apart for int8 to matter
        layer.reset_parameters()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.filters", [])  # about the libraries' own parts
        options = {"precision": "int8", "calibration": data, "calibration_images": 16}
        deployed = deploy(model, SIZE, 2, engine, max_drop=0.2, **options)
        with pytest.raises(DisagreementError, match=r"loses .* of agreement with it on 32 images"):
            deploy(model, SIZE, 2, engine, max_drop=0.0, **options)
    report = deployed.report
    assert report["checked_images"] == 32
    assert 0.8 <= report["agreement"] < 1
    assert report["drop"] == pytest.approx(1 - report["agreement"])
    with torch.no_grad():
        share = (deployed(data[1::2][:2]).argmax(1) == model(data[1::2][:2]).argmax(1)).double().mean()
    assert share >= 0.8


def test_pixels_that_are_not_counted_do_not_affect_the_accuracy() -> None:
    wanted = torch.tensor([[[0, 1], [2, 2]]]).expand(3, 2, 2)
    images = torch.tensor([[[0, 1], [2, 0]]]).expand(3, 3, 2, 2)  # of the classes that are found
    labels = torch.tensor([[[0, 0], [-100, 2]]]).expand(3, 2, 2)
    data = Calibration(images, images, labels)
    report = agreement(
        lambda given: F.one_hot(given[:, 0], 3).movedim(-1, 1), 2, wanted, data, torch.device("cpu")
    )
    assert report["agreement"] == 0.75
    assert report["accuracy"] == {"model": 2 / 3, "deployed": 1 / 3}
    assert report["drop"] == pytest.approx(1 / 3)
