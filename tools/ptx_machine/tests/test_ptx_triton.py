"""The PTX machine on kernels that Triton compiled, with Triton's layouts of lanes."""

from __future__ import annotations

from typing import Any

import pytest
from ptx_machine import UnknownInstruction, compile_triton, load, poisoned, why_not

torch: Any = pytest.importorskip("torch")
triton: Any = pytest.importorskip("triton")
tl: Any = pytest.importorskip("triton.language")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
SEEDS = (0, 1, 2)


@triton.jit
def matrix_product(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, k, BK):
        depth = k0 + tl.arange(0, BK)
        x = tl.load(
            a + rows[:, None] * k + depth[None, :], mask=(rows[:, None] < m) & (depth[None, :] < k), other=0.0
        )
        y = tl.load(
            b + depth[:, None] * n + columns[None, :],
            mask=(depth[:, None] < k) & (columns[None, :] < n),
            other=0.0,
        )
        sums = tl.dot(x, y, sums)
    tl.store(
        c + rows[:, None] * n + columns[None, :], sums, mask=(rows[:, None] < m) & (columns[None, :] < n)
    )


@triton.jit
def softmax(x, y, n, stride, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    v = tl.load(x + row * stride + columns, mask=columns < n, other=float("-inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * n + columns, e / tl.sum(e, 0), mask=columns < n)


@pytest.mark.parametrize(
    ("kind", "m", "n", "k", "aligned"),
    [
        ("fp16", 100, 96, 80, True),
        ("fp16", 65, 33, 17, False),
        ("bf16", 64, 64, 64, True),
        ("fp32", 100, 96, 80, True),
    ],
    ids=["f16", "f16 odd sizes", "bf16", "tf32"],
)
@pytest.mark.parametrize("warps", [4, 8])
def test_triton_matrix_product(kind: str, m: int, n: int, k: int, aligned: bool, warps: int) -> None:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    compiled = compile_triton(
        matrix_product,
        {"a": f"*{kind}", "b": f"*{kind}", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"},
        {"BM": 64, "BN": 64, "BK": 32},
        divisible_by_16=["a", "b", "c", "n", "k"] if aligned else [],
        num_warps=warps,
        num_stages=3,
    )
    kernel = load(compiled.asm["ptx"])["matrix_product"]
    a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), poisoned((m, n), torch.float32)
    counts = kernel.launch(
        (-(-m // 64), -(-n // 64)),
        32 * warps,
        [a, b, c, m, n, k, 0, 0],
        shared_bytes=compiled.metadata.shared,
    )
    want = a.double() @ b.double()
    assert (c - want).norm() <= (1e-3 if kind == "fp32" else 1e-6) * want.norm()
    assert counts.written_bytes == m * n * 4
    assert sum(counts.tensor.values()) > 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "block"), [(1, 64), (77, 128), (1000, 1024)])
def test_triton_softmax(n: int, block: int, seed: int) -> None:
    signature = {"x": "*fp16", "y": "*fp32", "n": "i32", "stride": "i32"}
    compiled = compile_triton(softmax, signature, {"BLOCK": block}, num_warps=4)
    x, y = torch.randn(3, n + 5).half()[:, :n], poisoned((3, n), torch.float32)
    args = [x, y, n, x.stride(0), 0, 0]
    load(compiled.asm["ptx"])["softmax"].launch(
        3, 128, args, shared_bytes=compiled.metadata.shared, seed=seed
    )
    torch.testing.assert_close(y, x.float().softmax(1))


def test_unsupported_tensor_cores_are_named() -> None:
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"}
    compiled = compile_triton(matrix_product, signature, {"BM": 64, "BN": 64, "BK": 32}, arch=90)
    with pytest.raises(UnknownInstruction, match=r"PTX line \d+ .*: unknown instruction `wgmma"):
        _ = load(compiled.asm["ptx"])["matrix_product"].translation
