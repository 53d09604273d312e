"""`wae.deploy`: every engine gives the model's scores, for any batch; what does not agree is refused."""

import copy
import gc
import os
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import TestCase

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, ResNet

import wae
from wae.inference import deployed as deployed_module
from wae.inference import front as front_module
from wae.inference import precision
from wae.inference.deployed import ENGINES, DisagreementError, EngineError, deploy, example_images, fold
from wae.inference.engines import Engine, InPyTorch, _cudagraphs, in_turns
from wae.inference.export import export
from wae.inference.front import Front, whole
from wae.models.baselines import HalfResolution
from wae.models.classifier import FlatClassifier, WAEClassifier
from wae.models.haar import Haar
from wae.models.segmentation.segmenter import Fusion, LightBody, WAESegmenter
from wae_kernels.nn import Encoder

SIZE = (20, 33)
SLOW = ("compile", "winograd")  # those that compile
EACH = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in ENGINES
    if name != "tensorrt"
]
QUICK = [name for name in ENGINES if name not in ("compile", "tensorrt")]


class Body(nn.Sequential):
    """A small body with BatchNorm: two pooled features per channel."""

    def __init__(self, channels, image_channels=3):
        super().__init__(
            nn.Conv2d(image_channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3),
            nn.BatchNorm2d(channels),
            nn.AdaptiveAvgPool2d((1, 2)),
        )


def with_statistics(model):
    """BatchNorms as after a training, so that leaving one out shows."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 3)
                if norm.affine:
                    norm.weight.normal_()
                    norm.bias.normal_()
    return model.eval()


def small_wae():
    return with_statistics(
        WAEClassifier(
            Encoder(),
            Body(8),
            Body(2),
            FlatClassifier(16, 12, 5),
            FlatClassifier(20, 12, 5),
            (1 / 64,) * 3,
            (-2.0,) * 3,
        )
    )


@pytest.fixture
def model():
    return small_wae()


@pytest.fixture
def stock():
    """A network that is not a WAE's."""
    return with_statistics(nn.Sequential(Body(8), nn.Flatten(), nn.Linear(16, 7)))


def photos(batch, size=SIZE):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


def needs(engine, device="cpu"):
    reason = ENGINES[engine].why_not(device)
    if reason:
        pytest.skip(reason)


def assert_close(scores, expected, tolerance=1e-5):
    assert scores.shape == expected.shape
    assert (scores - expected).norm() <= tolerance * expected.norm()


# ------------------------------------------------------------------------------------------ the same scores


@pytest.mark.slow
@pytest.mark.parametrize("engine", EACH)
def test_scores_are_the_model_s_for_any_batch(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, batch=3, engine=engine)
    assert deployed.engine == engine
    assert deployed.difference <= 1e-5
    for batch in (3, 1, 4, 2):
        images = photos(batch)
        assert_close(deployed(images), model(images))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_on_one_processor_of_several(engine, model):
    """As under Slurm, or in a container."""
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
def test_a_network_that_is_no_wae(engine, stock):
    needs(engine)
    deployed = deploy(stock, (64, 50), batch=2, engine=engine)
    images = torch.randn(2, 3, 64, 50)
    assert_close(deployed(images), stock(images))
    as_photos = photos(5, (64, 50))
    assert_close(deployed(as_photos), stock(as_photos.float()))


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.double, torch.Tensor.half, lambda x: x[x > -torch.inf].view(x.shape[0], -1)],
    ids=["float64", "float16", "any number"],
)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_results_in_another_dtype_or_of_a_size_that_only_a_call_tells(engine, change, stock):
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = stock

        def forward(self, images):
            return change(self.network(images))

    needs(engine)
    deployed, images = deploy(Changed().eval(), SIZE, engine=engine), torch.randn(1, 3, *SIZE)
    scores = deployed(images)
    assert scores.dtype == torch.float32  # the parameters'
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
def test_the_result_is_the_caller_s(model):
    """Engines write to the same place each time; what was returned must stay."""
    for engine in QUICK:
        if ENGINES[engine].why_not("cpu") is None:
            deployed = deploy(model, SIZE, engine=engine)
            first = deployed(photos(1))
            kept = first.clone()
            deployed(photos(1))
            assert torch.equal(first, kept)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_runs_for_one_number_of_images_takes_any_in_turns(memory_format):
    """Packages of AOTInductor want the strides they were made for; a run may write to the same place."""
    place = torch.empty(4, 3)

    def run(x, y):
        assert len(x) == len(y) == 4
        assert x.is_contiguous(memory_format=memory_format)
        return place.copy_((x + y).sum((2, 3)))

    any_number = in_turns(run, 4)
    for count in (4, 1, 10):
        x, y = (torch.randn(count, 3, 2, 5).to(memory_format=memory_format) for _ in range(2))
        assert_close(any_number(x, y), (x + y).sum((2, 3)))


