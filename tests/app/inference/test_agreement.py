"""The check that a deployed network computes what the model does: tolerances, hooks, input and output."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from small_networks import (
    SIZE,
    WithChangedScores,
    assert_close,
    needs,
    photos,
    small_stock,
    with_own_forward,
    with_statistics,
)
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from wae.inference import precision
from wae.inference.agreement import (
    DisagreementError,
    agreement,
    dependence_on_number,
    require_equal,
    require_no_drop,
    require_simulated,
)
from wae.inference.calibration import Calibration
from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, EngineError
from wae.inference.engines.int8 import Simulation
from wae.inference.export import export
from wae.models.classifier import WAEClassifier
from wae_kernels.nn import Encoder


def rounded_to_ten_bits(x):
    """Rounded as tf32: to 10 bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


@contextmanager
def allowed(backend, setting):
    """In this block ``backend`` may round float32 as ``setting`` says."""
    before = backend.fp32_precision
    backend.fp32_precision = setting
    try:
        yield
    finally:
        backend.fp32_precision = before


def test_the_tolerance_depends_on_the_float32_precision_that_torch_allows(monkeypatch):
    """With tf32, torch's default on a GPU and emulated here, folding changes what is rounded."""
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
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    for device, layers, setting, most in (
        ("cuda", cudnn.conv, "ieee", 1e-4),
        ("cuda", cudnn.conv, "tf32", 2e-3),
        ("cuda", torch.backends.cuda.matmul, "tf32", 2e-3),
        ("cpu", mkldnn.conv, "bf16", 1e-1),
        ("cpu", mkldnn.matmul, "bf16", 1e-1),
        ("cpu", mkldnn.matmul, "tf32", 2e-3),
    ):
        with allowed(cudnn.conv, "ieee"), allowed(layers, setting):
            assert precision.tolerance(torch.float32, torch.device(device)) == most


@pytest.mark.parametrize("labelled", [True, False])
def test_a_drop_of_just_max_drop_is_accepted(labelled):
    """In floating point 1 - 0.995 is more than 0.005: five images of 1,000 would be too many."""
    wanted, numbers = torch.zeros(1000, dtype=torch.long), torch.arange(1000).view(-1, 1)
    data = Calibration(numbers, numbers, wanted if labelled else None)
    for wrong in (5, 6):
        report = agreement(
            lambda number, wrong=wrong: F.one_hot((number[:, 0] < wrong).long(), 2),
            1000, wanted, data, torch.device("cpu"),
        )  # fmt: skip
        assert report["drop"] == wrong / 1000
        report["max_drop"] = 0.005
        if wrong == 5:
            require_no_drop("it", report)
    with pytest.raises(DisagreementError, match=r"loses 0\.60%"):
        require_no_drop("it", report)


def test_scores_that_are_nan_agree_with_nothing():
    scores = torch.tensor([[1.0, torch.nan]])
    with pytest.raises(DisagreementError, match="differ from the model's by nan"):
        require_equal("the engine", scores, torch.ones(1, 2), 1e-4)


class InPlace(nn.Sequential):
    """Normalises its input in place, as users' networks do."""

    def forward(self, image):
        return super().forward(image.sub_(0.5).div_(0.25))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("exact", "simulated", "found", "right"),
    [
        ([1, 2], [1.1, 2], [1.1, 2.2], True),
        ([1, 2], [1.1, 2], [1.1, 3], False),
        ([0, 0], [0, 0], [0, 0], True),
        ([0, 0], [0, 0.1], [0.1, 0], True),
        ([0, 0], [0, 0], [0, 0.1], False),
        ([7, 7], [7, 7], [7, 7], True),
        ([7, 7], [7, 7], [7, 8], False),
        ([7, 7], [7, NAN], [7, 7], True),
        ([1, 2], [1, 2], [1, NAN], False),
        ([1, NAN], [1, 2], [1, 2], False),
        ([1, 2], [1, INF], [1, INF], False),
        ([1, INF], [1, INF], [1, INF], False),
    ],
)
def test_int8_kernels_are_compared_with_the_simulation_whatever_the_results(exact, simulated, found, right):
    """Zeros, constants and infinite ones too."""
    exact, simulated, found = ([torch.tensor([x, [9.0, 9.0]])] for x in (exact, simulated, found))
    found[0][1] = 0.0  # fills the batch
    given = "an_engine", found, 1, Simulation([], exact, simulated)
    if right:
        require_simulated(*given)
    else:
        with pytest.raises(DisagreementError, match="an_engine's int8 kernels give results that differ"):
            require_simulated(*given)


