"""The PTX machine itself: results compared with numpy, counts computed by hand, and planted bugs."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from examples import STORED, compiled, compiler, fresh_module, shared_module
from ptx_machine import (
    CompilerMissing,
    KernelError,
    Memory,
    Module,
    UnknownInstruction,
    find_nvcc,
    load,
    poisoned,
    why_not,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
SEEDS = (0, 1, 2)
HEAD = ".version 8.6\n.target sm_90\n.address_size 64\n"


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- arithmetic -----------------------------------------------------------------------------------------


def floats() -> np.ndarray:
    """Ordinary numbers, rounding ties of narrower formats, tiny and large numbers, infinities and NaN."""
    r = rng()
    ties = (r.integers(0, 2**32, 64, np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)
    odd_ties = (r.integers(0, 2**32, 64, np.uint32) & 0x3FFFF000 | 0x1000).view(np.float32)
    special = np.array(
        [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 65504, 65520, 1e-8, 3e9, -3e9, 2.5, 3.5, -2.5, 1e-40]
    )
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)  # in tf32's bits, it is infinity
    scales = np.float32(2.0) ** r.integers(-30, 30, 111).astype(np.float32)
    normal = r.standard_normal(111).astype(np.float32) * scales
    return np.concatenate([special.astype(np.float32), signalling, ties, odd_ties, normal])


def to_bfloat(x: Any) -> np.ndarray:
    """Rounds to nearest, ties to even. Every NaN becomes 0x7fc0."""
    values = np.array(x, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def matrix(*shape: int, kind: str = "f16") -> tuple[np.ndarray, np.ndarray]:
    """Random numbers in a kernel's dtype, and the same numbers in float64."""
    values = rng(sum(shape)).standard_normal(shape)
    if kind == "bf16":
        narrow = to_bfloat(values)
        return narrow, from_bfloat(narrow).astype(np.float64)
    narrow = values.astype({"f16": np.float16, "f32": np.float32}[kind])
    return narrow, narrow.astype(np.float64)


def error(result: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(result - want) / np.linalg.norm(want))


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.astype(np.uint16).view(np.float16), (x >> 16).astype(np.uint16).view(np.float16)


def packed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    bits = [v.astype(np.float16).view(np.uint16) if v.dtype != np.uint16 else v for v in (low, high)]
    return bits[0].astype(np.uint32) | bits[1].astype(np.uint32) << 16


