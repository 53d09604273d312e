"""``wae train``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wae.wording import file_of, first_line

from . import shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wae.training.plan import Plan
    from wae.training.trainer import Epoch

HELP = "train a network that scores images or pixels, in the method's three stages"

_PRECISIONS = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="wae_vgg16, wae_resnet50, ..., resnet50, ...; of pixels wae_enet, ... (default: the plan's; "
        "with --original wae_NAME)",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|NAME|SHARDS",
        help="fashion-mnist, digits, a folder: train/CLASS/IMAGE and val/CLASS/IMAGE, or for a class of "
        "each pixel classes.txt, {train,val}/images and {train,val}/labels; or WebDataset's shards, "
        "'train-{000..127}.tar' or a folder of train/*.tar and val/*.tar",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE|NAME",
        action=_PlanOption,
        help="what each stage does (default: the one for the data or the model, else one made for the data); "
        "the word list prints those that there are",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="checkpoints, log, trained network"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the training in DIR, or begin it")
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
        help="for the standard body: a file of torchvision's, or the word torchvision: may download one",
    )
    group.add_argument(
        "--autoencoder",
        metavar="FILE|included",
        help="for encoder and decoder: what wae train-autoencoder wrote, or the weights included",
    )
    group.add_argument(
        "--original",
        type=Path,
        metavar="FILE",
        help="for wae_NAME or NAME_half of pixels: the checkpoint of the trained NAME, whose weights it "
        "begins with, and which teaches it",
    )
    group.add_argument("--teacher", type=Path, metavar="FILE", help="for stages with a mimic_weight")


def _add_overrides(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stage", type=int, nargs="+", choices=(1, 2, 3), metavar="N", help="of these kinds alone: 1, 2, 3"
    )
    group.add_argument("--epochs", type=shared.positive, metavar="N", help="of every stage")
    group.add_argument("--learning-rate", type=float, metavar="X", help="of every stage, at its highest")
    group.add_argument("--batch", type=shared.positive, metavar="N", help="of all processes together")
    group.add_argument("--accumulate", type=shared.positive, metavar="N", help="parts of a batch, in turn")
    group.add_argument("--precision", choices=_PRECISIONS)
    group.add_argument("--seed", type=int, metavar="N")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--size",
        type=shared.image_size,
        metavar="N|HEIGHTxWIDTH",
        help="of images from files (default: the original's, else 224; with a class for each pixel the first "
        "image's)",
    )
    group.add_argument(
        "--on-corrupt", choices=("error", "skip"), default="error", help="about images that cannot be read"
    )
    shared.add_max_pixels(group)
    group.add_argument(
        "--workers", type=shared.workers, default=0, metavar="N", help="processes that read (default: 0)"
    )
    group.add_argument("--device", metavar="NAME", help="default: cuda if there is a GPU, else cpu")


def run(options: argparse.Namespace) -> int:
    """Train; 130, with a word on how to go on, where it was interrupted."""
    from wae.data.images import MAX_PIXELS, ImageError
    from wae.storage.weights_file import WEIGHTS, CheckpointError
    from wae.training.session import Session
    from wae.training.trainer import TrainingError

    _check_start(options)
    included = options.autoencoder == "included"
    autoencoder = WEIGHTS / "autoencoder.safetensors" if included else options.autoencoder
    try:
        plan = _plan(options)  # which may choose a size
        session = Session(
            plan=plan,
            data=options.data,
            folder=options.output,
            size=options.size,
            on_corrupt=options.on_corrupt,
            max_pixels=options.max_pixels or MAX_PIXELS,
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
    except (CheckpointError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    try:
        session.run(shared.console(options.json), _print_epochs if options.json else None)
    except KeyboardInterrupt as interrupt:
        return shared.interrupted(interrupt, f"; {_how_to_go_on(session.state)}")
    except (TrainingError, CheckpointError, ImageError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    except FileExistsError:
        raise
    except OSError as error:
        name = file_of(error) or options.output
        why = error.strerror or first_line(error)
        raise shared.Failure(f"{name}: {why}; {_how_to_go_on(session.state)}") from None
    return 0


def _check_start(options: argparse.Namespace) -> None:
    """Raise Failure where another option names weights to start from beside ``--original``."""
    for name in ("weights", "body_weights", "autoencoder"):
        if options.original and getattr(options, name):
            raise shared.Failure(f"--original and --{name.replace('_', '-')}: give one of them")


def _print_epochs(plan: Plan, history: Sequence[Epoch]) -> None:
    shared.print_json({"plan": plan.as_dict(), "epochs": [epoch.as_data() for epoch in history]})


def _how_to_go_on(state: Path) -> str:
    if state.exists():
        return f"{state} holds all whole epochs, and the same command with --resume goes on from there"
    return "nothing was trained yet"


def _plan(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for. Raises PlanError; CheckpointError about the original."""
    from wae.storage.checkpoint import describe
    from wae.training import plan
    from wae.training.original_start import made_of_original

    if options.plan:
        chosen = plan.find(options.plan)
    else:
        chosen = _default_plan(options.data, options.model) or _plan_for_folder(options)
    if options.model:
        chosen = replace(chosen, model=options.model)
    elif options.original:
        chosen = replace(chosen, model=f"wae_{describe(options.original).network}")
    if options.original:
        chosen = made_of_original(chosen)
    if options.stage:
        chosen = chosen.only(*(plan.KINDS[number - 1] for number in options.stage))
    rate = _given(options, "learning_rate")
    stages = tuple(replace(s.lasting(options.epochs or s.epochs), **rate) for s in chosen.stages)
    return replace(chosen, **_given(options, "batch", "accumulate", "precision", "seed"), stages=stages)


def _default_plan(data: str, model: str | None) -> Plan | None:
    """The data's, where that has one; else the model's, if that has one."""
    from wae.training import plan

    for name in (data, model or ""):
        if not Path(name).is_file():
            with suppress(plan.PlanError):
                return plan.find(name)
    return None


def _plan_for_folder(options: argparse.Namespace) -> Plan:
    """One made for the images in the folder, whose size is chosen too; CamVid's for a class of each pixel.

    Raises PlanError where it has none.
    """
    from wae.data.folder import ImageFolder
    from wae.data.images import MAX_PIXELS
    from wae.data.loading import open_dataset
    from wae.data.segmentation import SegmentationFolder
    from wae.training import plan
    from wae.training.small_data import MODEL, fitting_size, small_data_plan

    max_pixels = options.max_pixels or MAX_PIXELS
    data = open_dataset(options.data, True, False, 0, options.size, options.on_corrupt, max_pixels)
    if isinstance(data, SegmentationFolder):
        return plan.find("camvid")
    if not isinstance(data, ImageFolder):
        raise plan.PlanError(f"there is no plan for {options.data}: name one with --plan")
    if options.size is None:
        options.size = fitting_size(data)
    return small_data_plan(len(data), options.model or MODEL)


class _PlanOption(argparse.Action):
    """``--plan``; with the word list it prints the plans and ends, as ``--help`` does."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """See argparse.Action."""
        if value == "list":
            from wae.training import plan

            print(plan.listed())
            parser.exit()
        namespace.plan = value


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
