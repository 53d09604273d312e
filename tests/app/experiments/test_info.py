"""What `wae info` says about a machine and a network."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from wae.experiments import info
from wae.models.counting import count
from wae_kernels import backends
from wae_kernels.nn import Encoder


def printed(show, *arguments) -> str:
    console = Console(width=200, file=io.StringIO())
    show(console, *arguments)
    return console.file.getvalue()


def test_the_backend_that_runs_and_the_one_chosen_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpu", lambda: None)
    torch.set_num_threads(2)
    runs = backends.backend_for("cpu")
    for chosen, runs_then in (("auto", runs), ("reference", "reference")):
        with backends.use(chosen):
            found, text = info.installation(), printed(info.show_installation)
        assert (found["runs"], found["chosen"], found["threads"]) == (runs_then, chosen, 2)
        assert f"runs through {runs_then} (chosen: {chosen})" in text
        assert [line.split()[1] for line in text.splitlines() if "(runs)" in line] == [runs_then]
        assert ["GPU", "none"] in [line.split() for line in text.splitlines()]


def test_the_encoder_is_counted_at_the_size_of_its_network() -> None:
    found = info.network("wae_small_vgg")
    assert (found["size"], found["of_these_the_encoder"]) == (28, count(Encoder(), (28, 28)).multiply_adds)
    text = printed(info.show_network, "wae_small_vgg")
    assert "wae_small_vgg, one 28 x 28 image" in text
    assert "4.12 M" in text
