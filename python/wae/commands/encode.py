"""``wae encode``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import shared

HELP = "write an image's low and high to a safetensors file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file; - is standard input")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="- is standard output"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of the numbers in the file (default: float32)",
    )
    shared.add_max_pixels(parser)
    shared.add_weights(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Decompose the image and write the file."""
    import torch

    from wae.data.images import read_image
    from wae.storage import decomposed

    for source in filter(None, (options.image, options.weights)):
        shared.check_target(options.output, source, options.force)
    with shared.input_file(options.image) as path:
        image = read_image(path, shared.max_pixels(options))
    model = shared.autoencoder(options.weights)
    with torch.no_grad():
        low, high = model.decompose(image[None])
    dtype = getattr(torch, options.dtype)
    size = (image.shape[1], image.shape[2])
    made = decomposed.Decomposition(low[0].to(dtype), high[0].to(dtype), size, decomposed.fingerprint(model))
    with shared.output(options.output, options.force) as file:
        file.write(decomposed.encoded(made))
    return 0
