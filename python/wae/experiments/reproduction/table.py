"""The table of a claim's results: accuracy, the recovered share of it, cost and time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wae.inference.timing import interleaved
from wae.models.network import WAENetwork, fold_normalization
from wae.wording import amount

from .claim import WAE, Claim
from .results import Result


@dataclass(frozen=True)
class Row:
    """One network's line in the table."""

    network: str
    seeds: Sequence[int]
    """Those that were trained: the pruned networks have one, and a training may be left out."""
    accuracies: list[float]
    """Of each of the seeds."""
    multiply_adds: int
    """On one image."""
    microseconds: float
    """The median time of one image in a batch of :attr:`Claim.timed_images`, where the table was made."""
    remeasured: Sequence[float] = ()
    """The accuracies with re-estimated BatchNorm statistics; empty if one of the seeds has none."""

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None if there is only one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def rows(results: Sequence[Result], claim: Claim, seconds: float = 10.0) -> list[Row]:
    """The table of ``results``, in the claim's order; the networks are timed here, interleaved.

    A network that is not in the registry was pruned to a measured share of WAE's time, and gets that share of
    WAE's time here.

    Args:
        results: of any number of seeds.
        claim: the claim that they belong to.
        seconds: how long to time, all networks together.
    """
    of = {name: [r for r in results if r.network == name] for name in claim.registered}
    names = [name for name in claim.registered if of[name]]
    models = {name: claim.build(name) for name in {*names, WAE} if claim.registered[name]}
    times = timed(models, claim, seconds)
    return [
        Row(
            name,
            [result.seed for result in of[name]],
            [result.accuracy for result in of[name]],
            of[name][0].multiply_adds,
            1e6 * times[name] if name in times else 1e6 * times[WAE] * of[name][0].start["time"],
            [r.remeasured["accuracy"] for r in of[name]] if all(r.remeasured for r in of[name]) else [],
        )
        for name in names
    ]


def timed(models: Mapping[str, nn.Module], claim: Claim, seconds: float) -> dict[str, float]:
    """Seconds per image of each network, computed in batches: medians of interleaved runs."""
    size = claim.timed_images, 3, *claim.input.shape
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    calls = {name: _inference(model.eval(), images) for name, model in models.items()}
    with torch.no_grad():
        timings = interleaved(calls, seconds)
    return {name: timing.median / len(images) for name, timing in timings.items()}


def _inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    network = fold_normalization(model) if isinstance(model, WAENetwork) else model
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: network(images)


def recovered(table: Sequence[Row], claim: Claim, network: str) -> float | None:
    """The share that ``network`` recovers of the accuracy lost by halving the resolution.

    All three means are of the seeds that the three networks share, because seeds differ by as much as
    networks do. None if there is no such seed, or if nothing was lost.
    """
    of = {row.network: dict(zip(row.seeds, row.accuracies, strict=True)) for row in table}
    three = [of.get(name, {}) for name in (claim.full, claim.half, network)]
    seeds = set.intersection(*map(set, three))
    if not seeds:
        return None
    full, half, own = (statistics.fmean(accuracies[seed] for seed in seeds) for accuracies in three)
    return None if full <= half else (own - half) / (full - half)


def reestimated(table: Sequence[Row]) -> list[Row]:
    """The rows that have accuracies with re-estimated statistics, with these in place of the others."""
    return [replace(row, accuracies=list(row.remeasured)) for row in table if row.remeasured]


_FIRST = "| network | "  # a table begins with it


def is_table(path: Path) -> bool:
    """Whether the file begins as a table of :func:`markdown`; False if there is none."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_FIRST)) == _FIRST.encode()


def markdown(table: Sequence[Row], claim: Claim) -> str:
    """The table in Markdown."""
    full = next((row.multiply_adds for row in table if row.network == claim.full), None)
    seeds = sorted({seed for row in table for seed in row.seeds})
    updated = {row.network: row for row in reestimated(table)}
    head = [f"{claim.measure}, mean of seeds | spread | recovered | multiply-adds | time per image"]
    head += ["re-estimated statistics | recovered"] * bool(updated)
    lines = [f"{_FIRST}{' | '.join(head)} |", "|---" + "|---:" * (7 if updated else 5) + "|"]
    for row in table:
        mean = f"{100 * row.mean:.2f} %"
        if sorted(row.seeds) != seeds:
            mean += f" (seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))})"
        spread = "" if row.spread is None else f"{100 * row.spread:.2f}"
        cost = amount(row.multiply_adds) + (f" ({row.multiply_adds / full:.0%})" if full else "")
        cells = [
            row.network,
            mean,
            spread,
            _recovered_percent(table, claim, row.network),
        ]
        cells += [cost, f"{row.microseconds:.0f} us"]
        if row.network in updated:
            share = _recovered_percent(list(updated.values()), claim, row.network)
            cells += [f"{100 * updated[row.network].mean:.2f} %", share]
        elif updated:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _recovered_percent(table: Sequence[Row], claim: Claim, network: str) -> str:
    share = recovered(table, claim, network)
    return "" if share is None or network in (claim.full, claim.half) else f"{100 * share:.0f} %"
