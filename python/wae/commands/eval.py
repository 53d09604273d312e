"""``wae eval``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wae.errors import UsageError
from wae.wording import counted, first_line

from . import shared, types

if TYPE_CHECKING:
    import torch

    from wae.data.dataset import Dataset
    from wae.experiments.evaluation import Candidate, DeployedCandidate

HELP = "print the error, time and multiply-adds of trained networks, like the paper's table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "weights",
        nargs="+",
        type=Path,
        metavar="WEIGHTS",
        help="checkpoints; times are relative to the first",
    )
    shared.add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|NAME",
        help="fashion-mnist, digits, or a folder with val/CLASS/IMAGE (for int8 also train/CLASS/IMAGE); for "
        "segmentation networks a folder as for wae train",
    )
    parser.add_argument(
        "--deployed",
        nargs="+",
        choices=types.PRECISIONS,
        default=[],
        metavar="PRECISION",
        help="also print the accuracy and speed of the networks deployed by wae.deploy: "
        f"{', '.join(types.PRECISIONS)} (with scales from the training images)",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *types.ENGINES),
        metavar="NAME",
        help="engine of wae.deploy, for --deployed (default: auto, the fastest)",
    )
    parser.add_argument(
        "--batch", type=types.batch, default=64, metavar="N", help="images per call (default: 64)"
    )
    shared.add_on_corrupt(parser)
    shared.add_max_pixels(parser)
    shared.add_workers(parser)
    shared.add_device(parser)
    parser.add_argument(
        "--seconds",
        type=types.seconds,
        default=5.0,
        metavar="S",
        help="time to spend on the timings (default: 5)",
    )
    shared.add_json(parser)


class _NotDeployed(NamedTuple):
    """A precision in which a checkpoint cannot be deployed, and why."""

    network: str
    path: str
    precision: str
    reason: str


class _Measured(NamedTuple):
    candidates: list[Candidate]
    deployed: list[DeployedCandidate]
    left_out: list[_NotDeployed]
    others: float | None
    """CPU cores that other programs used during the timings; None if that is not known."""
    machine: dict[str, Any]
    """See :func:`wae.experiments.machine.machine`."""


def run(options: argparse.Namespace) -> int:
    """Evaluate every checkpoint on all processes; the first one measures times and prints the table.

    Returns 1 if a checkpoint cannot be deployed in a precision.
    """
    from wae.training.processes import is_first, joined

    if options.engine is not None and not options.deployed:
        raise UsageError("--engine: needs --deployed")
    with shared.failing():
        shared.check_model(options.model, options.weights)
        with joined(options.device) as device:
            first = is_first()
            measured = _measured(options, device)
    if first:
        (_print_json if options.json else _print_tables)(options, measured)
    for missing in measured.left_out:
        shared.complain(f"{missing.path} in {missing.precision}: {missing.reason}")
    return 1 if measured.left_out else 0


def _measured(options: argparse.Namespace, device: torch.device) -> _Measured:
    """Evaluate every checkpoint and its deployed forms; measure times on the first process."""
    from wae.data.loading import fingerprint
    from wae.experiments import evaluation
    from wae.experiments.machine import machine
    from wae.progress import bar
    from wae.training.processes import is_first, processes, require_same

    candidates = [
        evaluation.candidate(path, shared.load(path, options.model), device) for path in options.weights
    ]
    if options.deployed and processes() > 1:
        raise ValueError("--deployed: needs a single process, but torchrun started several")
    calibration = [
        _data(options, candidate, train=True) if "int8" in options.deployed else None
        for candidate in candidates
    ]
    tests = [_data(options, candidate) for candidate in candidates]
    if processes() > 1:
        for test in tests:
            require_same("test", fingerprint(test))
    for candidate, test in zip(candidates, tests, strict=True):
        evaluation.check_sizes(candidate, test)
    _evaluate(options, candidates, tests, device)
    others = []
    if is_first():
        with bar("timing", None):
            others.append(evaluation.measure(candidates, options.seconds))
    left_out: list[_NotDeployed] = []
    deployed = [
        entry
        for each in zip(candidates, tests, calibration, strict=True)
        for entry in _deployed(options, *each, device, left_out)
    ]
    if deployed:
        with bar("timing", None):
            others.append(evaluation.measure_deployed(deployed, options.seconds))
    known = [cores for cores in others if cores is not None]
    return _Measured(candidates, deployed, left_out, max(known, default=None), machine(device))


def _evaluate(
    options: argparse.Namespace,
    candidates: Sequence[Candidate],
    tests: Sequence[Dataset],
    device: torch.device,
) -> None:
    """Evaluate the candidates' accuracies; the first process reports which images were left out.

    Raises ValueError if scores are not finite, although the weights are.
    """
    from wae.progress import bar
    from wae.training.accuracy import evaluate
    from wae.training.processes import is_first

    failed: set[str] = set()
    for candidate, data in zip(candidates, tests, strict=True):
        with bar(candidate.described.network, len(data), is_first()) as advance:
            candidate.accuracy = evaluate(
                candidate.model, data, options.batch, device, options.workers, failed.update, advance
            )
        if not math.isfinite(candidate.accuracy.loss):
            raise ValueError(f"{candidate.path}: its scores of the test images are not finite")
    if is_first():
        _report_left_out(tests[-1], failed)


def _print_json(options: argparse.Namespace, measured: _Measured) -> None:
    from wae.experiments import evaluation

    shared.print_json(
        {
            "data": options.data,
            "networks": evaluation.as_data(measured.candidates),
            "deployed": evaluation.deployed_as_data(measured.deployed),
            "left_out": [missing._asdict() for missing in measured.left_out],
            "others": measured.others,
            "machine": measured.machine,
        }
    )


def _print_tables(options: argparse.Namespace, measured: _Measured) -> None:
    from wae.experiments import evaluation
    from wae.experiments.machine import disturbance
    from wae.wording import printable

    shared.console().print(evaluation.table(measured.candidates))
    print(f"Test images of {printable(options.data)}. {evaluation.HOW_TIMED}")
    if measured.deployed:
        shared.console().print(evaluation.deployed_table(measured.deployed))
        images = counted(options.batch, "image")
        print(f"Deployed by wae.deploy. Times: medians of calls with {images}, interleaved.")
        print("MB: peak memory of a process for this network beyond torch's; blank if it cannot be saved.")
    if disturbed := disturbance(measured.others):
        print(f"{disturbed.capitalize()}.")


def _deployed(
    options: argparse.Namespace,
    candidate: Candidate,
    test: Dataset,
    calibration: Dataset | None,
    device: torch.device,
    left_out: list[_NotDeployed],
) -> Iterator[DeployedCandidate]:
    """Deploy the candidate in each precision of ``--deployed``, and evaluate it. Adds to ``left_out``."""
    from wae.experiments.evaluation import DeployedCandidate
    from wae.inference.agreement import DisagreementError
    from wae.inference.calibration import CalibrationError
    from wae.inference.engines import EngineError
    from wae.progress import bar
    from wae.training.accuracy import evaluate

    for precision in options.deployed:
        images = calibration if precision == "int8" else None
        name = f"{candidate.described.network} in {precision}"
        try:
            with bar(f"deploying {name}", None):
                entry = DeployedCandidate(
                    candidate, precision, options.engine or "auto", options.batch, images
                )
        except (CalibrationError, EngineError, DisagreementError) as error:
            missing = _NotDeployed(
                candidate.described.network, str(candidate.path), precision, first_line(error)
            )
            left_out.append(missing)
            continue
        with bar(name, len(test)) as advance:
            entry.accuracy = evaluate(entry, test, options.batch, device, options.workers, advance=advance)
        yield entry


def _report_left_out(data: Dataset, failed: set[str]) -> None:
    """Print one line on what the search for images left out, and one for each that could not be read."""
    from wae.data.image_files import left_out_of

    if line := left_out_of(data):
        shared.complain(line)
    for line in sorted(failed):
        shared.complain(f"left out: {line}")


def _data(options: argparse.Namespace, candidate: Candidate, train: bool = False) -> Dataset:
    """The test or training set, with images in the network's size and classes in the network's order."""
    from wae.data.classes import class_order
    from wae.data.loading import open_dataset
    from wae.data.shards import is_sharded
    from wae.training.accuracy import check_kind
    from wae.training.processes import is_first

    # Named sets have a fixed size; a network that needs another one reports that itself.
    of_files = is_sharded(options.data) or Path(options.data).is_dir()
    size = candidate.described.input if of_files else None
    limit = shared.max_pixels(options)
    data = open_dataset(options.data, train, False, 0, size, options.on_corrupt, limit)
    described = candidate.described
    check_kind(described.network, data)
    order = class_order(candidate.path, described.labels, described.classes, data.labels)
    if order.note and is_first() and not train:
        shared.complain(order.note)
    return data.renumbered(order.numbers)
