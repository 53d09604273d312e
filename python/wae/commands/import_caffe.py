"""``wae import-caffe``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import shared

HELP = "convert the published Caffe net and weights to a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("prototxt", type=Path, metavar="NET.prototxt")
    parser.add_argument("caffemodel", type=Path, metavar="NET.caffemodel")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Convert the two files and write the checkpoint."""
    from wae.storage import caffe

    for source in (options.prototxt, options.caffemodel):
        shared.check_target(options.output, source, options.force)
    origin = caffe.convert(options.prototxt, options.caffemodel, options.output, options.force)
    if origin["unused"]:
        print(f"left out because they are not part of WAE-VGG16: {origin['unused']}")
    return 0
