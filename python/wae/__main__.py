"""The entry point of the command ``wae`` and of ``python -m wae``. See :mod:`wae.cli`."""

import sys

from wae.streams import prepare_streams
from wae.termination import ended_at_once


def main() -> int:
    """Run the command with the process's arguments and return the exit status."""
    prepare_streams()
    with ended_at_once():
        from wae.cli import main as command
    return command()


if __name__ == "__main__":
    sys.exit(main())
