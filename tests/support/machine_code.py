"""Counts the instructions of a kernel's warps in a step, in its machine code (cuobjdump -sass)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import pairwise

_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_WIDTHS = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
"""Bytes that a lane accesses, by a part of the instruction's name; 4 if it has none of these parts."""


@dataclass(frozen=True)
class Instruction:
    """One instruction; `guard` is the predicate under which it executes."""

    address: int
    guard: str
    name: str
    operands: str

    @cached_property
    def target(self) -> int | None:
        """The address to which a branch jumps; None for other instructions."""
        match = re.search(r"0x([0-9a-f]+)", self.operands) if self.name.split(".")[0] == "BRA" else None
        return int(match[1], 16) if match else None

    @property
    def may_fall_through(self) -> bool:
        """Whether the next instruction may be executed after this one."""
        if self.name.split(".")[0] not in {"BRA", "EXIT", "RET", "BRX", "JMP"}:
            return True
        conditions = self.guard + self.operands.split("0x")[0]
        return self.name in {"BRA.DIV", "BRA.CONV"} or "P" in conditions.replace("PT", "")


def functions(dump: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel in a dump, by its symbol."""
    found: dict[str, list[Instruction]] = {}
    for line in dump.splitlines():
        if "Function :" in line:
            found[line.split(":")[1].strip()] = current = []
        elif match := _LINE.match(line):
            current.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4].strip()))
    return found


@dataclass(frozen=True)
class Step:
    """Instructions of a warp in one step of its main loop."""

    slots: int
    """Instructions: each takes an issue slot of the warp's scheduler."""
    tensor: float
    """Products of 16 x 8 x 16 16-bit numbers, or others that take the tensor core the same time."""
    wavefronts: int
    """Wavefronts of shared memory, without bank conflicts."""
    global_bytes: int
    """Bytes of global memory that 32 lanes read and write, if none is masked."""


def _tensor(instruction: Instruction) -> float:
    if not instruction.name.startswith("HMMA"):
        return 0
    return 1 if ".16816" in instruction.name or ".TF32" in instruction.name else 0.5


def _bytes(name: str, *families: str) -> int:
    parts = name.split(".")
    if parts[0] not in families:
        return 0
    return next((_WIDTHS[p] for p in parts if p in _WIDTHS), 4)


def _wavefronts(name: str) -> int:
    if name.startswith("LDSM"):
        return int(name.rsplit(".", 1)[1])  # one for each matrix
    return -(-_bytes(name, "LDS", "STS") // 4)


def _step(instructions: Sequence[Instruction], steps: float) -> Step:
    names = [i.name for i in instructions]
    return Step(
        round(len(names) / steps),
        sum(map(_tensor, instructions)) / steps,
        round(sum(map(_wavefronts, names)) / steps),
        round(32 * sum(_bytes(n, "LDG", "STG") for n in names) / steps),
    )


Blocks = dict[int, list[Instruction]]
Edges = dict[int, list[int]]


def _blocks(code: Sequence[Instruction]) -> tuple[Blocks, Edges]:
    """Basic blocks by their first addresses, and their successors. A call counts as one instruction."""
    starts = {code[0].address} | {i.target for i in code if i.target is not None}
    for before, after in pairwise(code):
        if before.target is not None or not before.may_fall_through:
            starts.add(after.address)
    blocks: Blocks = {}
    for instruction in code:
        if instruction.address in starts:
            blocks[instruction.address] = current = []
        current.append(instruction)
    edges: Edges = {}
    order = sorted(blocks)
    for at, following in zip(order, [*order[1:], None], strict=True):
        last = blocks[at][-1]
        to = [t for t in (last.target, following if last.may_fall_through else None) if t in blocks]
        edges[at] = [t for t in to if t is not None]
    return blocks, edges


def _reachable(start: int, edges: Edges) -> set[int]:
    seen, todo = set(), [start]
    while todo:
        for to in edges[todo.pop()]:
            if to not in seen:
                seen.add(to)
                todo.append(to)
    return seen


def _cycles(edges: Edges) -> Iterator[set[int]]:
    """The outermost loops: the strongly connected sets of blocks."""
    reach = {at: _reachable(at, edges) for at in edges}
    left = {at for at in edges if at in reach[at]}
    while left:
        at = min(left)
        loop = {b for b in reach[at] if at in reach[b]}
        left -= loop
        yield loop


def _heaviest_path(loop: set[int], header: int, blocks: Blocks, edges: Edges) -> list[Instruction]:
    """One iteration with the most tensor work, then the most memory accesses, then the fewest others."""

    def weight(block: int) -> tuple[float, int, int]:
        code = blocks[block]
        memory = sum(i.name.split(".")[0] in {"LDS", "LDSM", "STS", "LDG", "STG"} for i in code)
        return sum(map(_tensor, code)), memory, memory - len(code)

    following = {at: [to for to in edges[at] if to in loop and to != header] for at in loop}
    best: dict[int, tuple[tuple[float, ...], list[Instruction]]] = {}
    for at in TopologicalSorter(following).static_order():  # the last blocks first
        paths = [best[to] for to in following[at]]
        if header in edges[at]:
            paths.append(((0.0, 0, 0), []))
        weights, path = max(paths, key=lambda path: path[0])
        best[at] = tuple(a + b for a, b in zip(weight(at), weights, strict=True)), [*blocks[at], *path]
    return best[header][1]


def steps(code: Sequence[Instruction]) -> list[Step]:
    """A full step in the middle of a tile, for each warp role with a main loop on the tensor cores.

    A main loop is an outermost loop with a barrier. An unrolled loop has one barrier for each step.
    """
    blocks, edges = _blocks(code)
    found = []
    for loop in _cycles(edges):
        if not any(i.name.startswith("HMMA") for at in loop for i in blocks[at]):
            continue
        header = min(loop & {t for at in edges if at not in loop for t in edges[at]})
        path = _heaviest_path(loop, header, blocks, edges)
        barriers = Counter(i.name.split(".")[0] for i in path)["BAR"]
        if barriers:
            found.append(_step(path, barriers))
    return found
