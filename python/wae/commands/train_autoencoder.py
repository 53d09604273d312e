"""``wae train-autoencoder``."""

from __future__ import annotations

import argparse
from pathlib import Path

from wae.training.recipe import Recipe

from . import shared

HELP = "train the auto-encoder on photos"

# The numbers of a training's Recipe that the command line can set.
_RECIPE_OPTIONS = {
    "steps": (int, "optimizer steps"),
    "batch": (int, "crops per step"),
    "crop": (int, "pixels along a crop's side"),
    "learning_rate": (float, "highest rate of Adam"),
    "energy_weight": (float, "lambda, the weight of high's energy"),
    "seed": (int, "of the random weights and the crops"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: nine bundled photos")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the weights, and checkpoints"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in FILE")
    for name, (kind, text) in _RECIPE_OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            metavar="N",
            help=f"{text} (default: {getattr(Recipe, name)})",
        )
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Train, writing checkpoints, and print the quality on photos kept out."""
    from wae.data import photos
    from wae.storage import weights_file
    from wae.storage.files import refuse_existing
    from wae.training import stage1
    from wae.training.progress import progress, show_quality

    refuse_existing(options.output, options.force or options.resume)
    names = tuple(map(str, options.photos)) or photos.TRAINING
    images = [shared.read_image(path) for path in options.photos or map(photos.photo_path, photos.TRAINING)]
    kept_out = {name: photos.photo(name) for name in photos.KEPT_OUT}
    console = shared.console()
    try:
        recipe = Recipe(names, **{k: v for k, v in vars(options).items() if k in _RECIPE_OPTIONS})
        with progress(console, recipe.steps) as on_step:
            model = stage1.train(images, recipe, on_step, options.output, resume=options.resume)
        start = stage1.initial_model(images, recipe.seed)
    except (ValueError, weights_file.CheckpointError) as error:
        raise shared.Failure(str(error)) from None
    show_quality(console, {"linear start": start, "trained": model}, kept_out)
    return 0
