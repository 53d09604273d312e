"""``wae decode``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import shared

HELP = "put the image back together that `wae encode` wrote to a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="its name decides the format: .png, ...",
    )
    shared.add_weights(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Reconstruct the image and write it; 2 for a name that says no format."""
    import torch
    from PIL import Image

    from wae.models.autoencoder import to_uint8
    from wae.storage import decomposed
    from wae.storage.files import written

    file_format = Image.registered_extensions().get(options.output.suffix.lower())
    if file_format not in Image.SAVE:
        return shared.complain(f"{options.output}: Pillow writes no file of this name; use .png", 2)
    shared.check_target(options.output, options.file, options.force)
    model = shared.autoencoder(options.weights)
    try:
        made = decomposed.load(options.file)
    except decomposed.ContainerError as error:
        raise shared.Failure(str(error)) from None
    if made.weights != decomposed.fingerprint(model):
        raise shared.Failure(
            f"{options.file}: was encoded with other weights than those to decode with; see --weights"
        )
    with torch.no_grad():
        image = model.reconstruct(made.low[None].float(), made.high[None].float(), made.size)
    pixels = to_uint8(image[0]).permute(1, 2, 0).contiguous().numpy()
    with written(options.output, options.force) as file:
        Image.fromarray(pixels).save(file, format=file_format)
    return 0
