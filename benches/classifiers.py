"""Classifiers: every form of a network, and everything that can run it.

A *side* is a form in a runner, written ``FORM | RUNNER``. Weights are random: only time and memory matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vgg16

from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES
from wae.inference.precision import name_of
from wae.inference.winograd import replaced
from wae.models.baselines import resnet50_half, vgg16_half
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.resnet50 import wae_resnet50
from wae.models.stock import StockEncoder
from wae.models.vgg16 import wae_vgg16
from wae_kernels.nn import Encoder

from .comparison import Side
from .devices import EXACT, PRECISIONS, Inputs, Setting
from .peers import over

NETWORKS = {"VGG16": (vgg16, vgg16_half, wae_vgg16), "ResNet50": (resnet50, resnet50_half, wae_resnet50)}
Run = Callable[[Tensor], Any]


class Runner(NamedTuple):
    """A way to run a network.

    Attributes:
        engine: of ``wae.deploy``; None if the model runs in PyTorch as it is.
        precision: of the arithmetic, a key of PRECISIONS; None for that of the setting.
        channels_last: the memory format of weights and images, if there is no engine.
        autocast: whether weights stay in float32, if there is no engine.
    """

    engine: str | None
    precision: str | None = None
    channels_last: bool = False
    autocast: bool = False


RUNNERS = {
    "cpu": {
        "eager": Runner(None),
        "channels_last": Runner(None, channels_last=True),
        "torch.compile": Runner("compile"),
        "Winograd": Runner("winograd"),
        "ONNX Runtime": Runner("onnxruntime"),
        "OpenVINO": Runner("openvino"),
    },
    # those that build fast come first: if time is short, the last ones are left out
    "cuda": {
        "eager": Runner(None),
        "channels_last": Runner(None, channels_last=True),
        "AMP, channels_last": Runner(None, "float16", channels_last=True, autocast=True),
        "float16, channels_last": Runner(None, "float16", channels_last=True),
        "float16, CUDA graph": Runner("cudagraphs", "float16"),
        "float16, TensorRT": Runner("tensorrt", "float16"),
        "float16, torch.compile max-autotune": Runner("compile", "float16"),
    },
}
"""The tables' columns on each device."""


def forms(network: str) -> dict[str, Callable[[], nn.Module]]:
    """The tables' rows. Seeded: all forms of WAE have the same weights, as has every copy of a network."""
    stock, half, wae = NETWORKS[network]
    return {
        f"{network} at 224": partial(_seeded, stock),
        f"{network} at 112": partial(_seeded, half),
        f"WAE-{network}, stock ops": partial(_seeded, lambda: wae(encoder=StockEncoder())),
        f"WAE-{network}, our encoder": partial(_seeded, lambda: wae(encoder=Encoder())),
        f"WAE-{network}, our ops": partial(_seeded, lambda: wae(encoder=Encoder())),
        f"WAE-{network}, deployed": partial(_seeded, lambda: wae(encoder=Encoder())),
    }


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def cells(network: str, full: bool, device: str = "cpu") -> list[tuple[str, str]]:
    """(form, runner) of all sides that run here; unless ``full``, only of those that have targets.

    Only PyTorch knows our ops. With the other engines, our encoder runs in front of the engine, which is the
    form "deployed". The engine "Winograd" is torch.compile with all our ops. The op for 3 x 3 convolutions
    runs on CPUs only.
    """
    chosen = []
    for name, runner in RUNNERS[device].items():
        if runner.engine is not None and ENGINES[runner.engine].why_not(device) is not None:
            continue
        for form in forms(network):
            if form.endswith("our ops"):
                runs = runner.engine is None and device == "cpu"
            elif form.endswith("our encoder"):
                runs = runner.engine in (None, "compile")
            elif form.endswith("deployed"):
                runs = runner.engine is not None or name == "eager"
            else:
                runs = True
            compared = form.endswith(("at 224", "deployed"))
            if runs and (full or compared or runner.engine in (None, "cudagraphs")):
                chosen.append((form, name))
    return sorted(chosen, key=lambda cell: list(forms(network)).index(cell[0])) if device == "cpu" else chosen


def side(form: str, runner: str) -> str:
    """A side's name."""
    return f"{form} | {runner}"


class Whole(nn.Module):
    """Hides a WAE network from ``deploy``, which would otherwise take its encoder out of the engine."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model(image)
        return scores


def make(form: str, runner: Runner, model: nn.Module, image: Tensor) -> Run:
    """A function that computes the scores of images like ``image`` in this form and runner.

    ``model`` is what :func:`forms` builds for the form, in float32. ``wae.deploy`` makes the form "deployed"
    and everything that runs in an engine, including the stock networks.
    """
    deployed = form.endswith("deployed")
    if isinstance(model, WAEClassifier) and not deployed:
        model = Whole(fold_normalization(model)).eval()
        if form.endswith("our ops"):
            model = replaced(model)
    dtype = PRECISIONS[runner.precision].dtype if runner.precision else torch.float32
    if runner.engine is not None or deployed:
        size = (image.shape[2], image.shape[3])
        return deploy(model, size, image.shape[0], runner.engine or "eager", precision=name_of(dtype))
    memory_format = torch.channels_last if runner.channels_last else torch.contiguous_format
    weights = torch.float32 if runner.autocast else dtype
    model = copy.deepcopy(model).to(weights).to(memory_format=memory_format)

    def run(image: Tensor) -> Any:
        with torch.autocast(image.device.type, dtype, enabled=runner.autocast):
            return model(image.to(weights).contiguous(memory_format=memory_format))

    return run


def sides(
    network: str, chosen: Iterable[tuple[str, str]], sets: Sequence[Inputs], device: str = "cpu"
) -> dict[str, Side]:
    """The sides by name; each runs on ``sets``, each of which is one tensor of images."""
    image = sets[0][0]
    models = {form: build().to(image.device) for form, build in forms(network).items()}

    def build(form: str, runner: str) -> Side:
        return lambda: over(make(form, RUNNERS[device][runner], models[form], image), sets)

    return {side(*cell): build(*cell) for cell in chosen}


@torch.no_grad()
def wanted(network: str, names: Iterable[str], image: Tensor) -> dict[str, list[Tensor]]:
    """The scores expected of each side: those of its stock network, or of WAE with PyTorch's operators."""
    models = {form: build for form, build in forms(network).items() if "our" not in form}
    with EXACT.allowed():
        scores = {form: [models[form]().to(image.device)(image)] for form in list(models)[:3]}
    stock_ops = f"WAE-{network}, stock ops"
    return {name: scores.get(name.partition(" | ")[0], scores[stock_ops]) for name in names}


def limits(names: Iterable[str], setting: Setting) -> dict[str, float]:
    """How far each side's scores may be from the expected ones, which depends on its arithmetic."""

    def limit(name: str) -> float:
        runner = RUNNERS[setting.name][name.partition(" | ")[2]]
        return (PRECISIONS[runner.precision] if runner.precision else setting.precision).network

    return {name: limit(name) for name in names}