def by_half(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The f16x2 operation that computes ``f`` in float64 and rounds once."""

    def both(*operands: np.ndarray) -> np.ndarray:
        low, high = zip(*(halves(o) for o in operands), strict=True)
        return packed(*(f(*(h.astype(np.float64) for h in half)).astype(np.float16) for half in (low, high)))

    return both


def tf32(x: np.ndarray) -> np.ndarray:
    """As in the machine code: ptxas adds half of the last bit, unless it is NaN, and cuts the rest off."""
    bits = x.view(np.uint32)
    return np.where(np.isnan(x), bits, bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def funnel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return b.astype(np.uint64) << np.uint64(32) | a


def pick_bytes(a: np.ndarray, b: np.ndarray, which: list[int]) -> np.ndarray:
    return np.stack([a, b], 1).view(np.uint8)[:, which].copy().view(U)[:, 0]


def fused_bfloat(*operands: np.ndarray) -> np.ndarray:
    """bf16x2 a * b + c."""
    low, high = ([from_bfloat((o >> U(shift)).astype(np.uint16)) for o in operands] for shift in (0, 16))
    return packed(*(to_bfloat(a.astype(np.float64) * b + c) for a, b, c in (low, high)))


S, U, F32 = np.int32, np.uint32, np.float32
# statement with {d} {a} {b} {c} for registers; type of the inputs; type of the result; the numpy equivalent
INSTRUCTIONS: list[tuple[str, Any, Any, Callable[..., Any]]] = [
    ("add.s32 {d}, {a}, {b}", S, S, lambda a, b, c: a + b),
    ("sub.u32 {d}, {a}, 7", U, U, lambda a, b, c: a - U(7)),
    ("mul.lo.s32 {d}, {a}, {b}", S, S, lambda a, b, c: a * b),
    ("mul.hi.u32 {d}, {a}, {b}", U, U, lambda a, b, c: a.astype(np.uint64) * b >> np.uint64(32)),
    ("mul.hi.s32 {d}, {a}, {b}", S, S, lambda a, b, c: a.astype(np.int64) * b >> 32),
    ("mad.lo.s32 {d}, {a}, {b}, {c}", S, S, lambda a, b, c: a * b + c),
    ("mul.wide.s32 {e}, {a}, {b}", S, np.int64, lambda a, b, c: a.astype(np.int64) * b),
    ("mad.wide.u32 {e}, {a}, {b}, 5", U, np.uint64, lambda a, b, c: a.astype(np.uint64) * b + np.uint64(5)),
    ("div.u32 {d}, {a}, 1000", U, U, lambda a, b, c: a // U(1000)),
    ("rem.s32 {d}, {a}, 1000", S, S, lambda a, b, c: np.fmod(a, 1000)),
    ("min.s32 {d}, {a}, {b}", S, S, lambda a, b, c: np.minimum(a, b)),
    ("max.u32 {d}, {a}, {b}", U, U, lambda a, b, c: np.maximum(a, b)),
    ("shl.b32 {d}, {a}, 40", U, U, lambda a, b, c: a * U(0)),
    ("shr.s32 {d}, {a}, 40", S, S, lambda a, b, c: a >> 31),
    ("shr.u32 {d}, {a}, 9", U, U, lambda a, b, c: a >> U(9)),
    ("bfe.u32 {d}, {a}, 5, 9", U, U, lambda a, b, c: a >> U(5) & U(511)),
    ("bfe.s32 {d}, {a}, 28, 9", S, S, lambda a, b, c: a >> 28),
    ("bfi.b32 {d}, {a}, {b}, 8, 12", U, U, lambda a, b, c: b & U(0xFFF000FF) | (a & U(0xFFF)) << U(8)),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xE8", U, U, lambda a, b, c: a & b | a & c | b & c),
    ("prmt.b32 {d}, {a}, {b}, 0x5140", U, U, lambda a, b, c: pick_bytes(a, b, [0, 4, 1, 5])),
    ("shf.l.wrap.b32 {d}, {a}, {b}, 11", U, U, lambda a, b, c: funnel(a, b) >> np.uint64(21)),
    ("shf.r.clamp.b32 {d}, {a}, {b}, 50", U, U, lambda a, b, c: b),
    ("popc.b32 {d}, {a}", U, U, lambda a, b, c: sum(a >> U(i) & U(1) for i in range(32))),
    ("clz.b32 {d}, {a}", U, U, lambda a, b, c: 31 - np.floor(np.log2(a.astype(np.float64)))),
    ("abs.s32 {d}, {a}", S, S, lambda a, b, c: np.abs(a)),
    ("cvt.s32.s8 {d}, {a}", U, S, lambda a, b, c: a.astype(np.uint8).view(np.int8)),
    ("cvt.sat.u8.s32 {d}, {a}", S, S, lambda a, b, c: np.clip(a, 0, 255)),
    ("cvt.rn.f32.u32 {d}, {a}", U, F32, lambda a, b, c: a.astype(F32)),
    ("cvt.u64.u32 {e}, {a}", U, np.uint64, lambda a, b, c: a),
    ("setp.lt.s32 p, {a}, {b}; selp.b32 {d}, 1, 2, p", S, S, lambda a, b, c: np.where(a < b, 1, 2)),
    ("add.rn.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: a + b),
    ("mul.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: a * b),
    ("div.rn.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: a / b),
    ("fma.rn.f32 {d}, {a}, {b}, {c}", F32, F32, lambda a, b, c: fused(a, b, c)),
    ("fma.rm.f32 {d}, {a}, {b}, {c}", F32, F32, lambda a, b, c: directed(-1, a, b, c)),
    ("add.rz.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: directed(0, a, 1, b)),
    ("cvt.rz.f32.s32 {d}, {a}", S, F32, lambda a, b, c: directed(0, a, 1, 0)),
    ("bfind.shiftamt.u32 {d}, {a}", U, U, lambda a, b, c: 31 - np.floor(np.log2(a.astype(np.float64)))),
    ("max.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: np.fmax(a, b)),
    ("max.NaN.f32 {d}, {a}, 0f00000000", F32, F32, lambda a, b, c: np.maximum(a, F32(0))),
    (
        "max.NaN.f32 {d}, {a}, 0fFF800000; cvt.rna.tf32.f32 {d}, {d}",
        F32, F32, lambda a, b, c: tf32(a + F32(0)).view(F32),
    ),
    ("setp.gtu.f32 p, {a}, {b}; selp.f32 {d}, 1.0, 2.0, p", F32, F32, lambda a, b, c: np.where(a <= b, 2, 1)),
    ("sqrt.rn.f32 {d}, {a}", F32, F32, lambda a, b, c: np.sqrt(a)),
    ("add.ftz.f32 {d}, {a}, 0f00000000", F32, F32, lambda a, b, c: np.where(np.abs(a) < 2.0**-126, 0, a)),
    ("add.sat.f32 {d}, {a}, {b}", F32, F32, lambda a, b, c: np.nan_to_num(np.clip(a + b, 0, 1), nan=0.0)),
    ("cvt.rzi.s32.f32 {d}, {a}", F32, S, lambda a, b, c: to_int(np.trunc(a))),
    ("cvt.rni.s32.f32 {d}, {a}", F32, S, lambda a, b, c: to_int(np.rint(a))),
    ("cvt.rmi.f32.f32 {d}, {a}", F32, F32, lambda a, b, c: np.floor(a)),
    ("cvt.rn.f16.f32 {h}, {a}; cvt.u32.u16 {d}, {h}", F32, U, lambda a, b, c: packed(a, a * 0) & U(0xFFFF)),
    ("cvt.rn.bf16.f32 {h}, {a}; cvt.u32.u16 {d}, {h}", F32, U, lambda a, b, c: to_bfloat(a)),
    ("cvt.rn.f16x2.f32 {d}, {a}, {b}", F32, U, lambda a, b, c: packed(b, a)),
    ("cvt.rn.bf16x2.f32 {d}, {a}, {b}", F32, U, lambda a, b, c: packed(to_bfloat(b), to_bfloat(a))),
    ("cvt.rn.relu.f16x2.f32 {d}, 0fC0000000, {a}", F32, U, lambda a, b, c: packed(a.clip(0), np.zeros(256))),
    ("cvt.rna.tf32.f32 {d}, {a}", F32, U, lambda a, b, c: tf32(a)),
    ("cvt.u16.u32 {h}, {a}; cvt.f32.f16 {d}, {h}", U, F32, lambda a, b, c: halves(a)[0]),
    ("add.f16x2 {d}, {a}, {b}", U, U, by_half(lambda a, b, c: a + b)),
    ("mul.f16x2 {d}, {a}, {b}", U, U, by_half(lambda a, b, c: a * b)),
    ("fma.rn.f16x2 {d}, {a}, {b}, {c}", U, U, by_half(lambda a, b, c: a * b + c)),
    ("max.f16x2 {d}, {a}, {b}", U, U, by_half(lambda a, b, c: np.fmax(a, b))),
    ("fma.rn.relu.f16x2 {d}, {a}, {b}, {c}", U, U, by_half(lambda a, b, c: np.maximum(a * b + c, 0))),
    ("fma.rn.bf16x2 {d}, {a}, {b}, {c}", U, U, fused_bfloat),
]  # fmt: skip


@functools.partial(np.vectorize, otypes=[F32])
def directed(sign: int, a: float, b: float, c: float) -> np.float32:
    """The exact value of a * b + c, rounded down (sign -1) or towards zero (0)."""
    if not np.isfinite([a, b, c]).all():
        return F32(a * b + c)
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    nearest, end = F32(float(exact)), F32(-np.inf if sign < 0 else 0)
    beyond = nearest > exact if sign < 0 else abs(Fraction(float(nearest))) > abs(exact)
    return np.nextafter(nearest, end) if beyond else nearest


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.longdouble) * b + c).astype(F32)


def to_int(x: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(x.astype(np.float64), nan=0.0), -(2**31), 2**31 - 1).astype(S)


def test_arithmetic_equals_numpy() -> None:
    n, body = 256, []
    for number, (statement, kind, _, _) in enumerate(INSTRUCTIONS):
        letter = "f" if kind is F32 else "i"
        names = {x: f"%{letter}{x}" for x in "abc"} | {"d": "%d", "e": "%e", "h": "%h"}
        body.append(f"mov.b64 %e, 0; mov.b32 %d, 0; {statement.format(**names)};")
        if "{d}" in statement:
            body.append("cvt.u64.u32 %e, %d;")
        body.append(f"st.global.u64 [%out + {8 * n * number}], %e;")
    loads = "".join(
        f"ld.global.b32 %{k}{x}, [%in + {4 * n * (3 * i + j)}];"
        for i, k in enumerate("fi")
        for j, x in enumerate("abc")
    )
    text = f""".version 8.0
    .target sm_80
    .visible .entry table(.param .u64 x, .param .u64 y) {{
      .reg .b32 %fa, %fb, %fc, %ia, %ib, %ic, %d, %t; .reg .b16 %h; .reg .pred p; .reg .b64 %e, %in, %out, %o;
      mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 4; ld.param.u64 %in, [x]; add.s64 %in, %in, %o;
      mul.wide.u32 %o, %t, 8; ld.param.u64 %out, [y]; add.s64 %out, %out, %o;
      {loads} {" ".join(body)} ret; }}"""
    f = floats()
    ordinary = np.where(np.isfinite(f), f, F32(1))
    ints = rng().integers(1, 2**32, (3, n), np.uint32)
    inputs = np.concatenate([np.stack([f, np.roll(ordinary, 5), np.roll(ordinary, 9)]).view(np.uint32), ints])
    out = poisoned((len(INSTRUCTIONS), n), np.uint64)
    load(text)["table"].launch(1, n, [inputs, out])
    with np.errstate(all="ignore"):
        for number, (statement, kind, result, function) in enumerate(INSTRUCTIONS):
            operands = inputs[:3] if kind is F32 else inputs[3:]
            want = np.asarray(function(*(o.view(kind) for o in operands))).astype(result)
            got = (
                out[number].astype(np.uint32).view(result)
                if np.dtype(result).itemsize == 4
                else out[number].view(result)
            )
            if "16" in statement and result is U:
                want, got = (canonical_nan(v, "bf16" in statement) for v in (want, got))
            np.testing.assert_array_equal(got, want, err_msg=statement)


def canonical_nan(x: np.ndarray, bfloat: bool) -> np.ndarray:
    """Packed 16-bit floats in which all NaNs are the same."""
    pair = np.stack([x & U(0xFFFF), x >> U(16)]).astype(np.uint16)
    infinity = 0x7F80 if bfloat else 0x7C00
    pair[(pair & 0x7FFF) > infinity] = 0x7FFF
    return packed(*pair)


# -- results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_tensor_core_product(kind: str, seed: int) -> None:
    m, n, k = 128, 16, 80
    (a, wide_a), (b, wide_b) = matrix(m, k, kind=kind), matrix(k, n, kind=kind)
    c = poisoned((m, n), F32)
    counts = shared_module()[f"product_{kind}"].launch((m // 64, n // 8), 128, [a, b, c, n, k], seed=seed)
    assert error(c, wide_a @ wide_b) <= 1e-6
    assert counts.tensor == {f"m16n8k16.f32.{kind}": m // 16 * (n // 8) * (k // 16)}
    assert counts.multiply_adds == m * n * k
    assert counts.read_bytes == (m * k * (n // 8) + k * n * (m // 64)) * 2
    assert counts.written_bytes == counts.by_buffer["arg 2"][1] == m * n * 4


def test_tf32_product() -> None:
    (a, wide_a), (b, wide_b) = matrix(16, 8, kind="f32"), matrix(8, 8, kind="f32")
    c = poisoned((16, 8), F32)
    shared_module()["product_tf32"].launch(1, 32, [a, b, c])
    assert 1e-6 < error(c, wide_a @ wide_b) <= 1e-3


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("arch", [75, 90])
def test_smallest_product(kind: str, arch: int) -> None:
    if (kind, arch) == ("bf16", 75):
        pytest.skip("sm_75 has no bfloat16 tensor cores")
    text = f""".version 8.0
    .target sm_{arch}
    .visible .entry small(.param .u64 a, .param .u64 b, .param .u64 c) {{
      .reg .b32 %t, %r<3>; .reg .f32 %s<4>; .reg .b64 %a, %b, %c, %o;
      mov.u32 %t, %tid.x; ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %c, [c];
      mul.wide.u32 %o, %t, 4; add.s64 %a, %a, %o; add.s64 %b, %b, %o;
      mul.wide.u32 %o, %t, 8; add.s64 %c, %c, %o;
      ld.global.b32 %r0, [%a]; ld.global.b32 %r1, [%a + 128]; ld.global.b32 %r2, [%b];
      mma.sync.aligned.m16n8k8.row.col.f32.{kind}.{kind}.f32 {{%s0, %s1, %s2, %s3}}, {{%r0, %r1}}, {{%r2}},
        {{0f00000000, 0f00000000, 0f00000000, 0f3F800000}};
      st.global.v2.f32 [%c], {{%s0, %s1}}; st.global.v2.f32 [%c + 256], {{%s2, %s3}}; ret; }}"""
    # row-major 16 x 8 and column-major 8 x 8: lane i holds elements 2i and 2i + 1 of each half
    (a, wide_a), (b, wide_b) = matrix(16, 8, kind=kind), matrix(8, 8, kind=kind)
    c = poisoned((16, 8), F32)
    load(text)["small"].launch(1, 32, [a, b.T.copy(), c])
    want = wide_a @ wide_b
    want[8:, 1::2] += 1
    assert error(c, want) <= 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sum(seed: int) -> None:
    x, out = rng().standard_normal(1000).astype(F32), poisoned(4, F32)
    counts = shared_module()["sum"].launch(4, 256, [x, out, 1000], seed=seed, shuffle_blocks=True)
    np.testing.assert_allclose(out, np.pad(x, (0, 24)).reshape(4, 256).sum(1), rtol=1e-5)
    assert (counts.read_bytes, counts.written_bytes, counts.barriers) == (4000, 16, 12)


def test_warp_instructions() -> None:
    x, out = rng().integers(50, 150, 32, np.int32), poisoned((32, 8), np.int32)
    shared_module()["shuffles"].launch(1, 32, [x, out])
    lane = np.arange(32)
    want = [
        x[np.where(lane >= 3, lane - 3, lane)],
        x[np.where(lane % 16 + 5 < 16, lane + 5, lane)],
        x[lane ^ 9],
        x[x & 31],
        np.full(32, int((x & 1) @ (1 << lane.astype(np.int64))), np.uint32).view(np.int32),
        np.full(32, x.sum()),
        np.full(32, x.min()),
        np.full(32, 1),
    ]
    np.testing.assert_array_equal(out.T, want)


def test_struct_parameter_and_constants() -> None:
    x, y, memory = rng().standard_normal(100).astype(F32), poisoned(100, F32), Memory()
    module = fresh_module()  # its constants change
    data = struct.pack("<QQ3fi", memory.address_of(x, "x"), memory.address_of(y, "y"), 2, 3, 4, 100)
    module["scale"].launch(4, 32, [data, 1], memory=memory)
    np.testing.assert_allclose(y, x * 3 + 2, rtol=1e-5)
    module.data["offset"].view(F32)[:] = 10
    module["scale"].launch(4, 32, [data, 2], memory=memory)
    np.testing.assert_allclose(y, x * 4 + 10, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_correct_synchronisation_is_no_error(seed: int) -> None:
    x, y = rng().standard_normal(256).astype(F32), poisoned(256, F32)
    shared_module()["pipeline"].launch(1, 64, [x, y], seed=seed)
    np.testing.assert_array_equal(y.reshape(8, 32), x.reshape(8, 32)[:, ::-1])
    shared_module()["reverse"].launch(1, 32, [x, y], seed=seed)
    np.testing.assert_array_equal(y[:32], x[31::-1])


def test_atomics() -> None:
    total, sums = np.zeros(2, np.int32), poisoned(3, F32)
    shared_module()["atomics"].launch(3, 96, [total, sums])
    assert total.tolist() == [3 * 96 * 95 // 2, 95]
    assert sums.tolist() == [48, 48, 48]


# number of matrices, transposed, state space; the tests of planted bugs use the first
MATRICES = [(n, trans, space) for n in (4, 2, 1) for trans in ("", ".trans") for space in ("", "::cta")]


@functools.cache
def store_and_read(how: str, barrier: str, variants: int = len(MATRICES)) -> Module:
    """A kernel that, for each variant, stores a warp's registers, four per lane, with stmatrix at the shared
    addresses `to`, and then reads the addresses `from`, as "rows" of 16 bytes or with "ldmatrix"."""
    body = []
    for number, (count, trans, space) in enumerate(MATRICES[:variants]):
        matrices = f"matrix.sync.aligned.m8n8.x{count}{trans}.shared{space}.b16"
        sources, targets = ("{" + ", ".join(f"%{x}{i}" for i in range(count)) + "}" for x in "rs")
        read = f"ld{matrices} {targets}, [%from];"
        if how == "rows":
            read = f"setp.lt.u32 %p, %t, {8 * count}; @%p ld.shared.v4.b32 {{%s0, %s1, %s2, %s3}}, [%from];"
        body.append(f"""st{matrices} [%to], {sources}; {barrier}
          mov.b32 %s0, -1; mov.b32 %s1, -1; mov.b32 %s2, -1; mov.b32 %s3, -1; {read} {barrier}
          st.global.v4.b32 [%out + {512 * number}], {{%s0, %s1, %s2, %s3}};""")
    return load(f""".version 7.8
    .target sm_90
    .address_size 64
    .visible .entry matrices(.param .u64 x, .param .u64 to, .param .u64 from, .param .u64 out) {{
      .reg .b32 %t, %to, %from, %r<4>, %s<4>; .reg .b64 %a, %out, %o; .reg .pred %p;
      .shared .align 16 .b8 rows[1024];
      mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 16;
      ld.param.u64 %a, [x]; add.s64 %a, %a, %o; ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a];
      ld.param.u64 %out, [out]; add.s64 %out, %out, %o; mul.wide.u32 %o, %t, 4;
      ld.param.u64 %a, [to]; add.s64 %a, %a, %o; ld.global.b32 %to, [%a];
      ld.param.u64 %a, [from]; add.s64 %a, %a, %o; ld.global.b32 %from, [%a];
      {" ".join(body)} ret; }}""")


def fragments() -> np.ndarray:
    """Registers (lane, matrix). Element i of matrix m is 64 m + i, in lane order, low half first."""
    elements = np.arange(4 * 64, dtype=np.uint16).reshape(4, 32, 2)
    return np.ascontiguousarray(elements.transpose(1, 0, 2)).view(np.uint32)[..., 0]


def matrix_rows() -> np.ndarray:
    """Random addresses of 32 rows in shared memory."""
    return (16 * rng().permutation(64)[:32]).astype(np.uint32)


def test_stmatrix_layout() -> None:
    """Lanes 4r to 4r+3 have row r of a matrix, two elements each; .trans stores columns as rows."""
    rows, out = matrix_rows(), poisoned((len(MATRICES), 32, 8), np.uint16)
    counts = store_and_read("rows", "bar.sync 0;")["matrices"].launch(1, 32, [fragments(), rows, rows, out])
    matrices = np.arange(4 * 64).reshape(4, 8, 8)
    for (count, trans, space), got in zip(MATRICES, out, strict=True):
        want = matrices.swapaxes(1, 2) if trans else matrices
        name = f"x{count}{trans}.shared{space}"
        np.testing.assert_array_equal(got[: 8 * count].reshape(-1, 8, 8), want[:count], err_msg=name)
        assert (got[8 * count :] == 0xFFFF).all()
    assert counts.shared_written_bytes == counts.shared_read_bytes == sum(128 * n for n, _, _ in MATRICES)


def test_ldmatrix_undoes_stmatrix() -> None:
    rows, out = matrix_rows(), poisoned((len(MATRICES), 32, 4), np.uint32)
    kernel = store_and_read("ldmatrix", "bar.warp.sync 0xffffffff;")["matrices"]
    kernel.launch(1, 32, [fragments(), rows, rows, out])
    for (count, _, _), got in zip(MATRICES, out, strict=True):
        np.testing.assert_array_equal(got[:, :count], fragments()[:, :count])


def test_stmatrix_takes_addresses_of_the_lanes_with_rows() -> None:
    """x1 uses the addresses of lanes 0 to 7, and ignores those of the other lanes."""
    text = """.version 7.8
    .target sm_90
    .address_size 64
    .visible .entry k(.param .u64 out) {
      .reg .b32 %t, %row, %v; .reg .b64 %out, %o; .reg .pred %p; .shared .align 16 .b8 rows[128];
      mov.u32 %t, %tid.x; shl.b32 %row, %t, 4; setp.ge.u32 %p, %t, 8; @%p mov.b32 %row, -1;
      stmatrix.sync.aligned.m8n8.x1.shared.b16 [%row], {%t}; bar.sync 0;
      shl.b32 %row, %t, 2; ld.shared.b32 %v, [%row];
      ld.param.u64 %out, [out]; mul.wide.u32 %o, %t, 4; add.s64 %out, %out, %o; st.global.b32 [%out], %v;
      ret; }"""
    out = poisoned(32, np.uint32)
    load(text)["k"].launch(1, 32, [out])
    assert out.tolist() == list(range(32))


# -- counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "ways"), [(1, 1), (2, 2), (3, 1), (8, 8), (32, 32)])
def test_bank_conflicts(stride: int, ways: int) -> None:
    y = poisoned(64, F32)
    counts = shared_module()["fill_dynamic"].launch(1, 64, [y, stride], shared_bytes=64 * stride * 4)
    # two warps, one store and one load each
    assert (counts.shared_wavefronts, counts.shared_ideal_wavefronts) == (4 * ways, 4)
    assert (counts.written_bytes, counts.written_sectors, counts.barriers) == (256, 8, 1)
    assert (counts.shared_written_bytes, counts.shared_read_bytes) == (256, 256)


def test_ldmatrix_conflicts() -> None:
    (a, _), (b, _), c = matrix(64, 16), matrix(16, 8), poisoned((64, 8), F32)
    counts = shared_module()["product_f16"].launch(1, 128, [a, b, c, 8, 16])
    # per warp: 4 + 2 ldmatrix phases, no conflicts; copies: 128 x 16 bytes to rows 48 bytes apart, 16 x 16
    assert counts.shared_ideal_wavefronts == 4 * 6 + 128 // 8 + 16 // 8
    assert counts.shared_read_bytes == 4 * 6 * 128
    assert counts.fma == {}


@pytest.mark.parametrize(("pitch", "ways"), [(1, 1), (2, 2)])
def test_stmatrix_conflicts(pitch: int, ways: int) -> None:
    """Rows are `pitch` x 16 bytes apart. Each matrix is a phase; ld.shared.v4 has the same conflicts."""
    rows, out = (16 * pitch * np.arange(32)).astype(np.uint32), poisoned((len(MATRICES), 32, 4), np.uint32)
    counts = store_and_read("rows", "bar.sync 0;")["matrices"].launch(1, 32, [fragments(), rows, rows, out])
    phases = 2 * sum(count for count, _, _ in MATRICES)
    assert (counts.shared_wavefronts, counts.shared_ideal_wavefronts) == (phases * ways, phases)


def test_sectors_of_a_strided_read() -> None:
    x, y, memory = np.ones(32 * 8 + 1, F32), poisoned(32, F32), Memory()
    text = """.version 8.0
    .target sm_80
    .visible .entry gather(.param .u64 x, .param .u64 y) {
      .reg .b32 %t, %v; .reg .b64 %x, %y, %o; .reg .pred %odd;
      mov.u32 %t, %tid.x; ld.param.u64 %x, [x]; ld.param.u64 %y, [y];
      mul.wide.u32 %o, %t, 32; add.s64 %x, %x, %o; mul.wide.u32 %o, %t, 4; add.s64 %y, %y, %o;
      and.b32 %v, %t, 1; setp.ne.s32 %odd, %v, 0; mov.b32 %v, 0;
      @%odd ld.global.f32 %v, [%x + 4]; st.global.f32 [%y], %v; ret; }"""
    counts = load(text)["gather"].launch(1, 32, [x, y], memory=memory)
    assert y.tolist() == [0.0, 1.0] * 16
    assert (counts.read_bytes, counts.read_sectors, counts.written_sectors) == (64, 16, 4)


# -- planted bugs ---------------------------------------------------------------------------------------


def caught(name: str, message: str, block: int, args: list[Any], seed: int = 0, **options: Any) -> str:
    with pytest.raises(KernelError, match=message) as error:
        shared_module()[name].launch(1, block, args, seed=seed, **options)
    text = str(error.value)
    assert text.startswith(f"{name}: ")
    assert "PTX line" in text
    assert "examples.cu:" in text
    return text


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_barrier_is_caught(seed: int) -> None:
    x, y = np.ones(256, F32), poisoned(256, F32)
    x += rng().standard_normal(256).astype(F32)
    caught("sum_without_barrier", "race: read|race: write|never written", 256, [x, y, 256], seed)
    (a, _), (b, _), c = matrix(64, 64), matrix(64, 8), poisoned((64, 8), F32)
    caught("product_without_barrier", "race: write", 128, [a, b, c, 8, 64], seed)
    caught("pipeline_without_room", "race: write|arrives again", 64, [x, y], seed)
    caught("reverse_without_sync", "race: |never written", 32, [x, y], seed)
    caught("reverse_after_shuffle", "race: read of .* after its write by thread", 32, [x, y], seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_async_wait_is_caught(seed: int) -> None:
    (a, _), (b, _), c = matrix(64, 64), matrix(64, 8), poisoned((64, 8), F32)
    caught("product_without_wait", "before the cp.async into it", 128, [a, b, c, 8, 64], seed)


def test_wrong_fragment_layout_gives_a_wrong_product() -> None:
    (a, wide_a), (b, wide_b), c = matrix(64, 16), matrix(16, 8), poisoned((64, 8), F32)
    shared_module()["product_wrong_layout"].launch(1, 128, [a, b, c, 8, 16])
    assert error(c, wide_a @ wide_b) > 0.1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (24 * 16 + 8, r"misaligned shared write of 16 bytes at 392"),
        (1024, r"shared write of 16 bytes at 1024 is outside the 1024 bytes"),
        (-16, r"shared write of 16 bytes at 4294967280 is outside the 1024 bytes"),
        (0, r"race: write of shared byte 0 is not ordered after its write by thread 0"),
    ],
    ids=["misaligned", "behind the end", "before the start", "two rows in one place"],
)
def test_wrong_rows_of_stmatrix_are_caught(row: int, message: str) -> None:
    """One of the 32 row addresses is wrong."""
    rows, out = (16 * np.arange(32)).astype(np.uint32), poisoned((len(MATRICES), 32, 4), np.uint32)
    wrong = rows.copy()
    wrong[13] = row & 0xFFFFFFFF
    with pytest.raises(KernelError, match=message) as error:
        store_and_read("rows", "bar.sync 0;")["matrices"].launch(1, 32, [fragments(), wrong, rows, out])
    assert "thread (13, 0, 0)" in str(error.value)
    assert "stmatrix" in str(error.value)


@pytest.mark.parametrize("shift", [0, 1], ids=["the row it gave the address of", "another lane's row"])
@pytest.mark.parametrize("how", ["rows", "ldmatrix"])
def test_missing_barrier_after_stmatrix_is_caught(how: str, shift: int) -> None:
    rows, out = matrix_rows(), poisoned((32, 4), np.uint32)
    kernel = store_and_read(how, "", variants=1)["matrices"]
    for seed in SEEDS:
        with pytest.raises(KernelError, match=r"race: read of .* is not ordered after its write"):
            kernel.launch(1, 32, [fragments(), rows, np.roll(rows, shift), out], seed=seed)


def test_rows_that_stmatrix_did_not_write_are_caught() -> None:
    rows, out = matrix_rows(), poisoned((len(MATRICES), 32, 4), np.uint32)
    elsewhere = rows.copy()
    elsewhere[5] = next(row for row in range(0, 1024, 16) if row not in rows)
    with pytest.raises(KernelError, match=f"shared byte {elsewhere[5]} is read but was never written"):
        store_and_read("rows", "bar.sync 0;")["matrices"].launch(1, 32, [fragments(), rows, elsewhere, out])


def test_half_a_warp_at_stmatrix_is_caught() -> None:
    rows, out = matrix_rows(), poisoned((len(MATRICES), 32, 4), np.uint32)
    with pytest.raises(KernelError, match="stmatrix needs all 32 lanes, got 0x0000ffff"):
        store_and_read("rows", "bar.sync 0;")["matrices"].launch(1, 16, [fragments(), rows, rows, out])


@pytest.mark.parametrize(
    "statement",
    [
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%a], {%r, %r};",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r, %r, %r, %r}, [%a];",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%a], {%r};",
    ],
)
def test_wrong_matrix_instructions_are_refused(statement: str) -> None:
    text = f".version 8.6\n.target sm_100a\n.visible .entry k() {{ .reg .b32 %a, %r; {statement} ret; }}"
    with pytest.raises(UnknownInstruction, match=r"k: PTX line 3: unknown instruction `(ld|st)matrix"):
        _ = load(text)["k"].translation


def test_reads_outside_a_buffer_are_caught() -> None:
    x, y = np.ones(64, F32), poisoned(64, F32)
    text = caught(
        "read_past_the_end", r"global read of 4 bytes at byte 256 of `arg 0`, which has 256 bytes", 64, [x, y]
    )
    assert "thread (63, 0, 0)" in text
    inside = np.ones(66, F32)[1:65]  # the memory after a view does not belong to it
    caught("read_past_the_end", "at byte 256 of `arg 0`", 64, [inside, y])
    memory = Memory()
    before = memory.address_of(x, "x") - 200
    caught("read_past_the_end", r"\d+ bytes before `x`", 64, [before, y], memory=memory)
    caught("read_past_the_end", "in no buffer", 64, [0, y])


def test_writes_to_read_only_memory_are_caught() -> None:
    x, y = np.ones(65, F32), poisoned(64, F32)
    y.flags.writeable = False
    caught("read_past_the_end", "global write to `arg 1`, which is read-only", 64, [x, y])


def test_misaligned_vector_is_caught() -> None:
    x, y = np.ones(200, F32), poisoned((32, 4), F32)
    caught("read_misaligned", "misaligned global read of 16 bytes", 32, [x, y])


def test_cp_async_that_reads_more_than_its_size_is_caught() -> None:
    kernel = load(
        f"{HEAD}.visible .entry k(.param .u64 in) {{ .reg .b64 %in; .shared .align 4 .b8 s[16]; "
        "ld.param.u64 %in, [in]; cp.async.ca.shared.global [s], [%in], 4, 8; ret; }"
    )["k"]
    with pytest.raises(KernelError, match=r"cp\.async of 4 bytes reads 8 bytes"):
        kernel.launch(1, 1, [np.zeros(4, F32)])


def test_uninitialised_shared_memory_is_caught() -> None:
    y = poisoned(64, F32)
    text = caught("read_uninitialized", "shared byte 252 is read but was never written", 64, [y])
    assert "thread (63, 0, 0)" in text
    shared_module()["read_uninitialized"].launch(1, 64, [y], allow_uninitialized=True)
    assert np.isnan(y).tolist() == [False] * 63 + [True]


def test_shared_size_is_caught() -> None:
    y = poisoned(64, F32)
    caught("fill_dynamic", "outside the 252 bytes of shared memory", 64, [y, 1], shared_bytes=252)


@pytest.mark.parametrize("seed", SEEDS)
def test_deadlocks_are_caught(seed: int) -> None:
    y = poisoned(64, F32)
    caught("diverging_barrier", "deadlock|divergent barrier", 64, [y], seed)
    caught("half_warp_shuffle", "deadlock", 32, [y], seed)


def diverging(barrier: str) -> Any:
    """A kernel in which each half of the warp waits at its own barrier of this kind."""
    return load(
        f"{HEAD}.visible .entry k() {{ .reg .b32 %t; .reg .pred %p; mov.u32 %t, %tid.x; "
        f"setp.lt.u32 %p, %t, 16; @%p bra L; {barrier}; bra M; L: {barrier}; M: ret; }}"
    )["k"]


def test_only_unaligned_barriers_may_diverge() -> None:
    diverging("barrier.sync 0").launch(1, 32, [])
    with pytest.raises(KernelError, match="divergent barrier"):
        diverging("bar.sync 0").launch(1, 32, [])


ALIGNED = {
    "barrier": "bar.sync 0;",
    "load": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r}, [rows];",
    "product": (
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f, %f, %f, %f}, {%r, %r}, {%r}, {%f, %f, %f, %f};"
    ),
}
JOINED = {  # how a warp comes to an instruction, and whether all lanes come on one path
    "after a branch": ("@%half bra B; mov.b32 %r, 1; B: {}", True),
    "in a branch that all take": ("@%none bra B; mov.b32 %r, 1; {} B:", True),
    "in a loop": (
        "L: @%half bra B; mov.b32 %r, 1; B: {} add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 3; @%p bra L;",
        True,
    ),
    "in the next round of a loop": (
        "L: @%half bra B; {} B: not.pred %half, %half; add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 2; @%p bra L;",
        False,
    ),
    "from both sides of a branch": ("@%half bra B; mov.b32 %r, 1; @%none bra C; B: {} C:", False),
    "together again": ("@%half bra B; mov.b32 %r, 1; @%none bra C; B: bar.warp.sync -1; {} C:", True),
}
"""Half of a warp has the predicate %half, and no lane has %none."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("instruction", ALIGNED)
@pytest.mark.parametrize("how", JOINED)
def test_aligned_instructions_must_not_diverge(how: str, instruction: str, seed: int) -> None:
    """Where lanes come on different paths, hardware may execute the instruction once for each."""
    body, is_right = JOINED[how]
    kernel = load(
        f"{HEAD}.visible .entry k() {{ .reg .b32 %t, %r, %i; .reg .f32 %f; .reg .pred %half, %none, %p; "
        ".shared .align 16 .b8 rows[16]; mov.u32 %t, %tid.x; setp.lt.u32 %half, %t, 16; mov.b32 %i, 0; "
        f"setp.gt.u32 %none, %t, 31; {body.format(ALIGNED[instruction])} ret; }}"
    )["k"]
    if is_right:
        kernel.launch(1, 32, [], seed=seed, allow_uninitialized=True)
        return
    with pytest.raises(KernelError, match=r"divergent code: threads .* from PTX line 4 `@%.* bra"):
        kernel.launch(1, 32, [], seed=seed, allow_uninitialized=True)