@pytest.mark.parametrize("score", [INF, NAN])
def test_scores_that_are_not_finite_are_as_far_as_no_limit_allows(score):
    """Infinite ones passed in int8, whose own limit is `max_drop`."""
    with pytest.raises(DisagreementError, match=r"differ from the model's by (inf|nan)"):
        require_equal("the model", torch.tensor([score]), torch.ones(1), INF)


@pytest.mark.parametrize("images", [None, torch.randn(20, 3, *SIZE)], ids=["alone", "with calibration"])
def test_a_network_that_changes_its_input_is_compared_on_the_original_images(images, tmp_path):
    network = InPlace(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    options = {"calibration": images, "calibration_images": 10}
    deployed = deploy(network, SIZE, engine="eager", **options)
    export(network, tmp_path / "a", "torch", SIZE, image_dtype=torch.float32, **options)
    for batch, memory_format in (
        (1, torch.contiguous_format),
        (1, torch.channels_last),
        (2, torch.channels_last),  # prepares the engine for any number of images, and is checked too
        (2, torch.channels_last),
    ):
        given = torch.randn(batch, 3, *SIZE).contiguous(memory_format=memory_format)
        before = given.clone()
        assert_close(deployed(given), network(before.clone()))
        assert torch.equal(given, before)


class OfTuple(nn.Module):
    """Has an odd signature, and only a parameter without numbers, which tells its dtype and device."""

    def __init__(self):
        super().__init__()
        self.like = nn.Parameter(torch.empty(0))
        self.register_buffer("kernel", torch.randn(5, 3, 3, 3))

    def forward(self, *images):
        (image,) = images
        return F.conv2d(image, self.kernel).mean((2, 3))


@pytest.mark.parametrize("engine", ["eager", "onnxruntime"])
def test_a_network_of_buffers_with_an_odd_signature(engine, tmp_path):
    needs(engine)
    network = OfTuple().eval()
    deployed, images = deploy(network, SIZE, engine=engine), torch.randn(2, 3, *SIZE)
    assert_close(deployed(images), network(images))
    deployed.save(tmp_path / "saved")
    export(network, tmp_path / "a", "torch", SIZE)


def test_deploy_and_export_unwrap_a_compiled_network(model, tmp_path):
    """Wrapped, it would not be recognised as WAE: its encoder would run in the engine, or not at all."""
    compiled = torch.compile(model)
    deployed, images = deploy(compiled, SIZE, engine="eager"), photos(1)
    assert type(deployed._front.encoder) is Encoder
    assert_close(deployed(images), model(images))
    export(compiled, tmp_path / "a", "torch", SIZE)


def test_a_hook_on_a_compiled_network_is_not_lost(model):
    compiled = torch.compile(model, backend="eager")
    compiled.register_forward_hook(lambda network, given, scores: 2 * scores)
    with pytest.raises(DisagreementError):
        deploy(compiled, SIZE, engine="eager")


def doubled_alone(scores):
    return scores if scores.shape[0] > 1 else 2 * scores


def of_pixels():
    return with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "engine", "batch"),
    [
        (small_stock, "onnxruntime", 1),
        (small_stock, "onnxruntime", 2),
        (small_stock, "openvino", 2),
        (of_pixels, "openvino", 2),
    ],
)
def test_an_engine_that_treats_one_image_as_several_is_refused(make, engine, batch):
    """Its graph is made from several images, whatever the network does in Python with one."""
    needs(engine)
    network = WithChangedScores(make(), doubled_alone)
    with pytest.raises(DisagreementError, match=rf"{engine}(, given 1 image,)? gives scores that differ"):
        deploy(network, SIZE, batch, engine)


