"""Any bytes in a decomposed image are read, or refused with a ContainerError.

python tests/fuzz/fuzz_decomposed.py CORPUS
"""

import sys
import tempfile
from pathlib import Path

import torch

_FILE = Path(tempfile.mkdtemp(), "input")


def check(content: bytes) -> None:
    """Read ``content`` as ``wae decode`` does."""
    from wae.storage import decomposed

    _FILE.write_bytes(content)
    try:
        image = decomposed.load(_FILE)
    except decomposed.ContainerError:
        return
    half = tuple((side + 1) // 2 for side in image.size)
    assert image.low.shape == image.high.shape == (3, *half)
    assert torch.isfinite(image.low).all()


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["wae.storage"]):
        import wae.storage.decomposed  # noqa: F401 (first imported here)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
