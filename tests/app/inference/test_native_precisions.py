"""The precisions for which a CPU has instructions; it emulates the others."""

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
