"""Whole classifiers against the networks that they make faster."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from classifiers import NETWORKS, Whole, agreeing, cells, forms, side, sides
from networks import images
from torch import Tensor

from wae.inference.deployed import ENGINES, deploy
from wae.models.classifier import WAEClassifier, fold_normalization

Compare = Callable[..., None]
CPU = torch.device("cpu")
FULL = pytest.mark.full
# A turn is one run that counts, after one that does not: these take long, and many take turns.
TURNS = {"burst": 1, "settle": 1, "longer": 4.0}
each_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """One group of networks goes before the next comes: each is several gigabytes."""
    yield
    torch._dynamo.reset()
    gc.collect()


@pytest.mark.parametrize("batch", [1, 8, pytest.param(32, marks=FULL)])
@each_network
@torch.no_grad()
def bench_end_to_end(compare: Compare, pytestconfig: pytest.Config, network: str, batch: int) -> None:
    chosen = cells(network, pytestconfig.getoption("full"))
    functions = sides(network, chosen, images(batch, 224, CPU))
    compare(
        side(f"WAE-{network}, our ops", "eager"),
        functions,
        agree=agreeing(network, functions),
        table="end to end",
        network=network,
        images=batch,
        **TURNS,
    )


@pytest.mark.parametrize("batch", [1, 8])
@each_network
@torch.no_grad()
def bench_parts(compare: Compare, network: str, batch: int) -> None:
    """Where the time of WAE goes, eager."""
    model = fold_normalization(forms(network)[f"WAE-{network}, our encoder"]())
    image = images(batch, 224, CPU)
    low, high = model.decompose(image)
    low_features, high_features = model.features(image)

    def classify() -> Tensor:
        fused: Tensor = model.fusion_classifier(torch.cat((low_features, high_features), dim=1))
        return fused + model.low_classifier(low_features)

    parts = {
        "whole": partial(model, image),
        "encoder": partial(model.decompose, image),
        "low body": partial(model.low_body, low),
        "high body": partial(model.high_body, high),
        "classifiers": classify,
    }
    compare("whole", parts, agree=[["whole", "classifiers"]], table="parts", network=network, images=batch)


@FULL
@pytest.mark.parametrize("runner", ["eager", "openvino"])
@torch.no_grad()
def bench_sizes(compare: Compare, runner: str) -> None:
    """ResNet50 and WAE-ResNet50 on one image, small to large; both deployed in the same engine."""
    if (reason := ENGINES[runner].why_not(CPU)) is not None:
        pytest.skip(reason)
    built = {name: build() for name, build in forms("ResNet50").items()}
    models = {"ResNet50": built["ResNet50 at 224"], "WAE-ResNet50": built["WAE-ResNet50, deployed"]}
    functions = {}
    for size in (128, 224, 320, 448, 640):
        image = images(1, size, CPU)
        for name, model in models.items():
            functions[side(name, str(size))] = partial(deploy(model, (size, size), engine=runner), image)
    compare("WAE-ResNet50 | 224", functions, agree=[], table="sizes", runner=runner, images=1, **TURNS)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 8, 32, 128, pytest.param(256, marks=FULL)])
@each_network
@torch.no_grad()
def bench_end_to_end_gpu(compare: Compare, network: str, batch: int) -> None:
    """As on the processor, in the ways to run networks on a GPU: WAE and stock in each."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    gpu = torch.device("cuda")
    image = images(batch, 224, gpu)
    functions: dict[str, Callable[[], Any]] = {}
    for form, build in forms(network).items():
        if form.endswith("our ops"):  # that for 3 x 3 convolutions is a processor's
            continue
        functions |= {side(form, name): run for name, run in _on_gpu(form, build().to(gpu), image).items()}
    working = {name: _working_memory(run) for name, run in functions.items()}
    compare(
        side(f"WAE-{network}, our encoder", "float32"),
        functions,
        agree=agreeing(network, functions),
        tolerance=3e-2,  # float16 through a whole network
        device=gpu,
        table="end to end",
        network=network,
        images=batch,
        megabytes=working,
        **TURNS,
    )


def _on_gpu(form: str, model: torch.nn.Module, image: Tensor) -> dict[str, Callable[[], Any]]:
    if form.endswith("deployed"):
        return _in_float16(model, image)
    if isinstance(model, WAEClassifier):
        return _in_pytorch(Whole(fold_normalization(model)).eval(), image)
    return _in_pytorch(model, image) | _in_float16(model, image)


def _in_pytorch(model: torch.nn.Module, image: Tensor) -> dict[str, Callable[[], Any]]:
    last = image.contiguous(memory_format=torch.channels_last)
    last_model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    @torch.autocast("cuda", torch.float16)
    def mixed() -> Any:
        return last_model(last)

    graph = deploy(model, (image.shape[2], image.shape[3]), image.shape[0], "cudagraphs")
    return {
        "float32": partial(model, image),
        "float32, channels_last": partial(last_model, last),
        "AMP, channels_last": mixed,
        "float32, CUDA graph": partial(graph, image),
    }


def _in_float16(model: torch.nn.Module, image: Tensor) -> dict[str, Callable[[], Any]]:
    """What ``wae.deploy`` makes of a network, WAE's or stock, in each engine of the image's device."""
    usable = [name for name, engine in ENGINES.items() if engine.why_not(image.device) is None]
    make = partial(deploy, model, (image.shape[2], image.shape[3]), image.shape[0], dtype=torch.float16)
    return {f"float16, {name}": partial(make(name), image) for name in usable}


def _working_memory(run: Callable[[], Any]) -> float:
    """Megabytes that one call takes at its peak beside what is there already: weights, and graphs' pools."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
