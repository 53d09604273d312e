"""wae::conv3x3 compared with oneDNN on the 3x3 layers of VGG16 at 112 x 112.

There are two forms of oneDNN: as eager PyTorch calls it, which reorders the weights in each call; and as
torch.compile calls it, with weights reordered beforehand, as ours are, and with ReLU fused.

OMP_NUM_THREADS=1 python -m pytest benches/bench_conv3x3.py --keep FOLDER
python -m benches.bench_conv3x3 FOLDER      # the table of docs/kernels.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from . import result_files
from .comparison import Side
from .devices import EXACT, Calls, Setting
from .modules import OURS
from .tables import grid

LAYERS = [
    (3, 64, 112), (64, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28),
    (256, 512, 14), (512, 512, 14), (512, 512, 7),
]  # fmt: skip
"""Input channels, output channels, height and width."""
BATCHES = (1, 8)
PEER, PACKED = "oneDNN", "oneDNN, packed"
TABLE = "conv3x3"


@torch.no_grad()
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "{}-{}-{}".format(*layer))
def bench_layer(compare: Callable[..., None], layer: tuple[int, int, int], batch: int) -> None:
    channels, out_channels, size = layer
    weight = torch.randn(out_channels, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
    bias = torch.randn(out_channels)
    x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    packed = torch.ops.wae.conv3x3_pack(weight)
    weight_last = weight.contiguous(memory_format=torch.channels_last)

    def peer(x: Tensor) -> Tensor:
        return F.conv2d(x, weight_last, bias, padding=1).relu_()

    sides: dict[str, Side] = {
        OURS: lambda: [partial(torch.ops.wae.conv3x3, x, packed, bias, out_channels, True)],
        PEER: lambda: [partial(peer, x)],
        PACKED: partial(_packed_peer, weight, bias, x),
    }
    wanted = [F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()]
    setting = Setting("cpu", EXACT, batch)
    compare(OURS, sides, wanted, setting, setting.precision.op, table=TABLE, layer=layer)


def _packed_peer(weight: Tensor, bias: Tensor, x: Tensor) -> Calls:
    one, onednn = [1, 1], torch.ops.mkldnn  # stride, padding and dilation
    laid_out = onednn._reorder_convolution_weight(weight, one, one, one, 1, list(x.shape))
    return [partial(onednn._convolution_pointwise, x, laid_out, bias, one, one, one, 1, "relu", [], "")]


def markdown(folder: Path) -> str:
    """A table of the medians in ms, with a row for each layer."""
    (result,) = result_files.shown(folder)
    cases = {(tuple(b["layer"]), b["images"]): b for b in result["benchmarks"] if b["table"] == TABLE}
    sides = OURS, PEER, PACKED
    rows = []
    for layer in LAYERS:
        timings = [cases[layer, n]["timings"][side] for n in BATCHES for side in sides]
        rows.append(["{0} -> {1}, {2} x {2}".format(*layer), *(f"{1e3 * t['median']:.3g}" for t in timings)])
    heads = [head for n in BATCHES for head in (f"batch {n}", PEER, PACKED)]
    return "\n".join(grid(["layer", *heads], rows))


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
