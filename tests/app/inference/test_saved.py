"""`Deployed.save` and `wae.load_deployed`: the scores are the same; damage and other versions are refused."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import TestCase

import pytest
import safetensors.torch
import torch
from default_dtype import with_default_dtype
from small_networks import SIZE, needs, photos, small_wae
from test_export import foreign_paths
from test_int8 import images, int8
from torch import nn

import wae
from wae.inference import encoder_int8, saved, saving
from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, EngineError, in_torchao
from wae.inference.engines.int8 import ByteInput
from wae.inference.front import Front
from wae.inference.saving import SavedError
from wae.models.baselines import wavelet_cnn
from wae.models.haar import Haar

ENGINES_SAVED = [
    pytest.param(name, marks=pytest.mark.slow) for name, engine in ENGINES.items() if engine.load is not None
]

LOAD = """
import sys, torch, wae
sys.modules.update(onnx=None, onnxscript=None)  # as if they were not installed: they only convert
deployed = wae.load_deployed({folder!r})
for images, expected in torch.load({cases!r}):
    assert (deployed(images) - expected).norm() <= 1e-5 * expected.norm()
assert "torch._inductor.codegen.cpp_wrapper_cpu" not in sys.modules  # no compiler
"""


@pytest.mark.parametrize("engine", ENGINES_SAVED)
def test_a_saved_network_gives_the_same_scores_in_a_new_process(engine, model, tmp_path):
    needs(engine)
    deployed = deploy(model, SIZE, 2, engine)
    deployed.save(tmp_path / "net")
    for path in (tmp_path / "net").rglob("*.*"):
        assert foreign_paths(path.read_bytes()) == [], path
    cases = [(x, deployed(x)) for x in (photos(2), photos(1), photos(5))]
    again = wae.load_deployed(tmp_path / "net")
    assert repr(again) == repr(deployed)
    for x, expected in cases:
        assert (again(x) - expected).norm() <= 1e-5 * expected.norm()
    with pytest.raises(ValueError, match="images must be"):
        again(photos(1, (33, 20)))
    torch.save(cases, tmp_path / "cases.pt")
    code = LOAD.format(folder=str(tmp_path / "net"), cases=str(tmp_path / "cases.pt"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Exporting(nn.Module):
    """Computes something else while it is exported, as networks from libraries may."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, scale=1.0):
        return self.network(images) * (2 * scale if torch.compiler.is_exporting() else scale)


@pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_what_is_saved_is_compared_with_the_network(engine, stock, tmp_path):
    deployed = deploy(Exporting(stock).eval(), SIZE, 2, engine)
    with pytest.raises(DisagreementError, match=f"{engine}, saved and loaded, gives scores that differ"):
        deployed.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "compile"])
def test_an_int8_network_is_saved_with_its_report(engine, model, tmp_path, monkeypatch):
    deployed = int8(model, engine, images(48), max_drop=None)
    deployed.save(tmp_path / "net")
    lower, calls = in_torchao.lowered, []
    monkeypatch.setattr(in_torchao, "lowered", lambda *given: calls.append(given) or lower(*given))
    for converter in ("nncf", "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, converter, None)  # as if it were not installed
    again = wae.load_deployed(tmp_path / "net")
    assert len(calls) == (engine == "compile")  # which takes seconds
    assert again.precision == "int8"
    assert type(again._front.encoder) is type(deployed._front.encoder)
    assert again.report == deployed.report
    x = images(2)
    assert torch.allclose(again(x), deployed(x), rtol=1e-3, atol=1e-4)


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_openvino_believes_no_damaged_file(precision, model, tmp_path):
    """Its own cache of compiled networks gave scores that were wrong by 20 %, without an error."""
    needs("openvino")
    deployed = (
        int8(model, "openvino", images(48), max_drop=None)
        if precision == "int8"
        else deploy(model, SIZE, 2, "openvino")
    )
    folder, x = tmp_path / "net", images(3)
    deployed.save(folder)
    saved_files = _contents(folder)
    assert torch.allclose(wae.load_deployed(folder)(x), deployed(x), rtol=1e-3, atol=1e-4)  # 2 images, then 1
    assert _contents(folder) == saved_files  # another number of images stores nothing that is not checked
    for path, content in saved_files.items():
        half = len(content) // 2
        (folder / path).write_bytes(content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :])
        with pytest.raises(SavedError, match=f"{path} is damaged"):
            wae.load_deployed(folder)
        (folder / path).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_loading_does_not_run_the_network(engine, model, tmp_path, monkeypatch):
    """So that the scores of the first images come as early as possible."""
    needs(engine)
    deploy(model, SIZE, 2, engine).save(tmp_path / "net")
    monkeypatch.setattr(Front, "_inputs", lambda *_: pytest.fail("the encoder ran"))
    wae.load_deployed(tmp_path / "net")


