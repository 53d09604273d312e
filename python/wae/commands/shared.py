"""Shared by several commands: their failures, their common options, their inputs and their console."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from wae.errors import WaeError
from wae.termination import INTERRUPTED, Terminated
from wae.wording import printable

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from wae.models.autoencoder import AutoEncoder
    from wae.storage.checkpoint import Input

_N = TypeVar("_N", int, float)

_MOST = 2**63 - 1  # what the libraries behind the options count with

STANDARD = Path("-")
"""Standard input or output, where a file's name is wanted. (A file of that name is ``$PWD/-``.)"""


class Failure(WaeError):
    """An input that could not be processed; the message is for the user."""


def complain(message: str, status: int = 1) -> int:
    """Print ``message``, which may name a file, on stderr under the command's name; return ``status``."""
    print(f"wae: {printable(message)}", file=sys.stderr)
    return status


def interrupted(interrupt: KeyboardInterrupt, more: str = "") -> int:
    """Say that Ctrl-C or SIGTERM ended the command, and return its exit status."""
    word, status = ("terminated", 143) if isinstance(interrupt, Terminated) else ("interrupted", INTERRUPTED)
    return complain(f"{word}{more}", status)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option ``--weights`` of commands that run the auto-encoder: see :func:`autoencoder`."""
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights to use (default: those included)"
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """The option ``--force`` of commands that write a file."""
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json`` of commands that print a table: see :func:`print_json`."""
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def print_json(data: object) -> None:
    """Print what a table would show as one JSON document: null for a number that is not finite."""
    print(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: object) -> object:
    """``data`` with None for infinities and NaN, which JSON has no words for."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def add_max_pixels(parser: argparse._ActionsContainer) -> None:
    """The option ``--max-pixels`` of commands that read images."""
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="an image of more is not read (default: 89478485, Pillow's limit)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option ``--model`` of commands that load a trained network: see :func:`load`."""
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="returns the network that wae accelerate was given, where it was one of your own: no checkpoint "
        "may run code",
    )


def load(path: Path, own: str | None) -> nn.Module:
    """The network in the checkpoint at ``path``; around what ``own`` returns, where it is around such a one.

    Raises CheckpointError; NetworkError where ``own`` is no ``module:function`` that returns a network.
    """
    from wae.models.pairs import own_network
    from wae.storage.checkpoint import describe, load_classifier

    return load_classifier(path, own_network(own) if own and describe(path).is_own else None)


def wrong_model(own: str | None, paths: Sequence[Path]) -> str:
    """What is wrong with ``--model``, in a sentence: nothing in ``paths`` needs it. Else empty."""
    from wae.storage.checkpoint import describe

    if own is None or any(describe(path).is_own for path in paths):
        return ""
    return f"--model: is for a network of your own, and {paths[0]} is of {describe(paths[0]).network}"


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The options of commands that make an int8 network: see :func:`calibration`."""
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="images that int8 takes its scales from, and is checked on: 200 or more (docs/deploy.md)",
    )
    parser.add_argument(
        "--max-drop",
        type=share,
        default=0.005,
        metavar="X",
        help="largest share of images that may get another class (default: 0.005)",
    )


def wrong_engine(name: str | None) -> str:
    """What is wrong with an ``--engine`` that may be ``auto``, in a sentence; empty where nothing is."""
    if name in (None, "auto"):
        return ""
    from wae.inference.engines import ENGINES  # here, as it takes long

    return "" if name in ENGINES else f"--engine must be auto or one of {', '.join(ENGINES)}, got {name}"


def calibration(options: argparse.Namespace, input: Input) -> Iterator[Tensor] | None:
    """The images of ``--calibrate`` as the network takes them."""
    if options.calibrate is None:
        return None
    from wae.inference.calibration import CHECKED, CalibrationError, in_folder

    if not options.calibrate.is_dir():
        raise CalibrationError(f"--calibrate: {options.calibrate} is not a folder")
    return in_folder(options.calibrate, input, 100 + CHECKED)


def positive(text: str) -> int:
    """An argparse type: an integer, 1 or more."""
    return _number(int, text, 1, _MOST, "a whole number from 1")


def whole(text: str) -> int:
    """An argparse type: an integer, 0 or more."""
    return _number(int, text, 0, _MOST, "a whole number from 0")


def batch(text: str) -> int:
    """An argparse type: images that a network gets at once."""
    return _number(int, text, 1, 4096, "a whole number from 1 to 4096")


def workers(text: str) -> int:
    """An argparse type: processes that help this one."""
    return _number(int, text, 0, 256, "a whole number from 0 to 256")


def processes(text: str) -> int:
    """An argparse type: a number of processes, from 1."""
    return _number(int, text, 1, 256, "a whole number from 1 to 256")


def size(text: str) -> int:
    """An argparse type: pixels along a side of a network's images."""
    from wae.storage.checkpoint import MAX_SIZE

    return _number(int, text, 1, MAX_SIZE, f"a whole number from 1 to {MAX_SIZE}")