def test_inside_inference_mode(model):
    deployed = deploy(model, SIZE, engine="eager")
    with torch.inference_mode():
        images = photos(1)
        assert_close(deployed(images), model(images))


def test_the_model_stays_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy(model, SIZE, engine="eager")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("engine", ["eager", "openvino", pytest.param("compile", marks=pytest.mark.slow)])
def test_half_precision(engine, model):
    needs(engine)
    deployed = deploy(model, SIZE, engine=engine, precision="bfloat16")
    for batch in (1, 2):
        images = photos(batch)
        assert deployed(images).dtype == torch.float32  # the model's
        assert_close(deployed(images), model(images), 5e-2)


def test_a_wider_precision_than_the_model_s(model):
    """The expected scores are computed as widely."""
    narrow = copy.deepcopy(model).bfloat16()
    deployed = deploy(narrow, SIZE, engine="eager", precision="float32")
    assert deployed.difference <= 1e-5
    images = photos(2)
    assert deployed(images).dtype == torch.float32
    assert_close(deployed(images), copy.deepcopy(narrow).float()(images))
    assert deploy(model, SIZE, engine="eager", precision="float64").difference <= 1e-12


def test_dtype_is_the_old_name_of_precision(model):
    with pytest.warns(DeprecationWarning, match="precision="):
        deployed = deploy(model, SIZE, engine="eager", dtype=torch.bfloat16)
    assert deployed.precision == "bfloat16"


def test_a_precision_that_the_engine_does_not_have(model):
    with pytest.raises(EngineError, match="onnxruntime computes in float32 or int8, not in bfloat16"):
        deploy(model, SIZE, engine="onnxruntime", precision="bfloat16")


def test_a_precision_that_is_emulated_is_logged(model, monkeypatch):
    monkeypatch.setattr(deployed_module.precisions, "native", lambda name, device: False)
    with TestCase().assertLogs("wae.inference.deployed", "WARNING") as log:
        deploy(model, SIZE, engine="eager", precision="bfloat16")
    assert "no instructions for bfloat16: eager emulates it" in log.output[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", EACH)
def test_a_broken_image_has_no_scores(engine, model):
    """ReLU and pooling of some engines make a number of NaN; the other images keep their scores."""
    needs(engine)
    deployed = deploy(model, SIZE, 2, engine)
    images = photos(2).float()
    expected = deployed(images)
    for broken in (float("nan"), float("inf"), 3e38):
        images[0, 1, 3, 4] = broken
        scores = deployed(images)
        assert scores[0].isnan().all() or (broken == 3e38 and model(images)[0].isfinite().all())
        assert (scores[1] - expected[1]).norm() <= 1e-4 * expected[1].norm()


def test_it_is_not_pickled_but_saved(model):
    deployed = deploy(model, SIZE, engine="eager")
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"neither copied nor pickled: save\(\) it"):
            take(deployed)


# ------------------------------------------------------------------------------------------ what is around it


@pytest.mark.parametrize("engine", EACH)
@pytest.mark.slow
def test_what_is_around_a_call_does_not_change_it(engine, model):
    """Neither autocast, nor inference mode, nor the default dtype; also around deploy."""
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


def test_its_repr_says_what_it_is(model):
    deployed = deploy(model, SIZE, batch=2, engine="eager")
    shown = r"Deployed\(engine='eager', precision='float32', size=\(20, 33\), batch=2, difference=[\d.e-]+\)"
    assert re.fullmatch(shown, repr(deployed))


