"""``wae reproduce``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import shared

if TYPE_CHECKING:
    from wae.experiments.reproduce import Claim, Job, Result

HELP = "train WAE and the networks it is compared with, and print the paper's table"
CLAIMS = ("fashion-mnist", "imagenette")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("claim", choices=CLAIMS, help="what to reproduce")
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
        metavar="DIR",
        help="fashion-mnist: folder of the four IDX files (default: that of Debian's dataset-fashion-mnist); "
        "imagenette: folder with train/CLASS/IMAGE and val/CLASS/IMAGE",
    )
    parser.add_argument(
        "--seeds", type=shared.processes, metavar="N", help="seeds of each network (default: 3)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these networks alone, by their names in the table"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--times", type=shared.positive, default=1, metavar="N", help="so many times the plan's epochs"
    )
    length.add_argument(
        "--quick",
        action="store_true",
        help="one seed, a quarter of the epochs: for a glance",
    )
    parser.add_argument(
        "--processes",
        type=shared.processes,
        metavar="N",
        help="trainings at a time, each on one core (default: as many as there are cores; on a GPU one)",
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where to train (default: cpu)")
    group = parser.add_argument_group("imagenette")
    group.add_argument(
        "--download", action="store_true", help="have torchvision download the photos to --data, if needed"
    )
    group.add_argument(
        "--network",
        choices=("small_vgg", "resnet18", "resnet50"),
        help="(default: small_vgg)",
    )
    group.add_argument(
        "--size", type=int, choices=(64, 96, 128, 224), help="of the images (default: 64, for ResNets 128)"
    )
    group.add_argument(
        "--kept-aside",
        action="store_true",
        help="test on a fifth of the training images, train on the others: to choose a recipe by",
    )


def run(options: argparse.Namespace) -> int:
    """Train what is missing, with a progress bar; then print the table, and keep it in the folder."""
    from wae.errors import WaeError
    from wae.experiments import reproduce
    from wae.storage.files import written

    console = shared.console()
    try:
        claim = _claim(options)
        wanted = _wanted(options, claim)
        results = _watch(options, wanted, claim)
    except (WaeError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    console.print("All networks are trained. Timing them on this machine.")
    table = reproduce.markdown(reproduce.rows(results, claim), claim)
    with written(options.output / "table.md", force=True) as file:
        file.write(f"{table}\n".encode())
    console.print(table, soft_wrap=True, markup=False, highlight=False)
    return 0


def _claim(options: argparse.Namespace) -> Claim:
    from wae.experiments import fashion_mnist, imagenette

    times = 1 / 4 if options.quick else options.times
    if options.claim == "imagenette":
        return imagenette.claim(options.network or "small_vgg", options.size, options.kept_aside, times)
    given = [name for name in ("download", "network", "size", "kept_aside") if getattr(options, name)]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')}: is for imagenette alone")
    return fashion_mnist.claim(times)


def _data(options: argparse.Namespace) -> str:
    from wae.experiments import imagenette

    if options.claim == "fashion-mnist":
        return options.data or "fashion-mnist"
    if not options.data:
        raise ValueError("--data: name the folder of Imagenette's train and val (--download fills it)")
    if options.download:
        return str(imagenette.download(Path(options.data), options.size or 0))
    return str(options.data)


def _wanted(options: argparse.Namespace, claim: Claim) -> list[Job]:
    wanted = claim.jobs(range(options.seeds or (1 if options.quick else 3)))
    if not options.only:
        return wanted
    if unknown := sorted(set(options.only) - set(claim.registered)):
        raise ValueError(f"--only: there is no network {unknown[0]}; known are {', '.join(claim.registered)}")
    return [job for job in wanted if job.network in options.only]


def _watch(options: argparse.Namespace, wanted: list[Job], claim: Claim) -> list[Result]:
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

    todo = reproduce.open_jobs(options.output, wanted, claim)
    epochs = sum(stage.epochs for job in todo for stage in claim.plan_of(job.network, job.seed).stages)
    columns = (
        TextColumn("epochs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    processes = options.processes or (1 if options.device != "cpu" else os.cpu_count() or 1)
    with Bar(*columns, console=shared.console()) as bar:
        task = bar.add_task("", total=epochs)
        return reproduce.run(options.output, _data(options), wanted, claim, processes, options.device, tell)
