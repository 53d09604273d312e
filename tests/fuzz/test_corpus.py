"""All files of the corpora, and a second of each fuzzer if atheris is installed.

A fuzzer is ``fuzz_NAME.py`` with a function ``check``; its corpus is ``corpus/NAME``.

To search for more cases (pip install "wae-kernels[fuzz]") and store them in another folder::

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


NAMES = [path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")]
FUZZERS = {name: importlib.import_module(f"fuzz_{name}") for name in NAMES}


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.name}" for path in FILES])
def test_file_of_a_corpus(path):
    FUZZERS[path.parent.name].check(path.read_bytes())


def test_every_fuzzer_has_a_corpus():
    assert FUZZERS.keys() == {path.parent.name for path in FILES}


def test_every_op_is_in_the_corpus():
    """When the order of the list changed, the stored files tested other ops than before."""
    ops = FUZZERS["ops"].OPS
    stored = {ops[path.read_bytes()[0]] for path in FILES if path.parent.name == "ops"}
    assert stored == set(ops) == {schema.partition("(")[0] for schema in schemas()}


@pytest.mark.slow  # half a minute, most of it imports
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is missing: pip install 'wae-kernels[fuzz]'"
)
@pytest.mark.parametrize("name", NAMES)
def test_fuzzer_finds_nothing_in_a_second(name, tmp_path):
    command = [sys.executable, HERE / f"fuzz_{name}.py", tmp_path, HERE / "corpus" / name]
    options = ["-max_total_time=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done" in done.stderr
