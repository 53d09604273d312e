"""The command ``wae``. Exit status: 0 all went well, 1 some input failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import wae_kernels

from .training.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from .models.autoencoder import AutoEncoder

# The packages of the extra [app] are imported by the commands that need them: `wae --help` needs none, and
# a missing one ends in a sentence (see `main`).
_OPTIONAL = {
    "PIL": "Pillow",
    "rich": "rich",
    "safetensors": "safetensors",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}


# The numbers of a training's Recipe that the command line can set.
_RECIPE_OPTIONS = {
    "steps": (int, "optimizer steps"),
    "batch": (int, "crops per step"),
    "crop": (int, "pixels along a crop's side"),
    "learning_rate": (float, "highest rate of Adam"),
    "energy_weight": (float, "lambda, the weight of high's energy"),
    "seed": (int, "of the random weights and the crops"),
}


class Failure(Exception):
    """An input that could not be processed; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's) and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (Failure, FileExistsError) as error:
        return _complain(str(error), 1)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except ModuleNotFoundError as error:
        package = _OPTIONAL.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        return _complain(f'{package} is not installed; `pip install "wae-kernels[app]"` installs it.', 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(message: str, status: int) -> int:
    print(f"wae: {message}", file=sys.stderr)
    return status


# ------------------------------------------------------------------------------------------------ commands


def _demo(options: argparse.Namespace) -> int:
    from . import comparison, data, demo

    inputs = options.images or [data.photo_path(name) for name in demo.BUNDLED]
    outputs = demo.targets(inputs, options.output, options.force)
    console, model = _console(), _model(options.weights)
    errors = demo.show(console, model, inputs, outputs)
    for message in errors:
        _complain(message, 1)
    if not options.no_timing:
        try:
            comparison.show(console, model, options.seconds)
        except comparison.DisagreementError as error:
            raise Failure(str(error)) from None
    return 1 if errors else 0


def _encode(options: argparse.Namespace) -> int:
    import torch

    from . import container

    _check_target(options.output, options.image, options.force)
    image, model = _read_image(options.image), _model(options.weights)
    with torch.no_grad():
        low, high = model.decompose(image[None])
    dtype = getattr(torch, options.dtype)
    size = (image.shape[1], image.shape[2])
    made = container.Decomposition(low[0].to(dtype), high[0].to(dtype), size, container.fingerprint(model))
    container.save(options.output, made, options.force)
    return 0


def _decode(options: argparse.Namespace) -> int:
    import torch
    from PIL import Image

    from . import container
    from .files import written
    from .models.autoencoder import to_uint8

    file_format = Image.registered_extensions().get(options.output.suffix.lower())
    if file_format not in Image.SAVE:
        return _complain(f"{options.output}: Pillow writes no file of this name; use .png", 2)
    _check_target(options.output, options.file, options.force)
    model = _model(options.weights)
    try:
        made = container.load(options.file)
    except container.ContainerError as error:
        raise Failure(str(error)) from None
    if made.weights != container.fingerprint(model):
        raise Failure(
            f"{options.file}: was encoded with other weights than those to decode with; see --weights"
        )
    with torch.no_grad():
        image = model.reconstruct(made.low[None].float(), made.high[None].float(), made.size)
    pixels = to_uint8(image[0]).permute(1, 2, 0).contiguous().numpy()
    with written(options.output, options.force) as file:
        Image.fromarray(pixels).save(file, format=file_format)
    return 0


def _info(options: argparse.Namespace) -> int:
    from . import info

    if options.network is None:
        info.show_machine(_console())
    elif options.network in info.NETWORKS:
        info.show_network(_console(), options.network)
    else:
        return _complain(f"network must be one of {', '.join(info.NETWORKS)}, got {options.network}", 2)
    return 0


def _train_autoencoder(options: argparse.Namespace) -> int:
    from . import data
    from .files import refuse_existing
    from .training import checkpoint, stage1
    from .training.progress import progress, show_quality

    refuse_existing(options.output, options.force or options.resume)
    names = tuple(map(str, options.photos)) or data.TRAINING
    photos = [_read_image(path) for path in options.photos or map(data.photo_path, data.TRAINING)]
    kept_out = {name: data.photo(name) for name in data.KEPT_OUT}
    console = _console()
    try:
        recipe = Recipe(names, **{k: v for k, v in vars(options).items() if k in _RECIPE_OPTIONS})
        with progress(console, recipe.steps) as on_step:
            model = stage1.train(photos, recipe, on_step, options.output, resume=options.resume)
        start = stage1.initial_model(photos, recipe.seed)
    except (ValueError, checkpoint.CheckpointError) as error:
        raise Failure(str(error)) from None
    show_quality(console, {"linear start": start, "trained": model}, kept_out)
    return 0


def _import_caffe(options: argparse.Namespace) -> int:
    from . import caffe

    for source in (options.prototxt, options.caffemodel):
        _check_target(options.output, source, options.force)
    try:
        origin = caffe.convert(options.prototxt, options.caffemodel, options.output, options.force)
    except caffe.CaffeError as error:
        raise Failure(str(error)) from None
    if origin["unused"]:
        print(f"left out, for they are not part of WAE-VGG16: {origin['unused']}")
    return 0


# -------------------------------------------------------------------------------------------- what they use


def _console() -> Console:
    from rich.console import Console

    return Console()


def _check_target(target: Path, source: Path, force: bool) -> None:
    """Before any work: may ``target`` be written?"""
    from .files import refuse_existing

    if target.resolve() == source.resolve():
        raise Failure(f"{target} is the input; -o must name another file")
    refuse_existing(target, force)


def _read_image(path: Path) -> Tensor:
    from . import data

    try:
        return data.read_image(path)
    except data.ImageError as error:
        raise Failure(str(error)) from None


def _model(weights: Path | None) -> AutoEncoder:
    from .models.autoencoder import AutoEncoder
    from .training import checkpoint

    model = AutoEncoder().eval()
    try:
        checkpoint.load(weights or checkpoint.WEIGHTS / "autoencoder.safetensors", model)
    except checkpoint.CheckpointError as error:
        raise Failure(str(error)) from None
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wae",
        description="Split images into low and high with a wavelet-like auto-encoder, and join them again.",
    )
    parser.add_argument("--version", action="version", version=f"wae {wae_kernels.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    def add_weights(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--weights", type=Path, metavar="FILE", help="weights to use (default: those included)"
        )

    def add_force(to: argparse.ArgumentParser) -> None:
        to.add_argument("--force", action="store_true", help="replace a file that is there")

    demo = command("demo", _demo, "decompose photos, show what is lost, and how long it takes here")
    demo.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="default: four bundled photos")
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the pictures (default: out)",
    )
    demo.add_argument("--no-timing", action="store_true", help="leave the timings out")
    demo.add_argument(
        "--seconds", type=_seconds, default=8.0, metavar="S", help="time to spend on each timing (default: 8)"
    )
    add_weights(demo)
    add_force(demo)

    encode = command("encode", _encode, "write low and high of an image to a safetensors file")
    encode.add_argument("image", type=Path, metavar="IMAGE")
    encode.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    encode.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="numbers in the file"
    )
    add_weights(encode)
    add_force(encode)

    decode = command("decode", _decode, "put the image back together that `wae encode` wrote to a file")
    decode.add_argument("file", type=Path, metavar="FILE")
    decode.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="its name decides the format: .png, ...",
    )
    add_weights(decode)
    add_force(decode)

    info = command("info", _info, "print versions and backends, or the size of a network")
    info.add_argument("network", nargs="?", metavar="NETWORK", help="for example wae_vgg16")

    train = command("train-autoencoder", _train_autoencoder, "train the auto-encoder on photos")
    train.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: nine bundled photos")
    train.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the weights, and checkpoints"
    )
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in FILE")
    for name, (kind, text) in _RECIPE_OPTIONS.items():
        train.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            metavar="N",
            help=f"{text} (default: {getattr(Recipe, name)})",
        )
    add_force(train)

    caffe = command("import-caffe", _import_caffe, "make a checkpoint of the published Caffe net and weights")
    caffe.add_argument("prototxt", type=Path, metavar="NET.prototxt")
    caffe.add_argument("caffemodel", type=Path, metavar="NET.caffemodel")
    caffe.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    add_force(caffe)
    return parser


def _seconds(text: str) -> float:
    """An argparse type: a number of seconds, from 0 to an hour."""
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