@pytest.mark.slow
def test_the_weights_are_held_once(model):
    """Beside an engine that packs them, the module's wait in a mapped file; one in a file needs no module."""
    module, inputs = nn.Linear(512, 512).eval(), [torch.randn(1, 512)]
    expected = module(*inputs)
    prepared = InPyTorch(module, inputs, lambda m, *_: copy.deepcopy(m), packs=True)
    prepared.for_batch(1)
    assert "weights.pt" in Path("/proc/self/maps").read_text()
    assert torch.equal(module(*inputs), expected)
    deployed = deploy(model, SIZE, engine="openvino")
    assert not any(isinstance(x, nn.Module) for x in vars(deployed._prepared).values())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_tensor_holds_the_weights_of_a_network_in_a_file(engine):
    """The exporter keeps the graph of its last network, and would keep the weights with it."""
    needs(engine)
    size = 1013 * 3 * 8 * 8
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1013)).eval()
    deployed = deploy(network, (8, 8), engine=engine)
    assert deployed(photos(1, (8, 8))).shape == (1, 1013)
    del network
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    assert not [x for x in tensors if x.device.type == "cpu" and x.numel() == size]


def rounded_to_ten_bits(x):
    """As tf32 rounds: 10 bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


@contextmanager
def allowed(backend, setting):
    """Within it ``backend`` may round float32 as ``setting`` says."""
    before = backend.fp32_precision
    backend.fp32_precision = setting
    try:
        yield
    finally:
        backend.fp32_precision = before


def test_the_tolerance_follows_the_arithmetic_that_torch_allows(monkeypatch):
    """tf32, torch's default on a GPU, emulated: folding changes what is rounded."""
    monkeypatch.setattr(
        nn.Conv2d,
        "_conv_forward",
        lambda self, x, weight, bias: F.conv2d(
            rounded_to_ten_bits(x), rounded_to_ten_bits(weight), bias, self.stride, self.padding
        ),
    )
    torch.manual_seed(0)
    network = with_statistics(ResNet(BasicBlock, [2, 2, 2, 2], num_classes=7))
    with pytest.raises(DisagreementError, match=r"more than 0\.0001"):
        deploy(network, (64, 64), engine="eager")
    with monkeypatch.context() as patched:
        patched.setattr(precision, "_allowed", lambda device: {"tf32"})
        difference = deploy(network, (64, 64), engine="eager").difference
    assert 1e-4 < difference <= 2e-3
    for setting, most in (("ieee", 1e-4), ("tf32", 2e-3)):
        with allowed(torch.backends.cudnn.conv, setting):
            assert precision.tolerance(torch.float32, torch.device("cuda")) == most


# ------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("engine", [name for name in QUICK if ENGINES[name].foreign])
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_the_caller_s_threads_are_left_alone(engine, model, tmp_path):
    """In a fresh process: PyTorch's threads of the caller live on, and their number is as before."""
    needs(engine)
    torch.save(model, tmp_path / "model.pt")
    code = f"""
import os, sys, torch, wae
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads(3)
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
deployed = wae.deploy(model, {SIZE}, engine={engine!r})
images = torch.randint(0, 256, (1, 3, *{SIZE}), dtype=torch.uint8)
def work():
    before = set(os.listdir("/proc/self/task"))
    (torch.ones(500, 500) @ torch.ones(500, 500)).add(1)  # a parallel region of the user's
    return set(os.listdir("/proc/self/task")) - before
cores = os.sched_getaffinity(0)
work()
mine = set(os.listdir("/proc/self/task"))
for _ in range(3):
    deployed(images)
    assert mine <= set(os.listdir("/proc/self/task")), "a thread of the caller's has ended"
    assert not work(), "the caller's parallel region had to start threads"
assert torch.get_num_threads() == 3
assert os.sched_getaffinity(0) == cores
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FORKED = """
import os, torch
from wae.inference.front import Front
from wae_kernels.nn import Encoder
affine = torch.ones(3), torch.zeros(3)
front = Front({encoder}, torch.ones(1), *affine, torch.float32, torch.contiguous_format, before_threads=True)
image = torch.zeros(1, 3, 4, 4)
with torch.no_grad():
    front(image)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try:
        front(image)
    except RuntimeError as error:
        os._exit(7 * ("before the process was forked" in str(error)))
