"""``wae reproduce``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import shared

if TYPE_CHECKING:
    from wae.experiments.reproduce import Job, Result
    from wae.training.plan import Plan

HELP = "train WAE and the networks it is compared with on Fashion-MNIST, and print the paper's table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("claim", choices=["fashion-mnist"], help="what to reproduce")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("reproduction"),
        metavar="DIR",
        help="folder of results; what is in it already is not done again (default: reproduction)",
    )
    parser.add_argument(
        "--data",
        default="fashion-mnist",
        metavar="DIR",
        help="folder of the four IDX files (default: that of Debian's dataset-fashion-mnist)",
    )
    parser.add_argument(
        "--seeds", type=shared.processes, metavar="N", help="seeds of each network (default: 3)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, a quarter of the epochs: for a glance, under 15 minutes",
    )
    parser.add_argument(
        "--processes",
        type=shared.processes,
        default=os.cpu_count() or 1,
        metavar="N",
        help="trainings at a time, each on one core (default: as many as there are cores)",
    )


def run(options: argparse.Namespace) -> int:
    """Train what is missing, with a progress bar; then print the table, and keep it in the folder."""
    from wae.data.dataset import DatasetError
    from wae.experiments import reproduce
    from wae.storage.files import written
    from wae.storage.weights_file import CheckpointError
    from wae.training.trainer import TrainingError

    wanted = reproduce.jobs(range(options.seeds or (1 if options.quick else 3)))
    wae = reproduce.wae_plan(options.quick)
    console = shared.console()
    try:
        results = _watch(options, wanted, wae)
    except (DatasetError, CheckpointError, TrainingError) as error:
        raise shared.Failure(str(error)) from None
    console.print("All networks are trained. Timing them on this machine.")
    table = reproduce.markdown(reproduce.rows(results))
    with written(options.output / "table.md", force=True) as file:
        file.write(f"{table}\n".encode())
    console.print(table, soft_wrap=True, markup=False, highlight=False)
    return 0


def _watch(options: argparse.Namespace, wanted: list[Job], wae: Plan) -> list[Result]:
    """Train, and show how far it is."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    from wae.experiments import reproduce

    def tell(progress: reproduce.Progress) -> None:
        accuracy = "" if progress.accuracy is None else f", accuracy {100 * progress.accuracy:.2f} %"
        bar.console.print(
            f"{progress.job.network}, seed {progress.job.seed}: epoch {progress.done} of {progress.of} "
            f"({progress.kind}){accuracy}",
            highlight=False,
        )
        bar.update(task, advance=1)

    open_jobs = [job for job in wanted if reproduce.read_result(options.output, job, wae) is None]
    epochs = sum(
        stage.epochs for job in open_jobs for stage in reproduce.plan_of(job.network, job.seed, wae).stages
    )
    columns = (
        TextColumn("epochs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=shared.console()) as bar:
        task = bar.add_task("", total=epochs)
        return reproduce.run(options.output, options.data, wanted, wae, options.processes, tell)
