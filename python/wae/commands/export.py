"""``wae export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from wae.errors import UsageError
from wae.wording import counted

from . import shared, types

HELP = "export a network as ONNX, as a torch.export program, compiled by AOTInductor, or for ExecuTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint of a network")
    shared.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "aoti", "executorch"),
        default="onnx",
        help="file format (default: onnx)",
    )
    parser.add_argument(
        "--size",
        type=types.image_size,
        metavar="N|HEIGHTxWIDTH",
        help="side of the images in pixels, or both sides (default: as in the checkpoint)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="images per call, or `dynamic` for any number (default: dynamic; 1 for executorch)",
    )
    parser.add_argument(
        "--images",
        choices=("uint8", "float32"),
        default="uint8",
        help="dtype of the images; both hold 0..255 unless the network was trained otherwise "
        "(default: uint8)",
    )
    parser.add_argument(
        "--precision",
        choices=("int8",),
        help="precision of the computation, as an ONNX file in QDQ format (default: float32)",
    )
    shared.add_calibration(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Export the network, compare it with the model, and write the file."""
    if options.batch == _ANY and options.format == "executorch":
        raise UsageError("--batch: an executorch file needs a fixed number of images, got dynamic")
    if options.precision == "int8" and options.format != "onnx":
        raise UsageError(f"--precision: int8 needs the format onnx, got {options.format}")
    shared.check_calibration(options)
    shared.check_target(options.output, options.weights, options.force)

    import torch

    from wae.inference.export import export
    from wae.storage import checkpoint
    from wae.wording import printable

    with shared.failing():
        shared.check_model(options.model, [options.weights])
        described = checkpoint.describe(options.weights)
        input = described.input.of_size(options.size or described.input.size)
        report = export(
            shared.load(options.weights, options.model),
            options.output,
            options.format,
            input.shape,
            options.batch or None,
            getattr(torch, options.images),
            options.force,
            precision=options.precision,
            calibration=shared.calibration(options, input),
            max_drop=options.max_drop,
            described=described,
        )
    name = printable(str(options.output))
    print(f"{name}: relative difference of its scores from the model's: {report['difference']:.1e}")
    if "agreement" in report:
        images = counted(report["checked_images"], "image")
        print(f"It predicts the model's class on {report['agreement']:.2%} of {images}.")
    return 0


_ANY = 0  # stands for any number of images per call


def _batch(text: str) -> int:
    """An argparse type: images per call, or :data:`_ANY` for `dynamic`."""
    return _ANY if text == "dynamic" else types.batch(text)
