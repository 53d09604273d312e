"""PTX statements -> C++ statements. An instruction that is not here is an error that names it and its line."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from .parse import SIZES, Instruction, Kernel, PtxError, Variable, place

SLOT_SHIFT = 40  # machine.h: kSlotShift

# Expressions over operands a, b, c, d. {T}: C++ type, {U}: its unsigned type, {W}: twice as wide, {n}: bits.
INTEGER = {
    "add": "a + b", "sub": "a - b", "mul.lo": "a * b", "mul.wide": "({W})a * ({W})b", "mul": "a * b",
    "mul.hi": "({W})a * ({W})b >> {n}", "mad.lo": "a * b + c", "mad.wide": "({W})a * ({W})b + c",
    "mad.hi": "({T})(({W})a * ({W})b >> {n}) + c", "mul24.lo": "a * b", "sad": "c + (a < b ? b - a : a - b)",
    "div": "b ? ({W})a / ({W})b : ({W})-1", "rem": "b ? ({W})a % ({W})b : ({W})a",
    "min": "a < b ? a : b", "max": "a < b ? b : a", "abs": "a < 0 ? -a : a", "neg": "-a", "not": "~a", "and": "a & b",
    "or": "a | b", "xor": "a ^ b", "shl": "shift_left(a, b)", "shr": "shift_right(a, b)", "cnot": "a ? 0 : 1",
    "popc": "__builtin_popcountll(a)", "clz": "a ? __builtin_clzll(a) - (64 - {n}) : {n}", "brev": "reverse_bits(a)",
    "bfe": "extract_bits(a, b, c)", "bfi": "insert_bits(a, b, c, d)", "bfind": "find_top_bit(a)",
    "prmt": "permute_bytes(a, b, c)", "lop3": "logic3(a, b, c, d)", "selp": "c ? a : b", "mov": "a",
    "shf.l.wrap": "funnel(a, b) << (c & 31) >> 32", "shf.r.wrap": "funnel(a, b) >> (c & 31)",
    "shf.l.clamp": "funnel(a, b) << (c < 32 ? c : 32) >> 32", "shf.r.clamp": "funnel(a, b) >> (c < 32 ? c : 32)",
}  # fmt: skip
PREDICATE = {"and": "a && b", "or": "a || b", "xor": "a != b", "not": "!a", "mov": "a"}
FLOAT = {
    "add": "a + b", "sub": "a - b", "mul": "a * b", "div": "a / b", "neg": "-a", "abs": "std::fabs(a)", "mov": "a",
    "min": "minimum(a, b)", "max": "maximum(a, b)", "min.NaN": "minimum(a, b, true)", "max.NaN": "maximum(a, b, true)",
    "rcp": "1 / a", "sqrt": "std::sqrt(a)", "rsqrt": "1 / std::sqrt(a)", "ex2": "std::exp2(a)", "lg2": "std::log2(a)",
    "sin": "std::sin(a)", "cos": "std::cos(a)", "tanh": "std::tanh(a)", "selp": "c ? a : b",
    "copysign": "std::copysign(b, a)", "fma": "std::fma(a, b, c)", "mad": "std::fma(a, b, c)",
}  # fmt: skip
COMPARE = {
    "eq": "a == b", "ne": "a < b || a > b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b",
    "equ": "!(a < b || a > b)", "neu": "a != b", "ltu": "!(a >= b)", "leu": "!(a > b)", "gtu": "!(a <= b)",
    "geu": "!(a < b)", "num": "a == a && b == b", "nan": "a != a || b != b",
    "lo": "a < b", "ls": "a <= b", "hi": "a > b", "hs": "a >= b",
}  # fmt: skip
ATOMIC = {
    "add": "a + b", "min": "a < b ? a : b", "max": "a < b ? b : a", "and": "a & b", "or": "a | b", "xor": "a ^ b",
    "exch": "b", "cas": "a == b ? c : a", "inc": "a >= b ? 0 : a + 1", "dec": "a == 0 || a > b ? b : a - 1",
}  # fmt: skip
SPECIAL = {
    f"%{n}.{x}": f"t.{n}[{i}]" for n in ("tid", "ntid", "ctaid", "nctaid") for i, x in enumerate("xyz")
}
SPECIAL |= {
    "%laneid": "t.lane", "%warpid": "(t.id / 32)", "WARP_SZ": "32u", "%smid": "0u", "%nsmid": "1u", "%gridid": "0ull",
    "%clock": "t.clock", "%clock64": "(u64)t.clock", "%dynamic_smem_size": "t.dynamic_shared_bytes",
    "%total_smem_size": "t.shared_bytes", "%lanemask_eq": "(1u << t.lane)", "%lanemask_lt": "((1u << t.lane) - 1)",
    "%lanemask_le": "((2u << t.lane) - 1)", "%lanemask_gt": "~((2u << t.lane) - 1)", "%lanemask_ge": "-(1u << t.lane)",
}  # fmt: skip
NOTHING = {
    "membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "griddepcontrol", "nanosleep", "pmevent"
}  # fmt: skip
ROUNDINGS = {"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"}
ROUND = {"rni": "std::rint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
LOAD_HINTS = {"weak", "volatile", "relaxed", "acquire", "release", "cta", "cluster", "gpu", "sys", "nc",
              "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L2", "L1", "uniform"}  # fmt: skip
MMA = re.compile(r"mma\.sync\.aligned\.(m(\d+)n(\d+)k(\d+))\.row\.col\.(f32|f16)\.(f16|bf16|tf32)\.\6\.\5")
MMA_SHAPES = {"f32_f16": (8, 16), "f16_f16": (8, 16), "f32_bf16": (8, 16), "f32_tf32": (4, 8)}


class UnknownInstruction(PtxError):
    """An instruction, or a form of it, that the translator has no C++ for."""


@dataclass
class Tally:
    """What one execution of a basic block by one thread stands for."""

    instructions: int = 0
    multiply_adds: Counter[str] = field(default_factory=Counter)  # by FMA type or mma shape, per thread
    executed: Counter[str] = field(default_factory=Counter)


@dataclass
class Translation:
    """C++ of one kernel, with what is needed to launch it and to explain its sites and counts."""

    code: str
    tallies: list[Tally]
    sites: list[Instruction]
    static_shared: int


def _width(kind: str) -> int:
    return SIZES[kind] * 8


def _integer(kind: str) -> bool:
    return kind[0] in "sub" and kind != "bf16" and kind != "bf16x2"


def _ctype(kind: str) -> str:
    """The C++ integer type that holds a value of this PTX type."""
    return "bool" if kind == "pred" else f"{'s' if kind[0] == 's' else 'u'}{_width(kind)}"


class Translator:
    """Translates one kernel; `module_variables` are in device address order."""

    def __init__(self, kernel: Kernel, module_variables: dict[str, Variable]) -> None:
        self.kernel = kernel
        self.symbols = self._symbols(module_variables)
        self.names = {r: "_" + re.sub(r"\W", "_", r.removeprefix("%")) for r in kernel.registers}
        self.labels = {i.operands[0]: n for n, i in enumerate(kernel.body) if i.opcode == "label"}
        self.tallies: list[Tally] = []
        self.tally = Tally()
        self.sites: list[Instruction] = []
        self.at = kernel.body[0] if kernel.body else Instruction("", [], "", 0, "", "")

    def _symbols(self, module_variables: dict[str, Variable]) -> dict[str, int]:
        shared = [v for v in module_variables.values() if v.space == "shared"]
        self.static_shared = place([v for v in shared if v.size], self.kernel.static_shared)
        place([v for v in shared if not v.size], -(-self.static_shared // 16) * 16)
        memory = [v for v in module_variables.values() if v.space != "shared"]
        symbols = {v.name: v.offset for v in [*shared, *self.kernel.variables.values()]}
        if any(not v.size for v in shared):
            self.static_shared = -(-self.static_shared // 16) * 16
        return symbols | {v.name: (slot + 1) << SLOT_SHIFT for slot, v in enumerate(memory)}

    def run(self) -> Translation:
        lines: list[str] = []
        self.fresh_block(lines)
        for number, instruction in enumerate(self.kernel.body):
            self.at, self.number = instruction, number
            if instruction.opcode == "label":
                lines.append(f"{self.label(instruction.operands[0])}:;")
                self.fresh_block(lines)
                continue
            self.tally.instructions += 1
            lines.append(f"{self.predicated(instruction)}  // {instruction.line}")
            if instruction.opcode.split(".")[0] in ("bra", "brx", "ret", "exit"):
                self.fresh_block(lines)
        registers: dict[str, list[str]] = {}
        for register, kind in self.kernel.registers.items():
            registers.setdefault(_ctype(kind), []).append(self.names[register])
        declared = "".join(f"  {kind} {', '.join(names)};\n" for kind, names in registers.items())
        code = (
            '#include "arithmetic.h"\n#include "warp.h"\n'
            f'extern "C" u64 hits[{len(self.tallies)}];\nu64 hits[{len(self.tallies)}];\n'
            f'extern "C" void kernel(Thread& t) {{\n{declared}  ' + "\n  ".join(lines) + "\n}\n"
        )
        return Translation(code, self.tallies, self.sites, self.static_shared)

    def predicated(self, i: Instruction) -> str:
        """The statement, under its predicate; what is counted in it then counts on its own."""
        if not i.predicate:
            return self.instruction(i)
        block, self.tally, first_site = self.tally, Tally(), len(self.sites)
        code = self.instruction(i)
        if self.tally.executed:
            code = f"hits[{len(self.tallies)}]++; {code}"
            self.tallies.append(self.tally)
        self.tally = block
        code = f"if ({self.value(i.predicate, 'pred')}) {{ {code} }}"
        if i.opcode.startswith(("ld", "st", "cp.async.c", "atom", "red.")) and len(self.sites) > first_site:
            off = "".join(f"predicated_off(t, {site}); " for site in range(first_site, len(self.sites)))
            code += f" else {{ {off}}}"
        return code

    # -- pieces ---------------------------------------------------------------------------------------------

    def fresh_block(self, lines: list[str]) -> None:
        lines.append(f"hits[{len(self.tallies)}]++;")
        self.tally = Tally()
        self.tallies.append(self.tally)

    def label(self, name: str) -> str:
        return "L" + re.sub(r"\W", "_", name)

    def site(self) -> int:
        self.sites.append(self.at)
        return len(self.sites) - 1

    def unknown(self, why: str = "") -> UnknownInstruction:
        i = self.at
        place = f" ({i.source})" if i.source else ""
        why = why and f": {why}"
        return UnknownInstruction(
            f"{self.kernel.name}: PTX line {i.line}{place}: unknown instruction `{i.opcode}` in `{i.text}`{why}"
        )

    def value(self, text: str, kind: str, half: int = 0) -> str:
        """C++ that reads an operand as a PTX type; half picks an element of an f16x2 or bf16x2."""
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        packed = kind in ("f16x2", "bf16x2")
        raw = self.raw(text, "b32" if packed else kind)
        if packed:
            raw, kind = f"{raw} >> {16 * half}", kind[:-2]
        if kind in ("f32", "tf32"):
            return f"F({raw})"
        if kind in ("f64", "f16", "bf16"):
            return {"f64": "D", "f16": "H", "bf16": "B16"}[kind] + f"({raw})"
        if text in self.names and _ctype(self.kernel.registers[text]) == _ctype(kind):
            return raw
        return f"({_ctype(kind)})({raw})"

    def raw(self, text: str, kind: str) -> str:
        """The bits of an operand, as an unsigned integer."""
        if text in self.names:
            return self.names[text]
        if text in SPECIAL:
            return SPECIAL[text]
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            return f"0x{match[1]}u"
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
            return f"bits((float)D(0x{match[1]}ull))" if kind == "f32" else f"0x{match[1]}ull"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            number = int(text.rstrip("U"), 16 if "x" in text.lower() else 10)
            return f"{number & 2**64 - 1}ull"
        if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
            return f"bits({'(float)' if kind == 'f32' else ''}{text})"
        base, _, offset = text.partition("+")
        if base.strip() in self.symbols:
            return f"{self.symbols[base.strip()] + int(offset or '0', 0)}ull"
        raise self.unknown(f"operand {text!r}")

    def assign(self, target: str, kind: str, expression: str) -> str:
        """C++ that writes an expression of a PTX type to a register."""
        if target == "_":
            return f"(void)({expression});"
        if target not in self.names:
            raise self.unknown(f"cannot write to {target!r}")
        convert = {
            "f32": "bits((float)({}))",
            "f64": "bits((double)({}))",
            "f16": "half({})",
            "bf16": "bfloat({})",
        }
        return f"{self.names[target]} = {convert.get(kind, '{}').format(expression)};"

    def fill(
        self,
        template: str,
        kind: str,
        operands: list[str],
        kinds: dict[int, str],
        half: int = 0,
        flush: str = "",
    ) -> str:
        """Put operands for the letters a, b, c, d of a template; kinds overrides the type of some operands."""
        values = [self.value(o, kinds.get(i, kind), half) for i, o in enumerate(operands)]
        values = [f"{flush}({v})" if flush and i not in kinds else v for i, v in enumerate(values)]
        bits = _width(kind)
        wide = {8: "16", 16: "32", 32: "64"}.get(bits, "64")
        wide = (
            f"{'s' if kind[0] == 's' else 'u'}{wide}"
            if bits < 64
            else ("__int128" if kind[0] == "s" else "unsigned __int128")
        )
        template = template.replace("{T}", _ctype(kind)).replace("{W}", wide).replace("{n}", str(bits))
        try:
            return re.sub(r"\b[a-d]\b(?!')", lambda m: values["abcd".index(m[0])], template)
        except IndexError:
            raise self.unknown("too few operands") from None

    def address(self, text: str) -> tuple[str, str]:
        """[register or symbol + offset] -> C++ of the address, and the base's name."""
        base, _, offset = text.strip("[] ").replace(" ", "").partition("+")
        number = int(offset or "0", 0)
        if base in self.symbols:
            return f"{self.symbols[base] + number}ull", base
        raw = self.raw(base, "b64")
        if not number:
            return raw, base
        return (
            f"(u32)({raw} + {number})"
            if self.kernel.registers.get(base) == "b32" or self.kernel.registers.get(base) in ("u32", "s32")
            else f"({raw} + {number}ll)"
        ), base

    def vector(self, text: str) -> list[str]:
        return [part.strip() for part in text.strip("{} ").split(",")]

    # -- instructions ---------------------------------------------------------------------------------------

    def instruction(self, i: Instruction) -> str:
        parts = i.opcode.split(".")
        handler = getattr(self, "do_" + parts[0], None)
        if handler:
            return str(handler(parts, i.operands))
        if parts[0] in NOTHING:
            return ";"
        return self.arithmetic(parts, i.operands)

    def arithmetic(self, parts: list[str], operands: list[str]) -> str:
        base, kind, mods = (
            parts[0],
            parts[-1],
            [p for p in parts[1:-1] if p not in ("approx", "full", "noftz", "uni")],
        )
        if kind not in SIZES or not operands:
            raise self.unknown()
        target, sources, flush = operands[0], operands[1:], "flush" if "ftz" in mods and kind == "f32" else ""
        post = "{}"
        for modifier in ("sat", "relu"):
            if modifier in mods and not _integer(kind):
                post = {"sat": "saturate", "relu": "relu"}[modifier] + f"({post})"
        rounding = [m for m in mods if m in ROUNDINGS]
        mods = (
            [m for m in mods if m not in (*ROUNDINGS, "ftz", "sat", "relu")] if not _integer(kind) else mods
        )
        if rounding not in ([], ["rn"]) or (_integer(kind) and "sat" in mods):
            raise self.unknown("rounding or saturation")
        key = ".".join([base, *mods])
        table = PREDICATE if kind == "pred" else INTEGER if _integer(kind) else FLOAT
        if key not in table or (base in ("ex2", "lg2", "sin", "cos") and kind == "f64"):
            raise self.unknown()
        template = table[key]
        kinds: dict[int, str] = {2: "pred"} if base == "selp" else {}
        if base in ("shl", "shr"):
            kinds = {1: "u32"}
        elif base in ("bfe", "bfi"):
            kinds = {1 if base == "bfe" else 2: "u32", 2 if base == "bfe" else 3: "u32"}
        elif base == "mad" and mods == ["wide"]:
            kinds = {2: f"{kind[0]}{2 * _width(kind)}"}
        elif base in ("popc", "clz") and kind[0] == "b":
            kind = f"u{_width(kind)}"
        if base in ("fma", "mad") and not _integer(kind):
            self.tally.multiply_adds[kind] += 2 if kind.endswith("x2") else 1
            self.tally.executed[f"fma.{kind}"] += 1
            if kind not in ("f32", "f64"):
                template = "(double)a * (double)b + (double)c"
        if kind.endswith("x2"):
            low, high = (post.format(self.fill(template, kind, sources, kinds, half)) for half in (0, 1))
            to = "half" if kind == "f16x2" else "bfloat"
            return self.assign(target, "b32", f"{to}({low}) | (u32){to}({high}) << 16")
        if (
            (kind in ("f16", "bf16")
            and base in ("neg", "abs", "mov", "selp"))
            or (kind == "f32"
            and base in ("mov", "selp"))
        ):
            kind = "b32" if kind == "f32" else "b16"  # bits must survive, NaN payloads too
            template = {"neg": "a ^ 0x8000", "abs": "a & 0x7fff"}.get(base, template)
            return self.assign(target, kind, self.fill(template, kind, sources, kinds))
        expression = post.format(self.fill(template, kind, sources, kinds, flush=flush))
        return self.assign(target, kind, f"{flush}({expression})" if flush else expression)

    def do_mov(self, parts: list[str], operands: list[str]) -> str:
        target, source = operands
        if source.startswith("{"):
            elements = self.vector(source)
            bits = _width(parts[-1]) // len(elements)
            packed = " | ".join(
                f"(u64)(u{bits})({self.raw(e, parts[-1])}) << {bits * n}" for n, e in enumerate(elements)
            )
            return self.assign(target, parts[-1], packed)
        if target.startswith("{"):
            elements = self.vector(target)
            bits = _width(parts[-1]) // len(elements)
            raw = self.raw(source, parts[-1])
            copy = f"u64 whole = {raw}; "
            return (
                "{ "
                + copy
                + " ".join(
                    self.assign(e, f"u{bits}", f"(u{bits})(whole >> {bits * n})")
                    for n, e in enumerate(elements)
                )
                + " }"
            )
        if parts[-1] == "pred":
            return self.assign(target, "pred", self.value(source, "pred"))
        return self.assign(target, parts[-1].replace("f", "b"), self.raw(source, parts[-1]))

    def do_setp(self, parts: list[str], operands: list[str]) -> str:
        kind = parts[-1]
        targets = [t.strip() for t in operands[0].split("|")]
        combine = next((p for p in parts[2:-1] if p in ("and", "or", "xor")), None)
        template = COMPARE.get(parts[1])
        if template is None or kind not in SIZES:
            raise self.unknown()
        flush = "flush" if "ftz" in parts and kind == "f32" else ""
        if parts[1] == "ne" and _integer(kind):
            template = "a != b"
        packed = kind.endswith("x2")
        tests = [
            self.fill(template, kind, operands[1:3], {}, half, flush) for half in ((0, 1) if packed else (0,))
        ]
        results = tests if packed else [f"({tests[0]})", f"!({tests[0]})"]
        if combine:
            sign = {"and": "&&", "or": "||", "xor": "!="}[combine]
            results = [f"({r}) {sign} ({self.value(operands[3], 'pred')})" for r in results]
        if len(targets) == 1:
            return self.assign(targets[0], "pred", results[0])
        return (
            "{ bool first = "
            + results[0]
            + ", second = "
            + results[1]
            + "; "
            + self.assign(targets[0], "pred", "first")
            + self.assign(targets[1], "pred", "second")
            + " }"
        )

    def do_set(self, parts: list[str], operands: list[str]) -> str:
        out, kind = parts[-2:]
        template = COMPARE.get(parts[1])
        if (
            template is None
            or len(operands) != 3
            or out not in ("u32", "s32", "f16x2", "bf16x2", "f32", "u16")
        ):
            raise self.unknown()
        packed = kind.endswith("x2")
        tests = [self.fill(template, kind, operands[1:], {}, half) for half in ((0, 1) if packed else (0,))]
        if not packed:
            true = {"f32": "0x3f800000u", "u16": "0xffff"}.get(out, "~0u")
            return self.assign(operands[0], "b32", f"({tests[0]}) ? {true} : 0")
        true = {"f16x2": "0x3c00u", "bf16x2": "0x3f80u"}.get(out, "0xffffu")
        return self.assign(
            operands[0], "b32", f"(({tests[0]}) ? {true} : 0) | (({tests[1]}) ? {true} << 16 : 0)"
        )

    def do_cvt(self, parts: list[str], operands: list[str]) -> str:
        to, kind = parts[-2:]
        mods = parts[1:-2]
        rounding = next((m for m in mods if m in ROUNDINGS), "")
        if to not in SIZES or kind not in SIZES or set(mods) - ROUNDINGS - {"ftz", "sat", "relu"}:
            raise self.unknown()
        post = "relu({})" if "relu" in mods else "{}"
        if "sat" in mods and not _integer(to):
            post = f"saturate({post})"
        a = self.value(operands[1], kind)
        if "ftz" in mods and kind == "f32":
            a = f"flush({a})"
        narrow = {"f16": "half", "bf16": "bfloat", "f16x2": "half", "bf16x2": "bfloat"}.get(to, "")
        if narrow:
            if rounding not in ("", "rn", "rz") or (rounding == "rz" and kind != "f32"):
                raise self.unknown("rounding")
            narrow += "_toward_zero" if rounding == "rz" else ""
            if _integer(kind):
                a = f"(double){a}"
        if to in ("f16x2", "bf16x2") and len(operands) == 3:
            low = self.value(operands[2], kind)
            return self.assign(
                operands[0], "b32", f"{narrow}({post.format(low)}) | (u32){narrow}({post.format(a)}) << 16"
            )
        if narrow:
            return self.assign(operands[0], "b16", f"{narrow}({post.format(a)})")
        if to == "tf32" and kind == "f32" and rounding in ("rna", "rn"):
            name = "tf32_nearest_away" if rounding == "rna" else "tf32_nearest_even"
            return self.assign(operands[0], "b32", f"{name}({post.format(a)})")
        if _integer(to) and _integer(kind):
            a = f"clamp_integer<{_ctype(to)}>({a})" if "sat" in mods else f"({_ctype(to)}){a}"
            return self.assign(operands[0], to, a)
        if _integer(to):
            if rounding not in ROUND:
                raise self.unknown("rounding")
            return self.assign(operands[0], to, f"to_integer<{_ctype(to)}>({ROUND[rounding]}((double){a}))")
        if rounding in ROUND:
            return self.assign(operands[0], to, post.format(f"{ROUND[rounding]}({a})"))
        if rounding not in ("", "rn") or to not in ("f32", "f64"):
            raise self.unknown("rounding")
        return self.assign(operands[0], to, post.format(f"({'float' if to == 'f32' else 'double'}){a}"))

    def do_cvta(self, parts: list[str], operands: list[str]) -> str:
        space = next(p for p in parts if p in ("global", "shared", "local", "const", "param") or "::" in p)
        window = {"shared": "kSharedWindow", "local": "kLocalWindow", "param": "kParamWindow"}.get(
            space.split("::")[0]
        )
        a = self.value(operands[1], "u64")
        if window:
            a = f"{a} & ~kWindow" if "to" in parts else f"{a} | {window}"
        return self.assign(operands[0], "u64", a)

    # memory

    def memory(self, parts: list[str]) -> tuple[str, str, int]:
        """State space, element type and vector length of a load or store."""
        space, count = "generic", 1
        for part in parts[1:-1]:
            name = part.split("::")[0]
            if name in ("global", "shared", "local", "param", "const"):
                space = name
            elif re.fullmatch(r"v[248]", part):
                count = int(part[1:])
            elif name not in LOAD_HINTS:
                raise self.unknown(f".{part}")
        if parts[-1] not in SIZES or parts[-1] in ("pred", "b128"):
            raise self.unknown()
        return space, parts[-1], count

    def do_ld(self, parts: list[str], operands: list[str]) -> str:
        space, kind, count = self.memory(parts)
        address, base = self.address(operands[1])
        size = SIZES[kind]
        if space == "param" and base in self.symbols:
            pointer = f"t.params + {address}"
        elif space in ("param", "local"):
            window = "kParamWindow" if space == "param" else "kLocalWindow"
            pointer = f"own_memory(t, {window} + {address}, {size * count}, {self.site()})"
        else:
            where = {"generic": "generic", "shared": "shared"}.get(space, "global")
            pointer = f"load(t, Space::{where}, {address}, {size * count}, {self.site()})"
        kind = _ctype(kind)
        targets = self.vector(operands[0])
        if len(targets) != count:
            raise self.unknown("vector length")
        code = "".join(
            " " + self.assign(r, kind, f"get<{kind}>(p, {size * n})")
            for n, r in enumerate(targets)
            if r != "_"
        )
        return f"{{ const u8* p = {pointer};{code} }}"

    def do_ldu(self, parts: list[str], operands: list[str]) -> str:
        return self.do_ld(parts, operands)

    def do_st(self, parts: list[str], operands: list[str]) -> str:
        space, kind, count = self.memory(parts)
        address, base = self.address(operands[0])
        size = SIZES[kind]
        kind = f"u{8 * size}"
        code = "".join(
            f"put<{kind}>(p, {size * n}, {self.raw(r, kind)}); "
            for n, r in enumerate(self.vector(operands[1]))
        )
        if space == "local":
            return (
                f"{{ u8* p = own_memory(t, kLocalWindow + {address}, {size * count}, {self.site()}); {code}}}"
            )
        where = {"generic": "generic", "shared": "shared"}.get(space, "global")
        return f"{{ u8 p[{size * count}]; {code}store(t, Space::{where}, {address}, p, {size * count}, {self.site()}); }}"

    def do_atom(self, parts: list[str], operands: list[str]) -> str:
        return self.atomic(parts, operands[0], operands[1:])

    def do_red(self, parts: list[str], operands: list[str]) -> str:
        return self.atomic(parts, "_", operands)

    def atomic(self, parts: list[str], target: str, operands: list[str]) -> str:
        kind = parts[-1]
        operation = [p for p in parts[1:-1] if p in ATOMIC]
        others = (
            {p.split("::")[0] for p in parts[1:-1]}
            - {*operation, "global", "shared", "noftz"}
            - LOAD_HINTS
            - {"acq_rel"}
        )
        if len(operation) != 1 or kind not in SIZES or others:
            raise self.unknown()
        space = (
            "shared"
            if any(p.startswith("shared") for p in parts)
            else "global"
            if "global" in parts
            else "generic"
        )
        address, _ = self.address(operands[0])
        bits = f"u{_width(kind)}"
        names = ["old", *operands[1:]]
        self.names["old"] = "old"
        self.kernel.registers.setdefault("old", f"b{_width(kind)}")
        try:
            if kind.endswith("x2"):
                to = "half" if kind == "f16x2" else "bfloat"
                low, high = (self.fill(ATOMIC[operation[0]], kind, names, {}, half) for half in (0, 1))
                new = f"{to}({low}) | (u32){to}({high}) << 16"
            else:
                new = self.fill(ATOMIC[operation[0]], kind, names, {})
                convert = {"f32": "bits", "f64": "bits", "f16": "half", "bf16": "bfloat"}.get(kind, "")
                new = f"{convert}({new})"
        finally:
            del self.names["old"], self.kernel.registers["old"]
        return (
            f"{{ u8* p = atomic(t, Space::{space}, {address}, {SIZES[kind]}, {self.site()}); {bits} old = get<{bits}>(p); "
            f"put<{bits}>(p, 0, {new}); " + (self.assign(target, "b", "old") if target != "_" else "") + " }"
        )

    def do_cp(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:3] in (["async", "ca"], ["async", "cg"]):
            to, from_ = self.address(operands[0])[0], self.address(operands[1])[0]
            size = self.value(operands[2], "u32")
            part = size
            if len(operands) > 3:
                extra = operands[3]
                if self.kernel.registers.get(extra) == "pred":
                    part = f"{self.value(extra, 'pred')} ? 0 : {size}"
                elif self.kernel.registers.get(extra) != "b64":
                    part = self.value(extra, "u32")
            site = self.site()
            self.site()  # the global side is counted apart from the shared side
            return f"copy_async(t, {to}, {from_}, {size}, {part}, {site});"
        if parts == ["cp", "async", "commit_group"]:
            return "copy_async_commit(t);"
        if parts == ["cp", "async", "wait_group"]:
            return f"copy_async_wait(t, {self.value(operands[0], 'u32')}, {self.site()});"
        if parts == ["cp", "async", "wait_all"]:
            return f"copy_async_wait(t, ~0u, {self.site()});"
        raise self.unknown("of the asynchronous copies only cp.async.ca/cg is supported")

    # control

    def do_bra(self, parts: list[str], operands: list[str]) -> str:
        return self.jump(operands[0])

    def jump(self, target: str) -> str:
        if target not in self.labels:
            raise self.unknown(f"no label {target}")
        step = f"loop_step(t, {self.site()}); " if self.labels[target] < self.number else ""
        return f"{step}goto {self.label(target)};"

    def do_brx(self, parts: list[str], operands: list[str]) -> str:
        cases = "".join(
            f"case {n}: {self.jump(target)} "
            for n, target in enumerate(self.kernel.branch_targets[operands[1]])
        )
        return f"switch ({self.value(operands[0], 'u32')}) {{ {cases}}}"

    def do_ret(self, parts: list[str], operands: list[str]) -> str:
        return "return;"

    do_exit = do_ret

    def do_trap(self, parts: list[str], operands: list[str]) -> str:
        return f'fail(t, {self.site()}, "trap");'

    def do_call(self, parts: list[str], operands: list[str]) -> str:
        raise self.unknown("calls are not supported: everything must be inlined (asserts and printf off)")

    # barriers and warps

    def do_bar(self, parts: list[str], operands: list[str]) -> str:
        parts = [p for p in parts if p != "cta"]
        aligned = "true" if parts[0] == "bar" or "aligned" in parts else "false"
        if parts[1:3] == ["warp", "sync"]:
            return f"warp_barrier(t, {self.value(operands[0], 'u32')}, {self.site()});"
        if parts[1] in ("sync", "arrive"):
            count = self.value(operands[1], "u32") if len(operands) > 1 else "0"
            waits = "true" if parts[1] == "sync" else "false"
            return (
                f"barrier(t, {self.value(operands[0], 'u32')}, {count}, {waits}, {aligned}, {self.site()});"
            )
        if parts[1] == "red":
            count = self.value(operands[2 - 0], "u32") if len(operands) > 3 else "0"
            vote = self.value(operands[-1], "pred")
            call = f"barrier_reduce(t, {self.value(operands[1], 'u32')}, {count}, {vote}, '{parts[2][0]}', {self.site()})"
            return self.assign(operands[0], "u32", call)
        raise self.unknown()

    do_barrier = do_bar

    def collective(
        self, mask: str, op: str, inputs: list[str], results: list[tuple[str, str]], size: int = 0
    ) -> str:
        """All lanes of the mask give inputs; results are (register, element of the operand array)."""
        zeros = ["0"] * (size - len(inputs))
        out = "".join(
            " " + self.assign(register, "u32", element) for register, element in results if register != "_"
        )
        return f"{{ u32 io[] = {{{', '.join([*inputs, *zeros])}}}; collective(t, {mask}, {op}, io, {self.site()});{out} }}"

    def do_mma(self, parts: list[str], operands: list[str]) -> str:
        match = MMA.fullmatch(".".join(parts))
        if (
            not match
            or int(match[4]) not in MMA_SHAPES.get(f"{match[5]}_{match[6]}", ())
            or match[2] + match[3] != "168"
        ):
            raise self.unknown("supported are m16n8k8, m16n8k16 of f16 and bf16, m16n8k4, m16n8k8 of tf32")
        d, a, b, c = (self.vector(o) for o in operands)
        shape = f"{match[1]}.{match[5]}.{match[6]}"
        self.tally.executed[f"mma.{shape}"] += 1
        self.tally.multiply_adds[f"mma.{shape}"] += 16 * 8 * int(match[4])
        inputs = [f"(u32)({self.raw(r, 'b32')})" for r in a + b + c]
        results = [(r, f"io[{len(a) + len(b) + n}]") for n, r in enumerate(d)]
        return self.collective("~0u", f"mma_{match[1]}_{match[5]}_{match[6]}", inputs, results)

    def do_ldmatrix(self, parts: list[str], operands: list[str]) -> str:
        match = re.fullmatch(
            r"ldmatrix\.sync\.aligned\.m8n8\.(x[124])(\.trans)?\.shared(::cta)?\.b16", ".".join(parts)
        )
        if not match:
            raise self.unknown()
        name = f"ldmatrix_{match[1]}" + ("_trans" if match[2] else "")
        results = [(r, f"io[{n}]") for n, r in enumerate(self.vector(operands[0]))]
        return self.collective("~0u", name, [f"(u32)({self.address(operands[1])[0]})"], results, 4)

    def do_movmatrix(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:] != ["sync", "aligned", "m8n8", "trans", "b16"]:
            raise self.unknown()
        return self.collective(
            "~0u", "movmatrix_trans", [self.value(operands[1], "u32")], [(operands[0], "io[0]")]
        )

    def do_shfl(self, parts: list[str], operands: list[str]) -> str:
        if parts[1] != "sync" or parts[2] not in ("up", "down", "bfly", "idx"):
            raise self.unknown()
        inputs = [self.value(o, "u32") for o in operands[1:4]]
        targets = [t.strip() for t in operands[0].split("|")]
        results = [(r, f"io[{n}]") for n, r in enumerate(targets)]
        return self.collective(self.value(operands[4], "u32"), f"shfl_{parts[2]}", inputs, results)

    def do_vote(self, parts: list[str], operands: list[str]) -> str:
        if parts[1] != "sync" or parts[2] not in ("ballot", "all", "any", "uni"):
            raise self.unknown()
        return self.collective(
            self.value(operands[2], "u32"),
            f"vote_{parts[2]}",
            [self.value(operands[1], "pred")],
            [(operands[0], "io[0]")],
        )

    def do_match(self, parts: list[str], operands: list[str]) -> str:
        if parts[1:] != ["any", "sync", "b32"]:
            raise self.unknown()
        return self.collective(
            self.value(operands[2], "u32"),
            "match_any",
            [self.value(operands[1], "u32")],
            [(operands[0], "io[0]")],
        )

    def do_redux(self, parts: list[str], operands: list[str]) -> str:
        op = parts[2] if parts[2] in ("add", "and", "or", "xor") else f"{parts[2]}_{parts[3]}"
        if op not in ("add", "and", "or", "xor", "min_u32", "max_u32", "min_s32", "max_s32"):
            raise self.unknown()
        return self.collective(
            self.value(operands[2], "u32"),
            f"redux_{op}",
            [self.value(operands[1], "u32")],
            [(operands[0], "io[0]")],
        )

    def do_activemask(self, parts: list[str], operands: list[str]) -> str:
        return self.assign(operands[0], "u32", "1u << t.lane")  # lanes run one by one: each is alone

    def do_createpolicy(self, parts: list[str], operands: list[str]) -> str:
        return self.assign(operands[0], "u64", "0")


def translate(kernel: Kernel, module_variables: dict[str, Variable]) -> Translation:
    """C++ of a kernel. Raises UnknownInstruction."""
    return Translator(kernel, module_variables).run()