def test_a_network_without_an_encoder_is_saved(stock, tmp_path):
    deployed = deploy(stock, SIZE, engine="eager")
    deployed.save(tmp_path / "net")
    x = torch.randn(1, 3, *SIZE)
    assert torch.equal(wae.load_deployed(tmp_path / "net")(x), deployed(x))
    assert not (tmp_path / "net" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "engine", ["eager", "openvino", "onnxruntime", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_a_loaded_network_can_be_saved_again(engine, model, tmp_path):
    needs(engine)
    deploy(model, SIZE, engine=engine).save(tmp_path / "first")
    loaded = wae.load_deployed(tmp_path / "first")
    x = photos(1)
    expected = loaded(x)
    loaded.save(tmp_path / "second")
    loaded.save(tmp_path / "first", force=True)  # into the folder that it runs from
    for name in ("first", "second"):
        assert torch.allclose(wae.load_deployed(tmp_path / name)(x), expected, rtol=1e-5, atol=1e-5)
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        path.name for path in (tmp_path / "second").iterdir()
    }


def test_a_loaded_network_does_not_depend_on_the_current_folder(model, tmp_path, monkeypatch):
    """ONNX Runtime and OpenVINO read the files again for another number of images, and `save` does too."""
    needs("onnxruntime")
    monkeypatch.chdir(tmp_path)
    deploy(model, SIZE, 2, "onnxruntime").save("net")
    loaded = wae.load_deployed("net")
    monkeypatch.chdir("/")
    assert loaded(photos(1)).shape == (1, 5)
    loaded.save(tmp_path / "again")


def test_a_folder_may_have_any_unicode_name_and_no_other(model, tmp_path):
    """The engines' C++ opens no path of other bytes; they said so in words about their own code."""
    deployed, odd = deploy(model, SIZE, 1, "eager"), tmp_path / "-\n \u00e9\U0001f600"
    deployed.save(odd)
    assert wae.load_deployed(odd).engine == "eager"
    no_text = tmp_path / "a\udcff"
    for use in (deployed.save, wae.load_deployed):
        with pytest.raises(SavedError, match=r"a\\udcff': a name in this path is not UTF-8"):
            use(no_text)
    assert list(tmp_path.iterdir()) == [odd]


@pytest.mark.parametrize("part", ["", "conv1"])
def test_an_encoder_with_hooks_is_not_saved(part, model, tmp_path):
    """It can be deployed, but a folder holds only its tensors: a loaded one would give other scores."""
    model.encoder.get_submodule(part).register_forward_hook(lambda module, args, output: output)
    deployed = deploy(model, SIZE, engine="eager")
    with pytest.raises(EngineError, match="the encoder cannot be saved: it has hooks"):
        deployed.save(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_an_encoder_with_its_own_forward_is_not_saved(model, tmp_path):
    haar = wavelet_cnn(model).eval().encoder
    haar.forward = lambda *given: tuple(2 * part for part in Haar.forward(haar, *given))
    with pytest.raises(EngineError, match=r"the encoder cannot be saved: it has .* a forward of its own"):
        deploy(model, SIZE, engine="eager").save(tmp_path / "net")


@pytest.fixture
def folder(model, tmp_path):
    deploy(model, SIZE, engine="eager").save(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("part", ["_tensors", "sha256"], ids=["between its parts", "between its checks"])
def test_a_folder_that_is_replaced_while_it_is_loaded(part, folder, monkeypatch):
    """The encoder and the network must be of the same save."""
    new, read = deploy(small_wae(), SIZE, engine="eager"), getattr(saved, part)

    def replaced(path):
        monkeypatch.setattr(saved, part, read)
        new.save(folder, force=True)
        return read(path)

    monkeypatch.setattr(saved, part, replaced)
    images = photos(1)
    assert torch.allclose(wae.load_deployed(folder)(images), new(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_encoder_is_loaded_as_it_was_saved(own, default, model, tmp_path):
    """Whatever torch's default dtype is."""
    deployed = deploy(model.to(own), SIZE, engine="eager")
    deployed.save(tmp_path / "net")
    with with_default_dtype(default):
        loaded = wae.load_deployed(tmp_path / "net")
    saved_state, state = (x._front.encoder.state_dict() for x in (deployed, loaded))
    for name, tensor in saved_state.items():
        assert state[name].dtype == own
        assert torch.equal(state[name], tensor), name


def test_loading_draws_no_random_numbers(folder):
    """Not even for layers' initial weights, which are overwritten."""
    before = torch.get_rng_state()
    wae.load_deployed(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_is_replaced_only_by_force_and_only_if_it_holds_a_network(model, folder, tmp_path):
    deployed = deploy(model, SIZE, engine="eager")
    with pytest.raises(FileExistsError, match="is there already"):
        deployed.save(folder)
    deployed.save(folder, force=True)
    assert wae.load_deployed(folder).engine == "eager"
    (tmp_path / "else").mkdir()
    with pytest.raises(FileExistsError, match=r"it has no deployed\.json"):
        deployed.save(tmp_path / "else", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "net"]  # nothing left beside them


@pytest.mark.parametrize("name", ["network.pt2", "encoder.safetensors", "deployed.json"])
def test_a_damaged_file_is_refused_by_name(name, folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SavedError, match=f"{name} is damaged"):
        wae.load_deployed(folder)
    (folder / name).unlink()
    with pytest.raises(SavedError, match=r"is missing|holds no deployed network"):
        wae.load_deployed(folder)


@pytest.mark.parametrize("key", ["torch", "processor", "instructions for"])
def test_another_version_is_refused_or_rebuilt(key, folder):
    about = json.loads((folder / "deployed.json").read_text())
    about["made by"][key] = "another"
    (folder / "deployed.json").write_text(json.dumps(about))
    with pytest.raises(SavedError, match=rf"made by {key} another \(here .*rebuild=True"):
        wae.load_deployed(folder)
    with TestCase().assertLogs("wae", "WARNING") as log:
        assert wae.load_deployed(folder, rebuild=True).engine == "eager"
    assert f"made by {key} another" in log.output[0]
    about["engine"] = "compile"
    (folder / "deployed.json").write_text(json.dumps(about))
    with pytest.raises(SavedError, match="compiled code cannot be rebuilt"):
        wae.load_deployed(folder, rebuild=True)


def test_a_cpu_without_instructions_for_int8_is_another_one(folder, monkeypatch):
    """Sums of 8-bit weights saturate there, which nobody would notice. Older folders do not name them."""
    monkeypatch.setattr(saving, "native", lambda name, device: name != "int8")
    with pytest.raises(SavedError, match=r"made by instructions for .*rebuild=True"):
        wae.load_deployed(folder)
    about = json.loads((folder / "deployed.json").read_text())
    del about["made by"]["instructions for"]
    (folder / "deployed.json").write_text(json.dumps(about))
    assert wae.load_deployed(folder).engine == "eager"


def replace_encoder(folder, tensors, **entries):
    """Replace the encoder's tensors in ``folder``, with the checksum and ``entries`` in its JSON file."""
    path, about = folder / saving.ENCODER, json.loads((folder / saving.ABOUT).read_text())
    safetensors.torch.save_file(tensors, path)
    about["files"][saving.ENCODER] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / saving.ABOUT).write_text(json.dumps(about | entries))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("conv2.weight"),
        lambda tensors: tensors.pop("conv1.bias"),
        lambda tensors: tensors.update({"low.weight": torch.zeros(3, 16)}),
        lambda tensors: tensors.update(another=torch.zeros(1)),
        lambda tensors: tensors.clear(),
    ],
    ids=["no weight", "no bias, which tells the width", "another shape", "one too many", "none"],
)
def test_replaced_tensors_with_a_valid_checksum_are_refused(change, folder):
    tensors = safetensors.torch.load_file(folder / saving.ENCODER)
    change(tensors)
    replace_encoder(folder, tensors)
    with pytest.raises(SavedError, match=r"encoder\.safetensors is damaged: it has other tensors"):
        wae.load_deployed(folder)


def test_a_later_format_is_refused(folder):
    about = json.loads((folder / "deployed.json").read_text())
    (folder / "deployed.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(SavedError, match="has format 99"):
        wae.load_deployed(folder)


def test_an_engine_without_files_cannot_be_saved(model, tmp_path, monkeypatch):
    deployed = deploy(model, SIZE, engine="eager")
    monkeypatch.setitem(saving.ENGINES, "eager", replace(ENGINES["eager"], load=None))
    with pytest.raises(EngineError, match="eager on cpu cannot be saved"):
        deployed.save(tmp_path / "net")


@pytest.mark.parametrize("value", [None, -1, "odd", [], {}])
def test_every_damaged_entry_is_refused(value, stock, tmp_path):
    deploy(stock, SIZE, engine="eager").save(tmp_path / "net")
    path = tmp_path / "net" / saving.ABOUT
    about = json.loads(path.read_text())
    for entry in ("engine", "precision", "batch", "size", "dtypes", "inputs", "files", "made by"):
        path.write_text(json.dumps({**about, entry: value}))
        if (entry, value) != ("files", {}):  # without checksums damage cannot be seen
            with pytest.raises(SavedError):
                wae.load_deployed(tmp_path / "net")
        path.write_text(json.dumps({name: kept for name, kept in about.items() if name != entry}))
        with pytest.raises(SavedError, match="damaged"):
            wae.load_deployed(tmp_path / "net")


def test_a_missing_engine_is_named(stock, tmp_path, monkeypatch):
    deploy(stock, SIZE, engine="eager").save(tmp_path / "net")
    gone = replace(ENGINES["eager"], packages={"no_such_engine": "no_such_engine"})
    monkeypatch.setitem(ENGINES, "eager", gone)
    with pytest.raises(EngineError, match="no_such_engine"):
        wae.load_deployed(tmp_path / "net")


@pytest.mark.parametrize("fails", ["network", "encoder"])
@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_a_full_disk_is_reported_as_such(engine, fails, model, tmp_path, monkeypatch):
    needs(engine)
    deployed, write = deploy(model, SIZE, engine=engine), Path.write_bytes

    def full(path, content):
        if path.stem == fails:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        deployed.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_the_old_folder_stays_if_the_new_one_cannot_be_moved_there(stock, tmp_path, monkeypatch):
    folder = tmp_path / "net"
    deployed = deploy(stock, SIZE, engine="eager")
    deployed.save(folder)
    rename = Path.rename

    def fails(self, target):
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"):
        deployed.save(folder, force=True)
    monkeypatch.undo()
    wae.load_deployed(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@torch.no_grad()
def test_byte_encoders_of_older_versions_are_read(model, folder):
    """Their zero points are int32, from 0 to 255 even for int8; ``signed`` says which parts are int8."""
    affine, image = (model.image_scale, model.image_shift), photos(2)
    exact = encoder_int8.quantize(
        model.encoder, *affine, encoder_int8.largest_activations(model.encoder, *affine, [image])
    )
    inputs = [ByteInput(0.01, -3, torch.int8), ByteInput(0.02, 120, torch.uint8)]
    encoder = encoder_int8.ByteEncoder(exact, inputs)
    tensors = dict(encoder.state_dict()) | {"image_scale": affine[0], "image_shift": affine[1]}
    del tensors["low_zero_point"], tensors["high_zero_point"]
    zero_point = torch.tensor([[125] * 3, [120] * 3], dtype=torch.int32)
    replace_encoder(
        folder,
        tensors | {"zero_point": zero_point, "signed": torch.tensor([True, False])},
        encoder="ByteEncoder",
    )
    front = wae.load_deployed(folder)._front
    for got, wanted in zip(front(image), encoder(image, *affine), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
        assert wanted.float().std() > 0
