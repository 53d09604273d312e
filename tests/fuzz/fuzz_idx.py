"""Any bytes in an IDX file are read exactly, or refused with a DatasetError.

python tests/fuzz/fuzz_idx.py CORPUS
"""

import gzip
import sys
import tempfile
from pathlib import Path

from wae.data.dataset import DatasetError
from wae.data.idx import _read_idx

_FOLDER = Path(tempfile.mkdtemp())
_HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 2])


def check(content: bytes) -> None:
    """Read ``content`` as a file of 3 x 2 bytes: as it is, and as .gz."""
    for name in ("input", "input.gz"):
        (_FOLDER / name).write_bytes(content)
        try:
            read = _read_idx(_FOLDER / name, (3, 2))
        except DatasetError:
            continue
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        assert plain == _HEADER + read.tobytes()


if __name__ == "__main__":
    import atheris

    atheris.instrument_func(_read_idx)  # in place
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
