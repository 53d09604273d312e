"""``wae demo``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import shared, types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wae.experiments import comparison, demo

HELP = "decompose photos, show what is lost, and measure how long it takes here"


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
        help="folder for the figures (default: out)",
    )
    parser.add_argument("--no-timing", action="store_true", help="do not measure times")
    parser.add_argument(
        "--seconds",
        type=types.seconds,
        default=8.0,
        metavar="S",
        help="time to spend on each timing (default: 8)",
    )
    shared.add_weights(parser)
    shared.add_force(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show every photo and the timings; return 1 if a photo could not be shown."""
    from wae.data import photos
    from wae.experiments import comparison, demo

    inputs = shared.found_images(options.images or map(photos.photo_path, demo.BUNDLED))
    outputs = demo.targets(inputs, options.output, options.force)
    console, model = shared.console(options.json), shared.autoencoder(options.weights)
    rows, errors = demo.draw(model, inputs, outputs)
    if rows and not options.json:
        demo.show(console, rows, options.output)
    for message in errors:
        shared.complain(message)
    wanted = rows and not options.no_timing  # without rows the user mistyped a name and should see the error
    timings = comparison.measure(console, model, options.seconds) if wanted else None
    if timings and not options.json:
        comparison.show(console, timings)
    if options.json:
        shared.print_json(_data(rows, timings))
    return 1 if errors else 0


def _data(rows: Sequence[demo.Row], timings: comparison.Timings | None) -> dict[str, object]:
    """Both tables as JSON data; times are in milliseconds."""
    data: dict[str, object] = {"photos": [row._asdict() for row in rows]}
    if timings:
        ops, networks = ([row._asdict() for row in table] for table in (timings.ops, timings.networks))
        data["timings"] = {**asdict(timings), "ops": ops, "networks": networks}
    return data
