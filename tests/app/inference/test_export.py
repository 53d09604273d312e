"""`wae.export` and `wae export`: the files run in a new process and give the model's scores."""

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_networks import SIZE, photos
from torch import nn

from wae import cli
from wae.inference import executorch, export
from wae.inference.agreement import DisagreementError
from wae.inference.engines import EngineError, to_onnx
from wae.models.vgg16 import wae_vgg16
from wae.storage.checkpoint import Description, Input, save_classifier

FORMATS = ["onnx", "torch", "aoti", "executorch"]

DESCRIBED = Description("wae_vgg16", 5, tuple("abcde"), Input(48, 50, True))

LOAD = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
says = session.get_modelmeta().custom_metadata_map
assert [node.name for node in (*session.get_inputs(), *session.get_outputs())] == ["images", "scores"]
run = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
assert not {"wae", "wae_kernels"} & set(sys.modules)
""",
    "torch": """
import wae_kernels
extra = {"metadata.json": ""}
program = torch.export.load(path, extra_files=extra)
says = json.loads(extra["metadata.json"])
run = program.module()
assert "torch.ops.wae.encode.default" in program.graph_module.code
assert "wae" not in sys.modules
""",
    "aoti": """
import wae_kernels
run = torch._inductor.aoti_load_package(path)
says = run.get_metadata()
assert "wae" not in sys.modules
try:
    run(torch.load(cases)[0][0].double())
    raise SystemExit("images of another dtype were taken")
except RuntimeError as error:
    assert "unmatched dtype" in str(error)
""",
}

LOAD["executorch"] = """
from executorch.runtime import Runtime
program = Runtime.get().load_program(path)
says = {name: program.load_method(name).execute([])[0] for name in program.method_names - {"forward"}}
method = program.load_method("forward")
run = lambda images: method.execute([images.contiguous()])[0]
assert not {"wae", "wae_kernels"} & set(sys.modules)
"""

COMPARE = """
assert {key: says.get(key) for key in expected_of_file} == expected_of_file
for images, expected in torch.load(cases):
    scores = run(images)
    assert scores.shape == expected.shape
    broken = expected.isnan()
    assert torch.equal(scores.isnan(), broken)
    assert (scores - expected)[~broken].norm() <= 1e-5 * expected[~broken].norm()
