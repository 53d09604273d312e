"""The README's table of accuracies, from the trainings that are kept in docs/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .tables import grid

_HEADS = (
    "data set",
    "network",
    "seeds",
    "full resolution",
    "half",
    "half, distilled",
    "WAE",
    "WAE, distilled",
)


class Trainings(NamedTuple):
    """The trainings behind a line of the table: a folder of docs/results, and the names of its networks."""

    images: str
    network: str
    folder: str
    full: str
    half: str
    half_distilled: str
    distilled: str = "WAE, fine-tuned"


def _clothes(images: str, folder: str) -> Trainings:
    return Trainings(images, "a small VGG", folder, "28 x 28", "14 x 14", "", "WAE, mimic")


def _photos(images: str, network: str, folder: str, side: int) -> Trainings:
    full, half = (f"{pixels} x {pixels}" for pixels in (side, side // 2))
    return Trainings(images, network, f"imagenette-{folder}", full, half, f"{half}, fine-tuned")


def _road_scenes(images: str, network: str, folder: str) -> Trainings:
    networks = "full resolution", "half, bilinear", "half, bilinear, fine-tuned"
    return Trainings(images, network, f"camvid-{folder}", *networks)


_NETWORKS = {
    "ENet": "enet",
    "PSPNet, ResNet18": "pspnet_resnet18",
    "a light MobileNet": "mobilenet_deconv",
    "the same, compensated": "mobilenet_deconv_compensated",
}
LINES = (
    _clothes("Fashion-MNIST, 28 x 28", "fashion-mnist"),
    _clothes("the same, 4 times the epochs", "fashion-mnist-4-times"),
    _photos("Imagenette, 64 x 64", "a small VGG", "small_vgg-64", 64),
    _photos("the same, 4 times the epochs", "a small VGG", "small_vgg-64-4-times", 64),
    _photos("Imagenette, 128 x 128", "ResNet18", "resnet18-128", 128),
    *(
        _road_scenes(f"CamVid, {size}", network, f"{name}-{size.replace(' ', '')}")
        for size in ("180 x 240", "90 x 120")
        for network, name in _NETWORKS.items()
    ),
    _road_scenes("CamVid, 180 x 240, twice the epochs", "ENet", "enet-180x240-2-times"),
)


def table(results: Path) -> list[str]:
    """A line of Markdown for each of :data:`LINES`, from the folders in ``results``.

    An accuracy is the mean over the seeds; the share in parentheses is how much it recovers of the accuracy
    that is lost at half resolution. If all trainings in a folder have an accuracy with re-estimated BatchNorm
    statistics, that one is shown. A folder that does not exist has no line.
    """
    there = [line for line in LINES if (results / line.folder).is_dir()]
    return grid(_HEADS, [_cells(line, accuracies(kept(results / line.folder))) for line in there])


def kept(folder: Path) -> list[dict[str, Any]]:
    """The finished trainings in ``folder``."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def accuracies(trainings: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """The accuracies of each network, by seed: with re-estimated BatchNorm statistics if all have them."""
    reestimated = all(result.get("remeasured") for result in trainings)  # without re-estimation it is empty
    found: dict[str, dict[int, float]] = {}
    for result in trainings:
        of_seeds = found.setdefault(result["network"], {})
        of_seeds[result["seed"]] = (result["remeasured"] if reestimated else result)["accuracy"]
    return found


def _cells(line: Trainings, of: Mapping[str, Mapping[int, float]]) -> list[str]:
    seeds = sorted(of["WAE"])
    full, half = (_mean(of[name], seeds) for name in (line.full, line.half))
    cells = [line.images, line.network, str(len(seeds)), _percent(full), _percent(half)]
    for name in (line.half_distilled, "WAE", line.distilled):
        if name not in of:
            cells.append("")
            continue
        if sorted(of[name]) != seeds:
            raise ValueError(f"{line.folder}: {name} has other seeds than WAE")
        mean = _mean(of[name], seeds)
        cells.append(f"{_percent(mean)} ({(mean - half) / (full - half):.0%})")
    return cells


def _mean(of_seeds: Mapping[int, float], seeds: Sequence[int]) -> float:
    return statistics.fmean(of_seeds[seed] for seed in seeds)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
