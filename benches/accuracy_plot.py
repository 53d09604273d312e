"""The plot of accuracies against multiply-adds, from the trainings that are kept in docs/results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot

from .accuracy import LINES, Trainings, accuracies, kept
from .plots import save

PANELS = {
    "fashion-mnist": "Fashion-MNIST, 28 x 28",
    "fashion-mnist-4-times": "Fashion-MNIST, 4 times the epochs",
    "imagenette-small_vgg-64": "Imagenette, 64 x 64",
    "imagenette-small_vgg-64-4-times": "Imagenette, 4 times the epochs",
    "imagenette-resnet18-128": "Imagenette, 128 x 128",
    "camvid-enet-180x240": "CamVid, 180 x 240",
    "camvid-pspnet_resnet18-180x240": "CamVid, 180 x 240",
    "camvid-mobilenet_deconv-180x240": "CamVid, 180 x 240",
}
"""The folders of docs/results that have a panel, and its title."""

COLUMNS = 4


class Style(NamedTuple):
    """How the networks of one kind are drawn."""

    label: str
    marker: str
    colour: str


FULL = Style("full resolution", "*", "black")
SMALLER = Style("the same network on smaller images", "o", "#7f7f7f")
OTHER = Style("Haar, or an encoder not trained to reconstruct, instead of WAE's", "D", "#9467bd")
PRUNED = Style("pruned to WAE's time", "^", "#ff7f0e")
WAE = Style("WAE", "s", "#1f77b4")
STYLES = (FULL, SMALLER, OTHER, PRUNED, WAE)  # the last are drawn on top


class Point(NamedTuple):
    """A network in a panel."""

    style: Style
    from_trained: bool
    """Made from the trained full network, or distilled from it."""
    cost: float
    """Its multiply-adds over the full network's."""
    gains: tuple[float, ...]
    """For each seed, its accuracy in per cent less that of the full network."""


def draw(results: Path, folder: Path) -> list[Path]:
    """Write the plot of docs/results (``results``) into ``folder``, if there are any; returns the file."""
    lines = {line.folder: line for line in LINES}
    there = [lines[name] for name in PANELS if (results / name).is_dir()]
    if not there:
        return []
    rows = -(-len(there) // COLUMNS)
    size = (13, 2.7 * rows + 1)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, line in zip(axes.flat, there, strict=False):
        axis.set_title(f"{PANELS[line.folder]}\n{line.network}", fontsize=9)
        _fill(axis, points(line, kept(results / line.folder)))
    figure.supxlabel("multiply-adds, relative to full resolution", fontsize=9)
    figure.supylabel("accuracy, points above full resolution", fontsize=9)
    figure.legend(handles=list(_keys()), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    save(figure, path := folder / "accuracy.png")
    return [path]


def points(line: Trainings, trainings: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The networks of ``line``, each compared with the full network of the same seeds."""
    cost = {result["network"]: result["multiply_adds"] for result in trainings}
    scores = accuracies(trainings)
    full = scores[line.full]
    return [
        Point(
            _style(network, line),
            any(part in network for part in ("fine-tuned", "mimic", "pruned")),
            cost[network] / cost[line.full],
            tuple(100 * (score - full[seed]) for seed, score in of_seeds.items()),
        )
        for network, of_seeds in scores.items()
    ]


def _style(network: str, line: Trainings) -> Style:
    if network == line.full:
        return FULL
    if network.startswith("WAE"):
        return WAE
    if network.startswith("pruned"):
        return PRUNED
    return OTHER if network.endswith("+CNN") else SMALLER


def _fill(axis: Any, found: Iterable[Point]) -> None:
    for point in sorted(found, key=lambda point: STYLES.index(point.style)):
        ends = min(point.gains), max(point.gains)
        axis.plot([point.cost] * 2, ends, color=point.style.colour, linewidth=0.8)
        axis.plot(point.cost, statistics.fmean(point.gains), **_look(point.style, point.from_trained))
    axis.axhline(0, color="black", linewidth=0.6, linestyle=":")
    axis.margins(x=0.1, y=0.12)
    axis.set_xlim(left=0)
    axis.tick_params(labelsize=8)
    axis.set_visible(True)


def _look(style: Style, filled: bool) -> dict[str, Any]:
    """The marker of a network, as matplotlib's arguments."""
    face = style.colour if filled or style is FULL else "white"
    size = 11 if style is FULL else 7
    return {"marker": style.marker, "color": style.colour, "markerfacecolor": face, "markersize": size}


def _keys() -> Iterable[Any]:
    """The entries of the legend."""
    for style in STYLES:
        filled = style is PRUNED  # as they all are
        yield pyplot.Line2D([], [], linestyle="none", label=style.label, **_look(style, filled))
    trained = "filled: made from the trained network, or distilled from it"
    yield pyplot.Line2D([], [], linestyle="none", label=trained, **_look(WAE, True))
    seeds = "line: from the worst seed to the best"
    yield pyplot.Line2D([], [], color=SMALLER.colour, linewidth=0.8, label=seeds)
