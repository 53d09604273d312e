"""The compiled CUDA kernels: their resources on every target, and that docs/cuda.md says so."""

from __future__ import annotations

import cuda_gate
import pytest
from ptx_machine import CompilerMissing, find_nvcc

try:
    find_nvcc()
except CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.slow
TENSOR_MODES = {"float16", "bfloat16", "tf32"}


@pytest.mark.parametrize("target", cuda_gate.TARGETS)
@pytest.mark.parametrize("op", cuda_gate.OPS + cuda_gate.BACKWARD_OPS)
def test_compiled_as_meant(op: str, target: int) -> None:
    """No spills, a multiprocessor holds a block, tensor cores where meant, weights loaded by 16 bytes."""
    rows = cuda_gate.rows(op, target)
    modes = {row.mode for row in rows}
    assert {"float16", "float32"} < modes
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.stack_bytes == 0, row
        assert row.blocks >= 1, row
        if not op.endswith("_backward"):  # which reads its filters number by number, once a block
            assert row.wide_loads >= 5, row  # one loop for each filter
        if row.mode in TENSOR_MODES:
            # Two trunk layers of 9 taps, 2 rows and 2 blocks of channels are in the code once or twice.
            assert row.tensor >= 36, row
            assert row.matrix_loads >= 12, row
            assert row.fma < (20 if op.endswith("_backward") else 10), row
        else:
            assert row.tensor == 0, row
            assert row.fma >= 100, row


def test_page_shows_this_table() -> None:
    """docs/cuda.md is written by tests/support/cuda_gate.py --write; another compiler counts otherwise."""
    written = cuda_gate.written()
    if f"nvcc {cuda_gate.nvcc_version()}." not in written:
        pytest.skip(f"the table was made by another nvcc than {cuda_gate.nvcc_version()}")
    assert cuda_gate.table() == written
