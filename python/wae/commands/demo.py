"""``wae demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import shared

HELP = "decompose photos, show what is lost, and how long it takes here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE|FOLDER", help="default: four bundled photos"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the pictures (default: out)",
    )
    parser.add_argument("--no-timing", action="store_true", help="leave the timings out")
    parser.add_argument(
        "--seconds",
        type=shared.seconds,
        default=8.0,
        metavar="S",
        help="time to spend on each timing (default: 8)",
    )
    shared.add_weights(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Show every photo and the timings; 1 if a photo could not be shown."""
    from wae.data import photos
    from wae.experiments import comparison, demo

    inputs = shared.found_images(options.images or map(photos.photo_path, demo.BUNDLED))
    outputs = demo.targets(inputs, options.output, options.force)
    console, model = shared.console(), shared.autoencoder(options.weights)
    errors = demo.show(console, model, inputs, outputs)
    for message in errors:
        shared.complain(message)
    if not options.no_timing:
        comparison.show(console, model, options.seconds)
    return 1 if errors else 0
