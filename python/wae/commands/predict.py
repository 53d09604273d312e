"""``wae predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wae.errors import UsageError

from . import shared, types

if TYPE_CHECKING:
    from wae.data.input import Input
    from wae.data.walk import LeftOut
    from wae.inference import predict
    from wae.storage.checkpoint import Description

HELP = "predict the classes of images, or of their pixels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="IMAGE|FOLDER", help="image files and folders of images"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of a network (default: the included classifier for Fashion-MNIST's clothes)",
    )
    shared.add_model(parser)
    parser.add_argument(
        "--top", type=types.positive, default=3, metavar="K", help="classes per image (default: 3)"
    )
    parser.add_argument(
        "--batch",
        type=types.batch,
        default=32,
        metavar="N",
        help="images per call of the network (default: 32)",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *types.ENGINES),
        metavar="NAME",
        help="engine of wae.deploy, or auto for the fastest (default: auto with --precision, otherwise none)",
    )
    parser.add_argument(
        "--precision",
        choices=(*types.PRECISIONS, "auto"),
        help="precision of the engine; int8 needs --calibrate (default: float32)",
    )
    shared.add_calibration(parser)
    parser.add_argument(
        "--invert", action="store_true", help="swap light and dark, for dark clothes on a white background"
    )
    parser.add_argument(
        "--format",
        choices=("table", "jsonl"),
        help="a table, or one line of JSON per image (default: table on a terminal, otherwise jsonl)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="output file (default: standard output)"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="predict on a Ray cluster and write a folder of Parquet files (docs/scale.md); without ADDRESS "
        "on the cluster started here, otherwise on this machine alone",
    )
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="for a segmentation network: write into DIR labels/NAME.png, each pixel's place in the "
        "checkpoint's labels, from 0, and overlays/NAME.png, the image overlaid with the classes' colours",
    )
    shared.add_max_pixels(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Print the prediction for each image; return 1 if an image could not be used."""
    from wae.storage import checkpoint
    from wae.storage.weights_file import CLASSIFIER

    if options.output == shared.STANDARD:
        options.output = None
    weights = options.weights or CLASSIFIER
    if options.ray is not None:
        return _by_cluster(options, weights)
    shared.check_calibration(options)
    _check_outputs(options, weights)
    if options.calibrate is not None and _engine(options) is None:
        raise UsageError("--calibrate: needs --engine or --precision")
    _check_sources(options.sources)
    with shared.failing():
        described = checkpoint.describe(weights)
        shared.check_model(options.model, [weights])
        if options.maps is not None and not described.of_pixels:
            raise UsageError(f"--maps: needs a segmentation network, {weights} is of {described.network}")
        network = _network(options, weights, described.input)
    return _write_predictions(options, described, network)


def _check_outputs(options: argparse.Namespace, weights: Path) -> None:
    """Raise UsageError, Failure or FileExistsError if ``-o`` or ``--maps`` may not be written."""
    from wae.data.images import is_image

    if options.output is not None:
        if is_image(options.output.name):
            raise UsageError(f"{options.output}: -o writes text, but this is the name of an image")
        for source in (*options.sources, weights):
            shared.check_target(options.output, source, options.force)
    if options.maps is not None:
        _check_maps(options.maps, options.sources)


def _engine(options: argparse.Namespace) -> str | None:
    """The engine to predict with; None for the network as PyTorch runs it."""
    return options.engine or ("auto" if options.precision else None)


def _check_sources(sources: Sequence[Path]) -> None:
    """Raise Failure if there are no images."""
    from wae.data.walk import LeftOut, find

    left_out = LeftOut()
    if next(find(sources, left_out), None) is None:
        raise _no_images(sources, left_out)


