"""wae::decode_scores against whatever else could run it, at sizes and classes of road scenes and objects.

OMP_NUM_THREADS=2 python -m pytest benches/bench_scores.py --keep FOLDER
python -m benches.bench_scores FOLDER      # the table of docs/kernels.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
from .modules import OURS

CASES = [(360, 480, 11), (512, 512, 21)]
"""Height, width and classes."""
FEATURES = 16
TABLE = "decode_scores"


class ToSize(nn.Module):
    """A score decoder for one size of image: what an engine can be given."""

    def __init__(self, decoder: ScoreDecoder, size: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.size = decoder, tuple(size)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        scores: Tensor = self.decoder(low, high, self.size)
        return scores


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: "{}x{}-{}".format(*case))
def bench_scores(compare: Callable[..., None], case: tuple[int, int, int]) -> None:
    height, width, classes = case
    stock = ToSize(StockScoreDecoder(classes, FEATURES), (height, width)).eval()
    ours = ToSize(ScoreDecoder(classes, FEATURES), (height, width)).eval()
    ours.load_state_dict(stock.state_dict())
    given = tuple(torch.randn(1, n, height // 2, width // 2) for n in (classes, FEATURES))
    sides: dict[str, Side] = {
        OURS: lambda: peers.over(ours, [given]),
        f"{OURS}, channels_last": lambda: peers.over(ours, peers.channels_last([given])),
        **peers.eager(stock, [given]),
        **peers.engines(stock, [given]),
    }
    wide = [t.double() for t in (*given, *ours.parameters())]
    wanted = [reference.decode_scores(*wide, (height, width))]
    setting = Setting("cpu", EXACT, 1)
    compare(OURS, sides, wanted, setting, setting.precision.op, table=TABLE, case=case)


def markdown(folder: Path) -> str:
    """The medians in ms, a row for each side."""
    (result,) = result_files.shown(folder)
    found = {tuple(b["case"]): b["timings"] for b in result["benchmarks"] if b["table"] == TABLE}
    cases = [case for case in CASES if case in found]
    lines = ["| | " + " | ".join("{} x {}, {} classes".format(*case) for case in cases) + " |"]
    lines += ["|---|" + "---|" * len(cases)]
    for side in found[cases[0]]:
        times = [f"{1e3 * found[case][side]['median']:.3g}" for case in cases]
        lines.append(f"| {side} | {' | '.join(times)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
