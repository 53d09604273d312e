"""``wae train-autoencoder``."""

from __future__ import annotations

import argparse
from pathlib import Path

from wae.training.plan import BATCH, EPOCH_STEPS, EPOCHS, SEED, WEIGHT

from . import shared, types

HELP = "train the auto-encoder on photos"

_STEPS = (1, EPOCH_STEPS * EPOCHS[1])
_PLAN = ("batch", "learning_rate", "energy_weight", "seed")  # options that replace entries of the plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: nine bundled photos")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file of checkpoints and weights"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the checkpoint in FILE if there is one"
    )
    for name, kind, text in (
        ("steps", types.integer(*_STEPS), "optimizer steps (default: 40000)"),
        ("batch", types.integer(*BATCH), "crops per step (default: 8)"),
        ("crop", types.positive, "side of a crop in pixels (default: 64)"),
        ("learning-rate", types.number(*WEIGHT), "peak learning rate of Adam (default: 0.001)"),
        ("energy-weight", types.number(*WEIGHT), "lambda, the weight of high's energy (default: 0.001)"),
        ("seed", types.integer(*SEED), "seed of the random weights and the crops (default: 0)"),
    ):
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    shared.add_force(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train, write checkpoints, and print the quality on held-out photos."""
    from wae.data import photos
    from wae.data.images import read_image
    from wae.data.walk import labels_among
    from wae.storage.files import refuse_existing
    from wae.training import stage1
    from wae.training.observers import Terminal, quality_table

    refuse_existing(options.output, options.force or options.resume)
    names = tuple(map(str, options.photos)) or photos.TRAINING
    for source in options.photos:
        if labels := labels_among(source):
            raise shared.Failure(labels)
    paths = shared.found_images(options.photos or map(photos.photo_path, photos.TRAINING))
    for path in paths:
        shared.check_target(options.output, path, options.force or options.resume)
    images = [read_image(path) for path in paths]
    held_out = {name: photos.photo(name) for name in photos.HELD_OUT}
    console = shared.console(options.json)
    schedule = stage1.schedule(options.steps, **shared.given(options, *_PLAN))
    crop = options.crop or stage1.CROP
    with Terminal(console) as terminal:
        model = stage1.train(images, schedule, crop, names, options.output, options.resume, terminal)
    start = stage1.initial_model(images, schedule.plan.seed)
    models = {"linear start": start, "trained": model}
    if options.json:
        shared.print_json(
            [
                {"model": label, "photo": name, **stage1.quality(model, photo)._asdict()}
                for label, model in models.items()
                for name, photo in held_out.items()
            ]
        )
    else:
        console.print(quality_table(models, held_out))
    return 0
