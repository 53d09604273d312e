"""The command ``wae``. Exit status: 0 all went well, 1 some input failed, 2 wrong usage,
130 interrupted by Ctrl-C, 143 terminated by SIGTERM.

Every command is a module of :mod:`wae.commands` (a dash in its name is an underscore there) with

- ``HELP``: what it does, one sentence that starts small and has no full stop,
- ``add_arguments(parser)``: its command line,
- ``run(options)``: does it and returns the exit status; raises WaeError, or OSError, for what cannot be done.

The module imports what is heavy, or not everywhere installed, inside these functions.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from wae.commands.shared import complain, interrupted
from wae.errors import WaeError
from wae.termination import ended_at_once, terminable
from wae.wording import file_of, first_line

COMMANDS = (
    "demo",
    "app",
    "encode",
    "decode",
    "predict",
    "export",
    "info",
    "selftest",
    "train",
    "accelerate",
    "eval",
    "bench",
    "train-autoencoder",
    "reproduce",
    "import-caffe",
)
"""In the order of ``wae --help``."""

# The packages of the extras are imported by the commands that need them: `wae --help` needs none, and
# a missing one ends in a sentence (see `main`).
_OPTIONAL = {
    "PIL": "Pillow",
    "google": "protobuf",
    "gradio": "gradio",
    "rich": "rich",
    "shtab": "shtab",
    "safetensors": "safetensors",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}
_LOST_READER = "DataLoader worker"  # in PyTorch's words; wherever the training is when it hears of it
_EXTRAS = {"gradio": "app-web"}  # of those that are not in [app]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's) and return the exit status."""
    try:
        with ended_at_once():
            options = build_parser().parse_args(arguments)
            # PIL warns of odd files, and logs; an unusable one is an error anyway.
            warnings.filterwarnings("ignore", module=r"PIL\b")
            logging.getLogger("PIL").setLevel(logging.CRITICAL)
            _check_backend()
        with terminable():
            return int(options.run(options))
    except WaeError as error:
        return complain(str(error))
    except BrokenPipeError:  # whoever read the output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush works
        return 1
    except OSError as error:
        name, why = file_of(error), error.strerror or str(error)
        return complain(f"{name}: {why}" if name else why)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _OPTIONAL:
            raise
        extra = _EXTRAS.get(module, "app")
        return complain(
            f'{_OPTIONAL[module]} is not installed; `pip install "wae-kernels[{extra}]"` installs it.'
        )
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            return complain("there is not enough memory for this; a smaller --batch or --size takes less")
        if _LOST_READER not in str(error):
            raise
        return complain(f"{first_line(error)}: was it out of memory? Fewer --workers take less")
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own for a GPU's memory, and for the processor's words alone."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _check_backend() -> None:
    """Import the ops, so that a wrong ``WAE_BACKEND`` or ``WAE_AMX`` is one line and not a traceback."""
    try:
        import wae_kernels  # noqa: F401
    except ValueError as error:
        raise WaeError(str(error)) from None


class _Completion(argparse.Action):
    """``--print-completion SHELL``, by shtab, which need not be installed."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> None:
        import shtab

        print(shtab.complete(parser, shell))
        parser.exit()


class _Version(argparse.Action):
    """``--version``; the package that knows it imports torch, so only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import wae_kernels

        print(f"wae {wae_kernels.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """All commands, each with its options."""
    parser = argparse.ArgumentParser(
        prog="wae",
        description="Split images with a wavelet-like auto-encoder, join them again, and classify them.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print the completion of this command for bash, zsh or tcsh, and exit",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = importlib.import_module(f"wae.commands.{name.replace('-', '_')}")
        text = command.HELP
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
