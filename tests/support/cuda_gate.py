"""Tables of the compiled CUDA kernels: their resources on every target, and the cost of a step.

PYTHONPATH=tools python tests/support/cuda_gate.py            # compile all kernels and print the tables
PYTHONPATH=tools python tests/support/cuda_gate.py --write    # and write them into docs/cuda*.md
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

import chips
import cuda_bindings
import machine_code
from machine_code import Step
from ptx_machine import find_nvcc

from wae.storage import files

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cuda.md"
TABLES = {"compile gate": ROOT / "docs" / "cuda-compiled.md", "steps": PAGE}
"""The pages of the tables. Each table is between comments; see between()."""
TARGETS = (75, 80, 86, 89, 90, 100, 120)
OPS = ("encode", "decode")
BACKWARD_OPS = ("encode_backward", "decode_backward")
MODES = ("float16", "bfloat16", "tf32", "float32", "bfloat16_plain")
REGISTERS = 65536
"""Registers of a multiprocessor, on every target."""
THREADS = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
"""Resident threads of a multiprocessor."""


@dataclass(frozen=True)
class Chip:
    """The vendor's figures; `tensor` is the cycles of a scheduler for one mma of 16 x 8 x 16 16-bit numbers.

    With mma.sync, the H100 reaches about 0.62 of its dense rate.
    """

    name: str
    target: int
    multiprocessors: int
    gigahertz: float
    tensor: float


CHIPS = (
    Chip("RTX 4090", 89, 128, 2.52, 32),
    Chip("A100", 80, 108, 1.41, 8),
    Chip("H100 SXM", 90, 132, 1.83, 6.4),
)
TENSOR_MODES = ("float16", "bfloat16", "tf32")


@dataclass(frozen=True)
class Row:
    """One kernel on one target. `tensor` to `instructions` count instructions of its machine code.

    `roles` has a step of each main loop, i.e. of each warp role (forward ops on tensor cores only).
    """

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
    roles: tuple[Step, ...]


def tool(name: str) -> str:
    """The path of a program of the CUDA toolkit: beside nvcc, in the triton wheel or on PATH."""
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
    """For example 13.0."""
    text = subprocess.run([find_nvcc(), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    assert match is not None
    return match[1]


def _mode_of(symbol: str) -> str:
    match = re.search(r"ModeE(\d)E", symbol)
    assert match is not None, symbol
    return MODES[int(match[1])]


def blocks_each(target: int, registers: int, shared_bytes: int, threads: int) -> int:
    """The number of blocks that a multiprocessor can hold. Registers are allocated by 256 for a warp."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * (threads // 32))
    by_shared = 1024 * chips.OF_MULTIPROCESSOR[target] // (shared_bytes + 1024 * chips.RESERVED[target])
    return min(by_registers, by_shared, THREADS[target] // threads)


def _machine_code(cubin: Path) -> dict[str, list[machine_code.Instruction]]:
    """The instructions of each kernel in a cubin."""
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])  # cuobjdump calls it
    command = [tool("cuobjdump"), "-sass", str(cubin)]
    environment = {**os.environ, "PATH": path}
    return machine_code.functions(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def launch_plan(op: str, mode: Any, target: int) -> Any:
    """The plan for 224 x 224 images on this target: for one image, or a large batch if a backward op."""
    bindings = cuda_bindings.load()
    if not op.endswith("_backward"):
        return bindings.plan(op, mode, 1, 112, 112, multiprocessors=100)
    limit, size = 1024 * chips.OF_BLOCK[target], (256, 112, 112, 100)
    layout = bindings.backward_layout(op.removesuffix("_backward"), mode, target, limit, *size)
    return bindings.backward_plan(layout, *size, 1)


def reported(text: str) -> list[tuple[str, int, int, int]]:
    """Each kernel's symbol, bytes of stack, bytes of spills and registers, as ``ptxas -v`` prints them."""
    found = re.findall(
        r"Function properties for (\S+).*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    return [
        (symbol, int(stack), int(stores) + int(loads), int(registers))
        for symbol, stack, stores, loads, registers in found
    ]


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
        kernels = _machine_code(cubin)
    rows = []
    for symbol, stack, spilled, registers in reported(done.stderr):
        mode = getattr(bindings.Mode, _mode_of(symbol))
        if not bindings.runs_on(mode, target):
            continue
        plan = launch_plan(op, mode, target)
        count = Counter(instruction.name for instruction in kernels[symbol])
        forward = op in OPS and _mode_of(symbol) in TENSOR_MODES

        def having(*parts: str, count: Counter[str] = count) -> int:
            return sum(n for name, n in count.items() if all(p in name for p in parts))

        rows.append(
            Row(
                op=op,
                mode=_mode_of(symbol),
                target=target,
                registers=registers,
                shared_bytes=plan.shared_bytes,
                spill_bytes=spilled,
                stack_bytes=stack,
                blocks=blocks_each(target, registers, plan.shared_bytes, plan.block),
                tensor=having("HMMA"),
                matrix_loads=having("LDSM"),
                fma=having("FFMA"),
                wide_loads=having("LDG", ".128"),
                instructions=count.total(),
                roles=tuple(machine_code.steps(kernels[symbol])) if forward else (),
            )
        )
    return sorted(rows, key=lambda row: MODES.index(row.mode))


def rows(op: str, target: int) -> list[Row]:
    """The resources of an op's kernels on a target, cached in build/ until sources or compiler change."""
    sources = sorted(p for p in (ROOT / "csrc" / "cuda").rglob("*") if p.suffix in (".cu", ".cuh", ".h"))
    sources += [ROOT / "csrc" / "common" / "sizes.h", Path(__file__), Path(machine_code.__file__)]
    key = "\0".join([nvcc_version(), *(s.read_text() for s in sources)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cached = ROOT / "build" / "cuda_gate" / f"{op}-{target}-{digest}.json"
    if not cached.exists():
        compiled = [asdict(row) for row in _compile(op, target)]
        with files.written(cached, force=True) as file:
            file.write(json.dumps(compiled).encode())
    return [
        Row(**{**row, "roles": tuple(Step(**role) for role in row["roles"])})
        for row in json.loads(cached.read_text())
    ]


@dataclass(frozen=True)
class Load:
    """Lower bounds of a multiprocessor's cycles for a step of all its warps, by the resource."""

    ends: Step
    trunk: tuple[Step, Step]
    slots: int
    """Issue slots of the busiest scheduler, which has a warp of each role."""
    tensor: float
    """Cycles of a scheduler's tensor core."""
    wavefronts: int
    """Wavefronts of the multiprocessor's shared memory, at most: some warps need fewer."""
    microseconds: float
    """For each 224 x 224 image of a large batch, by the largest of the three."""


def load(row: Row, chip: Chip) -> Load:
    """The bounds, computed from the machine code and not measured on a GPU."""
    ends = max(row.roles, key=lambda role: role.slots)
    others = [role for role in row.roles if role is not ends]
    first, second = (others * 2)[:2]  # a single loop if both trunk layers share their code
    roles = (ends, first, second)
    slots, tensor = sum(r.slots for r in roles), chip.tensor * sum(r.tensor for r in roles)
    wavefronts = 4 * sum(r.wavefronts for r in roles)
    bindings, batch = cuda_bindings.load(), 256
    tiling = bindings.plan(row.op, getattr(bindings.Mode, row.mode), batch, 112, 112, 132).tiling
    steps = tiling.tiles * (tiling.tile_height + bindings.HALO_PAIRS) / batch
    cycles = steps * max(slots, tensor, wavefronts)
    microseconds = cycles / (chip.multiprocessors * chip.gigahertz * 1000)
    return Load(ends, (first, second), slots, tensor, wavefronts, microseconds)


def _markdown(columns: list[str], lines: list[list[object]], texts: int) -> str:
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * texts}{'--:|' * (len(columns) - texts)}"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, line))} |" for line in lines)])


