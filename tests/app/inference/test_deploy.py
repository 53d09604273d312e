"""`wae.deploy`: the choice of engine and precision, and that an engine with other scores is refused."""

import copy
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import TestCase

import pytest
import torch
from small_networks import SIZE, WithChangedScores, assert_close, needs, photos
from torch import nn

import wae
from wae.inference import deploy as deploying
from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine, EngineError
from wae.inference.engines.in_pytorch import InPyTorch
from wae.inference.engines.int8 import Simulation
from wae.inference.precision import DTYPES
from wae.models.baselines import FullResolution


class OfVolumes(nn.Module):
    """A 3D convolution over the colours, whose weights have five dimensions."""

    def __init__(self):
        super().__init__()
        self.convolution, self.classifier = nn.Conv3d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, images):
        return self.classifier(self.convolution(images[:, None]).mean((2, 3, 4)))


class OfFrequencies(nn.Module):
    """Multiplies the spectrum by complex numbers."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 5)
        self.register_buffer("filter", torch.randn(SIZE[0], SIZE[1] // 2 + 1, dtype=torch.complex64))

    def forward(self, images):
        filtered = torch.fft.irfft2(torch.fft.rfft2(images) * self.filter, s=SIZE)
        return self.classifier(filtered.relu().mean((2, 3)))


class InTwoDtypes(nn.Module):
    """Computes its scores in float64."""

    def __init__(self):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 5).double()

    def forward(self, images):
        return self.classifier(self.convolution(images).mean((2, 3)).double()).float()


@pytest.mark.parametrize(
    "network", [OfVolumes(), OfFrequencies(), InTwoDtypes()], ids=lambda x: type(x).__name__
)
def test_parameters_of_any_shape_and_dtype(network):
    """Each keeps its dtype and its memory format."""
    images = torch.randn(2, 3, *SIZE)
    assert_close(deploy(network.eval(), SIZE, engine="eager")(images), network(images))


def test_deploy_does_not_change_the_model(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy(model, SIZE, engine="eager")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("engine", ["eager", "openvino", pytest.param("compile", marks=pytest.mark.slow)])
def test_scores_in_bfloat16(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine, precision="bfloat16")
    for batch in (1, 2):
        images = photos(batch)
        assert deployed(images).dtype == torch.float32  # as the model's
        assert_close(deployed(images), model(images), 5e-2)


def test_a_network_at_full_resolution_in_16_bits():
    """It reads the dtype of its buffers, which must not stay that of the trace."""
    network = FullResolution(nn.Conv2d(3, 4, 3), (1 / 64,) * 3, (-2.0,) * 3).eval()
    deployed = deploy(network, SIZE, engine="eager", precision="bfloat16")
    images = photos(2)
    assert_close(deployed(images), network(images), 5e-2)


def test_a_wider_precision_than_the_models(model):
    """The expected scores are computed in it too."""
    narrow = copy.deepcopy(model).bfloat16()
    deployed = deploy(narrow, SIZE, engine="eager", precision="float32")
    assert deployed.difference <= 1e-5
    images = photos(2)
    assert deployed(images).dtype == torch.float32
    assert_close(deployed(images), copy.deepcopy(narrow).float()(images))
    assert deploy(model, SIZE, engine="eager", precision="float64").difference <= 1e-12
    assert deploy(narrow, SIZE, engine="eager")(images).dtype == torch.bfloat16


def test_auto_precision_takes_the_fastest_within_its_tolerance(model, monkeypatch):
    """The expected scores are computed in the widest."""
    monkeypatch.setattr(deploying.precisions, "native", lambda name, device: True)
    narrow = copy.deepcopy(model).bfloat16()
    deployed = deploy(narrow, SIZE, engine="eager", precision="auto", seconds=0.1)
    assert deployed.seconds.keys() == {"eager float32", "eager bfloat16", "eager float16"}
    assert deployed.seconds[f"eager {deployed.precision}"] == min(deployed.seconds.values())


def test_auto_precision_leaves_out_16_bits_that_are_emulated(model, monkeypatch):
    """They take several times as long as float32, and seconds to build."""
    monkeypatch.setattr(deploying.precisions, "native", lambda name, device: name != "float16")
    with TestCase().assertLogs("wae.inference.deploy", "INFO") as log:
        deployed = deploy(model, SIZE, engine="eager", precision="auto", seconds=0.1)
    assert deployed.seconds.keys() == {"eager float32", "eager bfloat16"}
    assert "left out: this CPU has no instructions for float16" in "".join(log.output)


def test_dtype_is_the_old_name_of_precision(model):
    with pytest.warns(DeprecationWarning, match="precision="):
        deployed = deploy(model, SIZE, engine="eager", dtype=torch.bfloat16)
    assert deployed.precision == "bfloat16"


def test_an_emulated_precision_is_logged_as_a_warning(model, monkeypatch):
    monkeypatch.setattr(deploying.precisions, "native", lambda name, device: False)
    with TestCase().assertLogs("wae.inference.deploy", "WARNING") as log:
        deploy(model, SIZE, engine="eager", precision="bfloat16")
    assert "no instructions for bfloat16: eager emulates it" in log.output[0]


def test_auto_logs_no_warning_about_emulated_precisions(model, monkeypatch):
    monkeypatch.setattr(deploying.precisions, "native", lambda name, device: False)
    with TestCase().assertNoLogs("wae.inference.deploy", "WARNING"):
        deploy(model, SIZE, engine="eager", precision="auto", seconds=0.1)


def scripted(monkeypatch, precisions=tuple(DTYPES), **engines):
    """Put engines in place of the real ones, by name: each is a function from the module to what runs."""

    def prepare(make, module, inputs, *_):
        prepared = InPyTorch(module, inputs, lambda m, *_: make(m))
        prepared.simulation = Simulation((), (), ())  # without layers; no test here reads its results
        return prepared

    made = {
        name: Engine(
            name,
            ("cpu",),
            {},
            partial(prepare, make),
            precisions=precisions,
        )
        for name, make in engines.items()
    }
    monkeypatch.setattr(deploying, "ENGINES", made)
    return made


def test_auto_takes_the_fastest_engine_that_agrees_with_the_model(model, monkeypatch):
    def slow(module):
        def run(*inputs):
            for _ in range(20):
                module(*inputs)
            return module(*inputs)

        return run

    def broken(module):
        raise OSError("no such instruction")

    scripted(
        monkeypatch,
        slow=slow,
        wrong=lambda module: lambda *x: module(*x) + 1,
        good=lambda m: m,
        broken=broken,
    )
    with TestCase().assertLogs("wae.inference.deploy", "INFO") as log:
        deployed = deploy(model, SIZE, seconds=0.2)
    assert deployed.engine == "good"
    assert deployed.seconds.keys() == {"slow", "good"}
    assert "left out: the model in wrong gives scores that differ" in "".join(log.output)
    assert "no such instruction" in "".join(log.output)


def test_auto_leaves_out_an_engine_that_treats_one_image_as_several(stock, monkeypatch):
    network = WithChangedScores(stock, lambda scores: scores * (1 + (scores.shape[0] > 1)))
    scripted(
        monkeypatch, graph=lambda module: lambda x: module(torch.cat((x, x)))[: len(x)], right=lambda m: m
    )
    for batch in (1, 2):
        assert deploy(network, SIZE, batch, seconds=0.1).seconds.keys() == {"right"}


@pytest.mark.parametrize("batch", [1, 3])
def test_in_int8_another_number_of_images_may_be_about_as_wrong_as_the_first(batch, stock, monkeypatch):
    """The scores of a right graph may be further from the model's than any tolerance."""
    network = WithChangedScores(stock, lambda scores: scores * (1 + (scores.shape[0] > 1)))

    def right(module):
        return lambda x: module(x) * (1.2 if len(x) == 1 else 1.3)

    def graph(module):
        return lambda x: right(module)(torch.cat((x, x)))[: len(x)]

    scripted(monkeypatch, ("int8",), right=right, graph=graph)
    images = torch.randn(40, 3, *SIZE)
    options = {"precision": "int8", "calibration": images, "calibration_images": 10, "max_drop": None}
    deployed = deploy(network, SIZE, batch, "right", **options)
    assert deployed.difference == pytest.approx(0.2 if batch == 1 else 0.3, abs=1e-3)
    assert_close(deployed(images[:1]), 1.2 * network(images[:1]), 1e-3)
    with pytest.raises(DisagreementError, match=r"graph, given 1 image, gives .*, more than 0\.6"):
        deploy(network, SIZE, batch, "graph", **options)


