"""The tables of ``wae demo``, which fit a terminal of 80 columns."""

from __future__ import annotations

import io
import math
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from printed_tables import rich_cells
from rich.console import Console

from wae.experiments import comparison, demo, panels
from wae.inference.agreement import DisagreementError
from wae.inference.timing import Timing
from wae.models.autoencoder import AutoEncoder
from wae.models.stock import StockDecoder, StockEncoder
from wae_kernels import backends
from wae_kernels.nn import Decoder, Encoder


@pytest.fixture
def console() -> Console:
    return Console(width=80, file=io.StringIO(), force_terminal=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "…" not in printed  # rich ends cells with it that do not fit
    return printed.splitlines()


@pytest.mark.slow
def test_the_timings_of_a_slow_machine_fit_80_columns(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Timing(12.34567, 12.0, 13.0, 3)
    monkeypatch.setattr(comparison, "interleaved", lambda calls, *_, **__: dict.fromkeys(calls, slow))
    longest = SimpleNamespace(use=backends.use, backend_for=lambda device: "cpu:portable")
    monkeypatch.setattr(comparison, "backends", longest)
    comparison.show(console, comparison.measure(console, AutoEncoder().eval(), 0.0))
    rows = lines(console)
    assert max(map(len, rows)) <= 80
    for cells in (
        ["encode", "channels_last", "12345.67", "1.00x"],
        ["WAE-VGG16", "12345.67", "4.38", "3.13x"],
    ):
        assert any(all(cell in row for cell in cells) for row in rows), cells


def test_each_op_has_its_own_times_in_both_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a time depends on the module that is called and on the layout of its input."""

    def interleaved(calls: dict[str, partial[object]], *_: object) -> dict[str, Timing]:
        kinds = {Encoder: 1e-3, StockEncoder: 2e-3, Decoder: 3e-3, StockDecoder: 4e-3}
        found = {}
        for name, call in calls.items():
            last = call.args[0].is_contiguous(memory_format=torch.channels_last)
            found[name] = Timing(kinds[type(call.func)] * (10 if last else 1), 0, 0, 1)
        return found

    monkeypatch.setattr(comparison, "interleaved", interleaved)
    with torch.no_grad():
        found = comparison._ops(AutoEncoder().eval(), 0.0)
    assert [(row.op, row.layout) for row in found] == [
        (op, layout) for op in ("encode", "decode") for layout in ("NCHW", "channels_last")
    ]
    assert [(row.wae, row.stock) for row in found] == [
        pytest.approx(times) for times in ((1, 2), (10, 20), (3, 4), (30, 40))
    ]


@pytest.mark.parametrize(("core", "busy"), [(0.99, False), (0.42, True)])
def test_speed_ups_are_relative_to_the_stock_side_and_a_busy_machine_is_reported(
    console: Console, core: float, busy: bool
) -> None:
    networks = [
        comparison.NetworkRow("VGG16", 90.0, 1289.28, 15_500_000_000),
        comparison.NetworkRow("WAE-VGG16", 20.0, 411.63, 4_400_000_000),
    ]
    ops = [comparison.OpRow("encode", "NCHW", 2.0, 5.0)]
    comparison.show(console, comparison.Timings("cpu:avx2", 2, ops, networks, core))
    rows = lines(console)
    for cells in (
        ["encode", "2.00", "5.00", "2.50x"],
        ["WAE-VGG16", "20.00", "4.50x", "4.40", "412", "3.13x"],
    ):
        assert any(all(cell in row for cell in cells) for row in rows), cells
    assert any("had a core for only 42% of the time" in row for row in rows) == busy


def test_outputs_that_differ_or_are_nan_are_refused() -> None:
    one = torch.ones(10)
    comparison._require_equal("encode", [one, one + 1e-6])
    for other in (one * float("nan"), one + 1e-3):
        with pytest.raises(DisagreementError, match="encode: two implementations disagree"):
            comparison._require_equal("encode", [one, other])


def test_the_photos_table_fits_80_columns(console: Console, tmp_path: Path) -> None:
    photo = tmp_path / "astronaut.png"
    Image.fromarray(np.zeros((61, 4096, 3), np.uint8)).save(photo)
    found, errors = demo.draw(AutoEncoder().eval(), [photo], [tmp_path / "out.png"])
    demo.show(console, found, tmp_path)
    assert errors == []
    rows = lines(console)
    assert max(map(len, rows)) <= 80
    assert any("astronaut" in row and "61 x 4096" in row and "out.png" in row for row in rows)


def test_a_picture_that_cannot_be_written_does_not_stop_the_others(console: Console, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(photo)
    targets = [photo / "under.png", tmp_path / "out" / "fine.png"]
    found, errors = demo.draw(AutoEncoder().eval(), [photo, photo], targets)
    assert [(row.photo, row.width, row.height, row.picture) for row in found] == [("photo", 6, 4, "fine.png")]
    assert len(errors) == 1
    assert str(photo) in errors[0]


def test_the_photos_table(console: Console) -> None:
    demo.show(console, [demo.Row("astronaut", 512, 480, 41.257, 33.104, 0.0456, "out.png")], Path("out[b]"))
    printed = lines(console)
    row = ["astronaut", "480 x 512", "41.26", "33.10", "4.6 %", "out.png"]
    assert row in rich_cells("\n".join(printed))
    assert f"The pictures are in the folder out[b]{os.sep}" in printed


def test_the_best_linear_transform_keeps_six_numbers_of_each_full_block() -> None:
    grey = torch.randint(0, 256, (1, 8, 12), dtype=torch.uint8).expand(3, 8, 12)  # four numbers
    noise = torch.randint(0, 256, (3, 9, 13), dtype=torch.uint8)
    assert demo.best_linear_psnr(grey) == math.inf
    assert demo.best_linear_psnr(noise) == demo.best_linear_psnr(noise[:, :8, :12]) < 40
    assert demo.best_linear_psnr(torch.cat([grey, noise[:, :8, :12]], 1)) < 40


def test_the_sizes_in_a_picture_are_height_x_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere else."""
    drawn, labelled = [], panels.labelled
    monkeypatch.setattr(panels, "labelled", lambda *given: drawn.append(given[0]) or labelled(*given))
    panels.picture(panels.parts(AutoEncoder().eval(), torch.zeros(3, 221, 240, dtype=torch.uint8)))
    assert drawn[:2] == ["input, 221 x 240", "low, 111 x 120"]