@pytest.mark.parametrize(("target", "count", "is_right"), [(75, 4, True), (75, 2, False), (80, 2, True)])
def test_ldmatrix_on_sm_75_needs_addresses_of_all_lanes(target: int, count: int, is_right: bool) -> None:
    """Lanes 16 to 31 give addresses behind the end, which newer targets do not use."""
    registers = ", ".join(["%r"] * count)
    limit = 16 * (8 * count)
    kernel = load(
        f".version 8.0\n.target sm_{target}\n.visible .entry k() {{ .reg .b32 %t, %r; "
        f".shared .align 16 .b8 rows[{limit}]; mov.u32 %t, %tid.x; shl.b32 %t, %t, 4; "
        f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{registers}}}, [%t]; ret; }}"
    )["k"]
    if is_right:
        kernel.launch(1, 32, [], allow_uninitialized=True)
        return
    with pytest.raises(KernelError, match="shared read of 16 bytes at 256 is outside the 256 bytes") as error:
        kernel.launch(1, 32, [], allow_uninitialized=True)
    assert "thread (16, 0, 0)" in str(error.value)


@pytest.mark.parametrize(
    ("barrier", "message"),
    [
        ("bar.sync 16", "barrier 16: a block has barriers 0 to 15"),
        ("bar.sync 0, 31", "barrier count 31 is not a multiple of 32"),
    ],
)
def test_invalid_barriers_are_caught(barrier: str, message: str) -> None:
    kernel = load(f"{HEAD}.visible .entry k() {{ {barrier}; ret; }}")["k"]
    with pytest.raises(KernelError, match=message):
        kernel.launch(1, 32, [])


