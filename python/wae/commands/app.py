"""``wae app``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wae.errors import UsageError

from . import shared, types

if TYPE_CHECKING:
    from wae.experiments import answers

HELP = "serve a page, to a browser on this machine, that shows an image's parts and its classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of a classifier whose predictions are shown (default: none)",
    )
    shared.add_model(parser)
    parser.add_argument(
        "--stock",
        type=Path,
        metavar="FILE",
        help="checkpoint of the same network without WAE, shown for comparison (default: the network "
        "alone, to compare times only)",
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FILE",
        help="weights of the auto-encoder (default: the included ones)",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *types.ENGINES),
        default="eager",
        metavar="NAME",
        help="engine of wae.deploy, for both networks (default: eager)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=types.port, default=7860, metavar="N", help="port, 0 for a free one (default: 7860)"
    )
    parser.add_argument(
        "--max-pixels",
        type=types.positive,
        metavar="N",
        help="refuse images with more pixels (default: 25000000)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    for name in ("stock", "model"):
        if getattr(options, name) is not None and options.weights is None:
            raise UsageError(f"--{name}: needs --weights")
    files = [path for path in (options.weights, options.stock) if path is not None]
    with shared.failing():
        shared.check_model(options.model, files)
        asked = _asked(options) if files else []
    autoencoder = shared.autoencoder(options.autoencoder)
    from wae.integrations import page, server  # last, because this import is slow

    server.serve(
        autoencoder,
        asked,
        options.host,
        options.port,
        options.max_pixels or page.MAX_PIXELS,
        lambda address: print(f"{address} (Ctrl-C ends it)", flush=True),
    )
    return 0


def _asked(options: argparse.Namespace) -> list[answers.Candidate]:
    """The networks of the options, deployed."""
    from wae.experiments import answers
    from wae.models.own import own_network
    from wae.progress import bar

    own = None if options.model is None else own_network(options.model)
    with bar("preparing the networks", None):
        return answers.candidates(options.weights, options.stock, options.engine, own)
