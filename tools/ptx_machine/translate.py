"""Translates PTX statements to C++. An unsupported instruction is an error that names it and its line.

Registers become unsigned integers; floating-point values are bit-cast out of them and back. This keeps the
C++ small: unrolled kernels have tens of thousands of statements, and g++ has to compile them all.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from .flow import meetings
from .parse import SIZES, Instruction, Kernel, PtxError, Variable, place

SLOT_SHIFT = 40  # machine.h: kSlotShift

# Expressions over operands a, b, c, d. {T}: their C++ type; {W}: a type twice as wide; {n}: their bits.
INTEGER = {
    "add": "a + b", "sub": "a - b", "mul.lo": "a * b", "mul.wide": "({W})a * ({W})b", "mad.lo": "a * b + c",
    "mul.hi": "({W})a * ({W})b >> {n}", "mad.hi": "({T})(({W})a * ({W})b >> {n}) + c",
    "mad.wide": "({W})a * ({W})b + c", "sad": "c + (a < b ? b - a : a - b)",
    "div": "b ? ({W})a / ({W})b : ({W})-1", "rem": "b ? ({W})a % ({W})b : ({W})a",
    "min": "a < b ? a : b", "max": "a < b ? b : a", "abs": "a < 0 ? -a : a", "neg": "-a", "not": "~a",
    "and": "a & b", "or": "a | b", "xor": "a ^ b", "shl": "shift_left(a, b)", "shr": "shift_right(a, b)",
    "popc": "__builtin_popcountll(a)", "clz": "a ? __builtin_clzll(a) - (64 - {n}) : {n}",
    "bfe": "extract_bits(a, b, c)", "bfi": "insert_bits(a, b, c, d)", "bfind": "find_top_bit(a)",
    "bfind.shiftamt": "find_top_bit(a) == ~0u ? ~0u : {n} - 1 - find_top_bit(a)",
    "brev": "reverse_bits(a)", "prmt": "permute_bytes(a, b, c)", "lop3": "logic3(a, b, c, d)",
    "selp": "c ? a : b", "cnot": "a ? 0 : 1",
    "shf.l.wrap": "funnel(a, b) << (c & 31) >> 32", "shf.l.clamp": "funnel(a, b) << (c < 32 ? c : 32) >> 32",
    "shf.r.wrap": "funnel(a, b) >> (c & 31)", "shf.r.clamp": "funnel(a, b) >> (c < 32 ? c : 32)",
}  # fmt: skip
PREDICATE = {"and": "a && b", "or": "a || b", "xor": "a != b", "not": "!a", "mov": "a"}
FLOAT = {
    "add": "a + b", "sub": "a - b", "mul": "a * b", "div": "a / b", "neg": "-a", "abs": "std::fabs(a)",
    "min": "minimum(a, b)", "max": "maximum(a, b)", "min.NaN": "minimum(a, b, true)",
    "max.NaN": "maximum(a, b, true)", "rcp": "1 / a", "sqrt": "std::sqrt(a)", "rsqrt": "1 / std::sqrt(a)",
    "ex2": "std::exp2(a)", "lg2": "std::log2(a)", "sin": "std::sin(a)", "cos": "std::cos(a)",
    "tanh": "std::tanh(a)", "copysign": "std::copysign(b, a)",
}  # fmt: skip
FUSED = {"f32": "__builtin_fmaf(a, b, c)", "f64": "__builtin_fma(a, b, c)"}  # narrow types: in double
BITS = {"neg": "a ^ 0x8000", "abs": "a & 0x7fff", "selp": "c ? a : b"}  # must keep a NaN's bits
COMPARE = {
    "eq": "a == b", "ne": "a < b || a > b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b",
    "equ": "!(a < b || a > b)", "neu": "a != b", "ltu": "!(a >= b)", "leu": "!(a > b)", "gtu": "!(a <= b)",
    "geu": "!(a < b)", "num": "a == a && b == b", "nan": "a != a || b != b",
    "lo": "a < b", "ls": "a <= b", "hi": "a > b", "hs": "a >= b",
}  # fmt: skip
ATOMIC = {
    "add": "a + b", "min": "a < b ? a : b", "max": "a < b ? b : a", "and": "a & b", "or": "a | b",
    "xor": "a ^ b", "exch": "b", "cas": "a == b ? c : a", "inc": "a >= b ? 0 : a + 1",
    "dec": "a == 0 || a > b ? b : a - 1",
}  # fmt: skip
SPECIAL = {
    f"%{n}.{x}": f"t.{n}[{i}]" for n in ("tid", "ntid", "ctaid", "nctaid") for i, x in enumerate("xyz")
}
SPECIAL |= {
    "%laneid": "t.lane", "%warpid": "(t.id / 32)", "WARP_SZ": "32u", "%smid": "0u", "%nsmid": "1u",
    "%clock": "t.clock", "%clock64": "(u64)t.clock", "%globaltimer": "(u64)t.clock", "%gridid": "0ull",
    "%dynamic_smem_size": "t.dynamic_shared_bytes", "%total_smem_size": "t.shared_bytes",
    "%lanemask_eq": "(1u << t.lane)", "%lanemask_lt": "((1u << t.lane) - 1)",
    "%lanemask_le": "((2u << t.lane) - 1)", "%lanemask_gt": "~((2u << t.lane) - 1)",
    "%lanemask_ge": "-(1u << t.lane)",
}  # fmt: skip
NOTHING = {
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "griddepcontrol",
    "nanosleep",
}
DIRECTED = {"rz": "toward_zero", "rm": "toward<-1>", "rp": "toward<1>"}
DIRECTED_SUMS = {"add": "a, b", "sub": "a, -b", "fma": "a * b, c"}  # toward()'s arguments, in double
ROUND = {"rni": "std::rint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
ROUNDINGS = {"rn", "rz", "rm", "rp", "rna", *ROUND}
SPACES = ("global", "shared", "local", "param", "const")
HINTS = set(
    "weak volatile relaxed acquire release acq_rel cta cluster gpu sys nc ca cg cs lu cv wb wt L1 L2".split()
)
NARROW = {"f16": "half", "bf16": "bfloat"}
MMA = re.compile(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.(f32|f16)\.(f16|bf16|tf32)\.\3\.\2")
MMA_DEPTHS = {"f32_f16": (8, 16), "f16_f16": (8, 16), "f32_bf16": (8, 16), "f32_tf32": (4, 8)}
MATRICES = re.compile(r"(ldmatrix|stmatrix)\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16")
COLLECTIVE = re.compile(
    r"shfl\.sync\.(?:up|down|bfly|idx)\.b32|vote\.sync\.(?:ballot\.b32|(?:all|any|uni)\.pred)|match\.any\.sync\.b32"
    r"|redux\.sync\.(?:(?:add|min|max)\.[us]32|(?:and|or|xor)\.b32)"
)


class UnknownInstruction(PtxError):
    """An instruction, or a form of one, that the translator does not support."""


@dataclass
class Tally:
    """What one thread counts in one execution of a basic block."""

    instructions: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    """How often, by name: "fma.f32" or "mma.m16n8k16.f32.f16"."""
    multiply_adds: Counter[str] = field(default_factory=Counter)
    """By the same names. Each of a warp's 32 threads counts all of an mma's."""


@dataclass
class Translation:
    """The C++ of one kernel, with what is needed to launch it and to explain its sites and counts."""

    code: str
    tallies: list[Tally]
    sites: list[Instruction]
    static_shared: int


def _width(kind: str) -> int:
    return SIZES[kind] * 8


def _integer(kind: str) -> bool:
    return kind[0] in "sub" and kind[:2] != "bf"


def _ctype(kind: str) -> str:
    """The C++ integer type that holds a value of this PTX type."""
    return "bool" if kind == "pred" else f"{'s' if kind[0] == 's' else 'u'}{_width(kind)}"


def _elements(text: str) -> list[str]:
    """The operands of a {vector}, or the one operand."""
    return [part.strip() for part in text.strip("{} ").split(",")]


class Translator:
    """Translates one kernel."""

    def __init__(self, kernel: Kernel, module_variables: dict[str, Variable]) -> None:
        self.kernel = kernel
        self.kinds = dict(kernel.registers)
        self.names = {r: "_" + re.sub(r"\W", "_", r.removeprefix("%")) for r in self.kinds}
        self.labels = {i.operands[0]: n for n, i in enumerate(kernel.body) if i.opcode == "label"}
        self.meetings = meetings(kernel, self.labels)
        self.tallies: list[Tally] = []
        self.sites: list[Instruction] = []
        self.static_shared = kernel.static_shared
        self.symbols = self._place_symbols(list(module_variables.values()))

    def _place_symbols(self, module_variables: list[Variable]) -> dict[str, int]:
        """Addresses of variables. Dynamic shared ones (without a size) come last; others have a slot each."""
        shared = [v for v in module_variables if v.space == "shared"]
        memory = [v for v in module_variables if v.space != "shared"]
        self.static_shared = place([v for v in shared if v.size], self.static_shared)
        if dynamic := [v for v in shared if not v.size]:
            align = max(16, *(v.align for v in dynamic))
            self.static_shared = -(-self.static_shared // align) * align
            place(dynamic, self.static_shared)
        symbols = {v.name: v.offset for v in [*shared, *self.kernel.variables.values()]}
        return symbols | {v.name: (slot + 1) << SLOT_SHIFT for slot, v in enumerate(memory)}

    def run(self) -> Translation:
        lines, joins = [self.fresh_block()], set(self.meetings.values())
        for number, instruction in enumerate(self.kernel.body):
            self.number, self.at = number, instruction
            rejoin = f"rejoin(t, {number});" if number in joins else ""
            if self.at.opcode == "label":
                lines += [f"{self.label(self.at.operands[0])}:; {rejoin}", self.fresh_block()]
                continue
            self.tally.instructions += 1
            lines.append(f"{rejoin} {self.predicated(self.at)}  // {self.at.line}")
            if self.at.opcode.split(".")[0] in ("bra", "brx", "ret", "exit"):
                lines.append(self.fresh_block())
        registers: dict[str, list[str]] = {}
        for register, kind in self.kinds.items():
            registers.setdefault(_ctype(kind), []).append(self.names[register])
        lines = [f"{kind} {', '.join(names)};" for kind, names in registers.items()] + lines
        code = (
            '#include "arithmetic.h"\n#include "warp.h"\n'
            f'extern "C" {{\nu64 hits[{len(self.tallies)}];\n'
            "void kernel(Thread& t) {\n  " + "\n  ".join(lines) + "\n}\n}\n"
        )
        return Translation(code, self.tallies, self.sites, self.static_shared)

    def fresh_block(self) -> str:
        self.tally = Tally()
        self.tallies.append(self.tally)
        return f"hits[{len(self.tallies) - 1}]++;"

    def predicated(self, i: Instruction) -> str:
        """The statement under its predicate. If it counts something, it gets a tally of its own."""
        if not i.predicate:
            return self.instruction(i)
        block, first_site = self.tally, len(self.sites)
        hit = self.fresh_block()
        code = self.instruction(i)
        if self.tally.executed:
            code = f"{hit} {code}"
        else:
            self.tallies.pop()
        self.tally = block
        code = f"if ({self.value(i.predicate, 'pred')}) {{ {code} }}"
        if self.number in self.meetings:
            code += f" {self.diverge(self.number + 1)}"
        if i.opcode.startswith(("ld", "st", "cp.async.c", "atom", "red.")) and len(self.sites) > first_site:
            off = "".join(f"predicated_off(t, {site}); " for site in range(first_site, len(self.sites)))
            code += f" else {{ {off}}}"
        return code

    def instruction(self, i: Instruction) -> str:
        parts = i.opcode.split(".")
        if parts[0] in NOTHING:
            return ";"
        handler = getattr(self, "do_" + parts[0], self.do_arithmetic)
        return str(handler(parts, i.operands))

    # -- operands ---------------------------------------------------------------------------------------

    def unknown(self, why: str = "") -> UnknownInstruction:
        where = f" ({self.at.source})" if self.at.source else ""
        return UnknownInstruction(
            f"{self.kernel.name}: PTX line {self.at.line}{where}: unknown instruction `{self.at.opcode}` "
            f"in `{self.at.text}`{why and ': ' + why}"
        )

    def label(self, name: str) -> str:
        return "L" + re.sub(r"\W", "_", name)

    def site(self) -> int:
        self.sites.append(self.at)
        return len(self.sites) - 1

    def raw(self, text: str, kind: str = "b64") -> str:
        """The bits of an operand as an unsigned integer. Floating-point literals get the size of kind."""
        if text in self.names:
            return self.names[text]
        if text in SPECIAL:
            return SPECIAL[text]
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            return f"0x{match[1]}u"
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
            return f"R32(D(0x{match[1]}ull))" if _width(kind) == 32 else f"0x{match[1]}ull"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            number = int(text.rstrip("U"), 16 if "x" in text.lower() else 10)
            return f"{number & 2**64 - 1}ull"
        if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
            return f"R32({text})" if _width(kind) == 32 else f"R64({text})"
        base, _, offset = text.replace(" ", "").partition("+")
        if base in self.symbols:
            return f"{self.symbols[base] + int(offset or '0', 0)}ull"
        raise self.unknown(f"operand {text!r}")

    def value(self, text: str, kind: str, half: int = 0) -> str:
        """C++ that reads an operand as a PTX type. half selects an element of an f16x2 or bf16x2."""
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        raw = self.raw(text, kind)
        if kind.endswith("x2"):
            raw, kind = f"{raw} >> {16 * half}", kind[:-2]
        if not _integer(kind) and kind != "pred":
            return {"f64": "D", "f16": "H", "bf16": "B16"}.get(kind, "F") + f"({raw})"
        plain = text in self.names and _ctype(self.kinds[text]) == _ctype(kind)
        return raw if plain else f"({_ctype(kind)})({raw})"

    def fill(
        self,
        template: str,
        kind: str,
        operands: list[str],
        kinds: dict[int, str],
        half: int = 0,
        flush: str = "",
    ) -> str:
        """Fill operands into a template's letters. kinds has the types of operands that differ from kind."""
        values = [self.value(o, kinds.get(i, kind), half) for i, o in enumerate(operands)]
        values = [f"{flush}({v})" if flush and i not in kinds else v for i, v in enumerate(values)]
        sign, bits = _ctype(kind)[0], _width(kind)
        wide = f"{sign}{2 * bits}" if bits < 64 else f"{'' if sign == 's' else 'unsigned '}__int128"
        template = template.replace("{T}", _ctype(kind)).replace("{W}", wide).replace("{n}", str(bits))
        try:
            return re.sub(r"\b[a-d]\b", lambda m: values["abcd".index(m[0])], template)
        except IndexError:
            raise self.unknown("too few operands") from None

    def assign(self, target: str, kind: str, expression: str) -> str:
        """C++ that assigns an expression of a PTX type to a register."""
        if target == "_":
            return f"(void)({expression});"
        if target not in self.names:
            raise self.unknown(f"cannot write to {target!r}")
        convert = {"f32": "R32", "f64": "R64", **NARROW}.get(kind, "")
        return f"{self.names[target]} = {convert}({expression});"

    def assign_pair(self, target: str, kind: str, low: str, high: str) -> str:
        convert = NARROW[kind.removesuffix("x2")]
        return self.assign(target, "b32", f"{convert}({low}) | (u32){convert}({high}) << 16")

    def address(self, text: str) -> str:
        """C++ for the address in [register + offset] or [symbol + offset]."""
        text = text.strip("[] ").replace(" ", "")
        base, _, offset = text.partition("+")
        if base not in self.names or not int(offset or "0", 0):
            return self.raw(text if base in self.symbols else base)
        sum_ = f"{self.names[base]} + {int(offset, 0)}"
        return f"(u32)({sum_})" if _width(self.kinds[base]) == 32 else f"({sum_})"

    # -- arithmetic -------------------------------------------------------------------------------------

    def do_arithmetic(self, parts: list[str], operands: list[str]) -> str:
        base, kind, integer = parts[0], parts[-1], _integer(parts[-1])
        if kind not in SIZES or len(operands) < 2:
            raise self.unknown()
        target, sources = operands[0], operands[1:]
        mods = [p for p in parts[1:-1] if p not in ("approx", "full", "noftz")]
        flush, post = "", "{}"
        if not integer:
            rounding = "".join(ROUNDINGS & set(mods)).removeprefix("rn")
            if rounding and (rounding not in DIRECTED or kind != "f32"):
                raise self.unknown("rounding")
            flush = "flush" if "ftz" in mods and kind == "f32" else ""
            post = "saturate({})" if "sat" in mods else "relu({})" if "relu" in mods else "{}"
            mods = [m for m in mods if m not in ("ftz", "sat", "relu", *ROUNDINGS)]
        if base in ("fma", "mad") and not integer and not mods:
            self.tally.executed[f"fma.{kind}"] += 1
            self.tally.multiply_adds[f"fma.{kind}"] += 2 if kind.endswith("x2") else 1
            template = FUSED.get(kind, "(double)a * (double)b + (double)c")
        elif base in BITS and not integer and not mods and (kind in NARROW or base == "selp"):
            kind, template, integer = f"b{_width(kind)}", BITS[base], True
        else:
            table = PREDICATE if kind == "pred" else INTEGER if integer else FLOAT
            template = table.get(".".join([base, *mods]), "")
            if not template:
                raise self.unknown()
        if not integer and rounding:
            template = DIRECTED_SUMS.get(base, template)
            post, flush = post.format(f"{DIRECTED[rounding]}({{}})"), f"(double){flush}"
        kinds: dict[int, str] = {}
        if base == "selp":
            kinds = {2: "pred"}
        elif base in ("shl", "shr", "bfe", "bfi"):
            kinds = {1: "u32", 2: "u32"} if base != "bfi" else {2: "u32", 3: "u32"}
        elif base == "mad" and mods == ["wide"]:
            kinds = {2: f"{kind[0]}{2 * _width(kind)}"}
        if kind.endswith("x2"):
            low, high = (post.format(self.fill(template, kind, sources, kinds, half)) for half in (0, 1))
            return self.assign_pair(target, kind, low, high)
        expression = post.format(self.fill(template, kind, sources, kinds, flush=flush))
        return self.assign(target, kind, f"{flush}({expression})" if flush else expression)

    def do_mov(self, parts: list[str], operands: list[str]) -> str:
        (target, source), kind = operands, parts[-1]
        if source.startswith("{"):
            elements = _elements(source)
            bits = _width(kind) // len(elements)
            packed = (f"(u64)(u{bits})({self.raw(e)}) << {bits * n}" for n, e in enumerate(elements))
            return self.assign(target, "b64", " | ".join(packed))
        if target.startswith("{"):
            elements, whole = _elements(target), self.raw(source)
            bits = _width(kind) // len(elements)
            pieces = (
                self.assign(e, "b64", f"whole >> {bits * n}") for n, e in enumerate(elements) if e != "_"
            )
            return f"{{ u64 whole = {whole}; {' '.join(pieces)} }}"
        return self.assign(target, "b64", self.raw(source, kind))

    def comparisons(self, parts: list[str], kind: str, operands: list[str]) -> list[str]:
        """The test of a setp or set; for an x2 type, one test per half."""
        if parts[1] not in COMPARE or kind not in SIZES:
            raise self.unknown()
        template = "a != b" if parts[1] == "ne" and _integer(kind) else COMPARE[parts[1]]
        flush = "flush" if "ftz" in parts and kind == "f32" else ""
        halves = (0, 1) if kind.endswith("x2") else (0,)
        return [f"({self.fill(template, kind, operands, {}, half, flush)})" for half in halves]

    def do_setp(self, parts: list[str], operands: list[str]) -> str:
        results = self.comparisons(parts, parts[-1], operands[1:3])
        results.append(f"!{results[0]}")
        if combine := {"and", "or", "xor"} & set(parts[2:-1]):
            sign = {"and": "&&", "or": "||", "xor": "!="}[combine.pop()]
            results = [f"{r} {sign} {self.value(operands[3], 'pred')}" for r in results]
        targets = [t.strip() for t in operands[0].split("|")]
        if len(targets) == 1:
            return self.assign(targets[0], "pred", results[0])
        both = "".join(self.assign(t, "pred", v) for t, v in zip(targets, ("first", "second"), strict=True))
        return f"{{ bool first = {results[0]}, second = {results[1]}; {both} }}"

    def do_set(self, parts: list[str], operands: list[str]) -> str:
        to, kind = parts[-2:]
        tests = self.comparisons(parts, kind, operands[1:])
        true = {
            "u32": "~0u",
            "s32": "~0u",
            "f32": "0x3f800000u",
            "f16x2": "0x3c00u",
            "bf16x2": "0x3f80u",
        }.get(to)
        if true is None or len(operands) != 3:
            raise self.unknown()
        if len(tests) == 2:
            true = "0xffffu" if _integer(to) else true
        return self.assign(
            operands[0], "b32", " | ".join(f"({x} ? {true} << {16 * i} : 0)" for i, x in enumerate(tests))
        )

    def do_cvt(self, parts: list[str], operands: list[str]) -> str:
        (to, kind), mods = parts[-2:], set(parts[1:-2])
        if to not in SIZES or kind not in SIZES or mods - ROUNDINGS - {"ftz", "sat", "relu"}:
            raise self.unknown()
        rounding = "".join(mods & ROUNDINGS)
        flush = "flush" if "ftz" in mods and kind == "f32" else ""
        post = "saturate({})" if "sat" in mods else "relu({})" if "relu" in mods else "{}"
        values = [post.format(f"{flush}({self.value(o, kind)})") for o in operands[1:]]
        target, value = operands[0], values[0]
        if _integer(to):
            if _integer(kind):
                a = self.value(operands[1], kind)
                return self.assign(
                    target, to, f"clamp_integer<{_ctype(to)}>({a})" if "sat" in mods else f"({_ctype(to)}){a}"
                )
            if rounding not in ROUND or "relu" in mods:
                raise self.unknown("rounding")
            return self.assign(
                target,
                to,
                f"to_integer<{_ctype(to)}>({ROUND[rounding]}((double){self.value(operands[1], kind)}))",
            )
        if to == "tf32" and rounding in ("rna", "rn") and kind == "f32":
            return self.assign(target, "b32", f"tf32_{rounding}({value})")
        if rounding == "rz" and kind == "f32" and to.removesuffix("x2") in NARROW:
            values = [f"{NARROW[to.removesuffix('x2')]}_toward_zero({v})" for v in values]
            return self.assign(
                target, "b32", values[0] if len(values) == 1 else f"{values[1]} | (u32){values[0]} << 16"
            )
        if rounding in ROUND:
            return self.assign(target, to, f"{ROUND[rounding]}({value})")
        if rounding in DIRECTED and to == "f32":
            return self.assign(target, to, f"{DIRECTED[rounding]}({value})")
        if rounding not in ("", "rn") or to == "tf32":
            raise self.unknown("rounding")
        if len(values) == 2:
            return self.assign_pair(target, to, values[1], values[0])
        return self.assign(target, to, f"(double){value}" if _integer(kind) and to in NARROW else value)

    # -- memory -----------------------------------------------------------------------------------------

    def do_cvta(self, parts: list[str], operands: list[str]) -> str:
        space = next((s for s in SPACES if any(p.split("::")[0] == s for p in parts)), "")
        window = {"shared": "kSharedWindow", "local": "kLocalWindow", "param": "kParamWindow"}.get(space)
        a = self.raw(operands[1])
        if window:
            a = f"{a} & ~kWindow" if "to" in parts else f"{a} | {window}"
        return self.assign(operands[0], "u64", a)

    def memory(self, parts: list[str]) -> tuple[str, str, int]:
        """The state space, element type and vector length of a load or store."""
        space, count = "generic", 1
        for part in parts[1:-1]:
            name = part.split("::")[0]
            if name in SPACES:
                space = name
            elif re.fullmatch(r"v[248]", part):
                count = int(part[1:])
            elif name not in HINTS:
                raise self.unknown(f".{part}")
        if parts[-1] not in SIZES or parts[-1] in ("pred", "b128"):
            raise self.unknown()
        return {"const": "constant"}.get(space, space), parts[-1], count

    def pointer(self, space: str, access: str, address: str, size: int) -> str:
        """C++ for a checked access that returns a host pointer."""
        if space in ("param", "local"):
            return f"own_memory(t, k{space.title()}Window | {address}, {size}, {self.site()})"
        return f"{access}(t, Space::{space}, {address}, {size}, {self.site()})"

    def do_ld(self, parts: list[str], operands: list[str]) -> str:
        space, kind, count = self.memory(parts)
        pointer = self.pointer(space, "load", self.address(operands[1]), SIZES[kind] * count)
        targets, kind = _elements(operands[0]), _ctype(kind)
        if len(targets) != count:
            raise self.unknown("vector length")
        if count == 1:
            return self.assign(targets[0], kind, f"*({kind}*){pointer}")
        code = " ".join(self.assign(r, kind, f"p[{n}]") for n, r in enumerate(targets) if r != "_")
        return f"{{ auto p = ({kind}*){pointer}; {code} }}"

    do_ldu = do_ld

    def do_st(self, parts: list[str], operands: list[str]) -> str:
        space, kind, count = self.memory(parts)
        address, size, values = self.address(operands[0]), SIZES[kind], _elements(operands[1])
        kind = f"u{8 * size}"
        data = ", ".join(f"({kind}){self.raw(v)}" for v in values)
        if len(values) != count:
            raise self.unknown("vector length")
        write = f"store(t, Space::{space}, {address}, p, {size * count}, {{}});"
        if space == "local":
            write = (
                f"memcpy(own_memory(t, kLocalWindow | {address}, {size * count}, {{}}), p, {size * count});"
            )
        return f"{{ {kind} p[] = {{{data}}}; {write.format(self.site())} }}"

    def do_atom(self, parts: list[str], operands: list[str]) -> str:
        return self.atomic(parts, operands[0], operands[1:])

    def do_red(self, parts: list[str], operands: list[str]) -> str:
        return self.atomic(parts, "_", operands)

    def atomic(self, parts: list[str], target: str, operands: list[str]) -> str:
        operation = [p for p in parts[1:-1] if p in ATOMIC]
        space, kind, _ = self.memory([parts[0], *(p for p in parts[1:] if p not in (*ATOMIC, "noftz"))])
        if len(operation) != 1:
            raise self.unknown()
        # `old` is a register of this statement alone.
        self.names["old"], self.kinds["old"] = "old", f"b{_width(kind)}"
        sources, template = ["old", *operands[1:]], ATOMIC[operation[0]]
        if kind.endswith("x2"):
            new = self.assign_pair(
                "old", kind, *(self.fill(template, kind, sources, {}, half) for half in (0, 1))
            )
        else:
            new = self.assign("old", kind, self.fill(template, kind, sources, {}))
        code = "" if target == "_" else self.assign(target, "b64", "old")
        del self.names["old"], self.kinds["old"]
        bits = f"u{_width(kind)}"
        pointer = self.pointer(space, "atomic", self.address(operands[0]), SIZES[kind])
        return f"{{ auto p = ({bits}*){pointer}; {bits} old = *p; {code} {new} *p = old; }}"

    def do_cp(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:3] in (["async", "ca"], ["async", "cg"]):
            to, source, size = (
                self.address(operands[0]),
                self.address(operands[1]),
                self.value(operands[2], "u32"),
            )
            extra = operands[3] if len(operands) > 3 else ""
            part = size
            if self.kinds.get(extra) == "pred":
                part = f"{self.value(extra, 'pred')} ? 0 : {size}"
            elif extra and self.kinds.get(extra) != "b64":  # a b64 is a cache policy
                part = self.value(extra, "u32")
            site = self.site()
            self.site()  # the global side is counted separately from the shared side
            return f"copy_async(t, {to}, {source}, {size}, {part}, {site});"
        if parts == ["cp", "async", "commit_group"]:
            return "copy_async_commit(t);"
        if parts == ["cp", "async", "wait_group"]:
            return f"copy_async_wait(t, {self.value(operands[0], 'u32')});"
        if parts == ["cp", "async", "wait_all"]:
            return "copy_async_wait(t, ~0u);"
        raise self.unknown("the only asynchronous copies that are supported are cp.async.ca and cp.async.cg")

    def do_createpolicy(self, parts: list[str], operands: list[str]) -> str:
        return self.assign(operands[0], "u64", "0")

    # -- control ----------------------------------------------------------------------------------------

    def diverge(self, to: int) -> str:
        """C++ for the way from this branch to another statement."""
        join = self.meetings.get(self.number, to)
        return "" if join == to else f"diverge(t, {join}, {to}, {self.site()}); "

    def do_bra(self, parts: list[str], operands: list[str]) -> str:
        if operands[0] not in self.labels:
            raise self.unknown(f"no label {operands[0]}")
        step = f"loop_step(t, {self.site()}); " if self.labels[operands[0]] < self.number else ""
        return f"{self.diverge(self.labels[operands[0]])}{step}goto {self.label(operands[0])};"

    def do_brx(self, parts: list[str], operands: list[str]) -> str:
        targets = self.kernel.branch_targets[operands[1]]
        cases = " ".join(f"case {n}: {self.do_bra([], [target])}" for n, target in enumerate(targets))
        return f"switch ({self.value(operands[0], 'u32')}) {{ {cases} }}"

    def do_ret(self, parts: list[str], operands: list[str]) -> str:
        return "return;"

    do_exit = do_ret

    def do_trap(self, parts: list[str], operands: list[str]) -> str:
        return f'fail(t, {self.site()}, "trap");'

    def do_call(self, parts: list[str], operands: list[str]) -> str:
        raise self.unknown("calls are not supported; all functions must be inlined (no assert, no printf)")

    # -- barriers and warps -----------------------------------------------------------------------------

    def do_bar(self, parts: list[str], operands: list[str]) -> str:
        aligned = "true" if parts[0] == "bar" or "aligned" in parts else "false"
        parts = [p for p in parts if p not in ("cta", "aligned")]
        if parts[1:] == ["warp", "sync"]:
            return f"warp_barrier(t, {self.value(operands[0], 'u32')});"
        if parts[1:] in (["sync"], ["arrive"]):
            number, count = (self.value(o, "u32") for o in [*operands, "0"][:2])
            waits = "true" if parts[1] == "sync" else "false"
            return f"barrier(t, {number}, {count}, {waits}, {aligned}, {self.site()});"
        if parts[1] == "red":
            number, count = (self.value(o, "u32") for o in [*operands[1:-1], "0"][:2])
            vote = self.value(operands[-1], "pred")
            call = f"barrier_reduce(t, {number}, {count}, {vote}, '{parts[2][0]}', {self.site()})"
            return self.assign(operands[0], "u32", call)
        raise self.unknown()

    do_barrier = do_bar

    def collective(self, mask: str, op: str, inputs: list[str], targets: list[str], first: int = 0) -> str:
        """Each lane of the mask passes inputs in an array and reads its targets there, from `first` on."""
        zeros = ["0"] * (first + len(targets) - len(inputs))
        out = "".join(
            " " + self.assign(r, "u32", f"io[{first + n}]") for n, r in enumerate(targets) if r != "_"
        )
        data = ", ".join([f"(u32)({i})" for i in inputs] + zeros)
        return f"{{ u32 io[] = {{{data}}}; collective(t, {mask}, {op}, io, {self.site()});{out} }}"

    def do_shfl(self, parts: list[str], operands: list[str]) -> str:
        opcode = ".".join(parts)
        if not COLLECTIVE.fullmatch(opcode):
            raise self.unknown()
        name = re.sub(r"\.sync|\.[bsu]32|\.pred", "", opcode).replace(".", "_")
        name += f"_{parts[-1]}" if parts[2] in ("min", "max") else ""
        kind = "pred" if parts[0] == "vote" else "u32"
        targets = [t.strip() for t in operands[0].split("|")]
        return self.collective(
            self.value(operands[-1], "u32"), name, [self.value(o, kind) for o in operands[1:-1]], targets
        )

    do_vote = do_match = do_redux = do_shfl

    def do_activemask(self, parts: list[str], operands: list[str]) -> str:
        return self.assign(operands[0], "u32", "1u << t.lane")  # lanes run one by one: each is alone

    def do_mma(self, parts: list[str], operands: list[str]) -> str:
        match = MMA.fullmatch(".".join(parts))
        if not match or int(match[1]) not in MMA_DEPTHS.get(f"{match[2]}_{match[3]}", ()):
            raise self.unknown("supported: m16n8k8 and m16n8k16 of f16 and bf16, m16n8k4 and m16n8k8 of tf32")
        d, *inputs = (_elements(o) for o in operands)
        name = f"mma.m16n8k{match[1]}.{match[2]}.{match[3]}"
        self.tally.executed[name] += 1
        self.tally.multiply_adds[name] += 16 * 8 * int(match[1])
        a, b, c = ([self.raw(r) for r in fragment] for fragment in inputs)
        return self.collective("~0u", name.replace(".", "_"), a + b + c, d, len(a + b))

    def do_ldmatrix(self, parts: list[str], operands: list[str]) -> str:
        targets = _elements(operands[0])
        return self.collective("~0u", self.matrices(parts, targets), [self.address(operands[1])], targets)

    def do_stmatrix(self, parts: list[str], operands: list[str]) -> str:
        sources = _elements(operands[1])
        inputs = [self.address(operands[0]), *(self.raw(r) for r in sources)]
        return self.collective("~0u", self.matrices(parts, sources), inputs, [])

    def matrices(self, parts: list[str], registers: list[str]) -> str:
        """The function in warp.h for an ldmatrix or stmatrix."""
        match = MATRICES.fullmatch(".".join(parts))
        if not match:
            raise self.unknown()
        if len(registers) != int(match[2]):
            raise self.unknown("vector length")
        return f"{match[1]}_x{match[2]}" + ("_trans" if match[3] else "")

    def do_movmatrix(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:] != ["sync", "aligned", "m8n8", "trans", "b16"]:
            raise self.unknown()
        return self.collective("~0u", "movmatrix_trans", [self.raw(operands[1])], [operands[0]])


def translate(kernel: Kernel, module_variables: dict[str, Variable]) -> Translation:
    """Translate a kernel to C++. Raises UnknownInstruction."""
    return Translator(kernel, module_variables).run()