def test_endless_loop_is_caught() -> None:
    caught("endless", "no end after 100000 loop steps", 32, [np.zeros(1, np.int32)], loop_limit=100_000)


def test_unknown_instruction_is_named() -> None:
    text = ".version 8.0\n.target sm_90\n.visible .entry k() {\n\n wgmma.fence.sync.aligned; ret; }"
    with pytest.raises(
        UnknownInstruction, match=r"k: PTX line 5: unknown instruction `wgmma.fence.sync.aligned`"
    ):
        load(text)["k"].launch(1, 32, [])


def test_invalid_launches_are_refused() -> None:
    kernel, x = shared_module()["read_past_the_end"], np.ones(65, F32)
    with pytest.raises(ValueError, match="the number of arguments must be 2, got 1"):
        kernel.launch(1, 64, [x])
    with pytest.raises(TypeError, match="cannot pass a str"):
        kernel.launch(1, 64, [x, "y"])
    with pytest.raises(ValueError, match="1 to 1024 threads"):
        kernel.launch(1, 2048, [x, x])
    with pytest.raises(ValueError, match="1 to 64 threads, got 65"):
        shared_module()["fill_dynamic"].launch(1, 65, [x, 1])
    with pytest.raises(KeyError, match="names 6 kernels"):
        shared_module()["product"].launch(1, 32, [])


