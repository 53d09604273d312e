"""The compiled CUDA kernels: their resources for every target: the table in docs/cuda.md, and its limits.

python tests/support/cuda_gate.py            # compile all of it and print the table
python tests/support/cuda_gate.py --write    # and put it into docs/cuda.md
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cuda_bindings
from ptx_machine import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cuda.md"
BEGIN, END = "<!-- compile gate: begin (tests/support/cuda_gate.py --write) -->", "<!-- compile gate: end -->"
TARGETS = (75, 80, 86, 89, 90, 100, 120)
OPS = ("encode", "decode")  # in the table
BACKWARD_OPS = ("encode_backward", "decode_backward")
MODES = ("float16", "bfloat16", "tf32", "float32", "bfloat16_plain")
REGISTERS = 65536
"""Of a multiprocessor, on every target."""
SHARED = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
"""Kilobytes of shared memory of a multiprocessor (CUDA's programming guide)."""
THREADS = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
"""Resident threads of a multiprocessor."""


@dataclass(frozen=True)
class Row:
    """One kernel on one target. The last five are numbers of instructions in its machine code."""

    op: str
    mode: str
    target: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    blocks: int
    tensor: int
    matrix_loads: int
    fma: int
    wide_loads: int
    instructions: int


def tool(name: str) -> str:
    """A program of the CUDA toolkit: beside nvcc, on PATH, or in the triton wheel."""
    triton = importlib.util.find_spec("triton")
    places = [find_nvcc().parent / name]
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    for place in places:
        if place.exists():
            return str(place)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no {name} beside nvcc, in the triton wheel or on PATH")
    return found


def nvcc_version() -> str:
    """Such as 13.0."""
    text = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    assert match is not None
    return match[1]


def _mode_of(symbol: str) -> str:
    match = re.search(r"ModeE(\d)E", symbol)
    assert match is not None, symbol
    return MODES[int(match[1])]


def blocks_each(target: int, registers: int, shared_bytes: int, threads: int) -> int:
    """Blocks that a multiprocessor holds at a time.

    Registers are given out by 256 a warp; from 8.0 on a block takes 1 KB of shared memory beyond its own.
    """
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * (threads // 32))
    reserved = 0 if target == 75 else 1024
    return min(by_registers, SHARED[target] * 1024 // (shared_bytes + reserved), THREADS[target] // threads)


def _instructions(cubin: Path) -> dict[str, Counter[str]]:
    """The machine instructions of each kernel in a cubin, counted by name."""
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])  # cuobjdump runs it
    command = [tool("cuobjdump"), "-sass", str(cubin)]
    environment = {**os.environ, "PATH": path}
    dump = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    counts: dict[str, Counter[str]] = {}
    for line in dump.splitlines():
        if "Function :" in line:
            counts[line.split(":")[1].strip()] = current = Counter()
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            current[match[1]] += 1
    return counts


def launch_plan(op: str, mode: Any, target: int) -> Any:
    """Of a 224 x 224 image on a chip of this kind."""
    bindings = cuda_bindings.load()
    if not op.endswith("_backward"):
        return bindings.plan(op, mode, 1, 112, 112, multiprocessors=100)
    limit = 1024 * (SHARED[target] - (target != 75))  # a block's own, of a multiprocessor's
    layout = bindings.backward_layout(op.removesuffix("_backward"), mode, target, limit)
    return bindings.backward_plan(layout, 1, 112, 112, 100, 1)


def _compile(op: str, target: int) -> list[Row]:
    bindings = cuda_bindings.load()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = [
            find_nvcc(),
            "-cubin",
            f"-arch=sm_{target}",
            "-std=c++20",
            "-O3",
            "--expt-relaxed-constexpr",
        ]
        command += ["-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-o", cubin, ROOT / f"csrc/cuda/{op}.cu"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {op}.cu for sm_{target}:\n{done.stderr[:3000]}")
        instructions = _instructions(cubin)
    report = re.findall(
        r"Function properties for (\S+).*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    rows = []
    for symbol, stack, stores, loads, registers in report:
        mode = getattr(bindings.Mode, _mode_of(symbol))
        if not bindings.runs_on(mode, target):
            continue
        plan = launch_plan(op, mode, target)
        count = instructions[symbol]

        def having(*parts: str, count: Counter[str] = count) -> int:
            return sum(n for name, n in count.items() if all(p in name for p in parts))

        rows.append(
            Row(
                op=op,
                mode=_mode_of(symbol),
                target=target,
                registers=int(registers),
                shared_bytes=plan.shared_bytes,
                spill_bytes=int(stores) + int(loads),
                stack_bytes=int(stack),
                blocks=blocks_each(target, int(registers), plan.shared_bytes, plan.block),
                tensor=having("HMMA"),
                matrix_loads=having("LDSM"),
                fma=having("FFMA"),
                wide_loads=having("LDG", ".128"),
                instructions=sum(count.values()),
            )
        )
    return sorted(rows, key=lambda row: MODES.index(row.mode))


def rows(op: str, target: int) -> list[Row]:
    """The resources of an op's kernels on a target; kept in build/ until a source or the compiler changes."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.[ch]u*")) + sorted((ROOT / "csrc" / "cuda").glob("*.h"))
    key = "\0".join([nvcc_version(), Path(__file__).read_text(), *(s.read_text() for s in sources)])
    kept = (
        ROOT / "build" / "cuda_gate" / f"{op}-{target}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    )
    if not kept.exists():
        made = [asdict(row) for row in _compile(op, target)]
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = kept.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(made))
        os.replace(scratch, kept)
    return [Row(**row) for row in json.loads(kept.read_text())]


def table() -> str:
    """The table of docs/cuda.md."""
    columns = ["kernel", "target", "registers", "shared bytes", "spill bytes", "blocks/SM"]
    columns += ["HMMA", "LDSM", "FFMA", "LDG.128", "instructions"]
    lines = [BEGIN, f"Compiled by nvcc {nvcc_version()}.", ""]
    lines += [f"| {' | '.join(columns)} |", f"|---|---|{'--:|' * (len(columns) - 2)}"]
    for op in OPS:
        for target in TARGETS:
            for r in rows(op, target):
                cells = [
                    f"{op} {r.mode}",
                    f"sm_{target}",
                    r.registers,
                    r.shared_bytes,
                    r.spill_bytes,
                    r.blocks,
                ]
                cells += [r.tensor, r.matrix_loads, r.fma, r.wide_loads, r.instructions]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, END])


def written() -> str:
    """The table as it stands in docs/cuda.md."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/cuda.md")
    made = table()
    if parser.parse_args().write:
        text = PAGE.read_text(encoding="utf-8").replace(written(), made)
        scratch = PAGE.with_suffix(".tmp")
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, PAGE)
    sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main()