@pytest.mark.parametrize("made", [torch.nan, torch.zeros(2, 1)], ids=["nan", "another shape"])
def test_int8_scores_that_cannot_be_compared_are_refused(made, stock, monkeypatch):
    """Whatever drop is accepted."""
    scripted(monkeypatch, ("int8",), wrong=lambda module: lambda x: module(x) + made)
    options = {"precision": "int8", "calibration": torch.randn(20, 3, *SIZE), "calibration_images": 10}
    with pytest.raises(DisagreementError, match="the model in wrong gives scores"):
        deploy(stock, SIZE, 1, "wrong", max_drop=None, **options)


def test_auto_fails_if_no_engine_works(model, monkeypatch):
    def broken(module):
        raise OSError("no such instruction")

    scripted(monkeypatch, wrong=lambda module: lambda *x: module(*x) + 1, broken=broken)
    why = "no engine runs the model: the model in wrong gives scores that differ .*; .*no such instruction"
    with pytest.raises(EngineError, match=why):
        deploy(model, SIZE)


def test_auto_fails_before_anything_runs_if_no_engine_has_the_precision(model, monkeypatch):
    scripted(monkeypatch, good=lambda m: m)
    monkeypatch.setattr(model, "forward", pytest.fail)
    with pytest.raises(EngineError, match="no engine that is installed computes in int8 on cpu"):
        deploy(model, SIZE, precision="int8", calibration=photos(1))


