"""Whole classifiers: every form of a network, and everything that can run it.

A *side* is a form in a runner, written ``FORM | RUNNER``. Weights are random: only time and memory are meant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vgg16

from wae.inference.deployed import ENGINES, deploy
from wae.inference.winograd import replaced
from wae.models.baselines import resnet50_half, vgg16_half
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.resnet50 import wae_resnet50
from wae.models.stock import StockEncoder
from wae.models.vgg16 import wae_vgg16
from wae_kernels.nn import Encoder

NETWORKS = {"VGG16": (vgg16, vgg16_half, wae_vgg16), "ResNet50": (resnet50, resnet50_half, wae_resnet50)}
RUNNERS = {
    "eager": "eager",
    "channels_last": "eager",
    "torch.compile": "compile",
    "Winograd": "winograd",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
}
"""The tables' columns on a processor, and what ``wae.deploy`` calls them."""
IN_PYTORCH = ("eager", "channels_last")
"""Those in which the model runs as a user has it."""

Run = Callable[[Tensor], Any]


def forms(network: str) -> dict[str, Callable[[], nn.Module]]:
    """The tables' rows. All of WAE have the same weights, and so has a stock network each time."""
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


def cells(network: str, full: bool) -> list[tuple[str, str]]:
    """(form, runner) of all sides that run here; unless ``full``, of those that the bounds are about.

    Our ops are known to PyTorch alone: in the other engines the encoder stands in front, which is the form
    "deployed"; all our ops in torch.compile is the engine "Winograd".
    """
    usable = [name for name, engine in RUNNERS.items() if ENGINES[engine].why_not("cpu") is None]
    chosen = []
    for form in forms(network):
        runners = usable
        if form.endswith("our encoder"):
            runners = [*IN_PYTORCH, "torch.compile"]
        elif form.endswith("our ops"):
            runners = [*IN_PYTORCH]
        elif form.endswith("deployed"):  # which is channels_last when it is eager
            runners = [runner for runner in usable if runner != "channels_last"]
        compared = form.endswith(("at 224", "deployed"))
        chosen += [(form, runner) for runner in runners if full or compared or runner in IN_PYTORCH]
    return chosen


def side(form: str, runner: str) -> str:
    """A side's name."""
    return f"{form} | {runner}"


class Whole(nn.Module):
    """A WAE network as any other module, so that ``deploy`` leaves its encoder where it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model(image)
        return scores


def make(form: str, runner: str, model: nn.Module, image: Tensor) -> Run:
    """What computes the scores of images like ``image`` in this form and runner.

    ``model`` is what :func:`forms` builds for the form. "eager" and "channels_last" are the model as a user
    has it; all others are made by ``wae.deploy``, the stock networks as well.
    """
    if isinstance(model, WAEClassifier) and not form.endswith("deployed"):
        model = Whole(fold_normalization(model)).eval()
        if form.endswith("our ops"):
            model = replaced(model)
    if runner in IN_PYTORCH and not form.endswith("deployed"):
        if runner == "eager":
            return model
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        return lambda image: model(image.contiguous(memory_format=torch.channels_last))
    return deploy(model, (image.shape[2], image.shape[3]), image.shape[0], RUNNERS[runner])


def sides(network: str, chosen: Iterable[tuple[str, str]], image: Tensor) -> dict[str, Callable[[], Any]]:
    """Each side by name, ready to be timed on ``image``."""
    models = {form: build() for form, build in forms(network).items()}
    return {side(*cell): partial(make(*cell, models[cell[0]], image), image) for cell in chosen}


def agreeing(network: str, names: Iterable[str]) -> list[list[str]]:
    """The sides that have to give the same scores: a stock network's, and those of all of WAE."""
    groups: dict[str, list[str]] = {}
    for name in names:
        key = "WAE" if name.startswith(f"WAE-{network}") else name.partition(" | ")[0]
        groups.setdefault(key, []).append(name)
    return list(groups.values())
