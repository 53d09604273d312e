"""``wae eval``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import shared

if TYPE_CHECKING:
    from wae.data.dataset import Dataset
    from wae.experiments.evaluation import Candidate

HELP = "print error, time and multiply-adds of trained classifiers, as the paper's table does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "weights",
        nargs="+",
        type=Path,
        metavar="WEIGHTS",
        help="checkpoints; times are compared to the first",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|NAME",
        help="fashion-mnist, digits, or a folder with val/CLASS/IMAGE",
    )
    parser.add_argument(
        "--batch", type=shared.positive, default=64, metavar="N", help="images at once (default: 64)"
    )
    parser.add_argument(
        "--on-corrupt", choices=("error", "skip"), default="error", help="about images that cannot be read"
    )
    shared.add_max_pixels(parser)
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read (default: 0)"
    )
    parser.add_argument("--device", metavar="NAME", help="default: cuda if there is a GPU, else cpu")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="time to spend on the timings (default: 5)"
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate every checkpoint, on all processes; the first times them in turns and prints the table."""
    from wae.data.images import ImageError
    from wae.experiments import evaluation
    from wae.storage.weights_file import CheckpointError
    from wae.training.processes import is_first, joined
    from wae.training.trainer import evaluate

    failed: set[str] = set()
    try:
        with joined(options.device) as device:
            candidates = [evaluation.candidate(path, device) for path in options.weights]
            for candidate in candidates:
                data = _data(options, candidate)
                candidate.accuracy = evaluate(
                    candidate.model, data, options.batch, device, options.workers, failed.update
                )
            first = is_first()
            if first:
                _report_left_out(data, failed)
                evaluation.measure(candidates, options.seconds)
    except (CheckpointError, ImageError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    if first:
        shared.console().print(evaluation.table(candidates))
        print(f"Of {options.data}'s test pictures. {evaluation.HOW_TIMED}")
    return 0


def _report_left_out(data: Dataset, failed: set[str]) -> None:
    """One line on what the search for images left out, and one for each that could not be read."""
    from wae.data.folder import ImageFolder
    from wae.data.images import printable

    if isinstance(data, ImageFolder) and str(data.left_out):
        shared.complain(f"{data.folder}: {data.left_out}")
    for line in sorted(failed):
        shared.complain(f"left out: {printable(line)}")


def _data(options: argparse.Namespace, candidate: Candidate) -> Dataset:
    """The test set in the size that the network was trained on, its classes in the network's order."""
    from wae.data.classes import class_order
    from wae.data.images import MAX_PIXELS
    from wae.data.loading import open_dataset
    from wae.training.processes import is_first

    # Named sets have one size, which a wrong checkpoint is told by the network itself.
    size = candidate.described.input.size if Path(options.data).is_dir() else None
    max_pixels = options.max_pixels or MAX_PIXELS
    data = open_dataset(options.data, False, False, 0, size, options.on_corrupt, max_pixels)
    described = candidate.described
    order = class_order(candidate.path, described.labels, described.classes, data.labels)
    if order.note and is_first():
        shared.complain(order.note)
    return data.renumbered(order.numbers)
