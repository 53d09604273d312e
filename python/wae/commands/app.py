"""``wae app``."""

from __future__ import annotations

import argparse
from pathlib import Path

from wae.errors import WaeError

from . import shared

HELP = "serve a page, to a browser on this machine, that shows an image's parts and its classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint of a classifier whose predictions are shown (default: none)",
    )
    parser.add_argument(
        "--stock",
        type=Path,
        metavar="FILE",
        help="checkpoint of the same network without WAE, shown for comparison (default: random weights, "
        "to compare times only)",
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FILE",
        help="weights of the auto-encoder (default: the included ones)",
    )
    parser.add_argument(
        "--engine",
        default="eager",
        metavar="NAME",
        help="engine of wae.deploy, for both networks (default: eager)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=shared.port, default=7860, metavar="N", help="port, 0 for a free one (default: 7860)"
    )
    parser.add_argument(
        "--max-pixels",
        type=shared.positive,
        metavar="N",
        help="refuse images with more pixels (default: 25000000)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from wae.experiments import answers
    from wae.progress import bar

    if options.stock is not None and options.weights is None:
        return shared.complain("--stock: needs --weights", 2)
    try:
        asked = []
        if options.weights is not None:
            with bar("preparing the networks", None):
                asked = answers.sides(options.weights, options.stock, options.engine)
    except (WaeError, ValueError) as error:
        raise shared.Failure(str(error)) from None
    autoencoder = shared.autoencoder(options.autoencoder)
    from wae.integrations import page  # last, because this import is slow

    page.serve(
        autoencoder,
        asked,
        options.host,
        options.port,
        options.max_pixels or page.MAX_PIXELS,
        lambda address: print(f"{address} (Ctrl-C ends it)", flush=True),
    )
    return 0
