"""Times encode and decode on this machine's GPU against the other ways to run them; `make gpu` calls it.

    python benches/gpu/run.py [--seconds 0.3] [--batches 1 8 64] [--out FILE]

All sides of a case get the same inputs: so many sets of them that one round does not fit into the GPU's
cache. First each side's results are held against the float64 reference; a side beyond the limit of
docs/network.md is reported with its error and without a time. Then each is recorded as one CUDA graph that
goes once through all sets (a side that cannot be recorded is launched, and says so), the graphs take turns in
random order, CUDA events measure each replay, and medians and spread go to benches/results/. Without a GPU
it says so and ends.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))

from networks import OURS, branches, decoders, encoders, images  # noqa: E402

from wae_kernels import backends  # noqa: E402

SIZE = 224
# (name, dtype of weights and images, may float32 be rounded to tf32, the limit in docs/network.md)
PRECISIONS = (
    ("float16", torch.float16, True, 2e-3),
    ("bfloat16", torch.bfloat16, True, 1.5e-2),
    ("tf32", torch.float32, True, 1e-3),
    ("float32", torch.float32, False, 1e-5),
)
Inputs = tuple[Tensor, ...]
Side = Callable[..., Any]


@dataclass(frozen=True)
class Result:
    """One side of one case; microseconds of one call, None where the result was wrong or could not run."""

    op: str
    precision: str
    batch: int
    side: str
    error: float | None
    median_us: float | None
    p10_us: float | None
    p90_us: float | None
    rounds: int
    note: str


def input_sets(op: str, batch: int, dtype: torch.dtype, device: torch.device) -> list[Inputs]:
    """Distinct inputs, together at least twice the GPU's second-level cache, and at least two sets."""
    cache = (
        getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        if device.type == "cuda"
        else 0
    )
    first = tuple(
        x.to(dtype)
        for x in ((images(batch, SIZE, device),) if op == "encode" else branches(batch, SIZE, device))
    )
    bytes_each = sum(x.numel() * x.element_size() for x in first)
    count = max(2, -(-2 * cache // bytes_each))
    return [tuple(x.roll(i, -1) for x in first) for i in range(count)]


def sides(stock: nn.Module, ours: nn.Module, dtype: torch.dtype, with_compile: bool) -> dict[str, Side]:
    """Everything that can run the network here, by name. Each takes a set of inputs."""
    plain, mine = copy.deepcopy(stock).to(dtype), copy.deepcopy(ours).to(dtype)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    found: dict[str, Side] = {
        OURS: mine,
        f"{OURS}, channels_last": mine,
        "PyTorch eager": plain,
        "PyTorch eager, channels_last": last,
    }
    if any(backend.name == "triton" and backend.available for backend in backends.available()):

        def triton(*inputs: Tensor) -> Any:
            with backends.use("triton"):
                return mine(*inputs)

        found |= {f"{OURS}, Triton": triton, f"{OURS}, Triton, channels_last": triton}
    if dtype in (torch.float16, torch.bfloat16):
        single = copy.deepcopy(stock)

        def autocast(*inputs: Tensor) -> Any:
            with torch.autocast("cuda", dtype):
                return single(*inputs)

        found["PyTorch eager, autocast"] = autocast
    if with_compile:
        found["torch.compile max-autotune"] = torch.compile(
            plain, mode="max-autotune-no-cudagraphs", fullgraph=True
        )
        if importlib.util.find_spec("torch_tensorrt") is not None:
            found["TensorRT"] = torch.compile(
                plain, backend="torch_tensorrt", options={"enabled_precisions": {dtype}}
            )
    return found


def outputs(value: Any) -> list[Tensor]:
    """The tensors of a result."""
    return [value] if isinstance(value, Tensor) else list(value)


def error_of(got: Any, expected: Any) -> float:
    """The largest ||got - expected|| / ||expected|| of the outputs."""
    pairs = zip(outputs(got), outputs(expected), strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


def recorded(side: Side, sets: Sequence[Inputs]) -> tuple[Callable[[], Any], str]:
    """A function that runs the side once on every set, as one CUDA graph if that is possible; and a note."""

    def run() -> None:
        for inputs in sets:
            side(*inputs)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as problem:
        torch.cuda.synchronize()
        return run, f"launched, not a graph: {str(problem).splitlines()[0]}"
    return graph.replay, ""


def timed(functions: dict[str, Callable[[], Any]], seconds: float, calls: int) -> dict[str, list[float]]:
    """Microseconds of a call, for every round. The functions take turns in random order."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    order, end = list(functions), time.monotonic() + seconds * len(functions)
    while time.monotonic() < end or len(times[order[0]]) < 5:
        random.shuffle(order)
        events = []
        for name in order:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            functions[name]()
            stop.record()
            events.append((name, start, stop))
        torch.cuda.synchronize()
        for name, start, stop in events:
            times[name].append(start.elapsed_time(stop) * 1000 / calls)
    return times


def case(
    op: str, precision: tuple[str, torch.dtype, bool, float], batch: int, seconds: float
) -> list[Result]:
    """Check, then time, all sides."""
    name, dtype, tf32, limit = precision
    device = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = tf32
    ours, stock = encoders(device) if op == "encode" else decoders(device, (SIZE, SIZE))
    sets = input_sets(op, batch, dtype, device)
    last = [tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs) for inputs in sets]
    rounded = copy.deepcopy(stock).to(dtype).double()
    expected = rounded(*(x.double() for x in sets[0]))
    functions: dict[str, Callable[[], Any]] = {}
    found: dict[str, tuple[float | None, str]] = {}
    for side_name, side in sides(stock, ours, dtype, with_compile=batch in (1, 64)).items():
        mine = last if "channels_last" in side_name else sets
        try:
            error = error_of(side(*mine[0]), expected)
            found[side_name] = (error, "" if error <= limit else f"beyond the limit of {limit:g}")
            if error <= limit:
                functions[side_name], note = recorded(side, mine)
                found[side_name] = (error, note)
        except Exception as problem:  # a peer that fails is a line of the report, not the end of it
            if side_name.startswith(OURS):
                raise
            found[side_name] = (None, f"failed: {str(problem).splitlines()[0][:200]}")
    times = timed(functions, seconds, len(sets))
    results = []
    for side_name, (error, note) in found.items():
        mine_us = sorted(times.get(side_name, []))
        tenth = len(mine_us) // 10
        results.append(
            Result(
                op, name, batch, side_name, error,
                statistics.median(mine_us) if mine_us else None,
                mine_us[tenth] if mine_us else None,
                mine_us[-1 - tenth] if mine_us else None,
                len(mine_us), note,
            )
        )  # fmt: skip
    return results


def report(results: Sequence[Result]) -> str:
    """A line for each side, grouped by case, with its ratio to ours."""
    lines = []
    ours = {(r.op, r.precision, r.batch): r.median_us for r in results if r.side == OURS}
    for r in results:
        if r.side == OURS:
            lines.append(f"\n{r.op} {r.precision}, {r.batch} x 3 x {SIZE} x {SIZE}")
        base = ours[(r.op, r.precision, r.batch)]
        took = f"{r.median_us:10.2f} us" if r.median_us else "   no time   "
        ratio = f"{r.median_us / base:7.2f} x" if r.median_us and base else " " * 9
        matches = f"error {r.error:.1e}" if r.error is not None else ""
        lines.append(f"  {r.side:32} {took} {ratio}  {matches}  {r.note}")
    return "\n".join(lines)


def save(path: Path, results: Sequence[Result]) -> None:
    """Results and what they were made on, replaced as a whole."""
    properties = torch.cuda.get_device_properties(0)
    content = {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "backend": backends.backend_for("cuda", torch.float16),
        "results": [asdict(r) for r in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


@torch.no_grad()
def main() -> int:
    """Check and time all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="for each side of a case (default 0.3)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--out", type=Path, help="default: benches/results/gpu-NAME.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing to time.")
        return 0
    if backends.backend_for("cuda", torch.float16) != "cuda":
        print("The CUDA library is not in use: run `make cuda` first.")
        return 1
    torch.backends.cudnn.benchmark = True
    results: list[Result] = []
    for op in ("encode", "decode"):
        for precision in PRECISIONS:
            for batch in options.batches:
                made = case(op, precision, batch, options.seconds)
                print(report(made), flush=True)
                results += made
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name().lower())
    path = options.out or ROOT / "benches" / "results" / f"gpu-{name}.json"
    save(path, results)
    print(f"\nWritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
