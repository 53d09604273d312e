"""The tables of docs/triton.md. Needs no GPU.

PYTHONPATH=tools:tests/cuda python tests/support/triton_counts.py --write

The work of a launch is counted while its compiled code for sm_80 runs on the CPU. The resources of a kernel
are read from its machine code for every target.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from ahead_of_time import compile_launch
from cases import decoder, encoder, image_of
from test_executed_triton import execute

from wae_kernels.parameters import DecoderParameters, EncoderParameters
from wae_kernels.triton.kernels import decode_kernel, encode_kernel
from wae_kernels.triton.launch import Launch, launch_decode, launch_encode
from wae_kernels.triton.plan import Device, Tile, plan, tiles_for

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
MINIMUM = 263_700_000
"""Multiply-adds of either op for a 224 x 224 image, by its definition."""

GPUS = [
    Device("A100", 80, 108, 164 << 10, 40 << 20),
    Device("RTX 3090", 86, 82, 100 << 10, 6 << 20),
    Device("RTX 4090", 89, 128, 100 << 10, 72 << 20),
    Device("H100", 90, 132, 228 << 10, 50 << 20),
    Device("B200", 100, 148, 228 << 10, 126 << 20),
    Device("RTX 5090", 120, 170, 100 << 10, 96 << 20),
]
"""The vendors' figures: compute capability, multiprocessors, shared memory of a multiprocessor, L2 cache."""


def launches(dtype: torch.dtype, size: int, tile: Tile | None = None) -> dict[str, tuple[object, Launch]]:
    """Both ops on one image, on a GPU of two multiprocessors."""
    gpu = Device("small", 80, 2, 164 << 10, 1 << 20)
    halves = [image_of(1, size // 2, size // 2, dtype) for _ in range(2)]
    return {
        "encode": (
            encode_kernel,
            launch_encode(
                image_of(1, size, size, dtype), EncoderParameters(*encoder(dtype)), device=gpu, tile=tile
            ),
        ),
        "decode": (
            decode_kernel,
            launch_decode(*halves, DecoderParameters(*decoder(dtype)), (size, size), device=gpu, tile=tile),
        ),
    }


def size_of(tile: Tile) -> str:
    return f"{tile.half_rows} x {tile.half_columns}"


def counts_table() -> str:
    """Counts of the kernels on a 224 x 224 image in float16."""
    rows: dict[str, list[str]] = {}
    for op, (kernel, launch) in launches(torch.float16, 224, tiles_for("half", 80)[0]).items():
        compiled = compile_launch(kernel, launch, 80)
        counts = execute(compiled, launch)
        names = [f"arg {i}" for i in range(len(compiled.arguments))]
        by_name = dict(zip(compiled.arguments, (counts.by_buffer.get(n, (0, 0)) for n in names), strict=True))
        outputs = ("low", "high") if op == "encode" else ("image",)
        inputs = ("image",) if op == "encode" else ("low", "high")
        slab = by_name["slab"]
        read = sum(by_name[n][0] for n in inputs)
        size = sum(compiled.arguments[n].numel() * 2 for n in inputs)
        cells = {
            "tile (half-resolution pixels)": size_of(launch.plan.tile),
            "m16n8k16 of the tensor cores": f"{sum(counts.tensor.values()):,}".replace(",", " "),
            "multiply-adds, idle lanes included": f"{counts.multiply_adds / MINIMUM:.2f} x",
            "input read": f"{read / size:.2f} x",
            "output written": f"{sum(by_name[n][1] for n in outputs) / 1e3:.0f} KB",
            "weights read": f"{(counts.read_bytes - read - slab[0]) / 1e3:.0f} KB",
            "slab read, by L1 or L2": f"{slab[0] / 1e6:.1f} MB",
            "slab written": f"{slab[1] / 1e6:.1f} MB",
            "shared-memory wavefronts": f"{counts.shared_wavefronts:,}".replace(",", " "),
            "of these bank conflicts": f"{1 - counts.shared_ideal_wavefronts / counts.shared_wavefronts:.1%}",
            "barriers of a program, for a tile": f"{counts.barriers / launch.plan.tiles:.0f}",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    lines = ["| | encode | decode |", "|---|--:|--:|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def plans_table() -> str:
    """Tile, programs and slab on each GPU, for 1 and for 64 images."""
    lines = [
        "| GPU | images | tile | programs | slab of a program | all slabs | L2 cache |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for gpu in GPUS:
        for batch in (1, 64):
            made = plan(batch, 224, 224, "half", gpu)
            tile = made.tile
            lines.append(
                f"| {gpu.name} | {batch} | {size_of(tile)} | {made.programs} "
                f"| {tile.slab * 2 / 1024:.0f} KB | {made.slab_elements * 2 / 2**20:.1f} MB "
                f"| {gpu.l2_bytes >> 20} MB |"
            )
    return "\n".join(lines)


def compiler_table() -> str:
    """Resources of the compiled kernels on every target, for the first tile of the short list."""
    lines = [
        "| target | tile | | registers | spills | shared memory | mma in the code |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for gpu in GPUS:
        tile = tiles_for("half", gpu.capability)[0]
        for op, (kernel, launch) in launches(torch.float16, 8, tile).items():
            compiled = compile_launch(kernel, launch, gpu.capability)
            lines.append(
                f"| sm_{gpu.capability} | {size_of(tile)} | {op} "
                f"| {compiled.resources['REG']} | {compiled.resources['STACK']} "
                f"| {compiled.kernel.metadata.shared / 1024:.0f} KB | {compiled.instructions['HMMA']} |"
            )
    return "\n".join(lines)


def page() -> str:
    """docs/triton.md with new tables."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("counts", counts_table), ("plans", plans_table), ("compiler", compiler_table)):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        text = re.sub(f"{begin}.*?{end}", "\n".join((begin, table(), end)), text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    torch.manual_seed(0)
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
