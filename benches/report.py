"""From result files to the README's tables and the plot; nothing in them is typed by hand.

    python benches/report.py                 make README.md's tables and docs/speed.png from benches/results
    python benches/report.py --add FILE      first keep FILE, written by pytest --benchmark-json, there

A result file is named after the backend it was measured with, and kept without the single samples.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
README = ROOT / "README.md"
PLOT = ROOT / "docs" / "speed.png"
BEGIN, END = "<!-- benches/report.py writes from here -->", "<!-- to here -->"

Result = dict[str, Any]


def add(path: Path) -> Path:
    """Keep a pytest-benchmark file in benches/results, without its samples. Returns where."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if not result.get("benchmarks"):
        raise SystemExit(f"{path} holds no benchmarks: nothing is kept")
    kept = {
        "datetime": result["datetime"],
        "commit": {key: result["commit_info"].get(key) for key in ("id", "dirty")},
        "machine": result["machine_info"]["wae"],
        "benchmarks": [{"name": b["name"], **b["extra_info"]} for b in result["benchmarks"]],
    }
    machine = kept["machine"]
    label = machine["gpu"] or machine["backend"]
    target = RESULTS / ("".join(c if c.isalnum() else "-" for c in label.lower()) + ".json")
    RESULTS.mkdir(exist_ok=True)
    _replace(target, json.dumps(kept, indent=1) + "\n")
    return target


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def ratio(benchmark: Result, side: str) -> float:
    """How many times longer ``side`` takes than ours."""
    timings = benchmark["timings"]
    return float(timings[side]["median"] / timings[benchmark["ours"]]["median"])


def tables(result: Result) -> str:
    """The tables of one result file, as Markdown."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    limits = ", ".join(f"{name}={value}" for name, value in machine["limits"].items())
    lines = [
        f"#### {machine['gpu'] or machine['processor']}, {machine['backend']}, {machine['threads']} threads",
        "",
        f"{result['datetime'][:10]}, commit {str(result['commit']['id'])[:10]}; {versions}"
        + (f"; limited by {limits}" if limits else "")
        + ". Median ms (10th-90th percentile), and how many times ours that is.",
    ]
    groups: dict[str, list[Result]] = defaultdict(list)
    for benchmark in result["benchmarks"]:
        groups[benchmark["table"]].append(benchmark)
    for title, benchmarks in groups.items():
        lines += ["", *_table(title, benchmarks)]
    return "\n".join(lines)


def _table(title: str, benchmarks: list[Result]) -> list[str]:
    sides = list(dict.fromkeys(side for b in benchmarks for side in b["timings"]))
    heads = [f"batch {b['images']}" if "images" in b else "4.2 megapixels" for b in benchmarks]
    rows = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for side in sides:
        cells = [_cell(b, side) if side in b["timings"] else "" for b in benchmarks]
        rows.append(f"| {side} | " + " | ".join(cells) + " |")
    return rows


def _cell(benchmark: Result, side: str) -> str:
    timing = benchmark["timings"][side]
    median, low, high = (_milliseconds(timing[key]) for key in ("median", "p10", "p90"))
    cell = f"{median} ({low}-{high})"
    return cell if side == benchmark["ours"] else f"{cell}, {ratio(benchmark, side):.2f}x"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def plot(results: list[Result]) -> None:
    """Bars: how many times faster than each peer, for one image and for eight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = ("encode", "decode", "encode + backward", "decode + backward")
    figure, axes = pyplot.subplots(
        len(results), len(wanted), figsize=(15, 2.9 * len(results)), squeeze=False, layout="constrained"
    )
    for row, result in zip(axes, results, strict=True):
        for axis, title in zip(row, wanted, strict=True):
            benchmarks = [b for b in result["benchmarks"] if b["table"] == title]
            sides = [
                s for s in (benchmarks[0]["timings"] if benchmarks else []) if s != benchmarks[0]["ours"]
            ]
            for i, benchmark in enumerate(benchmarks):
                heights = [ratio(benchmark, side) for side in sides]
                places = [y + (i - 0.5) * 0.38 for y in range(len(sides))]
                bars = axis.barh(places, heights, 0.36, label=f"batch {benchmark['images']}")
                axis.bar_label(bars, fmt="%.1fx", padding=2, fontsize=7)
            axis.set_yticks(range(len(sides)), sides, fontsize=7)
            axis.invert_yaxis()
            axis.axvline(1, color="black", linewidth=0.8)
            axis.margins(x=0.3)
            axis.set_title(f"{title} ({result['machine']['backend']})", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.suptitle("Time of each peer, in units of ours (224 x 224, float32)", fontsize=10)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """Parse the arguments, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FILE", help="a file written by pytest --benchmark-json")
    arguments = parser.parse_args()
    if arguments.add is not None:
        print(f"kept {add(arguments.add).relative_to(ROOT)}")
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    results = [file for file in files if "benchmarks" in file]  # benches/gpu/run.py prints its own tables
    if not results:
        sys.exit("no result files in benches/results: run `make bench` first")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in rest:
        sys.exit(f"README.md must hold the lines\n{BEGIN}\n{END}")
    body = "\n\n".join(tables(result) for result in results)
    _replace(README, f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
    plot(results)
    print(f"wrote README.md and {PLOT.relative_to(ROOT)} from {len(results)} result files")


if __name__ == "__main__":
    main()
