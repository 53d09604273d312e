"""Any bytes in a checkpoint are one or a CheckpointError of one line: python tests/fuzz/fuzz_checkpoint.py CORPUS."""

import sys
import tempfile
from pathlib import Path

import torch

from wae.storage import checkpoint, weights_file
from wae.storage.weights_file import CheckpointError

_FILE = Path(tempfile.mkdtemp(), "input")


def check(content: bytes) -> None:
    """Read ``content`` as a classifier's checkpoint, and as the weights and the optimizer of a small layer."""
    _FILE.write_bytes(content)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    for read in (checkpoint.describe, lambda path: weights_file.load(path, model, optimizer)):
        try:
            read(_FILE)
        except CheckpointError as error:
            assert len(str(error)) <= 2000


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
