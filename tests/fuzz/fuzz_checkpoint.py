"""Any bytes in a checkpoint are read, or refused with a CheckpointError.

python tests/fuzz/fuzz_checkpoint.py CORPUS
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import torch

_FILE = Path(tempfile.mkdtemp(), "input")


def check(content: bytes) -> None:
    """Read ``content`` as a classifier's checkpoint, and as weights and optimizer of a small layer."""
    from wae.storage import checkpoint, weights_file

    _FILE.write_bytes(content)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with contextlib.suppress(weights_file.CheckpointError):
        checkpoint.describe(_FILE)
    with contextlib.suppress(weights_file.CheckpointError):
        weights_file.load(_FILE, model, optimizer)


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["wae.storage"]):
        import wae.storage.checkpoint  # noqa: F401 (first imported here)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
