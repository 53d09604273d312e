"""``wae info``: what is installed, what runs here, and how big the networks are."""

from __future__ import annotations

import platform
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import wae_kernels
from wae.models.counting import count
from wae.models.registry import NetworkError, build, encoder_multiply_adds, image_side, on_meta
from wae_kernels import backends


def show_machine(console: Console) -> None:
    """Print versions, threads, and every backend with the reason why it can or cannot run here."""
    versions = Table(show_header=False, box=None)
    for row in (
        ("wae_kernels", wae_kernels.__version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("machine", platform.machine()),
        ("threads", str(torch.get_num_threads())),
        ("GPU", backends.gpu() or "none"),
    ):
        versions.add_row(*row)
    console.print(versions)

    runs = backends.backend_for("cpu")
    table = Table(title="Backends", title_justify="left")
    for column in ("backend", "available", "why"):
        table.add_column(column)
    for backend in backends.available():
        name = f"{backend.name} (runs)" if backend.name == runs else backend.name
        table.add_row(name, "yes" if backend.available else "no", backend.reason)
    console.print(table)
    console.print(f"float32 on the processor runs through {runs} (chosen: {backends.selected()}).")


def processor() -> str:
    """The name of the processor's model, as Linux knows it; elsewhere that of its kind."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show_network(console: Console, name: str) -> None:
    """Print the parameters and multiply-adds of the network ``name``: see :mod:`wae.models.registry`.

    Raises NetworkError where there is no such network, or it takes no images of that size.
    """
    network, side = on_meta(partial(build, name)), image_side(name)
    try:
        parameters, total = count(network, (side, side))
    except (AssertionError, RuntimeError, ValueError) as error:  # torchvision asserts sizes
        raise NetworkError(f"{name} takes no image of {side} x {side}: {error}") from error
    encoder = encoder_multiply_adds(network, side)
    console.print(f"{name}, one {side} x {side} image")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("multiply-adds", _amount(total))
    if encoder and encoder != total:
        table.add_row("  of these, the encoder", _amount(encoder))
    console.print(table)
    console.print("Counted: multiplications of convolutions and matrix products, padding zeros included.")


def _amount(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e9:.3f} G" if multiply_adds >= 1e8 else f"{multiply_adds / 1e6:.2f} M"
