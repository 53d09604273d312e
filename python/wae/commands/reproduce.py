"""``wae reproduce``."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wae.cores import usable_cores
from wae.errors import UsageError

from . import shared, types

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from wae.experiments.reproduction.claim import Claim, Job
    from wae.experiments.reproduction.results import NotTrained, Result
    from wae.experiments.reproduction.table import Row
    from wae.experiments.reproduction.worker import Progress

HELP = "train WAE and the networks it is compared with, and print a table"
CLAIMS = ("fashion-mnist", "imagenette", "camvid")
_OWN = {
    "fashion-mnist": (),
    "imagenette": ("download", "network", "size", "kept_aside", "also_at"),
    "camvid": ("network", "size"),
}
"""The options that only some claims have."""
_TABLE, _PICTURE = "table.md", "picture.png"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_SIDES = (64, 96, 128, 224)  # of Imagenette's images, in pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("claim", choices=CLAIMS, help="what to reproduce")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("reproduction"),
        metavar="DIR",
        help="folder of results; those already there are not computed again (default: reproduction)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="fashion-mnist: folder of the four IDX files (default: as in Debian's dataset-fashion-mnist); "
        "imagenette: folder with train/CLASS/IMAGE and val/CLASS/IMAGE; "
        "camvid: folder with {train,val,test}/{images,labels}",
    )
    parser.add_argument(
        "--seeds", type=types.integer(1, 256), metavar="N", help="number of seeds per network (default: 3)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these networks, by their names in the table"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--times",
        type=types.number(0.01, 1000),
        default=1,
        metavar="N",
        help="multiply the plan's epochs with labels by N, for example 4 or 0.5 (default: 1)",
    )
    length.add_argument(
        "--quick",
        action="store_true",
        help="one seed and a quarter of the epochs, for a quick look",
    )
    parser.add_argument(
        "--processes",
        type=types.processes,
        metavar="N",
        help="parallel trainings, each on one core (default: one per usable core; one on a GPU)",
    )
    shared.add_json(parser)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="device to train on (default: cpu)")
    group = parser.add_argument_group("imagenette and camvid")
    group.add_argument(
        "--network",
        metavar="NAME",
        help="imagenette: small_vgg (default), resnet18 or resnet50; "
        "camvid: enet (default), mobilenet_deconv, mobilenet_deconv_compensated or pspnet_resnet18",
    )
    group.add_argument(
        "--size",
        type=types.image_size,
        metavar="N|HEIGHTxWIDTH",
        help=f"imagenette: {', '.join(map(str, _SIDES))} (default: 64; 128 for ResNets); "
        "camvid: HEIGHTxWIDTH (default: 360x480)",
    )
    group = parser.add_argument_group("imagenette")
    group.add_argument(
        "--download", action="store_true", help="let torchvision download the photos to --data if needed"
    )
    group.add_argument(
        "--kept-aside",
        action="store_true",
        help="test on a held-out fifth of the training images and train on the rest, for choosing a recipe",
    )
    group.add_argument(
        "--also-at",
        nargs="+",
        type=types.size,
        metavar="N",
        help="more baselines: the full network on images of N x N, for example with WAE's time",
    )


class _Found(NamedTuple):
    """What the trainings gave, and the networks' times on this machine."""

    table: list[Row]
    left_out: list[NotTrained]
    others: float | None
    """CPU cores that other programs used during the timing; None if that is not known."""


def run(options: argparse.Namespace) -> int:
    """Train what is missing, with a progress bar, then print the table and write it to the folder.

    Returns 1 if a training was left out.
    """
    console = shared.console(options.json)
    with shared.failing():
        claim = _claim(options)
        found = _made(options, claim, console)
    if options.json:
        shared.print_json(_data(found, claim))
    else:
        console.print(_text(found, claim), soft_wrap=True, markup=False, highlight=False)
    for training in found.left_out:
        shared.complain(_reason(training))
    return 1 if found.left_out else 0


