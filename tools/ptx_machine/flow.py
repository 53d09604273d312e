"""The control flow of a kernel: its basic blocks, and where the paths from each branch meet again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .parse import Kernel

END = ""
"""The label of the kernel's end."""
JUMPS = ("bra", "brx", "ret", "exit", "trap")


def _blocks(kernel: Kernel) -> list[int]:
    """The number of each basic block's first statement, and of the end."""
    starts = {0, len(kernel.body)}
    for number, statement in enumerate(kernel.body):
        if statement.opcode == "label":
            starts.add(number)
        elif statement.opcode.split(".")[0] in JUMPS:
            starts.add(number + 1)
    return sorted(starts)


def _successors(kernel: Kernel, number: int, labels: Mapping[str, int]) -> list[int]:
    """The statements that may follow a block's last one."""
    statement = kernel.body[number]
    match statement.opcode.split(".")[0]:
        case "bra":
            to = [statement.operands[0]]
        case "brx":
            to = kernel.branch_targets[statement.operands[1]]
        case "ret" | "exit" | "trap":
            to = [END]
        case _:
            return [number + 1]
    return [labels[target] for target in to if target in labels] + [number + 1] * bool(statement.predicate)


def _post_dominators(successors: Sequence[Sequence[int]]) -> list[int]:
    """The first block on all paths from each block to the end, which is the last block.

    Cooper, Harvey and Kennedy's algorithm, on the reversed graph. It is the end for blocks that do not reach
    the end.
    """
    end = len(successors) - 1
    before: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for to in following:
            before[to].append(block)
    order, seen, todo = [], {end}, [(end, iter(before[end]))]  # post-order from the end, backwards
    while todo:
        earlier = next((block for block in todo[-1][1] if block not in seen), None)
        if earlier is None:
            order.append(todo.pop()[0])
        else:
            seen.add(earlier)
            todo.append((earlier, iter(before[earlier])))
    rank = {block: n for n, block in enumerate(order)}
    first = {end: end}

    def common(a: int, b: int) -> int:
        while a != b:
            a, b = (first[a], b) if rank[a] < rank[b] else (a, first[b])
        return a

    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [to for to in successors[block] if to in first]
            meeting = known[0]
            for to in known[1:]:
                meeting = common(meeting, to)
            if first.get(block) != meeting:
                first[block], changed = meeting, True
    return [first.get(block, end) for block in range(len(successors))]


def meetings(kernel: Kernel, labels: Mapping[str, int]) -> dict[int, int]:
    """For each branch to more than one statement, the statement where all paths from it meet.

    Both by number; the kernel's end has the number after that of the last statement.
    """
    labels = {**labels, END: len(kernel.body)}
    starts = _blocks(kernel)
    block_of = {start: block for block, start in enumerate(starts)}
    following = [_successors(kernel, after - 1, labels) for _, after in pairwise(starts)]
    successors = [[block_of[to] for to in block] for block in following] + [[]]
    dominators = _post_dominators(successors)
    return {
        starts[block + 1] - 1: starts[dominators[block]]
        for block, to in enumerate(successors)
        if len(set(to)) > 1
    }
