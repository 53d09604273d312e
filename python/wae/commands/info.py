"""``wae info``."""

from __future__ import annotations

import argparse

from . import shared

HELP = "print versions and backends, or the size of a network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("network", nargs="?", metavar="NETWORK", help="for example wae_vgg16")


def run(options: argparse.Namespace) -> int:
    """Print the tables; 2 for a network of another name."""
    from wae.experiments import info

    if options.network is None:
        info.show_machine(shared.console())
    elif options.network in info.NETWORKS:
        info.show_network(shared.console(), options.network)
    else:
        known = ", ".join(info.NETWORKS)
        return shared.complain(f"network must be one of {known}, got {options.network}", 2)
    return 0