def _made(options: argparse.Namespace, claim: Claim, console: Console) -> _Found:
    """The table of all trainings; trains what is missing, and writes the table to the folder."""
    from wae.experiments.machine import OtherPrograms
    from wae.experiments.reproduction.results import NotTrained, Result
    from wae.experiments.reproduction.table import rows
    from wae.training.lock import alone_in

    wanted, source = _wanted(options, claim), _source(options, claim)
    with alone_in(options.output):  # until the last file is written
        _refuse_other_files(options.output)
        outcomes = _watch(options, source, wanted, claim)
        left_out = [outcome for outcome in outcomes if isinstance(outcome, NotTrained)]
        trained = f"All {'other ' if left_out else ''}networks are trained"
        console.print(f"{trained}. Measuring their times on this machine.")
        others = OtherPrograms()
        table = rows([outcome for outcome in outcomes if isinstance(outcome, Result)], claim)
        found = _Found(table, left_out, others.cores())
        _write(options.output, _text(found, claim), claim.picture(source, options.output))
    return found


def _refuse_other_files(folder: Path) -> None:
    """Raise FileExistsError unless the files to write are missing, or those of an earlier run."""
    from wae.experiments.reproduction.table import is_table

    if not is_table(folder / _TABLE):
        for path in (folder / _TABLE, folder / _PICTURE):
            if path.exists():
                raise FileExistsError(f"{path}: is not of wae reproduce; move it, or name another folder")


def _text(found: _Found, claim: Claim) -> str:
    """The table in Markdown, then what it lacks and whether its times are reliable."""
    from wae.experiments.machine import disturbance
    from wae.experiments.reproduction.table import markdown

    notes = [f"{_reason(training)}." for training in found.left_out]
    if disturbed := disturbance(found.others):
        notes.append(f"{disturbed.capitalize()}.")
    return "\n\n".join([markdown(found.table, claim), *notes])


def _reason(training: NotTrained) -> str:
    return f"{training.network}, seed {training.seed}, is left out: {training.reason}"


def _write(folder: Path, table: str, picture: Image | None) -> None:
    """Write the files. A folder that has all results may be read-only: then say so."""
    from wae.experiments.panels import png
    from wae.storage.files import write

    try:
        write(folder / _TABLE, f"{table}\n", force=True)
        if picture:
            write(folder / _PICTURE, png(picture), force=True)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        shared.complain(f"{folder}: {error.strerror}; the table is printed but not saved")


def _data(found: _Found, claim: Claim) -> dict[str, Any]:
    """The table as JSON data, with the share that each network recovers, the notes below it, and the machine
    on which times were measured."""
    from wae.experiments.machine import machine
    from wae.experiments.reproduction.table import recovered, reestimated

    shares = {"recovered": found.table, "recovered_remeasured": reestimated(found.table)}
    networks = [
        {**asdict(row), **{name: recovered(of, claim, row.network) for name, of in shares.items()}}
        for row in found.table
    ]
    left_out = [training._asdict() for training in found.left_out]
    return {"networks": networks, "left_out": left_out, "others": found.others, "machine": machine()}


def _claim(options: argparse.Namespace) -> Claim:
    from wae.experiments.reproduction import camvid, fashion_mnist, imagenette

    times = 1 / 4 if options.quick else options.times
    for name in sorted({name for names in _OWN.values() for name in names} - set(_OWN[options.claim])):
        if getattr(options, name):
            claims = " and ".join(claim for claim, names in _OWN.items() if name in names)
            raise UsageError(f"--{name.replace('_', '-')}: is only for {claims}")
    if options.claim == "imagenette":
        network = _chosen("network", options.network, imagenette.NETWORKS) or "small_vgg"
        size = _chosen("size", _side(options.size), _SIDES)
        return imagenette.claim(network, size, options.kept_aside, times, options.also_at or ())
    if options.claim == "camvid":
        network = _chosen("network", options.network, camvid.NETWORKS) or camvid.NETWORKS[0]
        if isinstance(options.size, int):
            raise UsageError(f"--size: camvid needs HEIGHTxWIDTH, got {options.size}")
        return camvid.claim(network, options.size, times)
    return fashion_mnist.claim(times)