def image_size(text: str) -> int | tuple[int, int]:
    """An argparse type: pixels along a side of a network's images, or HEIGHTxWIDTH."""
    height, by, width = text.partition("x")
    return (size(height), size(width)) if by else size(text)


def port(text: str) -> int:
    """An argparse type: a TCP port, or 0."""
    return _number(int, text, 0, 65535, "a port from 0 to 65535")


def seconds(text: str) -> float:
    """An argparse type: a number of seconds, from 0 to an hour."""
    return _number(float, text, 0, 3600, "seconds from 0 to 3600")


def percent(text: str) -> int:
    """An argparse type: an integer from 1 to 100."""
    return _number(int, text, 1, 100, "a whole number from 1 to 100")


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    return _number(float, text, 0, 1, "a number from 0 to 1")


def _number(kind: Callable[[str], _N], text: str, least: float, most: float, needs: str) -> _N:
    with suppress(ValueError):
        if least <= (value := kind(text)) <= most:  # NaN neither
            return value
    raise argparse.ArgumentTypeError(f"needs {needs}, got {text[:40]}")


@contextmanager
def seconds_bar(what: str, total: float) -> Iterator[Callable[[], None]]:
    """A bar for work that takes ``total`` seconds; the function that it yields moves it on."""
    from wae.progress import bar

    last = time.monotonic()
    with bar(what, total) as advance:

        def tick() -> None:
            nonlocal last
            now = time.monotonic()
            advance(now - last)
            last = now

        yield tick


def console(json: bool = False) -> Console:
    """The terminal, or what stands in its place: standard error where standard output is for ``json``.

    It prints text as it is: in rich's own language ``[a]`` in the name of a file would be a style.
    """
    from rich.console import Console

    return Console(stderr=json, markup=False, emoji=False)


def check_target(target: Path, source: Path, force: bool) -> None:
    """Raise Failure or FileExistsError, before any work is done, where ``target`` may not be written."""
    from wae.storage.files import refuse_existing

    if target == STANDARD:
        return
    if target.resolve() == source.resolve():
        raise Failure(f"{target} is the input; -o must name another file")
    refuse_existing(target, force)


@contextmanager
def output(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """The file to write: as :func:`files.written`, or standard output for ``-``."""
    from wae.storage.files import written

    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with written(path, force) as file:
            yield file


@contextmanager
def input_file(path: Path) -> Iterator[Path]:
    """``path``, or for ``-`` a file with what standard input has."""
    if path != STANDARD:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "standard-input")
        with open(copy, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy


def found_images(sources: Iterable[Path]) -> list[Path]:
    """The images in files and folders, as :func:`wae.data.walk.find` does; complains of what it left out.

    Raises Failure where there are none.
    """
    from wae.data.walk import LeftOut, find

    sources, left_out = list(sources), LeftOut()
    paths = [found.path for found in find(sources, left_out)]
    if str(left_out):
        complain(str(left_out))
    if not paths:
        raise Failure(f"no images found in {', '.join(map(str, sources))}")
    return paths


def read_image(path: Path, max_pixels: int | None = None) -> Tensor:
    """As :func:`wae.data.images.read_image`, but what it refuses is a Failure."""
    from wae.data import images

    try:
        return images.read_image(path, max_pixels or images.MAX_PIXELS)
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