@pytest.mark.parametrize(("limit", "least"), [(".reqntid 8, 4", 32), (".maxntid 8, 4", 1)])
def test_block_size_is_within_the_limits_of_the_kernel(limit: str, least: int) -> None:
    kernel = load(f"{HEAD}.visible .entry k() {limit} {{ ret; }}")["k"]
    assert kernel.kernel.threads == (least, 32)
    with pytest.raises(ValueError, match=f"block must have {least} to 32 threads, got 33"):
        kernel.launch(1, 33, [])
    if least > 1:
        with pytest.raises(ValueError, match="block must have 32 to 32 threads, got 31"):
            kernel.launch(1, 31, [])


@pytest.mark.parametrize("size", [0, (1, 0), (1, 1, 1, 1), ()])
def test_invalid_grid_sizes_are_refused(size: Any) -> None:
    kernel = load(f"{HEAD}.visible .entry k() {{ ret; }}")["k"]
    with pytest.raises(ValueError, match=re.escape(f"grid must be one to three positive sizes, got {size}")):
        kernel.launch(size, 1, [])


DEFINED = {
    "sad.s32 %r, -3, 5, 10": 18,
    "sad.u32 %r, 5, 3, 1": 3,
    "cnot.b32 %r, 0": 1,
    "cnot.b32 %r, 7": 0,
    "div.u32 %r, 7, 0": 2**32 - 1,  # what GPUs compute
    "rem.u32 %r, 7, 0": 7,
    "rem.u32 %r, 7, 4": 3,
    "copysign.f32 %f, 0f40000000, 0fBF800000; mov.b32 %r, %f": 0x3F800000,  # -1 with the sign of 2
    "copysign.f32 %f, 0fC0000000, 0f3F800000; mov.b32 %r, %f": 0xBF800000,
    **{
        f"st.global.u32 [%at], {before}; atom.global.{op}.u32 %r, [%at], 5; ld.global.u32 %r, [%at]": after
        for op, before, after in (
            *(("inc", 4, 5), ("inc", 5, 0), ("inc", 6, 0)),
            *(("dec", 3, 2), ("dec", 5, 4), ("dec", 9, 5), ("dec", 0, 5)),
        )
    },
}
"""Statements that the compiled kernels here do not use, and the value of %r according to the PTX manual."""


