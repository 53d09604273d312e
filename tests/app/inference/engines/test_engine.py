"""Engines that cannot be used here say why."""

import pytest
from small_networks import SIZE

from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine, EngineError


def test_a_precision_that_the_engine_does_not_have(model):
    with pytest.raises(EngineError, match="onnxruntime computes in float32 or int8, not in bfloat16"):
        deploy(model, SIZE, engine="onnxruntime", precision="bfloat16")


def test_a_missing_engine_says_what_to_install(model, monkeypatch):
    engine = Engine("other", ("cpu",), {"no_such_module": "no-such-package"}, lambda *_: None)
    monkeypatch.setitem(ENGINES, "other", engine)
    with pytest.raises(EngineError, match="pip install no-such-package"):
        deploy(model, SIZE, engine="other")


@pytest.mark.parametrize("engine", ["cudagraphs", "tensorrt"])
def test_an_engine_for_another_device(engine, model):
    with pytest.raises(EngineError, match=f"{engine} runs on cuda, not on cpu"):
        deploy(model, SIZE, engine=engine)
