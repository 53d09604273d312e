"""A deployed network: every engine gives the model's scores, for any batch and in any context."""

import copy
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import small_networks
import torch
from small_networks import (
    EACH,
    QUICK,
    SIZE,
    Body,
    WithChangedScores,
    assert_close,
    needs,
    photos,
    with_statistics,
)
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, Engine, EngineError
from wae.inference.engines.in_pytorch import InPyTorch
from wae.inference.export import export
from wae.inference.saved import load_deployed
from wae.models.haar import Haar


@pytest.mark.slow
@pytest.mark.parametrize("engine", EACH)
def test_scores_are_the_models_for_any_batch(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, batch=3, engine=engine)
    assert deployed.engine == engine
    assert deployed.difference <= 1e-5
    for batch in (3, 1, 4, 2):
        images = photos(batch)
        assert_close(deployed(images), model(images))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("network", ["model", "stock"])
def test_the_network_computes_in_the_requested_memory_format(network, memory_format, request, tmp_path):
    """Also once it is saved and loaded."""
    network = request.getfixturevalue(network)
    deployed, seen, images = deploy(network, SIZE, 2, "eager", memory_format=memory_format), [], photos(2)
    if not hasattr(network, "image_scale"):
        images = images.float()
    for part in deployed._prepared._module.modules():
        if isinstance(part, nn.Conv2d):
            seen.append(part.weight)
            part.register_forward_pre_hook(lambda part, given: seen.extend(given))
    assert_close(deployed(images.contiguous(memory_format=torch.channels_last)), network(images))
    assert len(seen) >= 4
    assert all(x.is_contiguous(memory_format=memory_format) for x in seen)
    deployed.save(tmp_path / "saved")
    loaded = load_deployed(tmp_path / "saved")
    (first, *_) = loaded._front(images)
    assert first.is_contiguous(memory_format=memory_format)
    assert_close(loaded(images), network(images))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compile", "winograd"])
def test_compilers_take_the_memory_format_that_is_not_the_default(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, 2, engine, memory_format=torch.contiguous_format)
    for batch in (2, 1, 3):
        images = photos(batch)
        assert_close(deployed(images), model(images))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs os.sched_setaffinity")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_process_that_may_use_one_core_of_several(engine, model):
    """As under Slurm or in a container."""
    needs(engine)
    allowed, images = os.sched_getaffinity(0), photos(1)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert_close(deploy(model, SIZE, engine=engine)(images), model(images))
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.slow
def test_any_strides_and_dtypes_of_images(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine)
    image = photos(1, (SIZE[1], SIZE[0])).transpose(2, 3)
    expected = model(image)
    for same in (image.contiguous(memory_format=torch.channels_last), image.float(), image.double()):
        assert_close(deployed(same), expected)


@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_a_network_other_than_wae(engine, stock):
    needs(engine)
    deployed = deploy(stock, (64, 50), batch=2, engine=engine)
    images = torch.randn(2, 3, 64, 50)
    assert_close(deployed(images), stock(images))
    as_photos = photos(5, (64, 50))
    assert_close(deployed(as_photos), stock(as_photos.float()))


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.double, torch.Tensor.half, lambda x: x[x > -torch.inf].view(x.shape[0], -1)],
    ids=["float64", "float16", "data-dependent size"],
)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_results_in_another_dtype_or_of_a_data_dependent_size(engine, change, stock):
    needs(engine)
    deployed = deploy(WithChangedScores(stock, change), SIZE, engine=engine)
    images = torch.randn(1, 3, *SIZE)
    scores = deployed(images)
    assert scores.dtype == torch.float32  # as the parameters'
    kept = scores.clone()
    assert_close(scores, change(stock(images)).float(), 1e-3)
    deployed(-images)
    assert torch.equal(scores, kept)


def test_another_decomposition(model):
    model.encoder, model.decoder = Haar(), None
    model.high_norm, model.high_body = nn.BatchNorm2d(9, affine=False), Body(2, image_channels=9)
    with_statistics(model)
    images = photos(2)
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


@pytest.mark.slow
def test_a_result_is_not_overwritten_by_the_next_call(model):
    """Though engines reuse their output buffers."""
    for engine in QUICK:
        if ENGINES[engine].why_not("cpu") is None:
            deployed = deploy(model, SIZE, engine=engine)
            first = deployed(photos(1))
            kept = first.clone()
            deployed(photos(1))
            assert torch.equal(first, kept)