def _resources() -> str:
    columns = ["kernel", "target", "registers", "shared bytes", "spill bytes", "blocks/SM"]
    columns += ["HMMA", "LDSM", "FFMA", "LDG.128", "instructions"]
    lines: list[list[object]] = []
    for op in OPS + BACKWARD_OPS:
        for target in TARGETS:
            for r in rows(op, target):
                lines.append([f"{op} {r.mode}", f"sm_{target}", r.registers, r.shared_bytes, r.spill_bytes])
                lines[-1] += [r.blocks, r.tensor, r.matrix_loads, r.fma, r.wide_loads, r.instructions]
    return _markdown(columns, lines, 2)


def _steps() -> str:
    columns = ["kernel", "chip", "slots: ends", "trunk", "trunk", "a scheduler's", "tensor cycles"]
    columns += ["slots / tensor", "wavefronts", "global bytes", "us an image"]
    lines: list[list[object]] = []
    for op in OPS:
        for chip in CHIPS:
            for row in rows(op, chip.target):
                if not row.roles:
                    continue
                at = load(row, chip)
                lines.append([f"{op} {row.mode}", chip.name, at.ends.slots, *(t.slots for t in at.trunk)])
                lines[-1] += [at.slots, f"{at.tensor:.0f}", f"{at.slots / at.tensor:.2f}", at.wavefronts]
                lines[-1] += [4 * at.ends.global_bytes, f"{at.microseconds:.2f}"]
    return _markdown(columns, lines, 2)


def between(name: str) -> tuple[str, str]:
    """The comments around a table."""
    return f"<!-- {name}: begin (tests/support/cuda_gate.py --write) -->", f"<!-- {name}: end -->"


def table(name: str) -> str:
    """A table, with its comments."""
    begin, end = between(name)
    made = {"compile gate": _resources, "steps": _steps}[name]()
    return "\n".join([begin, f"Compiled by nvcc {nvcc_version()}.", "", made, end])


def written(name: str) -> str:
    """The table that is in its page now, with its comments."""
    begin, end = between(name)
    text = TABLES[name].read_text(encoding="utf-8")
    return text[text.index(begin) : text.index(end) + len(end)]


def main() -> None:
    """Print the tables, and with --write put them into their pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    write = parser.parse_args().write
    for name, page in TABLES.items():
        made = table(name)
        if write:
            text = page.read_text(encoding="utf-8").replace(written(name), made)
            with files.written(page, force=True) as file:
                file.write(text.encode())
        sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main()
