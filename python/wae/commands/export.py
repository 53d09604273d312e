"""``wae export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from wae.wording import counted

from . import shared

HELP = "write a network as ONNX, a torch.export program, compiled by AOTInductor, or for ExecuTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint of a network")
    shared.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "aoti", "executorch"),
        default="onnx",
        help="of the file (default: onnx)",
    )
    parser.add_argument(
        "--size",
        type=shared.image_size,
        metavar="N|HEIGHTxWIDTH",
        help="pixels along a side of the images, or both (default: what the checkpoint says)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="images in a call, or `dynamic` for any number (default: dynamic; 1 with executorch)",
    )
    parser.add_argument(
        "--images",
        choices=("uint8", "float32"),
        default="uint8",
        help="numbers of the images; both are 0..255 unless the network was trained otherwise "
        "(default: uint8)",
    )
    parser.add_argument(
        "--precision",
        choices=("int8",),
        help="to compute in: an ONNX file in the form QDQ (default: float32)",
    )
    shared.add_calibration(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Export, compare with the model, and write the file."""
    import torch

    from wae.inference.agreement import DisagreementError
    from wae.inference.calibration import CalibrationError
    from wae.inference.engines import EngineError
    from wae.inference.export import export
    from wae.storage import checkpoint
    from wae.storage.weights_file import CheckpointError
    from wae.wording import printable

    if options.batch == _ANY and options.format == "executorch":
        return shared.complain("--batch: an executorch file is for one number of images, got dynamic", 2)
    shared.check_target(options.output, options.weights, options.force)
    try:
        if wrong := shared.wrong_model(options.model, [options.weights]):
            return shared.complain(wrong, 2)
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
    except (CheckpointError, EngineError, DisagreementError, CalibrationError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    name = printable(str(options.output))
    print(f"{name}: its scores differ from the model's by {report['difference']:.1e} of their norm")
    if "agreement" in report:
        images = counted(report["checked_images"], "image")
        print(f"It names the model's class on {report['agreement']:.2%} of {images}.")
    return 0


_ANY = 0  # images in a call


def _batch(text: str) -> int:
    """An argparse type: images at once, or :data:`_ANY` for `dynamic`."""
    return _ANY if text == "dynamic" else shared.batch(text)