"""


def run_in_a_new_process(file_format, path, model, images, says=None):
    """Load ``path`` without this package, and compare with the model on each of ``images``."""
    cases = path.with_name("cases.pt")
    with torch.no_grad():
        torch.save([(x, model(x)) for x in images], cases)
    values = f"path, cases, expected_of_file = {str(path)!r}, {str(cases)!r}, {says or {}!r}"
    code = f"import json, sys, torch\n{values}\n{LOAD[file_format]}{COMPARE}"
    subprocess.run([sys.executable, "-c", code], check=True)


def foreign_paths(content):
    """The folders of this machine whose paths are in the content of a file, zipped or not."""
    folders = [Path(torch.__file__).parents[1], Path(export.__file__).parents[3], Path(tempfile.gettempdir())]
    parts = [content]
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    return [str(folder) for folder in folders if any(f"{folder}/".encode() in part for part in parts)]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.slow
def test_a_file_runs_in_a_new_process(file_format, model, tmp_path):
    if file_format == "executorch" and (reason := executorch.why_not()):
        pytest.skip(reason)
    form = export.FORMATS[file_format]
    path, batch = tmp_path / f"new/model{form.suffix}", 2 if form.fixed else None
    assert export.export(model, path, file_format, SIZE, batch, described=DESCRIBED)["difference"] <= 1e-5
    assert os.listdir(path.parent) == [path.name]
    assert foreign_paths(path.read_bytes()) == []
    says = export.metadata(DESCRIBED, SIZE, torch.uint8)
    run_in_a_new_process(
        file_format, path, model, [photos(n) for n in ([batch] if batch else (1, 2, 5))], says
    )


def test_export_inside_autocast_is_exact(model, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        assert export.export(model, tmp_path / "model.pt2", "torch", SIZE)["difference"] <= 1e-5


def test_metadata_says_how_to_prepare_images():
    says = export.metadata(DESCRIBED, (48, 48), torch.float32)
    assert json.loads(says["labels"]) == ["a", "b", "c", "d", "e"]
    expected = {"resize": 50, "crop": [48, 48], "grayscale": True, "dtype": "float32", "mean": [0, 0, 0]}
    assert expected.items() <= json.loads(says["input"]).items()
    larger = json.loads(export.metadata(DESCRIBED, (224, 224), torch.uint8)["input"])
    assert larger["resize"] == round(224 * 50 / 48)  # the same share is cut off
    wide = json.loads(export.metadata(DESCRIBED, (48, 96), torch.uint8)["input"])
    assert wide["resize"] == wide["crop"] == [48, 96]  # no part of a square photo has this shape
    assert "labels" not in export.metadata(Description("wae_vgg16", 3), (224, 224), torch.uint8)


def test_foreign_paths_finds_a_path():
    assert foreign_paths(f"{tempfile.gettempdir()}/x".encode()) == [tempfile.gettempdir()]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.slow
def test_a_file_for_one_batch_size_and_floating_point_images(file_format, model, tmp_path):
    path = tmp_path / "model.pt2"
    export.export(model, path, file_format, SIZE, batch=2, image_dtype=torch.float32)
    broken = photos(2).float()
    broken[0, 1, 3, 4] = torch.nan
    run_in_a_new_process(file_format, path, model, [photos(2).float(), broken])


@pytest.mark.slow
def test_images_of_calibration_may_have_any_strides(model, tmp_path):
    """An AOTInductor file takes contiguous images only."""
    images = photos(20).contiguous(memory_format=torch.channels_last)
    options = {"calibration": images, "calibration_images": 10}
    assert export.export(model, tmp_path / "model.pt2", "aoti", SIZE, **options)["agreement"] == 1


@pytest.mark.parametrize("file_format", ["onnx", "torch"])
def test_a_network_other_than_wae_is_exported_for_uint8_images(file_format, stock, tmp_path):
    path = tmp_path / "model"
    assert export.export(stock, path, file_format, SIZE)["difference"] <= 1e-5
    assert path.is_file()


def test_an_onnx_file_has_only_standard_operators(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    export.export(model, tmp_path / "model.onnx", "onnx", SIZE)
    loaded = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"}
    assert sum(node.op_type == "Conv" for node in loaded.graph.node) == 5 + 2 + 2
    assert loaded.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for value in (*loaded.graph.input, *loaded.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"  # torch.export would call it "s34"


@pytest.mark.slow
def test_executorch_files_are_for_one_image_by_default(stock, tmp_path):
    if reason := executorch.why_not():
        pytest.skip(reason)
    path = tmp_path / "model.pte"
    export.export(stock, path, "executorch", SIZE, image_dtype=torch.float32)
    run_in_a_new_process("executorch", path, stock, [photos(1).float()])
    with pytest.raises(RuntimeError):
        executorch.load(path.read_bytes())(photos(2).float())


# ------------------------------------------------------------------------------------------ what is refused


def test_a_missing_executorch_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setattr(executorch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install executorch"):
        export.export(model, tmp_path / "model.pte", "executorch", SIZE)
    assert not os.listdir(tmp_path)


def test_a_file_is_replaced_only_by_force(model, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"dear")
    with pytest.raises(FileExistsError):
        export.export(model, path, "torch", SIZE)
    assert path.read_bytes() == b"dear"
    export.export(model, path, "torch", SIZE, force=True)
    assert path.read_bytes() != b"dear"


def test_a_file_with_other_scores_is_not_written(model, tmp_path, monkeypatch):
    wrong = export.Format(".pt2", export._make_torch, lambda content: lambda images: model(images) + 1)
    monkeypatch.setitem(export.FORMATS, "torch", wrong)
    with pytest.raises(DisagreementError, match="the torch file, given 2 images, gives scores that differ"):
        export.export(model, tmp_path / "model.pt2", "torch", SIZE)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("unpools", [True, False])
def test_a_file_of_a_network_with_unpooling_has_to_agree_once(model, tmp_path, monkeypatch, unpools):
    """With each of the three numbers of images; other images are tried."""
    if unpools:
        model.low_classifier[1].add_module("unpool", torch.nn.MaxUnpool2d(2).eval())
    left = iter(range(3))
    tied = export.Format(
        ".pt2", export._make_torch, lambda _: lambda images: model(images) + (next(left, None) is not None)
    )
    monkeypatch.setitem(export.FORMATS, "torch", tied)
    with nullcontext() if unpools else pytest.raises(DisagreementError, match="scores that differ"):
        export.export(model, tmp_path / "model.pt2", "torch", SIZE)
    assert os.listdir(tmp_path) == (["model.pt2"] if unpools else [])


def test_a_full_disk_is_reported_as_such(model, tmp_path, monkeypatch):
    def full(*arguments):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("the exporter's own") from error

    monkeypatch.setitem(export.FORMATS, "torch", replace(export.FORMATS["torch"], make=full))
    with pytest.raises(OSError, match="No space"):
        export.export(model, tmp_path / "model.pt2", "torch", SIZE)


def test_a_network_that_cannot_be_exported_is_refused(model, tmp_path):
    class Untraceable(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x if x.mean() > -1e9 else -x)

    model.low_body = Untraceable(model.low_body).eval()
    with pytest.raises(EngineError, match="torch does not take this network"):
        export.export(model, tmp_path / "model.pt2", "torch", SIZE)
    assert not os.listdir(tmp_path)


def test_a_path_may_be_a_string(model, tmp_path):
    (tmp_path / "model.pt2").touch()
    with pytest.raises(FileExistsError):
        export.export(model, str(tmp_path / "model.pt2"), "torch", SIZE)


def test_wrong_arguments_are_refused_by_name(model, tmp_path):
    for wrong in ({"file_format": "tflite"}, {"size": (0, 1)}, {"batch": 0}, {"image_dtype": torch.int8}):
        arguments = {"file_format": "torch", "size": SIZE, **wrong}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            export.export(model, tmp_path / "model", **arguments)
    with pytest.raises(ValueError, match="evaluation mode"):
        export.export(model.train(), tmp_path / "model", "torch", SIZE)


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "wae_vgg16.safetensors"
    save_classifier(path, wae_vgg16(3), "wae_vgg16", input=Input(size=193, resize=193))
    return path


def run(*arguments):
    return cli.main(["export", *map(str, arguments)])


@pytest.mark.slow
def test_command_exports_a_checkpoint(checkpoint, tmp_path, capsys):
    path = tmp_path / "model.pt2"
    assert run(checkpoint, "-o", path, "--format", "torch", "--batch", "dynamic") == 0
    assert "relative difference of its scores from the model's" in capsys.readouterr().out
    assert torch.export.load(path).module()(photos(1, (193, 193))).shape == (1, 3)
    before = path.read_bytes()
    assert run(checkpoint, "-o", path, "--format", "torch") == 1
    assert "--force" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run(checkpoint, "-o", path, "--format", "torch", "--size", "40", "--force") == 1
    assert "the model takes no images of 40 x 40" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_command_refuses_a_dynamic_batch_for_executorch(tmp_path, capsys):
    options = "--format", "executorch", "--batch", "dynamic"
    assert run(tmp_path / "missing", "-o", tmp_path / "model.pte", *options) == 2
    assert (
        "--batch: an executorch file needs a fixed number of images, got dynamic" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["torch", "aoti", "executorch"])
def test_command_refuses_int8_in_another_format_before_anything_is_read(name, tmp_path, capsys):
    options = "--format", name, "--precision", "int8"
    assert run(tmp_path / "missing", "-o", tmp_path / "model", *options) == 2
    assert capsys.readouterr().err == f"wae: --precision: int8 needs the format onnx, got {name}\n"


def test_command_refuses_files_that_are_not_checkpoints(tmp_path, capsys):
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    for name in ("rubbish", "missing"):
        assert run(tmp_path / name, "-o", tmp_path / "model.onnx") == 1
        assert name in capsys.readouterr().err
    assert run(tmp_path / "rubbish", "-o", tmp_path / "rubbish", "--force") == 1
    assert (tmp_path / "rubbish").read_bytes() == b"rubbish"


@pytest.mark.parametrize("wrong", [("--format", "tflite"), ("--batch", "0"), ("--size", "x")], ids=str)
def test_command_refuses_wrong_options(wrong, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "weights", "-o", tmp_path / "model", *wrong)
    assert exit.value.code == 2


def test_the_exporters_own_warnings_do_not_reach_the_terminal(monkeypatch, capfd):
    """onnx_ir warns about each empty list among the attributes of an ENet's operators."""
    logger = logging.getLogger("onnx_ir.convenience")
    export = torch.onnx.export

    def warns(*args, **options):
        logger.warning("ambiguous")
        return export(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", warns)
    to_onnx(nn.Identity().eval(), (torch.zeros(1, 3, 4, 4),))
    assert capfd.readouterr().err == ""
    assert logging.getLogger("onnx_ir").level == logging.NOTSET
