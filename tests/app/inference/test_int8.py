"""`wae.deploy` and `wae.export` with calibration: scales from images, a report on held-out ones, a limit."""

import json
from functools import partial

import pytest
import torch
import torchvision
from PIL import Image
from small_networks import SIZE, needs, small_wae
from tiny_classifier import tiny
from torch import nn

import wae
from wae.data.input import Input
from wae.difference import relative_difference
from wae.inference import agreement, encoder_int8
from wae.inference import deploy as deploying
from wae.inference import export as exporting
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError, gather
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine, EngineError, in_onnxruntime
from wae.inference.engines.in_file import InFile
from wae.inference.engines.int8 import Simulation, movements_between, require_same
from wae.inference.export import export
from wae.inference.timing import Timing
from wae.storage.checkpoint import Description
from wae_kernels import backends

INT8 = [
    pytest.param(name, marks=pytest.mark.slow)
    for name, engine in ENGINES.items()
    if "int8" in engine.precisions
]


@pytest.fixture
def separable():
    """A network with random weights whose scores of dark and light images are far apart."""
    torch.manual_seed(0)
    return small_wae()


def images(count):
    """Dark and light images, with noise."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 60, (count, 3, *SIZE), generator=random)
    return (noise + 180 * (torch.arange(count) // 3 % 2)[:, None, None, None]).to(torch.uint8)


def int8(model, engine, data, **options):
    reason = ENGINES[engine].why_not("cpu", "int8")
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.filters", [])  # about the libraries' own parts
        return deploy(
            model, SIZE, 2, engine, precision="int8", calibration=data, calibration_images=16, **options
        )


@pytest.mark.parametrize("engine", INT8)
def test_int8_predicts_the_models_classes(engine, separable):
    data = images(48)
    with torch.no_grad():
        labels = separable(data).argmax(1)
    deployed = int8(separable, engine, [(data[:20], labels[:20]), (data[20:], labels[20:])], max_drop=0.1)
    assert deployed.precision == "int8"
    assert deployed._prepared.simulation is None  # which would keep its results in memory
    report = json.loads(json.dumps(deployed.report))
    assert report["calibration_images"] == 16
    assert report["checked_images"] == 32
    assert report["agreement"] >= 0.9
    assert report["accuracy"]["model"] == 1
    assert report["drop"] == pytest.approx(1 - report["accuracy"]["deployed"])
    assert report["encoder"]["precision"] in ("float32", "int8")
    differences = [difference for _, difference in report["layers"]]
    assert len(differences) >= 5
    assert differences == sorted(differences, reverse=True)
    assert 0 < differences[-1] < differences[0] < 0.5
    for count in (2, 1, 5):
        scores = deployed(data[:count])
        with torch.no_grad():
            expected = separable(data[:count])
        assert scores.dtype == torch.float32
        assert 0 < (scores - expected).norm() <= 0.1 * expected.norm()  # int8, and near


@pytest.mark.parametrize("engine", INT8)
def test_too_large_a_drop_is_refused_and_names_the_layers(engine, separable):
    """With a negative limit any drop is too large."""
    data = images(40)
    with pytest.raises(
        DisagreementError, match=r"loses .* of agreement with it on 24 images.*most moved: \S+ \("
    ):
        int8(separable, engine, data, max_drop=-1.0)


@pytest.mark.parametrize("engine", INT8)
def test_kernels_that_compute_something_else_than_the_quantized_network_are_refused(
    engine, separable, monkeypatch
):
    """Also if no class changes, so that max_drop does not see it."""
    opened = Engine.open

    def open(*given):
        run = opened(*given)
        return lambda *inputs: 1.3 * run(*inputs)

    monkeypatch.setattr(Engine, "open", open)
    with pytest.raises(DisagreementError, match=rf"{engine}'s int8 kernels .* by 0\.[23].* only by 0\.0"):
        int8(separable, engine, images(64))


@pytest.mark.slow
@pytest.mark.parametrize("engine", INT8)
def test_every_layer_of_a_resnet_is_near_float32_in_int8(engine):
    torch.manual_seed(0)
    network = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 5)
    deployed = int8(network.eval(), engine, images(48).float() / 255, max_drop=1.0)
    differences = [difference for _, difference in deployed.report["layers"]]
    assert len(differences) >= 17  # the convolutions, and the classifier if the engine names it
    assert 0 < differences[-1] < differences[0] < 0.3


@pytest.mark.slow
def test_an_int8_onnx_file_runs_in_other_runtimes(separable, tmp_path):
    needs("onnxruntime")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, data = tmp_path / "model.onnx", images(48)
    report = export(
        separable, path, "onnx", SIZE, precision="int8", calibration=data, calibration_images=16, max_drop=0.2
    )
    assert report["agreement"] >= 0.8
    assert report["layers"]
    import onnx

    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    scores = onnxruntime.InferenceSession(path).run(None, {"images": data[:5].numpy()})[0]
    with torch.no_grad():
        expected = separable(data[:5])
    assert (torch.from_numpy(scores) - expected).norm() <= 0.2 * expected.norm()
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    scores = torch.from_numpy(next(iter(compiled([data[:5].numpy()]).values())))
    assert (scores - expected).norm() <= 0.2 * expected.norm()


@pytest.mark.parametrize(("count", "batch"), [(8, 4), (10, 4), (3, 8)])
def test_a_file_takes_its_scales_from_every_image(count, batch, monkeypatch):
    """Even if its batch is larger than the number of images."""
    given = []
    nothing = Simulation((), (), ())
    monkeypatch.setattr(in_onnxruntime, "quantize", lambda path, samples, _: given.extend(samples) or nothing)
    data = torch.arange(count).view(count, 1, 1, 1)
    exporting._in_int8(b"", data, batch)
    assert {len(part) for (part,) in given} == {batch}
    assert torch.cat([part for (part,) in given]).unique().tolist() == list(range(count))


@pytest.mark.slow
@pytest.mark.skipif(not backends.int8_runs(), reason="this CPU has no VNNI")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_encoder_hands_bytes_over(engine, separable, tmp_path, monkeypatch):
    found = {"float32": Timing(2, 2, 2, 3), "int8": Timing(1, 1, 1, 3)}
    monkeypatch.setattr(encoder_int8, "interleaved", lambda functions, _: found)
    data = images(48)
    deployed = int8(separable, engine, data, max_drop=None)
    assert {x.dtype for x in deployed._front(data[:2])} <= {torch.int8, torch.uint8}
    expected = deployed(data[:2])
    with monkeypatch.context() as patched:
        patched.setattr(InFile, "take_bytes", lambda prepared: ())
        by_numbers = int8(separable, engine, data, max_drop=None)
    assert {x.dtype for x in by_numbers._front(data[:2])} == {torch.float32}
    # both round the same numbers; one halfway between two bytes may round either way
    assert relative_difference(by_numbers(data[:2]), expected) < 0.02
    deployed.save(tmp_path / "net")
    again = wae.load_deployed(tmp_path / "net")
    assert torch.equal(again(data[:2]), expected)
    broken = data[:2].float()
    assert relative_difference(again(broken), expected) < 0.1
    broken[1, 0, 3, 3] = torch.nan
    assert again(broken).isnan().all(1).tolist() == [False, True]


def test_int8_without_images_is_refused(model, tmp_path):
    with pytest.raises(CalibrationError, match="int8 takes its scales from images"):
        deploy(model, SIZE, precision="int8")
    with pytest.raises(CalibrationError, match="int8 takes its scales from images"):
        export(model, tmp_path / "model.onnx", "onnx", SIZE, precision="int8")
    with pytest.raises(ValueError, match="int8 needs the format onnx, got torch"):
        export(model, tmp_path / "m.pt2", "torch", SIZE, precision="int8", calibration=images(4))
    with pytest.raises(EngineError, match=r"eager computes in .*, not in int8"):
        deploy(model, SIZE, engine="eager", precision="int8", calibration=images(200))


def test_labels_of_the_wrong_shape_are_refused(model, tmp_path):
    """For example one-hot ones. If the shapes agreed by chance, the comparison would go unnoticed."""
    data = [(images(20), torch.eye(5).repeat(4, 1))]
    for make in (
        partial(deploy, engine="eager"),
        partial(export, path=tmp_path / "net", file_format="torch"),
    ):
        with pytest.raises(CalibrationError, match=r"labels must be class numbers, \(N\), got \(N, 5\)"):
            make(model, size=SIZE, calibration=data, calibration_images=10)


@pytest.mark.parametrize(
    ("label", "message"),
    [(5, "labels must be below 5, .* got 5"), (torch.nan, "got nan"), (-1, "all labels are negative")],
)
def test_labels_that_are_not_classes_are_refused(label, message, model):
    """Such as 255 for pixels that do not count: the accuracy, and so the drop, would be wrong or NaN."""
    data = [(images(20), torch.full((20,), label))]
    with pytest.raises(CalibrationError, match=message):
        deploy(model, SIZE, engine="eager", calibration=data, calibration_images=10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32], ids=str)
def test_labels_of_any_dtype_that_holds_them(dtype, model):
    """PyTorch has no comparison for the 16-bit numbers of label PNGs."""
    data = images(20)
    with torch.no_grad():
        labels = model(data).argmax(1).to(dtype)
    deployed = deploy(model, SIZE, engine="eager", calibration=[(data, labels)], calibration_images=10)
    assert deployed.report["accuracy"] == {"model": 1, "deployed": 1}


@pytest.mark.parametrize("wrong", ["0.1", torch.nan, True])
def test_limits_that_are_not_numbers_are_refused(wrong, model, tmp_path):
    for make in (deploy, partial(export, path=tmp_path / "n", file_format="torch")):
        with pytest.raises(ValueError, match="max_drop must be a number, got "):
            make(model, size=SIZE, max_drop=wrong)
    with pytest.raises(ValueError, match="seconds must be a number, got "):
        deploy(model, SIZE, seconds=wrong)


def test_images_that_are_not_bytes_are_not_cast_to_uint8(stock, tmp_path):
    """Numbers around 0, as networks without their own scale expect, would become 0, 1 and 255."""
    path, options = tmp_path / "model.pt2", {"calibration_images": 10, "max_drop": None}
    data = torch.randn(20, 3, *SIZE)
    with pytest.raises(CalibrationError, match="uint8 images, but these are not integers from 0 to 255"):
        export(stock, path, "torch", SIZE, calibration=data, **options)
    for dtype, same in ((torch.float32, data), (torch.uint8, images(20).float())):
        report = export(stock, path, "torch", SIZE, None, dtype, True, calibration=same, **options)
        assert report["agreement"] == 1


def test_any_precision_is_checked_on_images(model, monkeypatch):
    monkeypatch.setattr(agreement, "_PIXELS_AT_ONCE", 1)  # fewer than an image has, so one image at a time
    report = deploy(
        model,
        SIZE,
        engine="eager",
        precision="bfloat16",
        calibration=images(20),
        calibration_images=10,
        max_drop=1,
    ).report
    assert report["checked_images"] == 10
    assert report["accuracy"] is None
    assert report["agreement"] == 1 - report["drop"]
    assert "layers" not in report


def test_calibration_files_are_prepared_as_the_checkpoint_says(tmp_path, monkeypatch):
    for n in range(12):
        Image.new("RGB", (40, 30), (20 * n, 255 - 20 * n, 9)).save(tmp_path / f"{n:02}.png")
    gathered = []

    def spy(*arguments):
        gathered.append(gather(*arguments))
        return gathered[-1]

    for module in (deploying, exporting):
        monkeypatch.setattr(module, "gather", spy)
    grey, size = Input(8, 9, grayscale=True), (16, 16)
    options = {"calibration": tmp_path, "calibration_images": 5, "max_drop": None}
    deploy(tiny(), size, engine="eager", input=grey, **options)
    export(
        tiny(),
        tmp_path / "model.pt2",
        "torch",
        size,
        described=Description("wae_vgg16", 3, input=grey),
        **options,
    )
    for red, green, blue in (found.images.unbind(1) for found in gathered):
        assert torch.equal(red, green)
        assert torch.equal(red, blue)
    deploy(tiny(), size, engine="eager", **options)
    first = [found.images[0, :, 0, 0].tolist() for found in gathered]  # of the second file: see gather
    assert first == [[145] * 3, [145] * 3, [20, 235, 9]]


def test_auto_tries_int8_only_with_calibration(monkeypatch):
    monkeypatch.setattr(deploying.precisions, "native", lambda name, device: True)
    own, device = torch.float32, torch.device("cpu")
    assert deploying._precisions("auto", own, device, False) == ["float32", "bfloat16", "float16"]
    assert deploying._precisions("auto", own, device, True)[-1] == "int8"


def test_layers_are_listed_by_how_much_they_moved():
    before = {name: torch.ones(4) for name in "abc"}
    after = {"a": torch.full((4,), 1.1), "b": torch.full((4,), 1.5), "d": torch.ones(4)}
    moved = movements_between(before, after)
    assert [name for name, _ in moved] == ["b", "a"]
    assert moved[0].difference == pytest.approx(0.5)


def test_a_graph_must_agree_on_one_set_of_inputs():
    """With unpooling two right computations may differ on some."""
    sets = [[torch.ones(2)], [torch.zeros(2)]]
    require_same(nn.Identity(), lambda x: x * x.max(), [*sets, [torch.full((2,), 2.0)]])
    for wrong in (lambda x: x + 1, lambda x: x / 0, lambda x: x[:1]):
        with pytest.raises(ValueError, match="something else"):
            require_same(nn.Identity(), wrong, sets)


def test_the_inputs_on_which_a_graph_is_compared_stay_as_they_are():
    """A network may change its inputs, and torchao takes scales from these later."""
    inputs = [torch.ones(2)]
    require_same(lambda x: x.mul_(2), lambda x: x.mul_(2), [inputs])
    assert inputs[0].tolist() == [1, 1]
