"""wae::decode_scores and its gradients compared with the alternatives, at two common sizes of images.

OMP_NUM_THREADS=2 python -m pytest benches/bench_scores.py --keep FOLDER
python -m benches.bench_scores FOLDER      # the tables of docs/kernels.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wae.models.stock import StockScoreDecoder
from wae_kernels import reference
from wae_kernels.nn import ScoreDecoder

from . import peers, result_files
from .comparison import Side
from .devices import EXACT, Setting
from .modules import OURS, FixedSize, gradients, wide_gradients
from .tables import grid

CASES = [(360, 480, 11), (512, 512, 21)]
"""Height, width and classes."""
FEATURES = 16
TABLES = "decode_scores", "decode_scores + backward"

Case = tuple[int, int, int]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: "{}x{}-{}".format(*case))


def _pair(case: Case) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """Our module, PyTorch's with the same weights, and inputs."""
    height, width, classes = case
    stock = FixedSize(StockScoreDecoder(classes, FEATURES), (height, width)).eval()
    ours = FixedSize(ScoreDecoder(classes, FEATURES), (height, width)).eval()
    ours.load_state_dict(stock.state_dict())
    return ours, stock, tuple(torch.randn(1, n, height // 2, width // 2) for n in (classes, FEATURES))


@EACH
@torch.no_grad()
def bench_scores(compare: Callable[..., None], case: Case) -> None:
    ours, stock, given = _pair(case)
    sides: dict[str, Side] = {
        OURS: lambda: peers.over(ours, [given]),
        f"{OURS}, channels_last": lambda: peers.over(ours, peers.channels_last([given])),
        **peers.eager(stock, [given]),
        **peers.engines(stock, [given]),
    }
    wide = [t.double() for t in (*given, *ours.parameters())]
    wanted = [reference.decode_scores(*wide, case[:2])]
    setting = Setting("cpu", EXACT, 1)
    compare(OURS, sides, wanted, setting, setting.precision.op, table=TABLES[0], case=case)


@EACH
def bench_scores_and_gradients(compare: Callable[..., None], case: Case) -> None:
    """The forward pass, and the gradients of all weights and of both inputs."""
    ours, stock, given = _pair(case)
    with torch.no_grad():
        upstream = [torch.randn_like(stock(*given))]

    def side(module: nn.Module, inputs: tuple[Tensor, ...]) -> Side:
        return lambda: peers.over(lambda *x: gradients(module, x, upstream), [inputs])

    (last,) = peers.channels_last([given])
    sides = {
        OURS: side(ours, given),
        f"{OURS}, channels_last": side(ours, last),
        "PyTorch eager": side(stock, given),
        "PyTorch eager, channels_last": side(stock, last),
    }
    setting = Setting("cpu", EXACT, 1)
    wanted = wide_gradients(stock, given, upstream)
    compare(OURS, sides, wanted, setting, setting.precision.gradient, table=TABLES[1], case=case)


def markdown(result: result_files.Result, table: str) -> str:
    """A table of the medians in ms, with a row for each side; empty if the result has none for this table."""
    found = {tuple(b["case"]): b["timings"] for b in result["benchmarks"] if b["table"] == table}
    cases = [case for case in CASES if case in found]
    if not cases:
        return ""
    rows = [
        [side, *(f"{1e3 * found[case][side]['median']:.3g}" for case in cases)] for side in found[cases[0]]
    ]
    return "\n".join(grid([table, *("{} x {}, {} classes".format(*case) for case in cases)], rows))


if __name__ == "__main__":
    for result in result_files.shown(Path(sys.argv[1])):
        print(result["machine"]["processor"], *(markdown(result, table) for table in TABLES), sep="\n\n")
