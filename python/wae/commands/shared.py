"""What several commands share: failures, common options, inputs and the console."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wae.errors import UsageError, WaeError
from wae.termination import INTERRUPTED, Terminated
from wae.training.plan import BATCH, WEIGHT
from wae.wording import printable

from . import types

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from wae.models.autoencoder import AutoEncoder
    from wae.storage.checkpoint import Input

STANDARD = Path("-")
"""Stands for standard input or output in place of a file name. (A file of that name is ``$PWD/-``.)"""


class Failure(WaeError):
    """An input that could not be processed; the message is for the user."""


@contextmanager
def failing() -> Iterator[None]:
    """In this block a ValueError that is no WaeError, and says what is wrong, becomes a :class:`Failure`."""
    try:
        yield
    except WaeError:
        raise
    except ValueError as error:
        raise Failure(str(error)) from None


def complain(message: str, status: int = 1) -> int:
    """Print ``message``, which may name a file, on stderr after the command's name; return ``status``."""
    with suppress(OSError):  # the terminal is gone, or the disk of a redirected stderr is full
        print(f"wae: {printable(message)}", file=sys.stderr, flush=True)
    return status


def interrupted(interrupt: KeyboardInterrupt, more: str = "") -> int:
    """Print that a signal ended the command, followed by ``more``, and return the exit status."""
    if isinstance(interrupt, Terminated):
        return complain(f"terminated{more}", 128 + interrupt.number)
    return complain(f"interrupted{more}", INTERRUPTED)


def add_on_corrupt(parser: argparse._ActionsContainer) -> None:
    """Add the option ``--on-corrupt`` of commands that read a data set."""
    parser.add_argument(
        "--on-corrupt",
        choices=("error", "skip"),
        default="error",
        help="what to do about images that cannot be read (default: error)",
    )


def add_rate_and_batch(parser: argparse._ActionsContainer) -> None:
    """Add the options ``--learning-rate`` and ``--batch``, which replace what a plan says."""
    parser.add_argument(
        "--learning-rate",
        type=types.number(*WEIGHT),
        metavar="X",
        help="peak learning rate of the stages with labels; that of stage 1 if it is trained alone",
    )
    parser.add_argument(
        "--batch", type=types.integer(*BATCH), metavar="N", help="images per step, over all processes"
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values, by name, of those options that are not None."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--weights`` of commands that run the auto-encoder: see :func:`autoencoder`."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of the auto-encoder (default: included)",
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--force`` of commands that write a file."""
    parser.add_argument("--force", action="store_true", help="replace existing files")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json`` of commands that print a table: see :func:`print_json`."""
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Add the option ``--workers`` of commands that read a data set."""
    parser.add_argument(
        "--workers",
        type=types.workers,
        default=0,
        metavar="N",
        help="processes that read images (default: 0)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add the option ``--device`` of commands that run on a GPU if there is one."""
    parser.add_argument("--device", metavar="NAME", help="default: cuda if there is a GPU, otherwise cpu")


def print_json(data: object) -> None:
    """Print the data of a table as one JSON document, with null for numbers that are not finite."""
    print(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: object) -> object:
    """``data`` with None in place of infinities and NaN, which JSON cannot express."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def add_max_pixels(parser: argparse._ActionsContainer) -> None:
    """Add the option ``--max-pixels`` of commands that read images."""
    parser.add_argument(
        "--max-pixels",
        type=types.positive,
        metavar="N",
        help="refuse images with more pixels (default: 89478485, Pillow's limit)",
    )


def max_pixels(options: argparse.Namespace) -> int:
    """The limit of ``--max-pixels``, or its default."""
    from wae.data.images import MAX_PIXELS

    return options.max_pixels or MAX_PIXELS


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--model`` of commands that load a trained network: see :func:`load`."""
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="function that returns your custom network, if wae accelerate was given one: a checkpoint never "
        "runs code",
    )


