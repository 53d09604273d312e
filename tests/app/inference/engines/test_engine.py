"""Engines that cannot be used say why."""

from dataclasses import replace

import pytest
import torch
from small_networks import SIZE
from torch import nn

from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine, EngineError
from wae_kernels import backends


def test_a_precision_that_the_engine_lacks_is_refused(model):
    with pytest.raises(EngineError, match="onnxruntime computes in float32 or int8, not in bfloat16"):
        deploy(model, SIZE, engine="onnxruntime", precision="bfloat16")


def test_a_missing_engine_says_what_to_install(model, monkeypatch):
    engine = Engine("other", ("cpu",), {"no_such_module": "no-such-package"}, lambda *_: None)
    monkeypatch.setitem(ENGINES, "other", engine)
    with pytest.raises(EngineError, match="pip install no-such-package"):
        deploy(model, SIZE, engine="other")


@pytest.mark.parametrize("engine", ["cudagraphs", "tensorrt"])
def test_an_engine_for_another_device_is_refused(engine, model):
    with pytest.raises(EngineError, match=f"{engine} runs on cuda, not on cpu"):
        deploy(model, SIZE, engine=engine)


def test_why_not_depends_on_device_and_precision():
    compile = replace(ENGINES["compile"], int8_packages={"no_such_module": "no-such-package"})
    assert "pip install no-such-package" in compile.why_not("cpu", "int8")
    assert compile.why_not("cuda", "int8") == "compile computes in int8 on cpu only, not on cuda"
    assert compile.why_not("cuda", "float32") is None
    with backends.use("reference"):
        assert ENGINES["winograd"].why_not("cpu").startswith("winograd needs the compiled kernels")
        assert compile.why_not("cpu", "float32") is None


def test_running_a_saved_network_takes_no_converter():
    gone = {"no_such_module": "no-such-package"}
    for name in ("onnxruntime", "openvino"):
        engine = replace(ENGINES[name], packages={}, converters=gone, int8_packages=gone)
        assert "pip install no-such-package" in engine.why_not("cpu", "float32")
        assert engine.why_not_load("int8") is None
        assert "pip install no-such-package" in replace(engine, packages=gone).why_not_load("int8")
    compile = replace(ENGINES["compile"], int8_packages=gone)
    assert "pip install no-such-package" in compile.why_not_load("int8")
    assert compile.why_not_load("float32") is None


def test_errors_name_the_engine_once():
    with pytest.raises(EngineError, match=r"^eager computes in .*, not in int8"):
        ENGINES["eager"].make(nn.Identity(), [torch.zeros(1)], "int8")
    with (
        pytest.raises(EngineError, match=r"^eager does not run this network: other$"),
        ENGINES["eager"].errors(),
    ):
        raise OSError("other")
    with (
        pytest.raises(EngineError, match=r"^eager does not run this network: AssertionError$"),
        ENGINES["eager"].errors(),
    ):
        raise AssertionError  # torchao's, of some additions
    with pytest.raises(EngineError, match=r"^its own$"), ENGINES["eager"].errors():
        raise EngineError("its own")
