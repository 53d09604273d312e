"""The precisions for which a CPU has instructions; it emulates the others."""

import pytest
import torch

from wae.inference import precision


def test_native_precisions_follow_the_cpus_instruction_sets(monkeypatch):
    cpu = torch.device("cpu")
    assert precision.native("float32", cpu)
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx2": True})
    assert not any(precision.native(name, cpu) for name in ("bfloat16", "float16", "int8"))
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx_vnni": True, "avx512_bf16": False})
    assert precision.native("int8", cpu)
    assert not precision.native("bfloat16", cpu)
    assert precision.native("bfloat16", torch.device("cuda"))
    monkeypatch.setattr(precision, "_capabilities", lambda: {"fp16_arith": True, "bf16": True, "dot": True})
    assert all(precision.native(name, cpu) for name in precision.NAMES)  # aarch64, by torch's names


@pytest.mark.parametrize(
    ("cpuinfo", "known"),
    [
        ("flags\t: avx2 avx512_fp16 avx_vnni\n", {"float16", "int8"}),
        ("Features\t: asimdhp asimddp bf16\n", {"float16", "bfloat16", "int8"}),
        ("flags\t: avx2\n", set()),
        ("", set()),
    ],
)
def test_an_old_torch_has_linux_tell(cpuinfo, known, monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}")
    narrow = ("bfloat16", "float16", "int8")
    assert {name for name in narrow if precision.native(name, torch.device("cpu"))} == known
