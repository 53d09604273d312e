"""``wae accelerate``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from wae.training.plan import EPOCHS, SEED, WEIGHT

from . import shared, types

_MOST = WEIGHT[1]  # as in wae.experiments.acceleration.settings, whose import is slow

HELP = "make a trained classifier faster, and report what that costs in accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--model",
        type=types.original,
        required=True,
        metavar="NAME|FILE|MODULE:FUNCTION",
        help="a name in torchvision or timm, a checkpoint of wae train (FILE.safetensors), or a function "
        "that returns the network",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE|torchvision|timm",
        help="the network's weights: a file with its state_dict, or the library's (may download one)",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|NAME",
        help="a folder with train/CLASS/IMAGE and val/CLASS/IMAGE, fashion-mnist or digits",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the results; running the same command again resumes where it was stopped",
    )
    parser.add_argument(
        "--force", action="store_true", help="start over: remove what an acceleration left in DIR"
    )
    _add_choices(
        parser.add_argument_group(
            "the accelerated network (default: chosen automatically, see docs/accelerate.md)"
        )
    )
    _add_input(parser.add_argument_group("the network's input (default: as in its library, or ImageNet's)"))
    _add_training(parser.add_argument_group("training (default: a plan chosen by the number of images)"))
    _add_deployment(parser.add_argument_group("the deployed form"))
    _add_machine(parser.add_argument_group("data and machine"))


def _add_input(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input-size", type=types.size, metavar="N", help="side of the original's images, in pixels"
    )
    group.add_argument(
        "--interpolation",
        choices=("bilinear", "bicubic", "nearest"),
        help="how images are resized for the network",
    )
    for name, least in (("mean", -_MOST), ("std", 1e-6)):
        group.add_argument(
            f"--{name}",
            type=types.number(least, _MOST),
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{name} of the colours (0..1) by which the network expects them normalised",
        )


def _add_choices(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target", type=_times, metavar="N.Nx", help="target speedup, by which size and factor are chosen"
    )
    group.add_argument(
        "--target-ms",
        type=types.number(1e-6, _MOST),
        metavar="MS",
        help="target time of a call in milliseconds, instead",
    )
    group.add_argument(
        "--compare",
        action="store_true",
        help="also train and report baselines: half the resolution, the resolution of equal multiply-adds, "
        "pruned to equal time",
    )
    group.add_argument(
        "--size",
        type=types.size,
        metavar="N",
        help="side of its images, in pixels (default: as the original)",
    )
    group.add_argument(
        "--factor",
        type=types.integer(1, 64),
        metavar="N",
        help="divisor of the light body's channels (default: 4)",
    )
    group.add_argument(
        "--start",
        default="included",
        metavar="included|linear|FILE",
        help="initial auto-encoder (default: included)",
    )
    group.add_argument(
        "--mimic",
        type=types.number(*WEIGHT),
        metavar="X",
        help="weight of the distance to the original's scores in the loss (default: 0 or 1, by a trial)",
    )
    group.add_argument(
        "--mimic-mirrored",
        action="store_true",
        help="for distillation, average the original's scores over each image and its mirror image (default: "
        "a trial decides)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--plan", metavar="FILE|NAME", help="plan of the stages")
    group.add_argument(
        "--epochs",
        type=types.integer(*EPOCHS),
        metavar="N",
        help="epochs of the longest stage with adamw; sgd has one stage, as long as both with labels",
    )
    group.add_argument(
        "--optimizer",
        choices=("adamw", "sgd"),
        help="optimizer of the stages with labels (default: a trial decides; adamw with --learning-rate)",
    )
    shared.add_rate_and_batch(group)
    group.add_argument(
        "--seed", type=types.integer(*SEED), default=0, metavar="N", help="random seed (default: 0)"
    )


def _add_deployment(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision",
        choices=("auto", *types.PRECISIONS),
        default="auto",
        help="auto (default) takes the fastest within --max-drop",
    )
    group.add_argument(
        "--engine",
        choices=("auto", *types.ENGINES),
        default="auto",
        metavar="NAME",
        help="engine of wae.deploy (default: auto)",
    )
    group.add_argument(
        "--images", type=types.batch, default=1, metavar="N", help="images per call (default: 1)"
    )
    group.add_argument(
        "--max-drop",
        type=types.share,
        default=0.01,
        metavar="X",
        help="accuracy that a precision may cost (default: 0.01)",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    shared.add_on_corrupt(group)
    shared.add_max_pixels(group)
    shared.add_workers(group)
    shared.add_device(group)


def run(options: argparse.Namespace) -> int:
    """Accelerate, or resume an acceleration."""
    from wae.experiments import accelerate

    try:
        with shared.failing():
            converted: dict[str, Any] = {
                "folder": options.output,
                "plan": None if options.plan is None else accelerate.find_plan(options.plan, options.output),
                "max_pixels": shared.max_pixels(options),
                "mean": options.mean and tuple(options.mean),
                "std": options.std and tuple(options.std),
            }
            others = {entry.name for entry in fields(accelerate.Settings)} - converted.keys()
            given = {name: getattr(options, name) for name in others}
            accelerate.run(accelerate.Settings(**given, **converted), shared.console(), options.force)
    except KeyboardInterrupt as interrupt:
        resumed = "without --force " if options.force else ""
        return shared.interrupted(interrupt, f"; the same command {resumed}resumes from there")
    return 0


def _times(text: str) -> float:
    """An argparse type: ``2x`` or ``2``, a number above 1."""
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a number such as 2.0x, got {text!r}") from None
    if not 1 < value <= _MOST:  # NaN neither
        raise argparse.ArgumentTypeError(f"needs a number above 1, up to {_MOST:g}, got {text}")
    return value