@pytest.mark.parametrize(
    ("engine", "batch"), [("eager", 1), ("eager", 3), pytest.param("compile", 3, marks=pytest.mark.slow)]
)
def test_a_network_that_treats_one_image_otherwise_runs_in_pytorch_but_is_not_saved(
    engine, batch, stock, tmp_path
):
    network = WithChangedScores(stock, doubled_alone)
    deployed = deploy(network, SIZE, batch, engine)
    for number in (1, 2, 3):
        images = torch.randn(number, 3, *SIZE)
        assert_close(deployed(images), network(images))
    with pytest.raises(EngineError, match=f"{engine} cannot save this network: its scores of an image"):
        deployed.save(tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "batch"), [("onnxruntime", 1), ("openvino", 2), ("compile", 2)])
def test_one_image_is_compared_in_int8_too(engine, batch, stock):
    """No class changes, so that the held-out images do not show it."""
    if reason := ENGINES[engine].why_not("cpu", "int8"):
        pytest.skip(reason)
    network, images = WithChangedScores(stock, doubled_alone), torch.randn(40, 3, *SIZE)
    options = {"precision": "int8", "calibration": images, "calibration_images": 10, "max_drop": None}
    with pytest.raises(DisagreementError, match=r"given \d images?, gives scores that differ"):
        deploy(network, SIZE, batch, engine, **options)


@pytest.mark.slow
def test_int8_in_chunks_is_refused_for_a_network_that_normalises_by_the_statistics_of_a_call():
    if reason := ENGINES["compile"].why_not("cpu", "int8"):
        pytest.skip(reason)
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 5, SIZE), nn.Flatten())
    options = {"calibration": torch.randn(40, 3, *SIZE), "calibration_images": 10, "max_drop": None}
    with pytest.raises(DisagreementError, match="given 2 images, gives scores that differ"):
        deploy(network.eval(), SIZE, 1, "compile", precision="int8", **options)


@pytest.mark.slow
def test_an_int8_file_is_compared_before_it_is_quantized(stock, tmp_path):
    needs("onnxruntime")
    network, images = WithChangedScores(stock, doubled_alone), torch.randn(20, 3, *SIZE)
    for options in ({}, {"precision": "int8", "calibration": images, "calibration_images": 10}):
        with pytest.raises(DisagreementError, match="the onnx file, given 1 image, gives scores that differ"):
            export(network, tmp_path / "a", "onnx", SIZE, image_dtype=torch.float32, max_drop=None, **options)


