"""Types of options, for argparse: numbers within limits, and sizes of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

_N = TypeVar("_N", int, float)

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
"""The choices of options for the precision of a deployed network."""

ENGINES = ("eager", "compile", "winograd", "onnxruntime", "openvino", "cudagraphs", "tensorrt")
"""The choices of options for its engine. Those of :mod:`wae.inference.engines`, whose import is slow."""

_MOST = 2**63 - 1  # the libraries behind the options use 64-bit integers


def integer(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: an integer from ``least`` to ``most``."""
    return partial(_number, int, least=least, most=most, needs=f"a whole number from {least} to {most}")


def number(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: a number from ``least`` to ``most``."""
    return partial(_number, float, least=least, most=most, needs=f"a number from {least:g} to {most:g}")


def positive(text: str) -> int:
    """An argparse type: an integer, 1 or more."""
    return _number(int, text, 1, _MOST, "a whole number from 1")


def whole(text: str) -> int:
    """An argparse type: an integer, 0 or more."""
    return _number(int, text, 0, _MOST, "a whole number from 0")


def size(text: str) -> int:
    """An argparse type: the side of a network's images in pixels."""
    from wae.data.input import MAX_SIZE

    return integer(1, MAX_SIZE)(text)


def image_size(text: str) -> int | tuple[int, int]:
    """An argparse type: the side of a network's images in pixels, or HEIGHTxWIDTH."""
    height, by, width = text.partition("x")
    try:
        return (size(height), size(width)) if by else size(text)
    except argparse.ArgumentTypeError as error:
        needs = str(error).partition(", got")[0]
        raise argparse.ArgumentTypeError(f"{needs}, or HEIGHTxWIDTH, got {text[:40]}") from None


def original(text: str) -> str:
    """An argparse type: a network around which WAE is built, by name, file or ``module:function``."""
    prefix, _, name = text.partition("_")
    if prefix in ("wae", "wavelet") and ":" not in text and not text.endswith(".safetensors"):
        raise argparse.ArgumentTypeError(
            f"needs the network around which WAE is built, {name[:40] or 'a NAME'}, got {text[:40]}"
        )
    return text


def port(text: str) -> int:
    """An argparse type: a TCP port, or 0."""
    return _number(int, text, 0, 65535, "a port from 0 to 65535")


def seconds(text: str) -> float:
    """An argparse type: a number of seconds, from 0 to an hour."""
    return _number(float, text, 0, 3600, "seconds from 0 to 3600")


def _number(kind: Callable[[str], _N], text: str, least: float, most: float, needs: str) -> _N:
    with suppress(ValueError):
        if least <= (value := kind(text)) <= most:  # NaN neither
            return value
    raise argparse.ArgumentTypeError(f"needs {needs}, got {text[:40]}")


batch = integer(1, 4096)
"""An argparse type: images per call of a network."""
workers = integer(0, 256)
"""An argparse type: processes beside this one."""
processes = integer(1, 256)
percent = integer(1, 100)
share = number(0, 1)
