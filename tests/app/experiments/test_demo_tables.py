"""The tables of ``wae demo`` are whole on a terminal of 80 columns."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from wae.experiments import comparison, demo
from wae.inference.timing import Timing
from wae.models.autoencoder import AutoEncoder
from wae_kernels import backends


@pytest.fixture
def console() -> Console:
    return Console(width=80, file=io.StringIO(), force_terminal=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "…" not in printed  # how rich shortens what does not fit
    return printed.splitlines()


@pytest.mark.slow
def test_the_timings_fit_80_columns_however_slow_the_machine(
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


def test_the_photos_table_fits_80_columns(console: Console, tmp_path: Path) -> None:
    photo = tmp_path / "astronaut.png"
    Image.fromarray(np.zeros((61, 4096, 3), np.uint8)).save(photo)
    found, errors = demo.draw(console, AutoEncoder().eval(), [photo], [tmp_path / "out.png"])
    demo.show(console, found, tmp_path)
    assert errors == []
    rows = lines(console)
    assert max(map(len, rows)) <= 80
    assert any("astronaut" in row and "4096 x 61" in row and "out.png" in row for row in rows)