def test_inside_inference_mode(model):
    deployed = deploy(model, SIZE, engine="eager")
    with torch.inference_mode():
        images = photos(1)
        assert_close(deployed(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("engine", EACH)
def test_scores_of_an_image_that_is_not_finite_are_nan(engine, model):
    """In some engines ReLU and pooling turn NaN into a number. The other images keep their scores."""
    needs(engine)
    deployed = deploy(model, SIZE, 2, engine)
    images = photos(2).float()
    expected = deployed(images)
    for broken in (float("nan"), float("inf"), 3e38):
        images[0, 1, 3, 4] = broken
        scores = deployed(images)
        assert scores[0].isnan().all() or (broken == 3e38 and model(images)[0].isfinite().all())
        assert (scores[1] - expected[1]).norm() <= 1e-4 * expected[1].norm()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")  # torch's own, on import
@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_derivatives_are_refused(engine, stock):
    """They would be zeros in some engines, without an error."""
    needs(engine)
    deployed = deploy(stock, (64, 50), engine=engine)
    images = torch.randn(2, 3, 64, 50)
    for call in (
        lambda: grad(lambda images: deployed(images).sum())(images),
        lambda: jvp(deployed, (images,), (images,)),
        lambda: vmap(lambda image: deployed(image[None]))(images),
    ):
        with pytest.raises(RuntimeError, match="use the model that it was made from"):
            call()
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="use the model that it was made from"):
            deployed(forward_ad.make_dual(images, images))
        assert torch.equal(deployed(images), deployed(images))


def test_a_deployed_network_cannot_be_pickled_or_copied(model):
    deployed = deploy(model, SIZE, engine="eager")
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"neither copied nor pickled: save\(\) it"):
            take(deployed)


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_the_default_device_changes_nothing(engine, model, tmp_path):
    """It is "cuda" in programs that call torch.set_default_device, even if the model is on the CPU."""
    needs(engine)
    images = photos(3)
    with torch.device("meta"):
        deployed = deploy(model, SIZE, engine=engine)
        deployed.save(tmp_path / "saved")
        scores = [network(images) for network in (deployed, load_deployed(tmp_path / "saved"))]
        export(model, tmp_path / "model", "torch", SIZE)
    for found in scores:
        assert_close(found, model(images))