"""


@pytest.mark.parametrize("encoder", ["None", "Encoder()", "Encoder(8)"])  # no kernel takes a width of 8
def test_a_call_in_a_forked_process_does_not_wait_for_ever(encoder):
    code = FORKED.format(encoder=encoder)
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 7


@pytest.mark.parametrize("network", ["wae", "other"])
def test_no_thread_of_ours_waits_in_a_loop_beside_an_engine(network, model, stock):
    """The cast of a network without an encoder wakes PyTorch's threads as well as the encoder does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        folded = fold(model if network == "wae" else stock)
        front, _ = front_module.in_front(folded, SIZE, torch.float32, torch.contiguous_format, True)
        images, taken = photos(8, (224, 224)), []
        for _ in range(10):
            front(images)
            before = time.process_time()
            time.sleep(0.005)
            taken.append(time.process_time() - before)
        assert min(taken) < 0.002
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("width", "threads"), [(16, 1), (8, 3)])
def test_an_encoder_without_a_kernel_keeps_pytorch_s_threads(width, threads, monkeypatch):
    """Its convolutions are PyTorch's own, and would have one thread where our helpers have the others."""
    seen, forward = [], Encoder.forward
    monkeypatch.setattr(
        Encoder, "forward", lambda self, *args: seen.append(torch.get_num_threads()) or forward(self, *args)
    )
    affine = torch.ones(3), torch.zeros(3)
    front = Front(Encoder(width), torch.ones(1), *affine, torch.float32, torch.contiguous_format, True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        front(torch.rand(1, 3, *SIZE))
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_the_encoder_gives_what_the_engine_wants():
    """In its dtype and memory format: nothing is cast or copied between the two."""
    affine, images = (torch.ones(3), torch.zeros(3)), photos(2)
    front = Front(Encoder(), torch.ones(1), *affine, torch.bfloat16, torch.channels_last)
    with torch.no_grad(), Operators() as seen:
        parts = front(images)
    assert seen.names == ["wae::encode"]
    for part in parts:
        assert part.dtype == torch.bfloat16
        assert part.is_contiguous(memory_format=torch.channels_last)


def own_forward(encoder):
    encoder.forward = lambda image, scale, shift: Encoder.forward(encoder, image, scale, shift)[::-1]


def hooked(encoder):
    def doubled(_, arguments):
        image, scale, shift = arguments
        return image, 2 * scale, shift

    encoder.register_forward_pre_hook(doubled)


@pytest.mark.parametrize("change", [own_forward, hooked])
def test_an_encoder_that_was_changed_gets_the_model_s_arguments(change):
    encoder, affine, images = Encoder(), (torch.ones(3), torch.zeros(3)), photos(2)
    change(encoder)
    front = Front(encoder, torch.ones(1), *affine, torch.bfloat16, torch.channels_last)
    with torch.no_grad():
        for part, expected in zip(front(images), encoder(images, *affine), strict=True):
            assert part.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(part, expected.to(torch.bfloat16))


class Operators(TorchDispatchMode):
    """The names of the operators that run in its block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_compiled_networks_are_frozen_and_not_counted_together():
    """PyTorch gives up on a function it has compiled too often; weights that are inputs are not packed."""
    inputs = [torch.randn(2, 4)]
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            network = nn.Linear(4, 4).eval()
            run = ENGINES["compile"].build(network, inputs)
            expected = network(*inputs)
            network.weight.zero_()
            assert_close(run(*inputs), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # by torch 2.10 itself
def test_fc_layers_of_many_weights(monkeypatch, capfd):
    """They are generated and chosen by timing, which must not print."""
    monkeypatch.setattr("wae.inference.engines._MANY_WEIGHTS", 1)
    network, inputs = nn.Linear(64, 48).eval(), [torch.randn(1, 64)]
    run = ENGINES["compile"].build(network, inputs)
    assert_close(run(*inputs), network(*inputs))
    assert "AUTOTUNE" not in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------- folding


def test_no_batchnorm_is_left(model):
    resnet = with_statistics(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7))
    for network, images in ((model, photos(2)), (resnet, torch.randn(2, 3, *SIZE))):
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fold(network).modules())
        assert not any(part.training for part in fold(network).modules())
        assert_close(fold(network)(images), network(images))


def test_what_cannot_be_traced_keeps_its_batchnorm(model):
    class Stubborn(Body):
        def forward(self, x):
            return super().forward(x if x.mean() > -1e9 else -x)

    model.low_body = with_statistics(Stubborn(8))
    images = photos(2)
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


def test_a_convolution_used_twice_is_not_folded(model):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.body = Body(8)

        def forward(self, x):
            return self.body(self.two(self.conv(self.one(self.conv(x)))))

    model.low_body = with_statistics(Twice())
    images = photos(2)
    assert_close(deploy(model, SIZE, engine="eager")(images), model(images))


class Tokens(nn.Sequential):
    """A BatchNorm over tokens, behind a matrix over their channels: as many, so that shapes do not tell."""

    def __init__(self):
        super().__init__(nn.Flatten(2), nn.Linear(SIZE[0] * SIZE[1], 3), nn.BatchNorm1d(3), nn.Flatten())


def with_own_forward(network):
    network.forward = lambda x: 2 * type(network).forward(network, x)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[0].register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: network[1].register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: network.register_forward_hook(lambda layer, given, result: 2 * result),
        lambda network: prune.l1_unstructured(network[0], "weight", 0.5),
        lambda network: parametrizations.weight_norm(network[0]),
        with_own_forward,
    ],
    ids=["convolution", "norm", "network", "pruned", "weight norm", "forward"],
)
@pytest.mark.parametrize("part", ["low_body", "of its own"])
def test_what_is_more_than_its_tensors_is_not_folded(change, part, model):
    network = model if part == "low_body" else with_statistics(Body(8))
    change(getattr(network, part, network))
    images = photos(2)
    with torch.no_grad():
        expected = network.eval()(images if network is model else images.float())
    assert_close(deploy(network, SIZE, engine="eager")(images), expected)


def hook_of_scores(network):
    network.register_forward_hook(lambda network, given, scores: 2 * scores)


def hook_of_classes(network):
    network.register_forward_hook(lambda network, given, scores: scores.argsort())


def hook_of_images(network):
    network.register_forward_pre_hook(lambda network, given: (255 - given[0],))


class Doubled(WAEClassifier):
    def forward(self, image):
        return 2 * super().forward(image)


def of_another_class(network):
    network.__class__ = Doubled


@pytest.mark.parametrize(
    "change", [hook_of_scores, hook_of_classes, hook_of_images, with_own_forward, of_another_class]
)
def test_a_hook_on_a_whole_wae_network_that_would_be_lost_is_refused(change, model, tmp_path):
    """Its parts are what runs. The message says what to do. In int8 nothing else told."""
    change(model)
    said = rf"{type(model).__name__} has a hook, .* changes its scores.* on a part, such as low_body, or"
    for options in ({"engine": "eager"}, {"precision": "int8", "calibration": photos(40)}):
        with pytest.raises(EngineError, match=said):
            deploy(model, SIZE, **options)
    with pytest.raises(EngineError, match=said):
        export(model, tmp_path / "model.onnx", "onnx", SIZE)


def test_a_hook_on_a_whole_wae_network_that_looks_on_is_left_out(model):
    seen = []
    model.register_forward_hook(lambda network, given, scores: seen.append(len(scores)))
    deployed, images = deploy(model, SIZE, engine="eager"), photos(2)
    seen.clear()
    assert_close(deployed(images), model(images))
    assert seen == [2]


def test_a_norm_behind_a_matrix_is_not_folded():
    network, images = with_statistics(Tokens()), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        network[2].running_mean.uniform_(1, 2)
        network[2].running_var.uniform_(2, 9)
    assert_close(deploy(network, SIZE, engine="eager")(images), network(images))


# ---------------------------------------------------------------------------------------- which engine runs


def scripted(monkeypatch, **engines):
    """Engines in place of the real ones: name -> a function of the module that gives what runs."""
    made = {
        name: Engine(
            name,
            ("cpu",),
            {},
            lambda module, inputs, *_, make=make: InPyTorch(module, inputs, lambda m, *_: make(m)),
        )
        for name, make in engines.items()
    }
    monkeypatch.setattr(deployed_module, "ENGINES", made)
    return made


def test_auto_takes_the_fastest_that_agrees(model, monkeypatch):
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
    with TestCase().assertLogs("wae.inference.deployed", "INFO") as log:
        deployed = deploy(model, SIZE, seconds=0.2)
    assert deployed.engine == "good"
    assert deployed.seconds.keys() == {"slow", "good"}
    assert "left out: the model in wrong gives scores that differ" in "".join(log.output)
    assert "no such instruction" in "".join(log.output)


def test_auto_without_an_engine_that_works(model, monkeypatch):
    scripted(monkeypatch, wrong=lambda module: lambda *x: module(*x) + 1)
    with pytest.raises(EngineError, match="no engine runs the model"):
        deploy(model, SIZE)


@pytest.mark.parametrize("by", [1e-3, float("nan")])
def test_disagreement_is_refused(model, monkeypatch, by):
    scripted(monkeypatch, wrong=lambda module: lambda *x: module(*x) * (1 + by))
    with pytest.raises(DisagreementError, match="wrong gives scores that differ"):
        deploy(model, SIZE, engine="wrong")


def test_disagreement_for_another_batch_is_refused(model, monkeypatch):
    scripted(monkeypatch, odd=lambda module: module)
    deployed = deploy(model, SIZE, engine="odd")
    deployed._prepared._compile = lambda module, *_: lambda *x: module(*x) * 2
    with pytest.raises(DisagreementError, match="any number of images"):
        deployed(photos(2))


def test_a_missing_engine_says_what_to_install(model, monkeypatch):
    engine = Engine("other", ("cpu",), {"no_such_module": "no-such-package"}, lambda *_: None)
    monkeypatch.setitem(ENGINES, "other", engine)
    with pytest.raises(EngineError, match="pip install no-such-package"):
        deploy(model, SIZE, engine="other")


@pytest.mark.parametrize("engine", ["cudagraphs", "tensorrt"])
def test_an_engine_for_another_device(engine, model):
    with pytest.raises(EngineError, match=f"{engine} runs on cuda, not on cpu"):
        deploy(model, SIZE, engine=engine)


def test_an_engine_that_runs_the_encoder_too(model, monkeypatch):
    """As CUDA graphs do, tried on the processor: images of any dtype, and no op outside of the engine."""
    taken = []

    def compile(module, inputs, dynamic):
        def run(*images):
            taken.append([image.dtype for image in images])
            return module(*images)

        return run

    engine = Engine(
        "whole", ("cpu",), {}, lambda module, inputs, *_: InPyTorch(module, inputs, compile), whole=True
    )
    monkeypatch.setitem(ENGINES, "whole", engine)
    deployed = deploy(model, SIZE, engine="whole")
    assert deployed._front.encoder is None
    for images in (photos(1), photos(2), photos(1).float()):
        taken.clear()
        assert_close(deployed(images), model(images), 1e-4)
        assert taken[-1] == [images.dtype]


class Streams:
    """Stands in for torch's streams and graphs: notes what waits for what, and the stream of every module."""

    def __init__(self, monkeypatch, modules):
        self.current, self.events = "main", []
        for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.events.append((name, self.current)))

    def Stream(self):
        return self.of(f"stream {len(self.events)}")

    def of(self, name):
        waits = lambda other: self.events.append((name, "waits for", other.name))  # noqa: E731
        return SimpleNamespace(name=name, wait_stream=waits)

    def current_stream(self):
        return self.of(self.current)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.events.append("replayed"))

    @contextmanager
    def graph(self, graph):
        self.events.clear()
        yield
        self.captured = list(self.events)


