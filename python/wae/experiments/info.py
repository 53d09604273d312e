"""``wae info``: what is installed, what runs here, and how big the networks are."""

from __future__ import annotations

import platform
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import wae_kernels
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.registry import NetworkError, build, encoder_multiply_adds, image_side
from wae.wording import amount, first_line
from wae_kernels import backends


def installation() -> dict[str, Any]:
    """Versions, threads, and every backend with the reason why it can or cannot run here, as JSON data."""
    return {
        "wae_kernels": wae_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "GPU": backends.gpu(),
        "backends": [asdict(backend) for backend in backends.available()],
        "runs": backends.backend_for("cpu"),
        "chosen": backends.selected(),
    }


def show_installation(console: Console) -> None:
    """Print what :func:`installation` returns."""
    found = installation()
    versions = Table(show_header=False, box=None)
    for name in ("wae_kernels", "torch", "python", "machine", "threads", "GPU"):
        versions.add_row(name, str(found[name] or "none"))
    console.print(versions)

    table = Table(title="Backends", title_justify="left")
    for column in ("backend", "available", "why"):
        table.add_column(column)
    for backend in found["backends"]:
        name = f"{backend['name']} (runs)" if backend["name"] == found["runs"] else backend["name"]
        table.add_row(name, "yes" if backend["available"] else "no", backend["reason"])
    console.print(table)
    console.print(f"float32 on the CPU runs through {found['runs']} (chosen: {found['chosen']}).")


def network(name: str) -> dict[str, Any]:
    """The parameters and multiply-adds of the network ``name``: see :mod:`wae.models.registry`.

    Raises NetworkError if there is no such network, or if it takes no images of its size.
    """
    built, side = on_meta(partial(build, name)), image_side(name)
    try:
        parameters, total = count(built, (side, side))
    except Exception as error:  # any that the network's own code raises
        raise NetworkError(f"{name} takes no image of {side} x {side}: {first_line(error)}") from error
    return {
        "network": name,
        "size": side,
        "parameters": parameters,
        "multiply_adds": total,
        "of_these_the_encoder": encoder_multiply_adds(built, side),
    }


def show_network(console: Console, name: str) -> None:
    """Print what :func:`network` returns, and raise what it raises."""
    found = network(name)
    total, encoder = found["multiply_adds"], found["of_these_the_encoder"]
    console.print(f"{name}, one {found['size']} x {found['size']} image")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{found['parameters']:,}")
    table.add_row("multiply-adds", amount(total))
    if encoder and encoder != total:
        table.add_row("  of these, the encoder", amount(encoder))
    console.print(table)
    console.print("Counted: multiplications of convolutions and matrix products, padding zeros included.")
