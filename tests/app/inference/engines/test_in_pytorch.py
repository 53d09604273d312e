"""PyTorch's own engines: compiled code, weights in memory, captured CUDA graphs."""

import copy
import gc
import shutil
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from default_dtype import with_default_dtype
from small_networks import SIZE, assert_close, photos
from torch import nn

from wae.inference.cuda_graphs import WaitsError, captured
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine
from wae.inference.engines.in_pytorch import InPyTorch, _compile, _cudagraphs, _tensorrt
from wae.inference.folding import fold
from wae.inference.front import whole
from wae.models.segmentation.segmenter import Fusion, LightBody, WAESegmenter
from wae_kernels.nn import Encoder


@pytest.mark.slow
def test_weights_are_in_memory_once(model):
    """If an engine packs them, the module's are in a mapped file; an engine with a file keeps no module."""
    module, inputs = nn.Linear(512, 512).eval(), [torch.randn(1, 512)]
    expected = module(*inputs)
    prepared = InPyTorch(module, inputs, lambda m, *_: copy.deepcopy(m), packs=True)
    prepared.for_batch(1)
    assert "weights.pt" in Path("/proc/self/maps").read_text()
    assert torch.equal(module(*inputs), expected)
    deployed = deploy(model, SIZE, engine="openvino")
    assert not any(isinstance(x, nn.Module) for x in vars(deployed._prepared).values())


def test_a_full_disk_is_reported_as_such(monkeypatch):
    """PyTorch speaks of a position in its archive."""

    def full(*arguments):
        raise RuntimeError("unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    module, inputs = nn.Linear(4, 4).eval(), [torch.randn(1, 4)]
    engine = Engine("odd", ("cpu",), {}, lambda m, x, *_: InPyTorch(m, x, lambda m, *_: m, packs=True))
    with pytest.raises(OSError, match="No space left on device"):
        engine.build(module, inputs)


@pytest.mark.slow
def test_compiled_networks_are_frozen_and_do_not_share_a_recompile_limit():
    """PyTorch stops compiling a function after too many times, and packs only weights that are constants."""
    inputs = [torch.randn(2, 4)]
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            network = nn.Linear(4, 4).eval()
            run = ENGINES["compile"].build(network, inputs)
            expected = network(*inputs)
            network.weight.zero_()
            assert_close(run(*inputs), expected)


@contextmanager
def with_threads(number):
    """As ``torch.set_num_threads``, which a program may also call after a network was deployed."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_compiled_code_runs_whatever_is_set_around_a_call(stock):
    """Compiled again, it would not be frozen. With this limit that is an error."""
    images = photos(1).float()
    expected = stock(images)
    with torch._dynamo.config.patch(recompile_limit=1):
        deployed = deploy(stock, SIZE, engine="compile")
        for around in (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            torch.device("cpu"),
            with_threads(torch.get_num_threads() + 1),
            with_default_dtype(torch.float64),
        ):
            with around:
                assert_close(deployed(images), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # of torch 2.10 itself
def test_matrices_with_many_weights_are_tuned_without_output(monkeypatch, capfd):
    """Their kernels are generated and chosen by timing, which must not print."""
    monkeypatch.setattr("wae.inference.engines.in_pytorch._MANY_WEIGHTS", 1)
    network, inputs = nn.Linear(64, 48).eval(), [torch.randn(1, 64)]
    run = ENGINES["compile"].build(network, inputs)
    assert_close(run(*inputs), network(*inputs))
    assert "AUTOTUNE" not in capfd.readouterr().err


@dataclass(frozen=True)
class Stream:
    """A stream by its name, which records what it waits for."""

    name: str
    events: list = field(compare=False)

    def wait_stream(self, other):
        self.events.append((self.name, "waits for", other.name))


class Streams:
    """Stands in for torch's streams and graphs; records which waits for which, and each module's stream."""

    def __init__(self, monkeypatch, modules):
        self.current, self.events, self.captures = "main", [], 0
        for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        self.reported = 0
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.reported)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "reported", mode))
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.events.append((name, self.current)))

    def Stream(self):
        return self.of(f"stream {len(self.events)}")

    def of(self, name):
        return Stream(name, self.events)

    def current_stream(self, device=None):
        return self.of(self.current)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.events.append("replayed"))

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        """As torch's, which leaves its stream the current one if the capture fails."""
        assert capture_error_mode == "thread_local"  # other threads may do as they like
        self.events.clear()
        before, self.current, self.captures_on = self.current, stream.name, stream.name
        yield
        self.current, self.captured = before, list(self.events)
        self.captures += 1


def segmenter():
    return WAESegmenter(Encoder(), nn.Conv2d(3, 5, 3, padding=1), LightBody(), Fusion(5, 16)).eval()


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_cuda_graph_runs_the_two_bodies_on_two_streams(kind, model, monkeypatch):
    """What can be tested without a GPU: what is captured, on which stream, and what waits."""
    images = photos(2)
    network = fold(model if kind == "classifier" else segmenter(), images)
    front, module = whole(network, next(network.parameters()), SIZE, torch.float32, torch.contiguous_format)
    low, high = (getattr(module.behind, name) for name in network.bodies)
    last = module.behind.fusion_classifier if kind == "classifier" else module.behind.fusion
    streams = Streams(monkeypatch, {"encoder": module.encoder, "low": low, "high": high, "last": last})
    run = _cudagraphs(module, front(images), False)
    side, own = streams.captured[1][0], streams.captures_on
    assert streams.captured == [
        ("encoder", own),
        (side, "waits for", own),
        ("high", side),
        ("low", own),
        (own, "waits for", side),
        ("last", own),
    ]
    scores = run(images)
    assert streams.events[-1] == "replayed"
    streams.events.clear()
    assert_close(module(images), scores)
    assert streams.events == [(name, "main") for name in ("encoder", "low", "high", "last")]  # without it
    assert_close(scores, network(images))


def test_a_cuda_graph_waits_for_its_last_run_on_another_stream(monkeypatch):
    """It has one copy of its inputs and outputs, which the last run may still read."""
    streams = Streams(monkeypatch, {})
    run = _cudagraphs(nn.ReLU(), [torch.ones(2)], False)
    assert streams.captures_on != "main"  # torch's own stream for captures may be on another GPU
    for current, waits in [
        ("main", []),
        ("other", [("other", "waits for", "main")]),
        ("other", []),
        ("main", [("main", "waits for", "other")]),
    ]:
        streams.events.clear()
        with streams.stream(streams.of(current)):
            run(torch.ones(2))
        assert streams.events == [*waits, "replayed"]


def test_images_of_another_dtype_get_a_cuda_graph_of_their_own(monkeypatch):
    """Without a graph they would take several times as long, in the benchmarks for example."""
    streams = Streams(monkeypatch, {})
    run = _cudagraphs(nn.Identity(), [torch.ones(2, dtype=torch.uint8)], False)
    for dtype, captures in ((torch.uint8, 1), (torch.float16, 2), (torch.uint8, 2), (torch.float16, 2)):
        images = torch.ones(2, dtype=dtype)
        streams.events.clear()
        scores = run(images)
        assert (scores.dtype, streams.captures, streams.events[-1]) == (dtype, captures, "replayed")


def test_a_network_that_waits_for_the_gpu_is_not_captured(monkeypatch):
    """A capture would fail, and torch would not recover from it. Other threads may wait."""
    streams = Streams(monkeypatch, {})

    def wait():
        if streams.reported == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=2)

    def function(x, wait=wait):
        wait()
        return x

    with pytest.raises(WaitsError, match="it waits for the GPU"):
        captured(function, [torch.ones(2)])
    assert not hasattr(streams, "captured")
    assert (streams.current, streams.reported) == ("main", 0)
    with ThreadPoolExecutor(1) as pool:
        captured(lambda x: function(x, lambda: pool.submit(wait).result()), [torch.ones(2)])
    assert streams.captured == []


