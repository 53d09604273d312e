"""The files of all corpora once more, and a moment of each fuzzer where atheris is installed.

A fuzzer is ``fuzz_NAME.py`` with ``check``; its files are ``corpus/NAME``.

To look for more (pip install "wae-kernels[fuzz]"), keeping what it finds elsewhere::

    python tests/fuzz/fuzz_images.py /tmp/found tests/fuzz/corpus/images -max_total_time=600
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from wae_kernels._load import schemas

HERE = Path(__file__).parent
FILES = sorted((HERE / "corpus").glob("*/*"))


def fuzzer(name):
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"fuzz_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES = [path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")]
FUZZERS = {name: fuzzer(name) for name in NAMES}


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.name}" for path in FILES])
def test_a_file_that_a_fuzzer_kept(path):
    FUZZERS[path.parent.name].check(path.read_bytes())


def test_every_fuzzer_has_a_corpus():
    assert FUZZERS.keys() == {path.parent.name for path in FILES}


def test_every_op_is_in_the_corpus():
    """Each was once moved to another's place in the list, and the files kept for it tried that one."""
    ops = FUZZERS["ops"].OPS
    kept = {ops[path.read_bytes()[0]] for path in FILES if path.parent.name == "ops"}
    assert kept == set(ops) == {schema.partition("(")[0] for schema in schemas()}


@pytest.mark.slow  # half a minute, most of it imports
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is missing: pip install 'wae-kernels[fuzz]'"
)
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_in_a_moment(name, tmp_path):
    command = [sys.executable, HERE / f"fuzz_{name}.py", tmp_path, HERE / "corpus" / name]
    options = ["-max_total_time=1", f"-artifact_prefix={tmp_path}/"]
    made = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert "Done" in made.stderr