class OfFour(nn.Module):
    """Takes four images only."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.view(4, 3, *SIZE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "engine"),
    [
        (OfFour(small_stock()), "eager"),  # exporters refuse it
        (WithChangedScores(small_stock(), lambda scores: scores[:, :1].squeeze()), "eager"),
        *((WithChangedScores(small_stock(), torch.squeeze), engine) for engine in ("eager", "onnxruntime")),
        (
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 5, SIZE), nn.Flatten()),
            "onnxruntime",
        ),
    ],
    ids=[
        "four images only",
        "a scalar for one image",
        "no batch for one image",
        "the same in a graph",
        "statistics of the batch",
    ],
)
def test_an_engine_that_follows_the_network_is_not_refused(engine, network):
    """Nor is one for a network that scores no other number of images."""
    needs(engine)
    images = torch.randn(4, 3, *SIZE)
    assert_close(deploy(network.eval(), SIZE, 4, engine)(images), network(images))


@pytest.mark.parametrize("number", [1, 2])
def test_a_network_that_normalises_by_the_statistics_of_a_call_is_not_saved(number, tmp_path):
    """A saved network may run other numbers of images in chunks, which have other statistics."""
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 5, SIZE), nn.Flatten())
    with pytest.raises(EngineError, match="eager cannot save this network: its scores of an image depend"):
        deploy(network.eval(), SIZE, number, "eager").save(tmp_path / "saved")


class Jumping(nn.Module):
    """Gives other scores to the first image that it sees alone, and can be deployed only if it may."""

    def __init__(self, network, *unpooling):
        super().__init__()
        self.network, self.unpooling, self.jumped = network, nn.ModuleList(unpooling), False

    def forward(self, images):
        jumps = len(images) == 1 and not self.jumped
        self.jumped |= jumps
        return self.network(images) + jumps


def test_scores_of_unpooling_may_jump_between_numbers_of_images(stock):
    images = torch.randn(2, 3, *SIZE)
    for unpooling in ((nn.MaxUnpool2d(2),), ()):
        network = Jumping(stock, *unpooling).eval()
        found = dependence_on_number(network, images, network(images).detach())
        assert found <= 1e-5 if unpooling else found > 1e-2


def hook_of_scores(network):
    network.register_forward_hook(lambda network, given, scores: 2 * scores)


def hook_of_classes(network):
    network.register_forward_hook(lambda network, given, scores: scores.argsort())


def hook_of_images(network):
    network.register_forward_pre_hook(lambda network, given: (255 - given[0],))


class Doubled(WAEClassifier):
    def forward(self, image):
        return 2 * super().forward(image)


class Inverting(WAEClassifier):
    def decompose(self, image):
        return super().decompose(255 - image)


class Tempered(WAEClassifier):
    def scores(self, low, high):
        return super().scores(low, high) / 2


def subclassed(kind):
    return lambda network: setattr(network, "__class__", kind)


@pytest.mark.parametrize(
    "change",
    [
        *(hook_of_scores, hook_of_classes, hook_of_images, with_own_forward),
        *(subclassed(kind) for kind in (Doubled, Inverting, Tempered)),
    ],
    ids=["scores", "classes", "images", "own forward", "Doubled", "Inverting", "Tempered"],
)
def test_a_wae_network_whose_own_hook_or_method_changes_its_scores_is_refused(change, model, tmp_path):
    """Only its parts run, so that is lost; in int8 no other check finds it. The error says what to do."""
    change(model)
    said = rf"{type(model).__name__} has a hook, .* changes its scores.* on a part, such as low_body, or"
    for options in ({"engine": "eager"}, {"precision": "int8", "calibration": photos(40)}):
        with pytest.raises(EngineError, match=said):
            deploy(model, SIZE, **options)
    with pytest.raises(EngineError, match=said):
        export(model, tmp_path / "model.onnx", "onnx", SIZE)


def test_a_hook_that_changes_nothing_is_left_out(model):
    seen = []
    model.register_forward_hook(lambda network, given, scores: seen.append(len(scores)))
    deployed, images = deploy(model, SIZE, engine="eager"), photos(2)
    seen.clear()
    assert_close(deployed(images), model(images))
    assert seen == [2]


def test_a_size_that_the_model_does_not_accept_is_refused(model):
    with pytest.raises(ValueError, match="the model takes no images of 3 x 3"):
        deploy(model, (3, 3), engine="eager")


def test_the_models_assertion_about_a_size_is_reported(stock):
    """torchvision's ViT and timm's networks check it so."""
    stock[0].forward = lambda x: torch._assert(x.shape[2] == 224, "Wrong image height!")
    with pytest.raises(ValueError, match="the model takes no images of 20 x 33: Wrong image height!"):
        deploy(stock, SIZE, engine="eager")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scores: {"scores": scores}, "its scores as one tensor, got dict"),
        (lambda scores: scores.argmax(1), r"floating-point scores, got torch\.int64"),
    ],
    ids=["dict", "classes"],
)
def test_a_model_that_returns_no_scores_is_refused(change, said, stock, tmp_path):
    network = WithChangedScores(stock, change)
    with pytest.raises(ValueError, match=said):
        deploy(network, SIZE, engine="eager")
    with pytest.raises(ValueError, match=said):
        export(network, tmp_path / "a", "torch", SIZE)
