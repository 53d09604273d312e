"""Any bytes in a decomposed image are one or a ContainerError: python tests/fuzz/fuzz_decomposed.py CORPUS."""

import sys
import tempfile
from pathlib import Path

from wae.storage import decomposed

_FILE = Path(tempfile.mkdtemp(), "input")


def check(content: bytes) -> None:
    """Read ``content`` as ``wae decode`` does."""
    _FILE.write_bytes(content)
    try:
        image = decomposed.load(_FILE)
    except decomposed.ContainerError as error:
        assert len(str(error)) <= 2000
    else:
        assert image.low.shape == image.high.shape


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