def _side(size: int | tuple[int, int] | None) -> int | str | None:
    """The side of square images of ``--size``; for others HEIGHTxWIDTH, which no claim of these has."""
    if isinstance(size, tuple):
        return size[0] if size[0] == size[1] else "{}x{}".format(*size)
    return size


def _chosen(option: str, value: Any, allowed: Iterable[Any]) -> Any:
    """``value``, after a check that the claim allows it."""
    if value is not None and value not in allowed:
        raise UsageError(f"--{option}: must be one of {', '.join(map(str, allowed))}, got {value}")
    return value


def _source(options: argparse.Namespace, claim: Claim) -> str:
    """What ``--data`` names, downloaded if that is wanted."""
    from wae.experiments.reproduction import imagenette

    if options.claim == "fashion-mnist":
        return options.data or "fashion-mnist"
    if not options.data and options.claim == "camvid":
        raise UsageError("--data: needs the folder with CamVid's train, val and test")
    if not options.data:
        raise UsageError("--data: needs the folder with Imagenette's train and val (--download fills it)")
    if options.download:
        return str(imagenette.download(Path(options.data), claim.input.size))
    return str(options.data)


def _wanted(options: argparse.Namespace, claim: Claim) -> list[Job]:
    wanted = claim.jobs(range(options.seeds or (1 if options.quick else 3)))
    if not options.only:
        return wanted
    if unknown := sorted(set(options.only) - set(claim.registered)):
        raise UsageError(f"--only: there is no network {unknown[0]}; known are {', '.join(claim.registered)}")
    return [job for job in wanted if job.network in options.only]


def _watch(
    options: argparse.Namespace, data: str, wanted: list[Job], claim: Claim
) -> list[Result | NotTrained]:
    """Train, and show the progress."""
    from rich.progress import TimeElapsedColumn

    from wae.experiments import reproduce
    from wae.experiments.reproduction.claim import Job
    from wae.experiments.reproduction.results import NotTrained, result_path
    from wae.progress import progress

    def tell(told: Progress | NotTrained) -> None:
        if isinstance(told, NotTrained):
            left[Job(told.network, told.seed)] = 0
        else:
            bar.console.print(_said(told, claim), highlight=False)
            left.setdefault(told.job, told.of)  # for one that is outdated by a training of this run
            left[told.job] -= told.done if told.before else 1
            if not told.before:
                bar.advance(task.id)
        task.total = task.completed + sum(left.values())

    todo = reproduce.open_jobs(options.output, wanted, claim)
    training = reproduce.to_train(options.output, todo, claim)
    left = {job: sum(stage.epochs for stage in claim.plan_of(*job).stages) for job in training}
    processes = options.processes or (1 if options.device != "cpu" else usable_cores())
    with progress(shared.console(options.json), TimeElapsedColumn()) as bar:
        epochs = bar.add_task("epochs", total=sum(left.values()))
        bar.advance(epochs, 0)  # starts the clock of its speed estimate
        (task,) = bar.tasks
        if lacking := len(todo) - len(training):
            what = "lack the accuracy with re-estimated BatchNorm statistics"
            bar.console.print(f"{lacking} of {len(wanted)} trainings {what}", highlight=False)
        if repeated := sum(result_path(options.output, job).exists() for job in training):
            why = "have no weights, or came from weights that have been trained again"
            bar.console.print(f"{repeated} of {len(wanted)} trainings {why}", highlight=False)
        return reproduce.run(options.output, data, wanted, claim, processes, options.device, tell)


def _said(told: Progress, claim: Claim) -> str:
    """What is printed when an epoch has ended."""
    accuracy = "" if told.accuracy is None else f", {claim.measure} {100 * told.accuracy:.2f} %"
    return (
        f"{told.job.network}, seed {told.job.seed}: {'resuming after ' if told.before else ''}"
        f"epoch {told.done} of {told.of} ({told.kind}){accuracy}"
    )
