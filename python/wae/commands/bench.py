"""``wae bench``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wae.errors import UsageError

from . import shared, types

if TYPE_CHECKING:
    from wae.experiments import bench
    from wae.models.pairs import Pair

HELP = "measure whether WAE is worth it for a network on this machine, in every installed engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "networks",
        nargs="+",
        type=types.original,
        metavar="NETWORK",
        help="a name in torchvision or timm, or MODULE:FUNCTION that returns your own network",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=types.batch,
        default=[1, 8],
        metavar="N",
        help="images per call (default: 1 8)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=types.PRECISIONS,
        default=["float32", "int8"],
        metavar="NAME",
        help=f"{', '.join(types.PRECISIONS)} (default: float32 int8)",
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        choices=types.ENGINES,
        metavar="NAME",
        help="engines of wae.deploy (default: all installed ones)",
    )
    parser.add_argument(
        "--size",
        type=types.size,
        metavar="N",
        help="side of the images in pixels (default: the network's, usually 224)",
    )
    parser.add_argument(
        "--seconds",
        type=types.seconds,
        default=10.0,
        metavar="S",
        help="time spent on timing each network at each batch size, in addition to building (default: 10)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="folder of 40 images or more for the scales of int8 (default: crops of the bundled photos)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write a report with a figure, one HTML page"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results and the answer as JSON")
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Compare every network at every batch size; print the tables and the verdict, then write the files.

    Returns 1 if a comparison failed.
    """
    from wae.experiments import bench, bench_report
    from wae.models.pairs import pair
    from wae.storage.files import refuse_existing, write

    _check_engines(options.engine or ())
    if options.calibrate is not None and "int8" not in options.precision:
        raise UsageError("--calibrate: needs int8 in --precision")
    if options.json and options.output and options.json.resolve() == options.output.resolve():
        raise UsageError(f"--json: needs another file than -o, got {options.json} for both")
    for target in filter(None, (options.output, options.json)):
        refuse_existing(target, options.force)
    with shared.failing():
        pairs = [pair(name, (_side(options, name),) * 2) for name in options.networks]
        found, failures = _compared(options, pairs, options.engine or bench.engines_for_cpu())
    for failure in failures:
        shared.complain(failure)
    if not found:
        return 1
    verdict = bench_report.verdict(found)
    for line in (*bench_report.notes(found), verdict):
        print(line)
    if options.json is not None:
        data = {**bench.as_data(found, options.seconds), "verdict": verdict}
        write(options.json, json.dumps(data, indent=1) + "\n", options.force)
    if options.output is not None:
        write(options.output, bench_report.page(found), options.force)
    return 1 if failures else 0


def _check_engines(names: Sequence[str]) -> None:
    """Raise Failure for the first engine that does not run here."""
    from wae.inference.engines import ENGINES

    for name in names:
        if (reason := ENGINES[name].why_not("cpu")) is not None:
            raise shared.Failure(f"--engine: {reason}")


def _compared(
    options: argparse.Namespace, pairs: Sequence[Pair], engines: Sequence[str]
) -> tuple[list[bench.Comparison], list[str]]:
    """Compare every pair at every batch size, and print each table as soon as it is measured.

    The texts say which comparisons failed, and why. Raises CalibrationError, which would be the same in all.
    """
    from wae.experiments import bench, bench_report
    from wae.inference.calibration import CalibrationError
    from wae.inference.engines import EngineError
    from wae.progress import bar

    pairs_and_batches = [(each, batch) for each in pairs for batch in options.batch]
    found, failures = [], []
    with bar("comparisons", len(pairs_and_batches)) as advance, _steps() as step:
        for each, batch in pairs_and_batches:
            try:
                comparison = bench.compare(
                    each,
                    _side(options, each.name),
                    batch,
                    engines,
                    options.precision,
                    options.seconds,
                    options.calibrate,
                    step,
                )
            except CalibrationError:
                raise
            except (EngineError, ValueError) as error:
                failures.append(f"{each.name}, batch {batch}: {error}")
            else:
                found.append(comparison)
                shared.console().print(bench_report.table(comparison))
            advance(1)
    return found, failures


def _side(options: argparse.Namespace, name: str) -> int:
    """The side of the images for the network called ``name``, in pixels."""
    from wae.models.registry import image_side

    return int(options.size or image_side(name))


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step until it is called again."""
    from wae.progress import bar

    with ExitStack() as shown:

        def step(what: str) -> None:
            shown.close()
            shown.enter_context(bar(what, None))

        yield step