def test_results_are_those_of_the_manual() -> None:
    body = " ".join(f"{text}; st.global.u32 [%out+{4 * n}], %r;" for n, text in enumerate(DEFINED))
    kernel = load(
        f"{HEAD}.visible .entry k(.param .u64 out, .param .u64 at) {{ .reg .b32 %r; .reg .f32 %f;"
        f" .reg .b64 %out, %at; ld.param.u64 %out, [out]; ld.param.u64 %at, [at]; {body} ret; }}"
    )["k"]
    out = poisoned(len(DEFINED), np.uint32)
    kernel.launch(1, 1, [out, np.zeros(1, np.uint32)])
    assert dict(zip(DEFINED, out.tolist(), strict=True)) == DEFINED


def result_of_a_warp(body: str) -> int:
    """The .b32 register %r after ``body``, in which %t is the thread's index, %p and %q are predicates."""
    kernel = load(
        f"{HEAD}.visible .entry k(.param .u64 out) {{ .reg .b32 %t, %r; .reg .pred %p, %q; .reg .b64 %out; "
        f"mov.u32 %t, %tid.x; {body} ld.param.u64 %out, [out]; st.global.u32 [%out], %r; ret; }}"
    )["k"]
    out = poisoned(1, np.uint32)
    kernel.launch(1, 32, [out])
    return int(out[0])


