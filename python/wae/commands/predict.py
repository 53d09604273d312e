"""``wae predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wae.errors import WaeError

from . import shared

if TYPE_CHECKING:
    from wae.data.input import Input
    from wae.data.walk import LeftOut
    from wae.inference import predict
    from wae.storage.checkpoint import Description

HELP = "tell what a network sees in images, or in their pixels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="IMAGE|FOLDER", help="files, and folders of images"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of a network (default: the classifier included, of Fashion-MNIST's clothes)",
    )
    shared.add_model(parser)
    parser.add_argument(
        "--top", type=shared.positive, default=3, metavar="K", help="classes of each image (default: 3)"
    )
    parser.add_argument(
        "--batch",
        type=shared.batch,
        default=32,
        metavar="N",
        help="images that the network gets at once (default: 32)",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="of wae.deploy, or auto for the fastest (default: auto with --precision, else none)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8", "auto"),
        help="that the engine computes in; int8 needs --calibrate (default: float32)",
    )
    shared.add_calibration(parser)
    parser.add_argument(
        "--invert", action="store_true", help="swap light and dark, for dark clothes on white"
    )
    parser.add_argument(
        "--format",
        choices=("table", "jsonl"),
        help="a table, or a line of JSON for each image (default: a table on a terminal, else jsonl)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write it there (default: standard output)"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="have a Ray cluster do it, into a folder of Parquet files (docs/scale.md); default: the one "
        "that was started here, else this machine",
    )
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="of a network that scores pixels: write labels/NAME.png, a PNG of their classes, and "
        "overlays/NAME.png, the image with their colours, into DIR",
    )
    shared.add_max_pixels(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is seen in each image; 1 if one could not be used."""
    from wae.storage import checkpoint
    from wae.storage.weights_file import WEIGHTS

    if options.output == shared.STANDARD:
        options.output = None
    if wrong := shared.wrong_engine(options.engine):
        return shared.complain(wrong, 2)
    weights = options.weights or WEIGHTS / "fashion-mnist.safetensors"
    if options.ray is not None:
        return _by_cluster(options, weights)
    if wrong := _wrong_outputs(options, weights) or _wrong_calibration(options):
        return shared.complain(wrong, 2)
    _check_sources(options.sources)
    try:
        described = checkpoint.describe(weights)
        if wrong := shared.wrong_model(options.model, [weights]):
            return shared.complain(wrong, 2)
        if options.maps is not None and not described.of_pixels:
            name = described.network
            return shared.complain(f"--maps: {weights} is of {name}, which scores no pixels", 2)
        network = _network(options, weights, described.input)
    except (WaeError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    return _write_predictions(options, described, network)


def _wrong_outputs(options: argparse.Namespace, weights: Path) -> str:
    """What is wrong with ``-o``, in a sentence; else empty.

    Raises Failure or FileExistsError where it or ``--maps`` may not be written.
    """
    from wae.data.images import is_image

    if options.output is not None:
        if is_image(options.output.name):
            return f"{options.output}: -o writes text, and this is an image's name"
        for source in (*options.sources, weights):
            shared.check_target(options.output, source, options.force)
    if options.maps is not None:
        _check_maps(options.maps, options.sources)
    return ""


def _engine(options: argparse.Namespace) -> str | None:
    """The engine to predict with; None for the network as it is."""
    return options.engine or ("auto" if options.precision else None)


def _wrong_calibration(options: argparse.Namespace) -> str:
    """What is wrong with ``--calibrate``, in a sentence; else empty."""
    if options.calibrate is not None and _engine(options) is None:
        return "--calibrate: is for --engine or --precision, which are missing"
    return ""


def _check_sources(sources: Sequence[Path]) -> None:
    """Raise Failure where there are no images."""
    from wae.data.walk import LeftOut, find

    left_out = LeftOut()
    if next(find(sources, left_out), None) is None:
        raise _none(sources, left_out)


def _network(options: argparse.Namespace, weights: Path, input: Input) -> predict.Network:
    """What scores the images: the checkpoint's network, in an engine if so wanted."""
    from wae.inference import predict
    from wae.progress import bar

    model = shared.load(weights, options.model)
    data = shared.calibration(options, input)
    with bar("preparing the network", None):
        return predict.runner(
            model,
            input,
            _engine(options),
            options.batch,
            precision=options.precision,
            calibration=data,
            max_drop=options.max_drop,
        )


def _write_predictions(options: argparse.Namespace, described: Description, network: predict.Network) -> int:
    """Write a line, or more, for each image; 1 if one could not be used."""
    from wae.data.walk import LeftOut, find
    from wae.progress import bar

    form, left_out, failed = _form(options, described), LeftOut(), False
    with (
        closing(_predictions(options, described.input, network, left_out)) as predictions,
        _output(options.output, options.force) as write,
        bar("images", sum(1 for _ in find(options.sources)) if sys.stderr.isatty() else None) as advance,
    ):
        for line in form.head:
            write(line)
        for prediction in predictions:
            if prediction.error:
                failed = True
                shared.complain(f"{prediction.path}: {prediction.error}")
            for line in form.lines(prediction):
                write(line)
            advance(1)
    if str(left_out):
        shared.complain(str(left_out))
    return int(failed)


def _form(options: argparse.Namespace, described: Description) -> predict.JsonLines | predict.Table:
    """How predictions are written."""
    from wae.inference import predict

    on_terminal = options.output is None and sys.stdout.isatty()
    name = options.format or ("table" if on_terminal else "jsonl")
    return predict.FORMATS[name](described.labels, described.of_pixels)


def _predictions(
    options: argparse.Namespace, input: Input, network: predict.Network, left_out: LeftOut
) -> Generator[predict.Prediction, None, None]:
    """Of each image, in order; maps of the pixels are written meanwhile."""
    from wae.data.images import MAX_PIXELS
    from wae.data.walk import find
    from wae.inference import predict
    from wae.inference.maps import Maps

    max_pixels = options.max_pixels or MAX_PIXELS
    maps = None
    if options.maps is not None:
        maps = Maps(options.maps, options.sources, input, options.force, max_pixels)
    found = find(options.sources, left_out)
    return predict.predict(
        network, found, input, options.top, options.batch, options.invert, max_pixels, maps
    )


def _by_cluster(options: argparse.Namespace, weights: Path) -> int:
    """As :func:`run`, by the cluster of ``--ray``."""
    from wae.data.images import MAX_PIXELS
    from wae.data.walk import LeftOut, find
    from wae.storage.weights_file import CheckpointError

    if wrong := _not_for_clusters(options):
        return shared.complain(wrong, 2)
    try:
        from wae.integrations import ray
    except ModuleNotFoundError as error:
        raise shared.Failure(f'--ray needs {error.name}: pip install "wae-kernels[ray]"') from None
    left_out = LeftOut()
    found = list(find([source.absolute() for source in options.sources], left_out))
    if not found:
        raise _none(options.sources, left_out)
    try:
        failed = ray.predict(
            found,
            weights,
            options.output,
            options.ray or None,
            options.force,
            options.batch,
            top=options.top,
            engine=options.engine,
            invert=options.invert,
            max_pixels=options.max_pixels or MAX_PIXELS,
        )
    except (CheckpointError, ValueError, ray.ClusterError) as error:
        raise shared.Failure(str(error)) from None
    for path, why in failed:
        shared.complain(f"{path}: {why}")
    if str(left_out):
        shared.complain(str(left_out))
    return int(bool(failed))


def _not_for_clusters(options: argparse.Namespace) -> str:
    """The option that does not go together with ``--ray``, in a sentence; else empty."""
    if options.ray and Path(options.ray).exists():
        return f"--ray takes an address, got the path {options.ray}: name images before it"
    if options.output is None:
        return "--ray: needs -o FOLDER"
    if options.format is not None:
        return "--format: is not for --ray, which writes Parquet"
    if options.engine == "auto" or options.precision or options.calibrate:
        return "--ray: takes an --engine by its name, no auto, --precision or --calibrate"
    if options.maps is not None:
        return "--maps: is not for --ray, which writes Parquet"
    if options.model is not None:
        return "--model: is not for --ray, whose machines have the checkpoint alone"
    return ""


def _none(sources: Sequence[Path], left_out: object) -> shared.Failure:
    why = f" ({left_out})" if str(left_out) else ""
    return shared.Failure(f"no images found in {', '.join(map(str, sources))}{why}")


def _check_maps(folder: Path, sources: Iterable[Path]) -> None:
    """Raise Failure where ``folder`` is in a source: what is written would be found there as an image."""
    for source in sources:
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise shared.Failure(f"--maps: {folder} is in {source}, where images are looked for")


@contextmanager
def _output(path: Path | None, force: bool) -> Iterator[Callable[[str], object]]:
    """A function that writes a line: to stdout at once, or to ``path``, which appears with the last line."""
    from wae.storage.files import written

    if path is None:
        yield partial(print, flush=True)
    else:
        with written(path, force) as file:
            yield lambda line: file.write(line.encode() + b"\n")