def _network(options: argparse.Namespace, weights: Path, input: Input) -> predict.Network:
    """The checkpoint's network, in the engine if the options name one."""
    from wae.inference import predict
    from wae.progress import bar

    model = shared.load(weights, options.model)
    data = shared.calibration(options, input, options.invert)
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
    """Write one or more lines for each image; return 1 if an image could not be used."""
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
    """The format in which predictions are written."""
    from wae.inference import predict

    on_terminal = options.output is None and sys.stdout.isatty()
    name = options.format or ("table" if on_terminal else "jsonl")
    return predict.FORMATS[name](described.labels, described.of_pixels)


def _predictions(
    options: argparse.Namespace, input: Input, network: predict.Network, left_out: LeftOut
) -> Generator[predict.Prediction, None, None]:
    """The prediction for each image, in order; writes the maps of the pixels on the way."""
    from wae.data.walk import find
    from wae.inference import predict
    from wae.inference.maps import Maps

    limit = shared.max_pixels(options)
    maps = None
    if options.maps is not None:
        maps = Maps(options.maps, options.sources, input, options.force, limit)
    found = find(options.sources, left_out)
    return predict.predict(network, found, input, options.top, options.batch, options.invert, limit, maps)


def _by_cluster(options: argparse.Namespace, weights: Path) -> int:
    """As :func:`run`, on the cluster of ``--ray``."""
    from wae.data.walk import LeftOut, find

    _check_for_cluster(options)
    try:
        from wae.integrations import ray
    except ModuleNotFoundError as error:
        raise shared.Failure(f'--ray needs {error.name}: pip install "wae-kernels[ray]"') from None
    left_out = LeftOut()
    found = list(find([source.absolute() for source in options.sources], left_out))
    if not found:
        raise _no_images(options.sources, left_out)
    with shared.failing():
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
            max_pixels=shared.max_pixels(options),
        )
    for path, why in failed:
        shared.complain(f"{path}: {why}")
    if str(left_out):
        shared.complain(str(left_out))
    return int(bool(failed))


def _check_for_cluster(options: argparse.Namespace) -> None:
    """Raise UsageError for an option that cannot be combined with ``--ray``."""
    if options.ray and Path(options.ray).exists():
        raise UsageError(
            f"--ray: needs an address, got the path {options.ray}; name images before this option"
        )
    if options.output is None:
        raise UsageError("--ray: needs -o FOLDER")
    if options.format is not None:
        raise UsageError("--format: cannot be combined with --ray, which writes Parquet")
    if options.engine == "auto" or options.precision or options.calibrate:
        raise UsageError("--ray: needs --engine with a name, without auto, --precision or --calibrate")
    if options.maps is not None:
        raise UsageError("--maps: cannot be combined with --ray, which writes Parquet")
    if options.model is not None:
        raise UsageError("--model: cannot be combined with --ray, whose machines only have the checkpoint")


def _no_images(sources: Sequence[Path], left_out: object) -> shared.Failure:
    why = f" ({left_out})" if str(left_out) else ""
    return shared.Failure(f"no images found in {', '.join(map(str, sources))}{why}")


def _check_maps(folder: Path, sources: Sequence[Path]) -> None:
    """Raise Failure if maps in ``folder`` would be taken for images to predict, or could replace those."""
    from wae.inference.maps import KINDS

    written = [(folder / kind).resolve() for kind in KINDS]
    for source in sources:
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise shared.Failure(f"--maps: {folder} is inside {source}, which is searched for images")
    for place in {source if source.is_dir() else source.parent for source in sources}:
        if any(place.resolve().is_relative_to(kind) for kind in written):
            raise shared.Failure(f"--maps: {place}, whose images are read, is where the maps in {folder} go")


@contextmanager
def _output(path: Path | None, force: bool) -> Iterator[Callable[[str], object]]:
    """A function that writes a line: to stdout immediately, or to ``path``, which appears at the end."""
    from wae.storage.files import written

    if path is None:
        yield partial(print, flush=True)
    else:
        with written(path, force) as file:
            yield lambda line: file.write(line.encode() + b"\n")
