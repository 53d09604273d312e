"""The command ``wae``. Exit status: 0 success, 1 some input failed, 2 wrong usage, 130 interrupted by Ctrl-C,
143 terminated by SIGTERM, 129 by SIGHUP.

Every command is a module of :mod:`wae.commands` (dashes in its name become underscores). The module defines

- ``HELP``: what the command does, one sentence in lower case without a full stop,
- ``add_arguments(parser)``: adds the command's options,
- ``run(options)``: runs the command and returns the exit status. It raises WaeError or OSError if the
  command cannot be carried out, UsageError if its options are wrong. Any other ValueError, which says what is
  wrong with the input, becomes a WaeError: see :func:`wae.commands.shared.failing`.

The modules import heavy or optional packages inside these functions.
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
from wae.errors import UsageError, WaeError
from wae.termination import ended_at_once, terminable
from wae.wording import first_line, named_reason

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
"""The commands, in the order of ``wae --help``."""

# Packages from the extras, which only the commands that need them import: `wae --help` needs none of them.
# If one is missing, `main` says so in one sentence.
_OPTIONAL = {
    "PIL": "Pillow",
    "google": "protobuf",
    "gradio": "gradio",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "shtab": "shtab",
    "safetensors": "safetensors",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "timm": "timm",
    "torchvision": "torchvision",
}
_EXTRAS = {"gradio": "app-web", "segmentation_models_pytorch": "segmentation", "timm": "timm"}
"""The extra of each package that is not in [app]."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: those of the process) and return the exit status."""
    try:
        with ended_at_once():
            options = build_parser().parse_args(arguments)
            # PIL warns and logs about odd files; an unusable file raises an error anyway.
            warnings.filterwarnings("ignore", module=r"PIL\b")
            logging.getLogger("PIL").setLevel(logging.CRITICAL)
            _check_backend()
        with terminable():
            return int(options.run(options))
    except UsageError as error:
        return complain(str(error), 2)
    except WaeError as error:
        return complain(str(error))
    except BrokenPipeError:  # the reader of the output closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's final flush works
        return 1
    except OSError as error:
        return complain(named_reason(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _OPTIONAL:
            raise
        extra = _EXTRAS.get(module, "app")
        return complain(
            f'{_OPTIONAL[module]} is not installed; `pip install "wae-kernels[{extra}]"` installs it.'
        )
    except (MemoryError, RuntimeError) as error:
        if said := _exhausted(error):
            return complain(said)
        raise
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)


def _exhausted(error: Exception) -> str:
    """What there was too little of, and what needs less of it; empty if ``error`` has another reason."""
    said, text = first_line(error), str(error)
    # of PyTorch's allocators on CPUs and GPUs, whose class is lost if one of our ops asked for the memory
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return "out of memory; a smaller --batch or --size needs less"
    if "DataLoader worker" in said:
        return f"{said}: out of memory? Fewer --workers need less"
    if "Too many open files" in said:
        return "too many open files; fewer --workers need fewer, and `ulimit -n` sets the limit"
    return ""


def _check_backend() -> None:
    """Import the ops, so that a wrong ``WAE_BACKEND`` or ``WAE_AMX`` is one line and not a traceback."""
    try:
        import wae_kernels  # noqa: F401
    except ValueError as error:
        raise WaeError(str(error)) from None


class _Completion(argparse.Action):
    """``--print-completion SHELL``, implemented with shtab, which is optional."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> None:
        import shtab

        print(shtab.complete(parser, shell))
        parser.exit()


class _Version(argparse.Action):
    """``--version``. It imports wae_kernels only when used, because that imports torch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import wae_kernels

        print(f"wae {wae_kernels.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="wae",
        description="Make networks for images faster with a wavelet-like auto-encoder.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print this command's completion script for bash, zsh or tcsh, and exit",
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