@pytest.mark.parametrize(
    ("kind", "expected"), [("max.s32", 11), ("min.s32", 2**32 - 20), ("max.u32", 2**32 - 1), ("min.u32", 0)]
)
def test_warp_reductions_of_signed_and_unsigned_integers(kind: str, expected: int) -> None:
    body = f"sub.u32 %t, %t, 20; redux.sync.{kind} %r, %t, 0xffffffff;"
    assert result_of_a_warp(body) == expected


@pytest.mark.parametrize(("least", "same"), [(0, 1), (5, 0), (32, 1)])
def test_vote_is_uniform_if_all_lanes_agree(least: int, same: int) -> None:
    body = f"setp.lt.u32 %p, %t, {least}; vote.sync.uni.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;"
    assert result_of_a_warp(body) == same


def test_numbers_must_fit_their_parameters() -> None:
    kernel = load(f"{HEAD}.visible .entry k(.param .u32 n) {{ ret; }}")["k"]
    for number in (2**32, -(2**31) - 1):
        with pytest.raises(ValueError, match=f"argument 0 of k: {number} does not fit 4 bytes"):
            kernel.launch(1, 1, [number])
    for number in (2**32 - 1, -(2**31)):
        kernel.launch(1, 1, [number])


def test_variables_and_skipped_functions() -> None:
    """Functions, including their labels and scopes, are skipped; variables and kernels after them are not."""
    module = load(
        f"""{HEAD}
        .global .align 4 .u32 numbers[4] = {{5U, 0x10, -1}};
        .extern .func outside(.param .b32 x);
        .visible .func inside() {{ {{ .reg .b32 %a; mov.u32 %a, 1; }} here: ret; }}
        .const .f32 floats[3] = {{0f3F800000, 0F40000000}};
        .visible .entry k() {{ .local .align 8 .b8 own[12]; .shared .align 4 .b8 both[20]; ret; }}
        .visible .func after() {{ ret; }}
        .global .u16 last;
        """
    )
    assert module.data["numbers"].view(np.uint32).tolist() == [5, 16, 2**32 - 1, 0]
    assert module.data["floats"].view(F32).tolist() == [1, 2, 0]
    assert module.data["last"].tolist() == [0, 0]
    kernel = module["k"].kernel
    assert (kernel.local_bytes, kernel.static_shared) == (12, 20)
    assert [statement.opcode for statement in kernel.body] == ["ret"]


