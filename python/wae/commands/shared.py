"""What several commands need: their failures, their common options, their inputs and their console."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wae.errors import WaeError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from wae.models.autoencoder import AutoEncoder


class Failure(WaeError):
    """An input that could not be processed; the message is for the user."""


def complain(message: str, status: int = 1) -> int:
    """Print ``message`` on stderr under the command's name, and return ``status``."""
    print(f"wae: {message}", file=sys.stderr)
    return status


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option ``--weights`` of commands that run the auto-encoder: see :func:`autoencoder`."""
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights to use (default: those included)"
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """The option ``--force`` of commands that write a file."""
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def positive(text: str) -> int:
    """An argparse type: an integer, 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def console() -> Console:
    """The terminal, or what stands in its place."""
    from rich.console import Console

    return Console()


def check_target(target: Path, source: Path, force: bool) -> None:
    """Before any work: may ``target`` be written? Raises Failure or FileExistsError if not."""
    from wae.storage.files import refuse_existing

    if target.resolve() == source.resolve():
        raise Failure(f"{target} is the input; -o must name another file")
    refuse_existing(target, force)


def read_image(path: Path) -> Tensor:
    """As :func:`wae.data.images.read_image`, but what it refuses is a Failure."""
    from wae.data import images

    try:
        return images.read_image(path)
    except images.ImageError as error:
        raise Failure(str(error)) from None


def autoencoder(weights: Path | None) -> AutoEncoder:
    """The auto-encoder with ``weights`` (None: those included). Raises Failure where they do not fit."""
    from wae.models.autoencoder import AutoEncoder
    from wae.storage import weights_file

    model = AutoEncoder().eval()
    try:
        weights_file.load(weights or weights_file.WEIGHTS / "autoencoder.safetensors", model)
    except weights_file.CheckpointError as error:
        raise Failure(str(error)) from None
    return model
