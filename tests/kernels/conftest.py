"""A fixture for the tests of the ops, which do not depend on their order."""

from __future__ import annotations

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Forget what torch.compile compiled in other tests.

    It is tried first. After test_transforms.py, torch 2.10 then warned of ``.grad`` in other tests.
    """
    if "torch._dynamo" in sys.modules:  # the import takes seconds
        torch._dynamo.reset()
