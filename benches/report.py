"""From result files to the tables of README.md and docs/benchmarks.md, and the plots. None is typed by hand.

    python benches/report.py                 make tables and plots from benches/results
    python benches/report.py --add FILE      first keep FILE, written by pytest --benchmark-json, there

A result file holds one machine's latest numbers, each with the date, commit and versions that it was measured
with, and without the single samples. Benchmarks that were measured again replace those of the same name; so
a long run can be made in parts. Short runs (without --full) go into a file of their own, ``*.short.json``,
which is shown only where there is no full one of the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import plots
import tables
from tables import Result

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benches/report.py writes from here -->", "<!-- to here -->"
LEGEND = (
    "Ratios of median times of sides that took turns in one process, for batches of 1 / 8 where both were\n"
    "measured; **bold** falls short of what was asked for. All tables, and how they are measured:\n"
    "[docs/benchmarks.md](docs/benchmarks.md)."
)


def add(path: Path, folder: Path) -> Path:
    """Keep a pytest-benchmark file in ``folder``, without its samples. Returns where."""
    given = json.loads(path.read_text(encoding="utf-8"))
    if not given.get("benchmarks"):
        raise SystemExit(f"{path} holds no benchmarks: nothing is kept")
    machine = given["machine_info"]["wae"]
    run = {
        "datetime": given["datetime"],
        "commit": given["commit_info"].get("id"),
        "dirty": given["commit_info"].get("dirty"),
        **given["machine_info"]["wae run"],
    }
    fresh = {b["name"]: {"name": b["name"], "run": run, **b["extra_info"]} for b in given["benchmarks"]}
    folder.mkdir(exist_ok=True)
    target = folder / file_name(machine, run["full"])
    kept: Result = {"machine": machine, "benchmarks": []}
    if target.exists():
        kept = json.loads(target.read_text(encoding="utf-8"))
    if kept["machine"] != machine:
        raise SystemExit(
            f"{target} was measured on {kept['machine']}, {path} on {machine}: move one of them away"
        )
    kept["benchmarks"] = [fresh.pop(b["name"], b) for b in kept["benchmarks"]] + list(fresh.values())
    replace(target, json.dumps(kept, indent=1) + "\n")
    return target


def file_name(machine: Result, full: bool) -> str:
    """Of the result file for a machine and kind of run."""
    label = f"{machine['gpu'] or machine['processor']} {machine['backend']} {machine['threads']} threads"
    words = "".join(c if c.isalnum() else " " for c in label.lower()).split()
    return "-".join(words) + (".json" if full else ".short.json")


def shown(folder: Path) -> list[Result]:
    """The result files to make tables of: of each machine the full one, or else the short one."""
    results = []
    for path in sorted(folder.glob("*.json")):
        whole = path.with_name(path.name.replace(".short.json", ".json"))
        if whole != path and whole.exists():
            print(f"not shown, as {whole.name} is the full run of this machine: {path.name}")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if "benchmarks" in result:  # benches/gpu/run.py's files have their own tables
            results.append(result)
    return results


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def write_between(path: Path, body: str) -> None:
    """Put ``body`` between the two marks in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path} must hold the lines\n{BEGIN}\n{END}")
    replace(path, f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")


def summary(results: list[Result], pictures: list[Path]) -> str:
    """README's part: what was asked for, the end-to-end times in short, one picture."""
    limited = {tables.name(r): tables.limits(r) for r in results if r["machine"]["limits"]}
    parts = [LEGEND, "\n".join(tables.bounds(results))]
    parts += [f"{machine}: limited by {limits}." for machine, limits in limited.items()]
    parts += ["\n".join(lines) for result in results if (lines := tables.short(result))]
    parts += [f"![{_words(p)}](docs/{p.name})" for p in pictures if p.stem == "end_to_end"]
    return "\n\n".join(parts)


def everything(results: list[Result], pictures: list[Path]) -> str:
    """The part of docs/benchmarks.md: all pictures, then all tables."""
    parts = [f"![{_words(p)}]({p.name})" for p in pictures]
    for result in results:
        parts += [f"## {tables.name(result)}", tables.provenance(result), "\n".join(tables.full(result))]
    return "\n\n".join(parts)


def _words(path: Path) -> str:
    return path.stem.replace("_", " ")


def main() -> None:
    """Parse the arguments, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FILE", help="a file written by pytest --benchmark-json")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root: Path = arguments.root
    folder = root / "benches" / "results"
    if arguments.add is not None:
        added = add(arguments.add, folder)
        print(f"kept {added.relative_to(root)}:\n")
        print("\n".join(tables.bounds([json.loads(added.read_text(encoding="utf-8"))])) + "\n")
    results = shown(folder)
    if not results:
        sys.exit(f"no result files in {folder}: run `make bench` first")
    pictures = plots.draw(results, root / "docs")
    write_between(root / "README.md", summary(results, pictures))
    write_between(root / "docs" / "benchmarks.md", everything(results, pictures))
    print(f"wrote README.md, docs/benchmarks.md and {', '.join(p.name for p in pictures)}")


if __name__ == "__main__":
    main()