def load(path: Path, own: str | None) -> nn.Module:
    """The network in the checkpoint at ``path``, built around the network of ``own`` if it is a custom one.

    Raises CheckpointError, or NetworkError if ``own`` is not a ``module:function`` that returns a network.
    """
    from wae.models.own import own_network
    from wae.storage.checkpoint import describe, load_classifier

    return load_classifier(path, own_network(own) if own and describe(path).is_own else None)


def check_model(own: str | None, paths: Sequence[Path]) -> None:
    """Raise UsageError if ``--model`` is given and no checkpoint in ``paths`` needs it."""
    from wae.storage.checkpoint import describe

    if own is not None and not any(describe(path).is_own for path in paths):
        raise UsageError(
            f"--model: is only for custom networks, {paths[0]} is of {describe(paths[0]).network}"
        )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that make an int8 network: see :func:`check_calibration`."""
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="folder of 200 images or more for the scales and the check of int8 (docs/deploy.md)",
    )
    parser.add_argument(
        "--max-drop",
        type=types.share,
        default=0.005,
        metavar="X",
        help="largest share of images whose class may change (default: 0.005)",
    )


def check_calibration(options: argparse.Namespace) -> None:
    """Raise UsageError if int8 is to be made without ``--calibrate``, Failure if that is not a folder."""
    if options.calibrate is None:
        if options.precision == "int8":
            raise UsageError("--precision: int8 takes its scales from images, which --calibrate names")
    elif not options.calibrate.is_dir():
        raise Failure(f"--calibrate: {options.calibrate} is not a folder")


def calibration(options: argparse.Namespace, input: Input, invert: bool = False) -> Iterator[Tensor] | None:
    """The images of ``--calibrate``, prepared as the network will see others; None without the option."""
    from wae.inference.calibration import in_folder, most

    if options.calibrate is None:
        return None
    return in_folder(options.calibrate, input, most(100, input.shape), invert)


def console(json: bool = False) -> Console:
    """A console on standard output, or on standard error if standard output is for ``json``.

    It prints text literally: rich would take ``[a]`` in the name of a file for a style.
    """
    from rich.console import Console

    return Console(stderr=json, markup=False, emoji=False)


def check_target(target: Path, source: Path, force: bool) -> None:
    """Raise Failure or FileExistsError, before any work is done, if ``target`` may not be written."""
    from wae.storage.files import refuse_existing

    if target == STANDARD:
        return
    if target.resolve() == source.resolve():
        raise Failure(f"{target} is the input; -o must name another file")
    refuse_existing(target, force)


@contextmanager
def output(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """The file to write, as :func:`wae.storage.files.written`; standard output for ``-``."""
    from wae.storage.files import written

    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with written(path, force) as file:
            yield file


@contextmanager
def input_file(path: Path) -> Iterator[Path]:
    """``path``; for ``-`` a temporary file with the content of standard input."""
    if path != STANDARD:
        yield path
        return
    from wae.storage.files import temporary_folder

    with temporary_folder() as folder:
        copy = folder / "standard-input"
        with open(copy, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy


def found_images(sources: Iterable[Path]) -> list[Path]:
    """The images in files and folders, found by :func:`wae.data.walk.find`. Prints what it left out.

    Raises Failure if there are none.
    """
    from wae.data.walk import LeftOut, find

    sources, left_out = list(sources), LeftOut()
    paths = [found.path for found in find(sources, left_out)]
    if str(left_out):
        complain(str(left_out))
    if not paths:
        raise Failure(f"no images found in {', '.join(map(str, sources))}")
    return paths


def autoencoder(weights: Path | None) -> AutoEncoder:
    """The auto-encoder with ``weights``; None for the included ones.

    Raises CheckpointError if they do not fit.
    """
    from wae.models.autoencoder import AutoEncoder
    from wae.storage import weights_file

    model = AutoEncoder().eval()
    weights_file.load(weights or weights_file.AUTOENCODER, model)
    return model