def test_address_range_of_an_array() -> None:
    x = np.arange(64, dtype=F32)
    backwards = np.lib.stride_tricks.as_strided(x[63:], (64,), (-4,))
    for array, low, high, first in (
        (x, 0, 256, 0),
        (x[3:5], 12, 20, 12),
        (x[::-1], 0, 256, 252),
        (x[::-2][1:], 4, 248, 244),
        (x.reshape(8, 8)[:, 1:3], 4, 236, 4),
        (backwards, 0, 256, 252),  # numpy knows only its last element
        (backwards[1:], 0, 252, 248),
        (np.empty((0, 4), F32), 0, 0, 0),
    ):
        memory = Memory()
        address = memory.address_of(array)
        (entry,) = memory.entries
        assert (entry.low, entry.high, address & 2**40 - 1) == (low, high, first)
    memory = Memory()
    assert len({memory.address_of(part) for part in (x, x[:32], x[:32])}) == 2


def test_stored_ptx_is_up_to_date() -> None:
    """examples.ptx is the PTX of examples.cu from its version of nvcc. Other versions generate other PTX."""
    try:
        find_nvcc()
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    fresh, stored = compiled(), STORED.read_text()
    if compiler(fresh) != compiler(stored):
        pytest.skip(f"examples.ptx was made by another nvcc: {compiler(stored)[3:]}")
    # names with internal linkage contain a hash of the file's path; the sections contain them as bytes
    fresh, stored = (text.partition("\t.section")[0] for text in (fresh, stored))
    fresh, stored = (re.sub(r"[0-9a-f]{8}(_\d+_examples_cu)", r"\1", text) for text in (fresh, stored))
    assert "mma.sync" in fresh
    assert fresh == stored


def test_torch_tensors_as_arrays() -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.randn(64), poisoned((64,), torch.float32)
    shared_module()["reverse"].launch(1, 32, [x, y])
    assert torch.equal(y[:32], x[:32].flip(0))
    with pytest.raises(ValueError, match="a buffer must be on the CPU, got one on meta"):
        Memory().address_of(torch.empty(1, device="meta"))
    assert poisoned((2, 3), torch.float16).shape == (2, 3)
    assert poisoned(2, torch.uint8).tolist() == [255, 255]
