"""``wae info``."""

from __future__ import annotations

import argparse

from . import shared

HELP = "print versions and backends, or the size of a network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("network", nargs="?", metavar="NETWORK", help="for example wae_vgg16")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the tables."""
    from wae.experiments import info

    if options.json:
        shared.print_json(info.network(options.network) if options.network else info.installation())
    elif options.network:
        info.show_network(shared.console(), options.network)
    else:
        info.show_installation(shared.console())
    return 0