def segmenter():
    return WAESegmenter(Encoder(), nn.Conv2d(3, 5, 3, padding=1), LightBody(), Fusion(5, 16)).eval()


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_graph_has_the_two_bodies_on_two_streams(kind, model, monkeypatch):
    """As far as it can be seen without a GPU: what is captured, on which stream, and that the rest waits."""
    network = fold(model if kind == "classifier" else segmenter())
    front, module = whole(network, SIZE, torch.float32, torch.contiguous_format)
    low, high = (getattr(module.behind, name) for name in network.bodies)
    last = module.behind.fusion_classifier if kind == "classifier" else module.behind.fusion
    streams = Streams(monkeypatch, {"encoder": module.encoder, "low": low, "high": high, "last": last})
    images = photos(2)
    run = _cudagraphs(module, front(images), False)
    side = streams.captured[1][0]
    assert streams.captured == [
        ("encoder", "main"),
        (side, "waits for", "main"),
        ("high", side),
        ("low", "main"),
        ("main", "waits for", side),
        ("last", "main"),
    ]
    scores = run(images)
    assert streams.events[-1] == "replayed"
    streams.events.clear()
    assert_close(module(images), scores)
    assert streams.events == [(name, "main") for name in ("encoder", "low", "high", "last")]  # outside of it
    assert_close(scores, network(images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if "cuda" in engine.devices])
