"""Finds and loads the compiled libraries, and remembers why one is missing.

A library is loaded for its side effect: it registers kernels with torch's dispatcher. If the CPU library
cannot be loaded, Python defines the schemas instead (``fallback.py``), so that ``torch.ops.wae.*`` exists in
every installation.

A library that was compiled for other schemas than those of these sources raises ImportError: its kernels
would read arguments that do not exist.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Loaded:
    """A compiled library, or the reason why there is none."""

    library: ctypes.CDLL | None
    why_not: str


def load(name: str, needs: str) -> Loaded:
    """Load ``wae_kernels/<name>.abi3.so``; ``needs`` is what building it takes.

    Never raises: a missing library is reported, not an error, because everything also runs without it.
    """
    paths = sorted(_FOLDER.glob(f"{name}.abi3.*")) or sorted(_FOLDER.glob(f"{name}.*.so"))
    if not paths:
        return Loaded(None, f"it was not built; run `pip install -e .` with {needs}")
    try:
        torch.ops.load_library(paths[0])
        return Loaded(ctypes.CDLL(str(paths[0])), "")
    except OSError as error:
        return Loaded(None, f"it does not load beside torch {torch.__version__} ({error}); build it again")


def schemas() -> list[str]:
    """The schemas of ``wae::*``, from the file that the C++ libraries include."""
    text = (_FOLDER / "schemas.inc").read_text(encoding="utf-8")
    return [" ".join(schema.split()) for schema in re.findall(r'R"\((.*?)\)"', text, re.DOTALL)]


def _defined(schema: str) -> bool:
    """Whether the op exists with exactly this schema. The CPU library defines the ops."""
    op = getattr(torch.ops.wae, schema.partition("(")[0], None)
    return op is not None and op.default._schema == torch._C.parse_schema(f"wae::{schema}")


def _schemas_of(cuda: ctypes.CDLL) -> list[str]:
    """The schemas that the CUDA library was compiled for. It defines no ops, so it is asked for them."""
    try:
        compiled_for, _ = cuda.wae_cuda_schemas, cuda.wae_cuda_ask_tf32
    except AttributeError:  # the library is older than one of these functions
        return []
    compiled_for.restype = ctypes.c_char_p
    return [" ".join(schema.split()) for schema in compiled_for().decode().split(";")]


def _refuse_other_sources(library: str, has: Callable[[str], bool]) -> None:
    """Raise ImportError if ``library`` was compiled without one of the schemas, according to ``has``."""
    for schema in schemas():
        if not has(schema):
            raise ImportError(
                f"{library} was built from other sources: its wae::{schema.partition('(')[0]} differs; "
                "build it again with `pip install -e .` (or `make build`)"
            )


CPU = load("_C", "a C++20 compiler")
CUDA = load("_C_cuda", "a CUDA toolkit of PyTorch's version, on a machine with a GPU or with FORCE_CUDA=1")
if CPU.library is not None:
    _refuse_other_sources("the compiled library of wae_kernels", _defined)
if CUDA.library is not None:
    _refuse_other_sources(
        "the compiled library of wae_kernels for GPUs", _schemas_of(CUDA.library).__contains__
    )
