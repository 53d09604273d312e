"""Where the time goes in a deployed segmentation network, at full resolution and with WAE.

    python -m benches.segmentation prepare FOLDER [NETWORK ...]
    python -m benches.segmentation time FOLDER RESULTS [NETWORK ...]
    python -m benches.segmentation table RESULTS

``prepare`` deploys each network of :data:`NETWORKS` for one image of 360 x 480 in each engine of
:data:`ENGINES`, at full resolution and with WAE around it, checks both, and saves them and the parts of WAE
to FOLDER. It skips what is already there. ``time`` times the saved networks interleaved, and writes the
medians to RESULTS, one file for each network and engine. ``table`` prints these as Markdown; the engine in
which WAE is fastest comes first for each network.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wae
from wae.experiments.machine import machine
from wae.inference.arguments import example_images
from wae.inference.engines import ENGINES as KNOWN
from wae.inference.engines import EngineError, Run
from wae.inference.folding import fold
from wae.inference.timing import interleaved
from wae.inference.undisturbed import undisturbed
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.segmentation.costs import CLASSES, SIZE, compared
from wae.models.segmentation.segmenter import FullResolutionSegmenter, WAESegmenter, wae_segmenter

NETWORKS = (
    "deeplabv3_resnet50",
    "pspnet_resnet18",
    "mobilenet_deconv",
    "mobilenet_deconv, compensated",
    "ICNet",
    "ENet",
)
ENGINES = ("openvino", "onnxruntime")
SECONDS = 10.0
FULL, WHOLE = "full resolution", "WAE"
PARTS = ("low network", "light body")
"""The parts of WAE inside the engine that are timed separately."""
END = "full-resolution end"
"""The part after the engine, which is our op: the fusion."""

_SCALE, _SHIFT = (1 / 64,) * 3, (-2.0,) * 3


def prepare(folder: Path, networks: Sequence[str]) -> None:
    """See above."""
    for name in networks:
        torch.manual_seed(0)
        network = compared()[name]().eval()
        full = FullResolutionSegmenter(network, _SCALE, _SHIFT).eval()
        model = wae_segmenter(network, image_scale=_SCALE, image_shift=_SHIFT).eval()
        for engine in ENGINES:
            target = folder / name / engine
            if (target / "parts").exists():
                continue
            try:
                for kind, each in ((FULL, full), (WHOLE, model)):
                    wae.deploy(each, SIZE, engine=engine).save(target / kind, force=True)
                _save_parts(model, engine, target)
            except EngineError as error:
                print(f"{name} in {engine}: {error}", file=sys.stderr)


def _parts(model: WAESegmenter) -> Iterator[tuple[str, nn.Module, Sequence[Tensor]]]:
    """Each of :data:`PARTS`, as a module and its inputs."""
    images = example_images(model, 1, SIZE)
    folded = fold(model, images)
    assert isinstance(folded, WAESegmenter)
    low, high = folded.decompose(images)
    modules = folded.low_network, folded.high_body
    yield from zip(PARTS, modules, ((low,), (high,)), strict=True)


def _save_parts(model: WAESegmenter, engine: str, target: Path) -> None:
    with undisturbed(torch.device("cpu")):
        for name, module, inputs in _parts(model):
            inputs = [x.contiguous() for x in inputs]
            folder = target / name
            folder.mkdir(parents=True, exist_ok=True)
            KNOWN[engine].make(module.eval(), inputs).save(folder, inputs)
            torch.save(list(inputs), folder / "inputs.pt")
    (target / "parts").touch()


def measure(folder: Path, name: str, engine: str) -> dict[str, Any]:
    """The medians in milliseconds, and the multiply-adds at full resolution and of WAE."""
    target = folder / name / engine
    full, whole = (wae.load_deployed(target / kind) for kind in (FULL, WHOLE))
    images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    sides: dict[str, Callable[[], Any]] = {
        FULL: lambda: full(images),
        WHOLE: lambda: whole(images),
        "encoder": lambda: whole._front(images),
    }
    for part in PARTS:
        sides[part] = _part(target / part, engine)
    assert whole._end is not None
    with undisturbed(images.device):
        halves = whole._run(*whole._front(images)).clone()
        sides[END] = lambda: whole._end(halves)
        timings = interleaved(sides, SECONDS, settle=1)
    make = compared()[name]
    costs = [count(on_meta(each), SIZE).multiply_adds for each in (make, lambda: wae_segmenter(make()))]
    return {
        "machine": machine(),
        "network": name,
        "engine": engine,
        "size": list(SIZE),
        "classes": CLASSES,
        "milliseconds": {side: round(1e3 * timing.median, 2) for side, timing in timings.items()},
        "runs": timings[WHOLE].runs,
        "multiply_adds": dict(zip((FULL, WHOLE), costs, strict=True)),
    }


def _part(folder: Path, engine: str) -> Callable[[], Any]:
    load = KNOWN[engine].load
    assert load is not None
    inputs: list[Tensor] = torch.load(folder / "inputs.pt")
    run: Run = load(folder, 1, "float32").for_batch(1)
    return lambda: run(*inputs)


def table(results: Path) -> str:
    """See above."""
    lines = [
        "| network | engine | full resolution | WAE | speedup | limit | share of the limit | fusion |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    for name in NETWORKS:
        cases = [case for case in found if case["network"] == name]
        lines += map(_row, sorted(cases, key=lambda case: float(case["milliseconds"][WHOLE])))
    return "\n".join(lines)


def _row(case: dict[str, Any]) -> str:
    times, costs = case["milliseconds"], case["multiply_adds"]
    faster, limit = times[FULL] / times[WHOLE], costs[FULL] / costs[WHOLE]
    end = times[END]
    return (
        f"| {case['network']} | {case['engine']} | {times[FULL]:.1f} ms | {times[WHOLE]:.1f} ms "
        f"| {faster:.2f}x | {limit:.2f}x | {faster / limit:.0%} | {end:.1f} ms, {end / times[WHOLE]:.0%} |"
    )


def main(task: str, folder: str, *others: str) -> None:
    """See above."""
    if task == "table":
        print(table(Path(folder)))
    elif task == "prepare":
        prepare(Path(folder), others or NETWORKS)
    else:
        results = Path(others[0])
        results.mkdir(parents=True, exist_ok=True)
        for name in others[1:] or NETWORKS:
            for engine in ENGINES:
                if not (Path(folder) / name / engine / "parts").exists():
                    continue
                found = measure(Path(folder), name, engine)
                stem = name.lower().replace(", ", "-")
                (results / f"{stem}-{engine}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