def test_on_a_gpu(engine, model):
    needs(engine, "cuda")
    model.cuda()
    deployed = deploy(model, SIZE, batch=3, engine=engine)
    for batch in (3, 1, 4):
        for images in (photos(batch).cuda(), photos(batch).cuda().float()):
            assert_close(deployed(images), model(images), 1e-4)


# --------------------------------------------------------------------------------------------- bad arguments


def test_wrong_arguments(model):
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        deploy("model.pt")
    for wrong in ({"size": (0, 5)}, {"size": 224}, {"batch": 0}, {"batch": 1.5}, {"engine": "tvm"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            deploy(model, **{"size": SIZE, "engine": "eager", **wrong})
    with (
        pytest.warns(DeprecationWarning, match="precision="),
        pytest.raises(ValueError, match=r"dtype must be one of .*got torch\.int8"),
    ):
        deploy(model, SIZE, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"precision must be one of auto, .*got 'int4'"):
        deploy(model, SIZE, precision="int4")


def test_a_model_in_training_mode(model):
    model.low_body[1].train()
    with pytest.raises(ValueError, match=r"low_body\.1 is in training mode: call model\.eval\(\)"):
        deploy(model, SIZE)


def test_a_model_without_memory_or_parameters(model):
    for wrong in (model.to("meta"), nn.ReLU().eval()):
        with pytest.raises(ValueError, match="parameters on one device"):
            deploy(wrong, SIZE)


@pytest.mark.parametrize("name", ["low_classifier.0.weight", "encoder.conv2.bias", "high_norm.running_var"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_model_with_broken_weights(name, value, engine, model):
    """By name, also where a ReLU behind them would make finite scores of them."""
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"finite numbers only, but {name} has"):
        deploy(model, SIZE, engine=engine)


def test_more_pixels_than_memory_has(model):
    for size, batch in (((100_000, 100_000), 1), (SIZE, 10**12)):
        with pytest.raises(ValueError, match="batch times size must be at most 268435456 pixels, got"):
            deploy(model, size, batch)


def test_a_size_that_does_not_fit_the_model(model):
    with pytest.raises(ValueError, match="the model takes no images of 3 x 3"):
        deploy(model, (3, 3), engine="eager")


def test_a_size_that_the_model_asserts(stock):
    """As torchvision's ViT and timm's networks do."""
    stock[0].forward = lambda x: torch._assert(x.shape[2] == 224, "Wrong image height!")
    with pytest.raises(ValueError, match="the model takes no images of 20 x 33: Wrong image height!"):
        deploy(stock, SIZE, engine="eager")


def test_a_model_that_returns_no_tensor(stock):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = stock

        def forward(self, images):
            return {"scores": self.network(images)}

    with pytest.raises(ValueError, match="its scores as one tensor, got dict"):
        deploy(Named().eval(), SIZE, engine="eager")


def test_wrong_images(model):
    deployed = deploy(model, SIZE, engine="eager")
    for wrong in (photos(1)[0], photos(1, (33, 20)), photos(0), photos(1)[:, :1]):
        with pytest.raises(ValueError, match=r"images must be \(N, 3, 20, 33\)"):
            deployed(wrong)
    for wrong in (photos(1).int(), photos(1).numpy()):
        with pytest.raises(TypeError, match="images must be"):
            deployed(wrong)


# ----------------------------------------------------------------------------------- imports, docs/deploy.md


def test_the_example_images_are_as_the_network_wants_them(model, stock):
    assert example_images(model, 2, SIZE).dtype == torch.uint8
    assert example_images(stock, 2, SIZE).abs().mean() < 2
    assert torch.equal(example_images(stock, 2, SIZE), example_images(stock, 2, SIZE))
    for network, dtype in ((model, torch.float32), (stock, torch.uint8), (HalfResolution(stock), None)):
        images = example_images(network, 2, SIZE, dtype).float()
        assert 100 < images.mean() < 156
        assert 30 < images.std() < 70


@pytest.mark.slow
def test_wae_deploy_is_a_function_and_import_wae_stays_light(model):
    assert wae.deploy(model, SIZE, engine="eager").engine == "eager"
    code = """
import sys, wae
assert not {"torchvision", "wae.inference", "onnx"} & set(sys.modules)
assert wae.deploy.__name__ == "deploy"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_page_s_examples_run(monkeypatch, tmp_path):
    page = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # for time: it tells as much about the page
    monkeypatch.setattr(deployed_module, "ENGINES", {"eager": ENGINES["eager"]})
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "deploy.md", "exec"), names)
    assert_close(names["scores"], names["again"](names["images"]))
    assert_close(names["scores"], names["same"])


def test_the_page_names_every_engine():
    page = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| (?:processor|GPU)", page, re.MULTILINE)) == set(ENGINES)
