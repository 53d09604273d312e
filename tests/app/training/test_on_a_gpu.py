"""Training on a GPU: its copies, its arithmetic, the scaler of losses, and NCCL."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained import FIXED, PLAN, StopAt, run, run_in_processes

from wae.storage import weights_file
from wae.training.state import Epoch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def losses(history: list[Epoch]) -> list[float]:
    return [epoch.losses["loss"] for epoch in history]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_losses_are_those_of_the_cpu(precision: str, tmp_path: Path) -> None:
    """Also if the training is interrupted and resumed in between."""
    plan, state = replace(PLAN, precision=precision), tmp_path / "state"
    with suppress(KeyboardInterrupt):
        run(plan, state=state, observer=StopAt(4), device="cuda")
    model, history = run(plan, state=state, resume=True, device="cuda")
    assert next(model.parameters()).is_cuda
    assert losses(history) == pytest.approx(losses(run()[1]), rel=0.1)


def test_processes_give_the_losses_of_one_on_the_cpu(tmp_path: Path) -> None:
    """With one GPU there is one process, which sums over itself."""
    run_in_processes(min(2, torch.cuda.device_count()), tmp_path, "cuda")
    found = [epoch["losses"]["loss"] for epoch in weights_file.read_record(tmp_path / "fixed")]
    assert found == pytest.approx(losses(run(FIXED)[1]), rel=0.1)