def tied(module):
    """Run ``module``, and give other scores on the inputs of the first call."""
    first = []

    def run(*inputs):
        first.append(inputs[0].clone())
        return module(*inputs) + torch.equal(inputs[0], first[0])

    return run


@pytest.mark.parametrize(("unpools", "engine"), [(True, "tied"), (True, "wrong"), (False, "tied")])
def test_a_network_with_unpooling_has_to_agree_on_one_set_of_images(model, monkeypatch, unpools, engine):
    """Where two pixels are equal up to rounding, right computations may choose different ones."""
    if unpools:
        model.low_classifier[1].add_module("unpool", nn.MaxUnpool2d(2).eval())
    scripted(monkeypatch, tied=tied, wrong=lambda module: lambda *x: module(*x) + 1)
    if unpools and engine == "tied":
        assert deploy(model, SIZE, engine=engine).difference <= 1e-5
        return
    with pytest.raises(DisagreementError, match=f"{engine} gives scores that differ"):
        deploy(model, SIZE, engine=engine)


@pytest.mark.parametrize(
    ("precision", "by"),
    [("float64", 1e-8), ("float32", 1e-3), ("float16", 3e-2), ("bfloat16", 0.15), ("float32", float("nan"))],
)
def test_disagreement_is_refused(model, monkeypatch, precision, by):
    scripted(monkeypatch, wrong=lambda module: lambda *x: module(*x) * (1 + by))
    with pytest.raises(DisagreementError, match="wrong gives scores that differ"):
        deploy(model, SIZE, engine="wrong", precision=precision)


def test_an_engine_that_runs_the_encoder_too(model, monkeypatch):
    """As CUDA graphs do, but on the CPU: images of any dtype, and no op outside the engine."""
    dtypes, prepared = [], []

    def compile(module, inputs, dynamic):
        prepared.append(dynamic)

        def run(*images):
            dtypes.append([image.dtype for image in images])
            return module(*images)

        return run

    engine = Engine(
        "whole", ("cpu",), {}, lambda module, inputs, *_: InPyTorch(module, inputs, compile), whole=True
    )
    monkeypatch.setitem(ENGINES, "whole", engine)
    deployed = deploy(model, SIZE, engine="whole")
    assert deployed._front.encoder is None
    for images in (photos(1), photos(2), photos(1).float()):
        dtypes.clear()
        assert_close(deployed(images), model(images), 1e-4)
        assert dtypes[-1] == [images.dtype]
    deployed(photos(4))
    assert prepared == [False, True]  # once for one batch size, once for any number


def test_wrong_arguments_are_refused_by_name(model):
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        deploy("model.pt")
    sizes = [{"size": size} for size in ((0, 5), 224, (5,), (5, 5, 5), (True, 5))]
    others = {"batch": 0}, {"batch": 1.5}, {"engine": "tvm"}, {"memory_format": torch.preserve_format}
    for wrong in (*sizes, *others):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            deploy(model, **{"size": SIZE, "engine": "eager", **wrong})
    with (
        pytest.warns(DeprecationWarning, match="precision="),
        pytest.raises(ValueError, match=r"dtype must be one of .*got torch\.int8"),
    ):
        deploy(model, SIZE, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"precision must be one of auto, .*got 'int4'"):
        deploy(model, SIZE, precision="int4")
    with (
        pytest.warns(DeprecationWarning, match="precision="),
        pytest.raises(ValueError, match="dtype is the old name of precision: pass only one of them"),
    ):
        deploy(model, SIZE, precision="float32", dtype=torch.float32)


@pytest.mark.slow
def test_wae_deploy_is_a_function_and_import_wae_loads_no_large_packages(model):
    assert wae.deploy(model, SIZE, engine="eager").engine == "eager"
    code = """
import sys, wae
assert not {"torchvision", "wae.inference", "onnx"} & set(sys.modules)
assert wae.deploy.__name__ == "deploy"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_examples_of_the_docs_run(monkeypatch, tmp_path):
    page = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # one engine, to save time: the page's code is the same
    monkeypatch.setattr(deploying, "ENGINES", {"eager": ENGINES["eager"]})
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "deploy.md", "exec"), names)
    assert_close(names["scores"], names["again"](names["images"]))
    assert_close(names["scores"], names["same"])


def test_the_docs_name_every_engine():
    page = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| (?:CPU|GPU)", page, re.MULTILINE)) == set(ENGINES)