@pytest.mark.parametrize("engine", EACH)
@pytest.mark.slow
def test_scores_do_not_depend_on_the_context_of_deploy_or_call(engine, model):
    """The context is autocast, inference mode and the default dtype."""
    needs(engine)
    images = photos(1)
    expected = deploy(model, SIZE, engine=engine)(images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            deployed = deploy(model, SIZE, engine=engine)
            assert torch.equal(deployed(images), expected)
            assert torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("engine", EACH)
def test_calls_from_several_threads(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine)
    images = [photos(1) for _ in range(8)]
    expected = [deployed(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            for scores, wanted in zip(pool.map(deployed, images), expected, strict=True):
                assert torch.equal(scores, wanted)


def test_only_one_thread_prepares_a_network(model, monkeypatch):
    """Exporters fail otherwise, and what they set in the process, such as warnings' filters, would stay."""
    active, most = [], []

    def prepare(module, inputs, *_):
        active.append(module)
        time.sleep(0.1)
        most.append(len(active))
        active.remove(module)
        return InPyTorch(module, inputs, lambda m, *_: m)

    monkeypatch.setitem(ENGINES, "slow", Engine("slow", ("cpu",), {}, prepare))
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: deploy(model, SIZE, engine="slow"), range(2)))
    assert most == [1, 1]
    assert warnings.filters == before


class OfALibrary(torch.Tensor):
    """A tensor with another class and nothing else, as fastai and MONAI have them."""


@pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_images_of_a_class_of_their_own(engine, stock):
    """Compiled code would fail with them."""
    images = torch.randn(1, 3, *SIZE)
    scores = deploy(stock, SIZE, engine=engine)(images.as_subclass(OfALibrary))
    assert type(scores) is torch.Tensor
    assert_close(scores, stock(images))


def test_repr(model):
    deployed = deploy(model, SIZE, batch=2, engine="eager")
    shown = r"Deployed\(engine='eager', precision='float32', size=\(20, 33\), batch=2, difference=[\d.e-]+\)"
    assert re.fullmatch(shown, repr(deployed))


@pytest.mark.parametrize("engine", [name for name in QUICK if ENGINES[name].foreign])
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_a_call_keeps_the_callers_threads(engine, model, tmp_path):
    """In a new process: the caller's PyTorch threads survive, and torch's number of threads is the same."""
    needs(engine)
    torch.save(model, tmp_path / "model.pt")
    code = f"""
import os, sys, torch, wae
sys.path.insert(0, {str(Path(small_networks.__file__).parent)!r})
torch.set_num_threads(3)
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
deployed = wae.deploy(model, {SIZE}, engine={engine!r})
images = torch.randint(0, 256, (1, 3, *{SIZE}), dtype=torch.uint8)
def work():
    before = set(os.listdir("/proc/self/task"))
    (torch.ones(500, 500) @ torch.ones(500, 500)).add(1)  # a parallel region of the caller's
    return set(os.listdir("/proc/self/task")) - before
cores = os.sched_getaffinity(0)
work()
callers = set(os.listdir("/proc/self/task"))
for _ in range(3):
    deployed(images)
    assert callers <= set(os.listdir("/proc/self/task")), "a thread of the caller's has ended"
    assert not work(), "the caller's parallel region had to start threads"
assert torch.get_num_threads() == 3
assert os.sched_getaffinity(0) == cores
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def odd(monkeypatch, network, compile_again, batch=1):
    """``network`` deployed in an engine that runs it for any number of images by ``compile_again``."""
    engine = Engine(
        "odd", ("cpu",), {}, lambda module, inputs, *_: InPyTorch(module, inputs, lambda m, *_: m)
    )
    monkeypatch.setitem(ENGINES, "odd", engine)
    deployed = deploy(network, SIZE, batch, "odd")
    deployed._prepared._compile = lambda module, *_: compile_again(module)
    return deployed


@pytest.mark.parametrize("wrong", [2, 100])
def test_disagreement_for_another_batch_is_refused(model, monkeypatch, wrong):
    """Also on the first images alone: in the call that prepares the engine and in the first comparison."""
    left = iter(range(wrong))
    deployed = odd(monkeypatch, model, lambda module: lambda *x: module(*x) + (next(left, None) is not None))
    with pytest.raises(DisagreementError, match="any number of images"):
        deployed(photos(2))


def test_disagreement_on_several_images_is_refused_if_the_batch_is_one(model, monkeypatch):
    deployed = odd(monkeypatch, model, lambda module: lambda *x: module(*x) + (len(x[0]) > 1))
    with pytest.raises(DisagreementError, match="any number of images"):
        deployed(photos(2))


@pytest.mark.parametrize("first", [1, 3])
def test_disagreement_on_one_image_is_refused_if_the_batch_is_larger(first, model, monkeypatch):
    """PyTorch's compilers make code of its own for a single image."""
    deployed = odd(monkeypatch, model, lambda module: lambda *x: module(*x) + (len(x[0]) == 1), batch=2)
    for number in (first, 4 - first):
        if number == 1:
            with pytest.raises(DisagreementError, match="any number of images"):
                deployed(photos(1))
        else:
            assert_close(deployed(images := photos(3)), model(images))


@pytest.mark.parametrize(
    ("foreign", "depends", "wanted"), [(False, False, [3, 1]), (True, False, [3]), (False, True, [3])]
)
def test_each_other_number_of_images_is_compared_once(foreign, depends, wanted, model, monkeypatch):
    """Where a single image is compared as several are, this is not done twice."""
    deployed = odd(monkeypatch, model, lambda module: module, batch=3)
    deployed._engine, deployed._depends_on_number = replace(deployed._engine, foreign=foreign), depends
    compare, compared = deployed._require_same, []
    monkeypatch.setattr(
        deployed, "_require_same", lambda *given: compared.append(given[-1]) or compare(*given)
    )
    for number in (2, 1, 3, 4, 1, 2):
        deployed(photos(number))
    assert compared == wanted


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "change", [torch.squeeze, lambda scores: scores - scores.mean(0) / 2], ids=["shape", "scores"]
)
def test_one_image_is_not_compared_with_one_of_several_if_they_differ(change, batch, stock, monkeypatch):
    network, images = WithChangedScores(stock, change), torch.randn(3 - batch, 3, *SIZE)
    assert_close(odd(monkeypatch, network, lambda module: module, batch)(images), network(images))


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", range(2))
@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if "cuda" in engine.devices])
def test_scores_on_a_gpu(engine, gpu, model, monkeypatch):
    """Also on a GPU that is not the current one.

    In float32 throughout: with tf32, torch's default for convolutions, folding changes what is rounded.
    """
    if torch.cuda.device_count() <= gpu:
        pytest.skip("no such GPU here")
    needs(engine, "cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model.cuda(gpu)
    deployed = deploy(model, SIZE, batch=3, engine=engine)
    for batch in (3, 1, 4):
        for images in (photos(batch).cuda(gpu), photos(batch).cuda(gpu).float()):
            assert_close(deployed(images), model(images), 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_network_that_no_cuda_graph_can_hold(stock):
    """Afterwards everything runs as before: on the same stream, with random numbers."""
    network = WithChangedScores(stock, lambda scores: scores if scores.sum().item() < 1e9 else -scores)
    network.cuda()
    before = torch.cuda.current_stream()
    with pytest.raises(EngineError, match="cudagraphs does not run this network: it waits for the GPU"):
        deploy(network, SIZE, engine="cudagraphs")
    assert torch.cuda.current_stream() == before
    assert torch.randn(3, device="cuda").isfinite().all()
    images = torch.randn(1, 3, *SIZE, device="cuda")
    assert_close(deploy(network, SIZE, engine="eager")(images), network(images), 1e-4)


def test_wrong_images_are_refused(model):
    deployed = deploy(model, SIZE, engine="eager")
    for wrong in (photos(1)[0], photos(1, (33, 20)), photos(0), photos(1)[:, :1]):
        with pytest.raises(ValueError, match=r"images must be \(N, 3, 20, 33\)"):
            deployed(wrong)
    for wrong in (photos(1).numpy(), photos(1).float().to_sparse()):
        with pytest.raises(TypeError, match="images must be"):
            deployed(wrong)
    for dtype in (torch.int32, torch.uint16, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"images must be one of uint8, float64, .*, got {dtype}"):
            deployed(photos(1).to(dtype))