def test_a_cuda_graph_keeps_what_was_captured(monkeypatch):
    """It reads the weights, which for compiled code nothing else holds."""
    Streams(monkeypatch, {})
    layer = nn.Linear(2, 2)
    weights = weakref.ref(layer.weight)
    with torch.no_grad():
        run = captured(layer, [torch.ones(2)])
    del layer
    gc.collect()
    assert weights() is not None
    del run
    gc.collect()
    assert weights() is None


def test_a_failed_capture_leaves_the_current_stream(monkeypatch):
    streams = Streams(monkeypatch, {})

    def function(x):
        if streams.current == getattr(streams, "captures_on", None):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        captured(function, [torch.ones(2)])
    assert streams.current == "main"


@pytest.mark.parametrize("tf32", [True, False])
def test_tensorrt_computes_in_the_networks_dtype_or_fails(monkeypatch, tf32):
    """What its versions have in common: new ones refuse to be told the precision."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace())
    options = []
    monkeypatch.setattr(torch, "compile", lambda module, **given: options.append(given) or module)
    _tensorrt(nn.ReLU(), [torch.ones(2).half()], False)
    assert options[0]["backend"] == "torch_tensorrt"
    given = options[0]["options"]
    assert given["use_explicit_typing"]
    assert given["disable_tf32"] is not tf32
    assert given["pass_through_build_failures"]
    assert "enabled_precisions" not in given


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_weights_stay_on_a_gpu():
    """There compiled code uses the module's own."""
    module = nn.Linear(2, 2).eval()
    before = module.weight.data_ptr()
    InPyTorch(module, [torch.ones(1, 2).as_subclass(OnGpu)], lambda m, *_: m, packs=True).for_batch(1)
    assert module.weight.data_ptr() == before


def test_compiled_code_on_a_gpu_is_one_graph_for_all_threads(monkeypatch):
    """Those of torch.compile belong to a thread: another one captures again, or fails in old versions."""
    streams, options = Streams(monkeypatch, {}), []
    monkeypatch.setattr(torch, "compile", lambda function, **given: options.append(given) or function)
    run = _compile(nn.ReLU(), [torch.ones(2).as_subclass(OnGpu)], False)
    streams.events.clear()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(run, torch.ones(2)).result(), torch.ones(2))
    assert streams.events == ["replayed"]
    assert "triton.cudagraphs" not in options[0]["options"]


def test_tuning_prints_no_tables(monkeypatch):
    """On a GPU, too, where it tunes every layer."""
    options = []
    Streams(monkeypatch, {})
    monkeypatch.setattr(torch, "compile", lambda function, **given: options.append(given) or function)
    wide = nn.Linear(1024, 1024).eval()
    for images in (torch.ones(1, 1024), torch.ones(1, 1024).as_subclass(OnGpu)):
        _compile(wide, [images], False)
    for given in options:
        assert given["options"]["max_autotune"]
        assert given["options"]["autotune_num_choices_displayed"] == 0
