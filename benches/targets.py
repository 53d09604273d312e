"""The targets of docs/benchmarks.md, and the Markdown table of what was reached."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.registry import build

from .modules import OURS
from .result_files import Result
from .tables import IN_PYTORCH, grid, in_table, name, ratio


class Bound(NamedTuple):
    """A target for the ratio of two times.

    ``slow`` and ``fast`` are patterns that match names of sides in ``table``; the fastest match counts. With
    ``network``, ``aim`` is a share of the ratio between the multiply-adds of this network and those of WAE
    around it.
    """

    what: str
    table: str
    slow: str
    fast: str
    least: float | None = None
    aim: float | None = None
    most: float | None = None
    network: str | None = None
    batches: Sequence[int] = (1, 8)

    def asked(self) -> tuple[str, str]:
        """The table's cells: required, and target."""
        if self.most is not None:
            return f"at most {self.most:g}x", ""
        if self.network is not None:
            return "", f"{self.aim:.0%} of {multiply_adds(self.network):.2f}x"
        least, aim = (f"{x:g}x" if x is not None else "" for x in (self.least, self.aim))
        return least, aim

    def cell(self, ratio: float) -> str:
        """``ratio`` as the table shows it, in bold if it misses the bound."""
        if self.network is not None:
            share = ratio / multiply_adds(self.network)
            text, holds = f"{ratio:.2f}x, {share:.0%}", share >= (self.aim or 0)
        else:
            text = f"{ratio:.2f}x"
            holds = ratio <= self.most if self.most is not None else ratio >= (self.least or 0)
        return text if holds else f"**{text}**"


@functools.cache
def multiply_adds(network: str) -> float:
    """The multiply-adds of ``network``, divided by those of WAE around it with its encoder."""
    stock, wae = (
        count(on_meta(functools.partial(build, name))).multiply_adds
        for name in (network.lower(), f"wae_{network.lower()}")
    )
    return stock / wae


def _of_op(op: str) -> list[Bound]:
    peer = rf"(?!{OURS}$|PyTorch eager$).*"
    return [
        Bound(f"{op} over PyTorch eager", op, "PyTorch eager", OURS, 5.5, 9),
        Bound(f"{op} over the fastest other baseline", op, peer, OURS, 1.6, 2.4),
    ]


def _of_network(network: str, deployed: tuple[float, float]) -> list[Bound]:
    stock, wae, table = f"{network} at 224", f"WAE-{network}, deployed", "end to end"
    return [
        Bound(f"{wae}, over {network}, eager", table, rf"{stock} \| eager", rf"{wae} \| .*", *deployed),
        *(
            Bound(
                f"{wae}, over {network}, both {runner}",
                table,
                rf"{stock} \| {runner}",
                rf"{wae} \| {runner}",
                aim=0.93,
                network=network,
            )
            for runner in ("torch.compile", "Winograd", "ONNX Runtime", "OpenVINO")
        ),
    ]


_STOCK_OPS = rf"WAE-VGG16, stock ops {IN_PYTORCH}"
_OUR_ENCODER = rf"WAE-VGG16, our encoder {IN_PYTORCH}"

BOUNDS = [
    *_of_network("VGG16", (5, 7)),
    Bound(
        "WAE-VGG16, our encoder, over VGG16, both eager",
        "end to end",
        rf"VGG16 at 224 {IN_PYTORCH}",
        _OUR_ENCODER,
        3.13,
    ),
    Bound(
        "our ops over stock ops in WAE-VGG16, both eager",
        "end to end",
        _STOCK_OPS,
        rf"WAE-VGG16, our ops {IN_PYTORCH}",
        1.08,
        1.2,
    ),
    Bound(
        "our encoder over stock ops in WAE-VGG16, both eager",
        "end to end",
        _STOCK_OPS,
        _OUR_ENCODER,
        1.08,
        1.2,
    ),
    *_of_network("ResNet50", (2.5, 4)),
    *_of_op("encode"),
    *_of_op("decode"),
    Bound("encode + backward over PyTorch eager", "encode + backward", "PyTorch eager", OURS, 1.3, 2),
    Bound("encode of uint8 over float32", "input types, encode", "floating point|float32", "uint8", 1),
    Bound("encode in int8 over float32", "int8, encode", "float32", "int8", 1.25, 1.8),
    Bound(
        "encode, time per pixel: 2048 x 2048 relative to 224 x 224",
        "resolution, encode",
        "1 of 2048 x 2048",
        "84 of 224 x 224",
        most=1.15,
    ),
]
"""The targets on a CPU."""


def _on_gpu(network: str, least: float, aim: float) -> Bound:
    engine = r"\| float16, (CUDA graph|TensorRT|torch.compile.*)"
    return Bound(
        f"WAE-{network} over {network}, both in the fastest engine",
        "end to end, GPU",
        rf"{network} at 224 {engine}",
        rf"WAE-{network}, deployed {engine}",
        least,
        aim,
        batches=(128,),
    )


def _as_one_graph(network: str) -> Bound:
    return Bound(
        f"WAE-{network} over {network}, each one CUDA graph",
        "end to end, GPU",
        rf"{network} at 224 \| float16, CUDA graph",
        rf"WAE-{network}, deployed \| float16, CUDA graph",
        1.5,
        2.2,
        batches=(1,),
    )


_PEER = rf"(?!{OURS}).*"
GPU_BOUNDS = [
    Bound(
        "encode float16 over the fastest baseline", "encode, GPU, float16", _PEER, OURS, 3, 6, batches=(64,)
    ),
    Bound(
        "encode + backward over eager AMP",
        "encode + backward, GPU, float16",
        "PyTorch eager, autocast",
        rf"{OURS}, autocast",
        2,
        4,
        batches=(64,),
    ),
    _on_gpu("VGG16", 2.6, 3.0),
    _on_gpu("ResNet50", 1.9, 2.2),
    _as_one_graph("VGG16"),
    _as_one_graph("ResNet50"),
]
"""The targets on an H100."""


def bounds(results: Sequence[Result], asked: Sequence[Bound]) -> list[str]:
    """The table of targets, with a column for each result file."""
    rows = [[bound.what, *bound.asked(), *(_reached(bound, result) for result in results)] for bound in asked]
    return grid(["speedup", "required", "target", *map(name, results)], rows)


def _reached(bound: Bound, result: Result) -> str:
    measured = sorted(in_table(result, bound.table), key=lambda b: b.get("images", 0))
    ratios = [ratio(b, bound.slow, bound.fast) for b in measured if b.get("images", 1) in bound.batches]
    return " / ".join(bound.cell(r) for r in ratios if r is not None) or "not measured"
