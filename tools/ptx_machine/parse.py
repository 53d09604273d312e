"""Parses PTX into variables and kernels of plain statements, each with its PTX line and CUDA source line."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field

SIZES = {"pred": 1, "b128": 16} | {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)}
SIZES |= {"f16x2": 4, "bf16": 2, "bf16x2": 4, "tf32": 4}


class PtxError(Exception):
    """PTX that this tool cannot read, or that failed while it ran."""


@dataclass
class Variable:
    """A `.param`, `.global`, `.const`, `.shared` or `.local` variable. `offset` is relative to its space."""

    name: str
    space: str
    align: int
    size: int
    offset: int = 0
    data: bytes = b""


@dataclass
class Instruction:
    """One statement. A `label:` has opcode "label". Operands are strings; a vector keeps its braces."""

    opcode: str
    operands: list[str]
    predicate: str
    line: int
    text: str
    source: str


@dataclass
class Kernel:
    """One `.entry`. Registers are renamed so that every name is unique in the kernel."""

    name: str
    params: list[Variable]
    target: int  # 75 is sm_75
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    body: list[Instruction] = field(default_factory=list)
    threads: tuple[int, int] = (1, 1024)  # fewest and most in a block, from .reqntid or .maxntid
    static_shared: int = 0
    local_bytes: int = 0


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_STATEMENT = re.compile(
    r"\s*(?:(?P<loc>\.(?:loc|file)\b[^\n]*)|(?P<section>\.section[^{]*\{[^}]*\})|(?P<brace>[{}])"
    r"|(?P<label>[\w$%.]+)\s*:(?!:)|(?P<header>(?:\.\w+\s+)*\.(?:entry|func)\b[^{;]*)"
    r"|(?P<directive>\.(?:version|target|address_size)\b[^\n;{]*)|(?P<text>[^;]*);)"
)
_VARIABLE = re.compile(
    r"\.(param|shared|global|const|local)\b((?:\s*\.\w+(?:\s+\d+)?)*?)\s*\.([a-z]\w*)(?:\s+\.ptr)?(?:\s+\.\w+(?:\s+\d+)?)*"
    r"\s+([\w$%]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
    re.S,
)


def variable(text: str) -> Variable | None:
    """The variable that text declares, or None."""
    match = _VARIABLE.search(text)
    if match is None:
        return None
    space, before, kind, name, dims, data = match.groups()
    count = 1
    for extent in re.findall(r"\[(\d*)\]", dims):
        count *= int(extent or 0)
    align = re.search(r"\.align\s+(\d+)", before)
    size = SIZES[kind]
    initial = _initial(data, kind).ljust(size * count, b"\0") if space in ("global", "const") else b""
    return Variable(name, space, int(align[1]) if align else size, size * count, data=initial)


def _initial(text: str | None, kind: str) -> bytes:
    numbers = re.findall(r"[^{},\s]+", text or "")
    try:
        values = [
            int(n[2:], 16) if n[:2] in ("0f", "0d", "0F", "0D") else int(n.rstrip("U"), 0) for n in numbers
        ]
    except ValueError:
        raise PtxError(f"initialiser with an address or expression is not supported: {text}") from None
    width = SIZES[kind]
    return b"".join(struct.pack("<Q", v & (2**64 - 1))[:width] for v in values)


def place(variables: list[Variable], start: int = 0) -> int:
    """Give the variables increasing, aligned offsets. Returns the end of the last one."""
    for v in variables:
        v.offset = -(-start // v.align) * v.align
        start = v.offset + v.size
    return start


def split_operands(text: str) -> list[str]:
    """Split at commas outside braces and brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text)] if text.strip() else []


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
        self.variables: dict[str, Variable] = {}
        self.kernels: dict[str, Kernel] = {}
        self.kernel: Kernel | None = None
        self.scopes: list[dict[str, str]] = []
        self.files: dict[str, str] = {}
        self.source = ""
        self.target = 0
        self.names = 0

    def run(self) -> None:
        position = line = 0
        skipping = False  # inside a .func: only kernels whose calls are all inlined can run
        while match := _STATEMENT.match(self.text, position):
            start = match.start(match.lastgroup or 0)
            line += self.text.count("\n", position, start)
            what, text = match.lastgroup, match[match.lastgroup or 0].strip()
            if what == "loc":
                self.location(text)
            elif what == "header":
                skipping = ".func" in text
                if not skipping:
                    self.open_kernel(text)
            elif what == "brace":
                if text == "{":
                    self.scopes.append({})
                else:
                    self.scopes.pop()
            elif what == "directive":
                if target := re.match(r"\.target\s+sm_(\d+)", text):
                    self.target = int(target[1])
            elif not self.scopes:
                if what == "text":
                    self.module_variable(text)
            elif what in ("label", "text") and text and not skipping:
                if what == "label":
                    self.add("label", [self.name(text)], "", line, text)
                else:
                    self.statement(text, line)
            line += self.text.count("\n", start, match.end())
            position = match.end()
        if self.text[position:].strip():
            raise PtxError(f"PTX line {line + 1}: cannot read {self.text[position:].strip()[:80]!r}")
        for kernel in self.kernels.values():
            shared = [v for v in kernel.variables.values() if v.space == "shared"]
            kernel.static_shared = place(shared)
            kernel.local_bytes = place([v for v in kernel.variables.values() if v.space == "local"])
            for instruction in kernel.body:
                number, _, source_line = instruction.source.partition(":")
                instruction.source = f"{self.files.get(number, number)}:{source_line}" if number else ""

    def location(self, text: str) -> None:
        words = text.split()
        if words[0] == ".file":
            self.files[words[1]] = text.split('"')[1].rsplit("/", 1)[-1]
        else:
            self.source = f"{words[1]}:{words[2]}"  # the .file lines may come last

    def open_kernel(self, text: str) -> None:
        match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?", text, re.S)
        assert match
        params = [variable(p.strip()) for p in split_operands(match[2] or "")]
        known = [p for p in params if p]
        place(known)
        variables = {p.name: p for p in known}
        self.kernel = self.kernels[match[1]] = Kernel(match[1], known, self.target, variables=variables)
        if limit := re.search(r"\.(req|max)ntid\s+([\d,\s]+)", text):
            threads = math.prod(int(n) for n in limit[2].split(","))
            self.kernel.threads = (threads if limit[1] == "req" else 1, threads)

    def module_variable(self, text: str) -> None:
        if found := variable(text):
            self.variables[found.name] = found

    def name(self, text: str) -> str:
        for scope in reversed(self.scopes[1:]):
            if text in scope:
                return scope[text]
        return text

    def declare(self, name: str) -> str:
        if len(self.scopes) == 1:
            return name
        self.names += 1
        self.scopes[-1][name] = f"{name}_{self.names}"
        return self.scopes[-1][name]

    def statement(self, text: str, line: int) -> None:
        assert self.kernel
        if text.startswith(".reg"):
            _, kind, names = re.split(r"\s+", text, maxsplit=2)
            for item in split_operands(names):
                many = re.fullmatch(r"(.+)<(\d+)>", item)
                for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [item]:
                    self.kernel.registers[self.declare(one)] = kind[1:]
        elif text.startswith((".shared", ".local")):
            found = variable(text)
            assert found
            self.kernel.variables[self.declare(found.name)] = found
        elif text.startswith(".branchtargets"):
            targets = self.kernel.body.pop().operands[0]  # the label before it
            self.kernel.branch_targets[targets] = [self.name(t) for t in split_operands(text[14:])]
        elif text.startswith((".pragma", ".maxn", ".reqn")):
            pass
        else:
            match = re.match(r"(?:@(!?[\w%$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.S)
            if not match:
                raise PtxError(f"PTX line {line + 1}: cannot read {text!r}")
            predicate, opcode, rest = match.groups()
            rename = re.compile(r"[%$A-Za-z_][\w$]*")
            if len(self.scopes) > 1:
                rest = rename.sub(lambda m: self.name(m[0]), rest)
                predicate = predicate and rename.sub(lambda m: self.name(m[0]), predicate)
            self.add(opcode, split_operands(rest), predicate or "", line, text)

    def add(self, opcode: str, operands: list[str], predicate: str, line: int, text: str) -> None:
        assert self.kernel
        text = re.sub(r"\s+", " ", text)
        self.kernel.body.append(Instruction(opcode, operands, predicate, line + 1, text, self.source))


def parse(text: str) -> tuple[dict[str, Variable], dict[str, Kernel]]:
    """The module's variables and kernels, by name. Raises PtxError if text is not PTX."""
    parser = _Parser(text)
    parser.run()
    return parser.variables, parser.kernels
