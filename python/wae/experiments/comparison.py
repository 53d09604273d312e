"""The timings of ``wae demo``: the ops, and WAE-VGG16, against stock PyTorch on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import vgg16

from wae.difference import largest_difference
from wae.inference.deployed import DisagreementError
from wae.inference.timing import interleaved
from wae.models.autoencoder import AutoEncoder
from wae.models.classifier import fold_normalization
from wae.models.counting import count
from wae.models.stock import StockDecoder, StockEncoder
from wae.models.vgg16 import wae_vgg16
from wae_kernels import backends
from wae_kernels.nn import Decoder, Encoder

_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_KINDS = {"encode": (Encoder, StockEncoder), "decode": (Decoder, StockDecoder)}
_PUBLISHED = {"VGG16": 1289.28, "WAE-VGG16": 411.63}  # ms on a CPU, docs/network.md
_UNDISTURBED = 0.7  # on a quiet machine this thread has a core for at least this share of the time
_TOLERANCE = 1e-4  # float32 through layers of another order of arithmetic


@torch.no_grad()
def show(console: Console, model: AutoEncoder, seconds: float) -> None:
    """Time, and print two tables.

    Args:
        model: whose encoder and decoder are timed.
        seconds: for each of the tables, warm-up not counted.

    Raises:
        DisagreementError: two ways to compute the same thing do not agree; then they are not timed.
    """
    wall, computing = time.perf_counter(), time.thread_time()
    for what, measure in (("encode and decode", _ops), ("VGG16", _networks)):
        with console.status(f"timing {what}"):
            table = measure(model, seconds)
        console.print(table)
    share = (time.thread_time() - computing) / (time.perf_counter() - wall)
    if share < _UNDISTURBED:
        console.print(
            f"The machine was busy: this program had a core for {share:.0%} of the time only. "
            "Do not rely on these times.",
            style="yellow",
        )
    console.print(
        "Medians of interleaved runs. Published: Chen et al., AAAI 2018, i7 at 3.5 GHz: other hardware and "
        "software. The networks have random weights: only their time is meant. GMAC: thousand million "
        "multiply-adds, those of the encoder included.",
        highlight=False,
    )


def _ops(model: AutoEncoder, seconds: float) -> Table:
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

    threads = torch.get_num_threads()
    table = _table(
        f"One 224 x 224 image, float32, {threads} thread{'s' if threads > 1 else ''}",
        ("op", "layout"),
        (f"wae, {backends.backend_for('cpu')}\nms", "stock torch, eager\nms", "\nspeed-up"),
    )
    for op in _KINDS:
        for layout in _FORMATS:
            ours, stock = (timings[f"{op} {layout} {which}"].median for which in ("wae", "stock"))
            table.add_row(op, layout, _ms(ours), _ms(stock), _ratio(stock, ours))
    return table


def _networks(model: AutoEncoder, seconds: float) -> Table:
    wae = fold_normalization(wae_vgg16(encoder=model.encoder))
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with backends.use("reference"):
        expected = wae(image)
    _require_equal("WAE-VGG16", [wae(image), expected])
    networks: dict[str, nn.Module] = {"VGG16": vgg16().eval(), "WAE-VGG16": wae}
    timings = interleaved({n: partial(m, image) for n, m in networks.items()}, seconds, warmup=1)

    table = _table(
        "One 224 x 224 image through a classifier, eager, NCHW",
        ("network",),
        ("here\nms", "here\nspeed-up", "\nGMAC", "published\nms", "published\nspeed-up"),
    )
    for name, network in networks.items():
        table.add_row(
            name,
            _ms(timings[name].median),
            _ratio(timings["VGG16"].median, timings[name].median),
            f"{count(network).multiply_adds / 1e9:.2f}",
            f"{_PUBLISHED[name]:.0f}",
            _ratio(_PUBLISHED["VGG16"], _PUBLISHED[name]),
        )
    return table


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(f"\n{name}")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _ratio(slow: float, fast: float) -> str:
    return f"{slow / fast:.2f}x"


def _require_equal(what: str, results: Sequence[Any]) -> None:
    """Raise unless all results agree with the first."""
    first, *others = results
    for other in others:
        if not largest_difference(first, other) <= _TOLERANCE:  # NaN neither
            raise DisagreementError(f"{what}: two ways to compute it disagree, so they are not timed")
