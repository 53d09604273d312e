"""Sides are checked before they are timed, and one that fails does not stop the others."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from benches.comparison import Ready, Side, prepare
from benches.devices import DEVICES, PRECISIONS, Gpu, Launched, settings
from benches.modules import gradients, images, inputs, pair, results, wide_gradients

ONES = torch.ones(3)


def returning(value: Tensor) -> Side:
    return lambda: [lambda: value]


def prepared(sides: dict[str, Side], **options: Any) -> Ready:
    wanted, limits = {name: [ONES] for name in sides}, dict.fromkeys(sides, 1e-4)
    return prepare(sides, wanted, limits, DEVICES["cpu"], **options)


@pytest.mark.parametrize("wrong", [ONES * 1.001, ONES * float("nan")], ids=["far", "nan"])
def test_a_side_that_is_wrong_is_left_out(wrong: Tensor) -> None:
    ready = prepared({"near": returning(ONES * 1.00001), "wrong": returning(wrong)})
    assert list(ready.rounds) == ["near"]
    assert ready.left_out["wrong"].startswith("wrong by")
    assert ready.errors["near"] == pytest.approx(1e-5, rel=0.1)


def test_a_side_that_fails_is_left_out_with_the_reason() -> None:
    def fails() -> Any:
        raise RuntimeError("no such engine\nmore")

    ready = prepared({"fails": fails, "right": returning(ONES)})
    assert list(ready.rounds) == ["right"]
    assert ready.left_out == {"fails": "no such engine"}


def test_a_side_that_is_not_built_in_time_is_left_out_with_those_after_it() -> None:
    def slow() -> Any:
        for _ in range(2):  # as compilers do, which try many kernels
            with suppress(Exception):
                time.sleep(60)

    began = time.monotonic()
    ready = prepared({"first": returning(ONES), "slow": slow, "late": returning(ONES)}, budget=1)
    assert time.monotonic() - began < 30
    assert list(ready.rounds) == ["first"]
    assert ready.left_out["slow"].startswith("not built within")
    assert ready.left_out["late"] == "no time left"


# -------------------------------------------------------------------------------------------- timing on a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("benches.devices.DEVICES", dict(DEVICES))
    import stand_in

    return stand_in.StandIn()


def test_sets_of_inputs_are_twice_as_large_as_the_cache(gpu: Any) -> None:
    image = torch.arange(12.0 * 4096).view(1, 3, 128, 128)
    sets = gpu.sets((image,))
    assert sum(x.numel() * x.element_size() for (x,) in sets) >= 2 * gpu.cache_bytes()
    assert len({float(x[0, 0, 0, 0]) for (x,) in sets}) == len(sets)
    assert len(gpu.sets((image,), most=3)) == 3


@pytest.mark.parametrize(
    ("kind", "capture", "captured"), [(list, True, 1), (list, False, 0), (Launched, True, 0)]
)
def test_a_round_is_captured_unless_another_library_launches(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Any], capture: bool, captured: int
) -> None:
    graphs: list[Any] = []
    monkeypatch.setattr(gpu, "captured", lambda run: graphs.append(run) or run)
    called: list[int] = []
    run, _ = gpu.round(kind([lambda: called.append(1), lambda: called.append(2)]), capture)
    run()
    assert called == [1, 2]
    assert len(graphs) == captured


def test_a_round_that_cannot_be_captured_is_launched(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "captured", refuse)
    run, note = gpu.round([lambda: None], capture=True)
    run()
    assert note == "launched, not a graph: operation not permitted when stream is capturing"


def test_the_time_of_a_round_is_divided_by_its_calls(gpu: Any) -> None:
    timings = gpu.time({"a": lambda: time.sleep(0.02), "b": lambda: None}, 0, 10, burst=1, settle=0)
    assert 0.002 <= timings["a"]["median"] < 0.02
    assert timings["b"]["median"] < 0.002
    assert timings["a"]["runs"] == 3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stands in for the parts of torch.cuda that a capture uses; its graph is the result."""
    stream, graph = Mock(), Mock()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    for name in ("get_sync_debug_mode", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    return graph


def test_a_round_that_waits_is_launched(gpu: Any, cuda: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not always recover from a capture that fails."""
    modes: list[Any] = [0]
    monkeypatch.setattr(gpu, "captured", partial(Gpu.captured, gpu))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> None:
        if modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    _, note = gpu.round([wait], capture=True)
    assert note.startswith("launched, not a graph: it waits for the GPU")


def test_a_cuda_graph_keeps_the_inputs_that_it_reads(cuda: Mock) -> None:
    """Nothing else holds the calls of a side once the next one is built."""
    image = torch.ones(2)
    alive = weakref.ref(image)
    replay, note = Gpu().round([partial(torch.neg, image)], capture=True)
    del image
    gc.collect()
    replay()
    assert (alive() is not None, note, cuda.replay.call_count) == (True, "", 1)


# ------------------------------------------------------------------------------------------- expected results


def test_settings_are_named_by_device_precision_and_batch() -> None:
    chosen = settings(cpu=(1,), cuda=(64,), precisions=("float16",), full=[("cuda", 64)])
    assert [(p.id, [mark.name for mark in p.marks]) for p in chosen] == [
        ("cpu-1", []),
        ("cuda-float16-64", ["gpu", "full"]),
    ]


def test_precisions_set_tf32_and_restore_it() -> None:
    before = torch.backends.cudnn.allow_tf32
    for name, expected in (("float32", False), ("tf32", True)):
        with PRECISIONS[name].allowed():
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is expected
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_expected_results_do_not_depend_on_how_many_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr("benches.modules.SIZE", 16)
    (parameter,) = settings(cpu=(3,))
    ours, stock = pair(op, parameter.values[0])
    given = inputs(op, parameter.values[0])
    with torch.no_grad():
        outputs = ours(*given)
    upstream = [images(3, 8), images(3, 8).flip(0)] if op == "encode" else [images(3, 16)]
    at_once = results(stock, given), wide_gradients(stock, given, upstream)
    monkeypatch.setattr("benches.modules._AT_ONCE", 2)
    in_parts = results(stock, given), wide_gradients(stock, given, upstream)
    for a, b in zip([*at_once[0], *at_once[1]], [*in_parts[0], *in_parts[1]], strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip([outputs] if op == "decode" else outputs, at_once[0], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(stock, given, upstream), at_once[1], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
