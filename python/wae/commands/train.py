"""``wae train``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wae.errors import UsageError
from wae.training.plan import BATCH, EPOCHS, SEED
from wae.wording import file_of, reason

from . import shared, types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wae.training.plan import Plan
    from wae.training.session import Session
    from wae.training.state import Epoch

HELP = "train a classifier or a segmentation network in the method's three stages"

_Size = int | tuple[int, int] | None  # of the images, in pixels; None for the default

_PRECISIONS = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="classifiers: wae_vgg16, wae_resnet50, ..., resnet50, ...; segmentation: wae_enet, ... "
        "(default: as in the plan; with --original wae_NAME)",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|NAME|SHARDS",
        help="fashion-mnist, digits, a folder with train/CLASS/IMAGE and val/CLASS/IMAGE, or, with a class "
        "for each pixel, classes.txt, {train,val}/images and {train,val}/labels; or WebDataset shards, "
        "'train-{000..127}.tar' or a folder with train/*.tar and val/*.tar",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE|NAME",
        action=_PlanOption,
        help="plan of the stages (default: the one for the data or the model, otherwise one made for the "
        "data); the word list prints the available plans",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for checkpoints, log and trained network",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the training in DIR, or start it if there is none"
    )
    shared.add_force(parser)
    shared.add_json(parser)
    _add_start(parser.add_argument_group("what to start from (default: random weights)"))
    _add_overrides(parser.add_argument_group("instead of what the plan says"))
    _add_machine(parser.add_argument_group("data and machine"))


def _add_start(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of the same network")
    group.add_argument(
        "--body-weights",
        metavar="FILE|torchvision",
        help="for the standard body: a torchvision file, or the word torchvision (may download one)",
    )
    group.add_argument(
        "--autoencoder",
        metavar="FILE|included",
        help="for encoder and decoder: a file of wae train-autoencoder, or the included weights",
    )
    group.add_argument(
        "--original",
        type=Path,
        metavar="FILE",
        help="for the segmentation networks wae_NAME and NAME_half: the checkpoint of the trained NAME, from "
        "which they are initialised and distilled",
    )
    group.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="checkpoint of the teacher in stages with a mimic_weight",
    )


def _add_overrides(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stage",
        type=int,
        nargs="+",
        choices=(1, 2, 3),
        metavar="N",
        help="only stages of these kinds: 1, 2, 3",
    )
    group.add_argument("--epochs", type=types.integer(*EPOCHS), metavar="N", help="epochs of every stage")
    shared.add_rate_and_batch(group)
    group.add_argument(
        "--accumulate",
        type=types.integer(*BATCH),
        metavar="N",
        help="parts in which a batch is computed, to save memory",
    )
    group.add_argument("--precision", choices=_PRECISIONS, help="precision of the training")
    group.add_argument("--seed", type=types.integer(*SEED), metavar="N", help="random seed")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--size",
        type=types.image_size,
        metavar="N|HEIGHTxWIDTH",
        help="size of images from files (default: as for the original; with a class for each pixel that of "
        "the first image; near the images' own if a plan is made for them; otherwise 224)",
    )
    shared.add_on_corrupt(group)
    shared.add_max_pixels(group)
    shared.add_workers(group)
    shared.add_device(group)


def run(options: argparse.Namespace) -> int:
    """Train. If a signal ends it, print how to resume, and return the status of :mod:`wae.cli`."""
    _check_start(options)
    with shared.failing():
        session = _session(options)
    try:
        with shared.failing():
            session.run(shared.console(options.json), _print_epochs if options.json else None)
    except KeyboardInterrupt as interrupt:
        return shared.interrupted(interrupt, f"; {_how_to_resume(session.state)}")
    except (FileExistsError, BrokenPipeError):
        raise
    except OSError as error:
        name = file_of(error) or options.output
        raise shared.Failure(f"{name}: {reason(error)}; {_how_to_resume(session.state)}") from None
    return 0


def _session(options: argparse.Namespace) -> Session:
    """The training that the options specify. Raises as :func:`_plan` does."""
    from wae.storage.weights_file import AUTOENCODER
    from wae.training.session import Session

    autoencoder = AUTOENCODER if options.autoencoder == "included" else options.autoencoder
    plan, size = _plan(options)
    return Session(
        plan=plan,
        data=options.data,
        folder=options.output,
        size=size,
        on_corrupt=options.on_corrupt,
        max_pixels=shared.max_pixels(options),
        weights=options.weights,
        body_weights=options.body_weights,
        autoencoder=autoencoder and Path(autoencoder),
        original=options.original,
        teacher=options.teacher,
        resume=options.resume,
        force=options.force,
        workers=options.workers,
        device=options.device,
    )


def _check_start(options: argparse.Namespace) -> None:
    """Raise UsageError if there is no ``--device`` of this name, or two options name the initial weights."""
    from wae.training.processes import named_device

    if options.device is not None:
        named_device(options.device)
    for name in ("weights", "body_weights", "autoencoder"):
        if options.original and getattr(options, name):
            raise UsageError(f"--original and --{name.replace('_', '-')}: need one of them, got both")


def _print_epochs(plan: Plan, history: Sequence[Epoch]) -> None:
    shared.print_json({"plan": plan.as_dict(), "epochs": [epoch.as_data() for epoch in history]})


def _how_to_resume(state: Path) -> str:
    if state.exists():
        return f"{state} holds all complete epochs; the same command with --resume continues from there"
    return "nothing was trained yet"


def _plan(options: argparse.Namespace) -> tuple[Plan, _Size]:
    """The plan and the size of the images that the options specify.

    Raises PlanError, or CheckpointError about the original.
    """
    from wae.storage.checkpoint import describe
    from wae.training import plan
    from wae.training.fine_tuning import fine_tuning_plan

    size: _Size = options.size
    if options.plan:
        chosen = plan.find(options.plan)
    elif default := _default_plan(options.data, options.model):
        chosen = default
    else:
        chosen, size = _plan_for_folder(options)
    if options.model:
        chosen = replace(chosen, model=options.model)
    elif options.original:
        chosen = replace(chosen, model=f"wae_{describe(options.original).network}")
    if options.original:
        chosen = fine_tuning_plan(chosen)
    if options.stage:
        chosen = chosen.only(*(plan.KINDS[number - 1] for number in options.stage))
    if options.learning_rate is not None:
        chosen = chosen.at_rate(options.learning_rate)
    stages = tuple(stage.lasting(options.epochs or stage.epochs) for stage in chosen.stages)
    given = shared.given(options, "batch", "accumulate", "precision", "seed")
    return replace(chosen, **given, stages=stages), size


def _default_plan(data: str, model: str | None) -> Plan | None:
    """The plan with the name of the data, otherwise that of the model; None if there is neither."""
    from wae.training import plan

    for name in (data, model or ""):
        if not Path(name).is_file():
            with suppress(plan.PlanError):
                return plan.find(name)
    return None


def _plan_for_folder(options: argparse.Namespace) -> tuple[Plan, _Size]:
    """A plan made for the images in the folder, or CamVid's for segmentation; and the size of the images.

    Raises NetworkError if there is no such network, and PlanError if the data are not a folder.
    """
    from wae.data.folder import ImageFolder
    from wae.data.loading import open_dataset
    from wae.data.segmentation import SegmentationFolder
    from wae.models.registry import check_known
    from wae.training import plan
    from wae.training.small_data import MODEL, fitting_size, small_data_plan

    if options.model and not options.original:  # as in Session.run: before all files are listed
        check_known(options.model)
    limit = shared.max_pixels(options)
    data = open_dataset(options.data, True, False, 0, options.size, options.on_corrupt, limit)
    if isinstance(data, SegmentationFolder):
        return plan.find("camvid"), options.size
    if not isinstance(data, ImageFolder):
        raise plan.PlanError(f"there is no plan for {options.data}; name one with --plan")
    size = fitting_size(data) if options.size is None else options.size
    return small_data_plan(len(data), options.model or MODEL), size


class _PlanOption(argparse.Action):
    """``--plan``. Given the word ``list``, it prints the plans and exits, as ``--help`` does."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """See argparse.Action."""
        if value == "list":
            from wae.training import plan

            print(plan.listed())
            parser.exit()
        namespace.plan = value
