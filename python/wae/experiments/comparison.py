"""The timings of ``wae demo``: the ops and WAE-VGG16 compared with stock PyTorch on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import vgg16

from wae.difference import largest_difference
from wae.inference.agreement import DisagreementError
from wae.inference.timing import interleaved
from wae.models.autoencoder import AutoEncoder
from wae.models.classifier import fold_normalization
from wae.models.counting import count
from wae.models.stock import StockDecoder, StockEncoder
from wae.models.vgg16 import wae_vgg16
from wae.wording import counted
from wae_kernels import backends
from wae_kernels.nn import Decoder, Encoder

_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_KINDS = {"encode": (Encoder, StockEncoder), "decode": (Decoder, StockDecoder)}
_PUBLISHED = {"VGG16": 1289.28, "WAE-VGG16": 411.63}  # ms on a CPU, docs/network.md
_UNDISTURBED = 0.7  # on a quiet machine this thread runs for at least this share of the time
_TOLERANCE = 1e-4  # between float32 results that add up in different orders, through many layers


class OpRow(NamedTuple):
    """One op in one layout, in milliseconds."""

    op: str
    layout: str
    wae: float
    stock: float


class NetworkRow(NamedTuple):
    """One classifier, in milliseconds."""

    network: str
    here: float
    published: float
    multiply_adds: int


@dataclass(frozen=True)
class Timings:
    """Median times for one 224 x 224 image in float32."""

    backend: str
    threads: int
    ops: list[OpRow]
    networks: list[NetworkRow]
    """The stock network first."""
    core: float
    """The share of the time during which this program had a core."""


@torch.no_grad()
def measure(console: Console, model: AutoEncoder, seconds: float) -> Timings:
    """Time the ops and the networks.

    Args:
        console: shows what is being timed.
        model: the auto-encoder whose encoder and decoder are timed.
        seconds: how long to time the ops, and again the networks, without the warm-up.

    Raises:
        DisagreementError: two implementations of the same computation disagree; nothing is timed then.
    """
    wall, computing = time.perf_counter(), time.thread_time()
    with console.status("timing encode and decode"):
        ops = _ops(model, seconds)
    with console.status("timing VGG16"):
        networks = _networks(model, seconds)
    core = (time.thread_time() - computing) / (time.perf_counter() - wall)
    return Timings(backends.backend_for("cpu"), torch.get_num_threads(), ops, networks, core)


def show(console: Console, timings: Timings) -> None:
    """Print two tables."""
    table = _table(
        f"One 224 x 224 image, float32, {counted(timings.threads, 'thread')}",
        ("op", "layout"),
        (f"wae, {timings.backend}\nms", "stock torch, eager\nms", "\nspeedup"),
    )
    for op in timings.ops:
        table.add_row(op.op, op.layout, f"{op.wae:.2f}", f"{op.stock:.2f}", _ratio(op.stock, op.wae))
    console.print(table)

    table = _table(
        "One 224 x 224 image through a classifier, eager, NCHW",
        ("network",),
        ("here\nms", "here\nspeedup", "\nGMAC", "published\nms", "published\nspeedup"),
    )
    stock = timings.networks[0]
    for row in timings.networks:
        here = f"{row.here:.2f}", _ratio(stock.here, row.here)
        published = f"{row.published:.0f}", _ratio(stock.published, row.published)
        table.add_row(row.network, *here, f"{row.multiply_adds / 1e9:.2f}", *published)
    console.print(table)

    if timings.core < _UNDISTURBED:
        console.print(
            f"The machine was busy: this program had a core for only {timings.core:.0%} of the time. "
            "Do not rely on these times.",
            style="yellow",
        )
    console.print(
        "Medians of interleaved runs. Published: Chen et al., AAAI 2018, i7 at 3.5 GHz: other hardware and "
        "software. The networks have random weights; only their times are meaningful. GMAC: 1e9 "
        "multiply-adds, including those of the encoder.",
        highlight=False,
    )


def _ops(model: AutoEncoder, seconds: float) -> list[OpRow]:
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low, high = model.encoder(image)
    calls: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for layout, memory_format in _FORMATS.items():
        x, y, z = (t.contiguous(memory_format=memory_format) for t in (image, low, high))
        for op, kinds in _KINDS.items():
            arguments = (x,) if op == "encode" else (y, z, (224, 224))
            for which, kind in zip(("wae", "stock"), kinds, strict=True):
                module = kind()
                module.load_state_dict((model.encoder if op == "encode" else model.decoder).state_dict())
                calls[op, layout, which] = partial(module.to(memory_format=memory_format), *arguments)
    for op in _KINDS:
        _require_equal(op, [call() for key, call in calls.items() if key[0] == op])
    timings = interleaved({" ".join(key): call for key, call in calls.items()}, seconds)
    return [
        OpRow(op, layout, *(1e3 * timings[f"{op} {layout} {which}"].median for which in ("wae", "stock")))
        for op in _KINDS
        for layout in _FORMATS
    ]


def _networks(model: AutoEncoder, seconds: float) -> list[NetworkRow]:
    wae = fold_normalization(wae_vgg16(encoder=model.encoder))
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with backends.use("reference"):
        expected = wae(image)
    _require_equal("WAE-VGG16", [wae(image), expected])
    networks: dict[str, nn.Module] = {"VGG16": vgg16().eval(), "WAE-VGG16": wae}
    timings = interleaved({n: partial(m, image) for n, m in networks.items()}, seconds, warmup=1)
    return [
        NetworkRow(name, 1e3 * timings[name].median, _PUBLISHED[name], count(network).multiply_adds)
        for name, network in networks.items()
    ]


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(f"\n{name}")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _ratio(slow: float, fast: float) -> str:
    return f"{slow / fast:.2f}x"


def _require_equal(what: str, results: Sequence[Any]) -> None:
    """Raise DisagreementError unless all results agree with the first."""
    first, *others = results
    for other in others:
        if not largest_difference(first, other) <= _TOLERANCE:  # also true for NaN
            raise DisagreementError(f"{what}: two implementations disagree, so they are not timed")
