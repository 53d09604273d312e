"""WAE classifiers compared with the networks that they make faster."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES
from wae.models.classifier import WAEClassifier, fold_normalization

from .classifiers import NETWORKS, cells, forms, limits, side, sides, wanted
from .comparison import Side, tensors
from .devices import EXACT, PRECISIONS, Calls, Setting, settings
from .modules import images
from .peers import over

Compare = Callable[..., None]
# One timed run per round, after one warm-up run: each run takes long, and there are many sides.
TURNS = {"burst": 1, "settle": 1, "longer": 4.0}
FORMATS = {"eager": torch.contiguous_format, "channels_last": torch.channels_last}
MOST_SETS = 8  # of inputs: a network's weights and activations alone evict a GPU's cache
each_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.mark.parametrize(
    "setting",
    settings(cpu=(1, 8, 32), cuda=(1, 8, 32, 128, 256), precisions=("tf32",), full=[("cpu", 32)]),
    indirect=True,
)
@each_network
@torch.no_grad()
def bench_end_to_end(compare: Compare, pytestconfig: pytest.Config, network: str, setting: Setting) -> None:
    if (network, setting.name, setting.batch) == ("VGG16", "cpu", 32) and _memory() < 48:
        pytest.skip("VGG16 in all engines did not fit in 24 GiB of memory; with less than 48 it is not tried")
    chosen = cells(network, pytestconfig.getoption("full"), setting.name)
    image = images(setting.batch, 224).to(setting.device.torch)
    sets = setting.device.sets((image,), MOST_SETS)
    names = [side(*cell) for cell in chosen]
    ours = {
        "cpu": f"WAE-{network}, our ops | eager",
        "cuda": f"WAE-{network}, deployed | float16, CUDA graph",
    }
    compare(
        ours[setting.name],
        sides(network, chosen, sets, setting.name),
        wanted(network, names, image),
        setting,
        limits(names, setting),
        table="end to end",
        network=network,
        **TURNS,
    )


def _memory() -> float:
    """The machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


@pytest.mark.parametrize(
    "setting",
    settings(cpu=(8,), cuda=(32,), precisions=("tf32",), full=[("cpu", 8)]),
    indirect=True,
)
@each_network
def bench_training_step(compare: Compare, network: str, setting: Setting) -> None:
    """Forward, backward and an update of all weights; on a GPU in bfloat16 autocast."""
    image = images(setting.batch, 224).to(setting.device.torch)
    autocast = torch.bfloat16 if setting.name == "cuda" else None
    precision = PRECISIONS["bfloat16"] if autocast else setting.precision
    built = forms(network)
    chosen = (f"{network} at 224", f"WAE-{network}, stock ops", f"WAE-{network}, our encoder")
    with EXACT.allowed():
        scores = {form: [_training(built[form], image)[0]()] for form in chosen}
    sides: dict[str, Side] = {}
    for form in chosen:
        for name, memory_format in FORMATS.items():
            sides[side(form, name)] = partial(_training, built[form], image, memory_format, autocast)
    compare(
        side(chosen[-1], "eager"),
        sides,
        {name: scores[name.partition(" | ")[0]] for name in sides},
        setting,
        precision.network,
        table="training step",
        network=network,
        **TURNS,
    )


def _training(
    build: Callable[[], nn.Module],
    image: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    autocast: torch.dtype | None = None,
) -> Calls:
    """One training step that returns its scores. Dropout is off, so that the scores can be compared."""
    model = build().to(image.device, memory_format=memory_format).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    image = image.contiguous(memory_format=memory_format)
    labels = torch.arange(image.shape[0], device=image.device)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
            scores: Tensor = model(image)
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
        return scores.detach()

    return [step]


@pytest.mark.parametrize("setting", settings(cpu=(1, 8)), indirect=True)
@each_network
@torch.no_grad()
def bench_parts(compare: Compare, network: str, setting: Setting) -> None:
    """Where the time of an eager WAE goes."""
    ours, stock = (
        fold_normalization(forms(network)[f"WAE-{network}, {kind}"]())
        for kind in ("our encoder", "stock ops")
    )
    image = images(setting.batch, 224)

    def parts(model: WAEClassifier) -> dict[str, Callable[[], Any]]:
        """Each part, on the results of the parts before it in the stock model."""
        low, high = stock.decompose(image)
        features = stock.low_body(low), stock.high_body(high)
        return {
            "whole": partial(model, image),
            "encoder": partial(model.decompose, image),
            "low body": partial(model.low_body, low),
            "high body": partial(model.high_body, high),
            "classifiers": partial(model.classify, *features),
        }

    wanted = {name: tensors(run()) for name, run in parts(stock).items()}
    sides: dict[str, Side] = {name: lambda run=run: [run] for name, run in parts(ours).items()}
    compare("whole", sides, wanted, setting, setting.precision.network, table="parts", network=network)


@pytest.mark.full
@pytest.mark.parametrize("runner", ["eager", "openvino"])
@pytest.mark.parametrize("setting", settings(cpu=(1,)), indirect=True)
@torch.no_grad()
def bench_sizes(compare: Compare, setting: Setting, runner: str) -> None:
    """ResNet50 and WAE-ResNet50 on one image of several sizes, deployed in the same engine."""
    if (reason := ENGINES[runner].why_not(setting.device.torch)) is not None:
        pytest.skip(reason)
    built = forms("ResNet50")
    models = {
        "ResNet50": (built["ResNet50 at 224"](), built["ResNet50 at 224"]()),
        "WAE-ResNet50": (built["WAE-ResNet50, deployed"](), built["WAE-ResNet50, stock ops"]()),
    }
    sides: dict[str, Side] = {}
    wanted = {}
    for size in (128, 224, 320, 448, 640):
        image = images(setting.batch, size)
        for name, (model, stock) in models.items():
            sides[side(name, str(size))] = partial(_deployed, model, image, runner)
            wanted[side(name, str(size))] = [stock(image)]
    limit = setting.precision.network
    compare("WAE-ResNet50 | 224", sides, wanted, setting, limit, table="sizes", runner=runner, **TURNS)


def _deployed(model: nn.Module, image: Tensor, engine: str) -> Calls:
    return over(deploy(model, (image.shape[2], image.shape[3]), engine=engine), [(image,)])
