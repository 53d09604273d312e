"""The compiled CUDA kernels: their resources on every target, which docs/cuda-compiled.md lists."""

from __future__ import annotations

import math
from dataclasses import replace

import cuda_gate
import pytest
from cuda_bindings import runner
from machine_code import Step

runner.require_nvcc()

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", cuda_gate.TARGETS)
@pytest.mark.parametrize("op", cuda_gate.OPS + cuda_gate.BACKWARD_OPS)
def test_resources_of_the_compiled_kernels(op: str, target: int) -> None:
    """No spills, a block fits a multiprocessor, tensor cores are used, weights are loaded by 16 bytes."""
    rows = cuda_gate.rows(op, target)
    modes = {row.mode for row in rows}
    assert {"float16", "float32"} < modes
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.stack_bytes == 0, row
        assert row.blocks >= 1, row
        if not op.endswith("_backward"):  # these read each filter value singly, once for each block
            # 384 threads load all 5,904 weights by 16 bytes; every mode can also load float32 weights.
            sizes = {runner.DTYPE[row.mode].itemsize, 4}
            assert row.wide_loads == sum(math.ceil(5904 * size / (384 * 16)) for size in sizes), row
        if row.mode in cuda_gate.TENSOR_MODES:
            # 9 taps, 2 rows and 2 blocks of channels of the trunk's layers; both layers may share the code.
            assert row.tensor >= 36, row
            assert row.matrix_loads >= 12, row
            assert row.fma < (20 if op.endswith("_backward") else 10), row
        else:
            assert row.tensor == 0, row
            assert row.fma >= 100, row


@pytest.mark.parametrize("chip", cuda_gate.CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("op", cuda_gate.OPS)
def test_bound_by_the_tensor_cores(op: str, chip: cuda_gate.Chip) -> None:
    """The schedulers' issue slots and shared memory take no longer than the tensor cores."""
    rows = [row for row in cuda_gate.rows(op, chip.target) if row.mode in cuda_gate.TENSOR_MODES]
    assert len(rows) == 3
    for row in rows:
        assert len(row.roles) in {2, 3}, row  # the two trunk layers may share their code
        step = cuda_gate.load(row, chip)
        per_layer = 72 if row.mode == "tf32" else 36  # mma instructions of a trunk warp
        assert [layer.tensor for layer in step.trunk] == [per_layer, per_layer], row
        assert step.slots <= 1.05 * step.tensor, row
        assert step.wavefronts <= 1.05 * step.tensor, row


@pytest.mark.parametrize("name", cuda_gate.TABLES)
def test_page_has_this_table(name: str) -> None:
    """tests/support/cuda_gate.py --write updates the page. Another compiler gives other counts."""
    written = cuda_gate.written(name)
    if f"nvcc {cuda_gate.nvcc_version()}." not in written:
        pytest.skip(f"the table was made with another nvcc than {cuda_gate.nvcc_version()}")
    assert cuda_gate.table(name) == written


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "threads", "blocks"),
    [
        (75, 32, 1024, 256, 4),
        (80, 32, 1024, 256, 8),
        (86, 32, 1024, 256, 6),
        (80, 33, 1024, 256, 6),  # 1,280 registers for each warp
        (80, 121, 1024, 384, 1),
        (75, 32, 32 * 1024, 256, 2),
        (80, 32, 40 * 1024, 256, 4),  # 41 of 164 KiB each
        (80, 32, 40 * 1024 + 1, 256, 3),
        (90, 32, 227 * 1024, 256, 1),
        (90, 32, 227 * 1024 + 1, 256, 0),
    ],
)
def test_blocks_that_a_multiprocessor_holds(
    target: int, registers: int, shared_bytes: int, threads: int, blocks: int
) -> None:
    """Threads, registers or shared memory limit the number of blocks."""
    assert cuda_gate.blocks_each(target, registers, shared_bytes, threads) == blocks


REPORT = """
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 121 registers
"""


def test_report_of_the_compiler() -> None:
    assert cuda_gate.reported(REPORT) == [("one", 16, 12, 40), ("two", 0, 0, 121)]


def test_step_takes_as_long_as_its_largest_bound() -> None:
    """Each scheduler has issue slots and a tensor core; the four schedulers share the shared memory."""
    chip = replace(cuda_gate.CHIPS[0], tensor=10)
    (row, *_) = cuda_gate.rows("encode", chip.target)

    def microseconds(slots: int, tensor: int, wavefronts: int) -> float:
        roles = tuple(Step(slots, tensor, wavefronts, 0) for _ in range(3))
        return cuda_gate.load(replace(row, roles=roles), chip).microseconds

    one = microseconds(100, 0, 0)
    assert one > 0
    assert microseconds(100, 9, 24) == one
    assert microseconds(100, 20, 0) == pytest.approx(2 * one)
    assert microseconds(100, 9, 75) == pytest.approx(3 * one)
