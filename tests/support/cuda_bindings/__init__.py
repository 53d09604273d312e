"""Compiles the launch plans and parameter structs of csrc/cuda into a Python module, for the tests only."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[3]


@functools.cache
def load() -> ModuleType:
    """The compiled module, rebuilt when its source or a header of csrc/cuda has changed."""
    sources = [Path(__file__).with_name("bindings.cpp"), *sorted((ROOT / "csrc" / "cuda").glob("*.h"))]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    text = suffix + pybind11.__version__ + "".join(s.read_text() for s in sources)
    folder = ROOT / "build" / "cuda_bindings" / hashlib.sha256(text.encode()).hexdigest()[:16]
    library = folder / f"wae_cuda_bindings{suffix}"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            includes = [
                f"-I{pybind11.get_include()}",
                f"-I{sysconfig.get_paths()['include']}",
                f"-I{ROOT / 'csrc'}",
            ]
            flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"]
            command = [os.environ.get("CXX") or "c++", *flags, *includes, str(sources[0]), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the test bindings do not compile:\n{done.stderr[:3000]}")
            os.replace(made, library)
    spec = importlib.util.spec_from_file_location("wae_cuda_bindings", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
