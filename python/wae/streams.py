"""Standard input, output and error, which a caller may close, or give an encoding of few characters."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Make the standard streams usable by any command.

    A stream that is closed (``wae ... >&-``) becomes the null device. Otherwise it would be None, and the
    next file that is opened would get its number, which libraries and child processes write to. Characters
    that the encoding of a stream lacks (``LANG=C``) are printed as escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 (as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
