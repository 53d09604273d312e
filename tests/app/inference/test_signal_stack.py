"""Signal handlers have a valid stack, whatever the engines did to it."""

import ctypes
import gc
import os
import signal
import sys

import pytest
import torch
from torch import nn

from wae.inference import signal_stack
from wae.inference.engines import ENGINES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tests signals of Linux")


def handles_signals():
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return handled == [True]


def test_a_stack_set_in_the_block_is_reset_after_it():
    memory = ctypes.create_string_buffer(1 << 17)
    before = signal_stack.current()
    own = (ctypes.addressof(memory), 0, len(memory))
    with signal_stack.kept():
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(signal_stack._Stack(*own)), None) == 0
        assert signal_stack.current() == own
    assert signal_stack.current() == before
    assert handles_signals()


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.slow
def test_the_stack_is_valid_after_engines_are_unloaded(name, precision):
    engine = ENGINES[name]
    if reason := engine.why_not("cpu", precision):
        pytest.skip(reason)
    inputs = [torch.rand(2, 3, 8, 8)]
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    before = signal_stack.current()
    runs = [
        engine.open(engine.make(module, inputs, precision, [inputs], inputs), 2, inputs) for _ in range(2)
    ]
    while runs:  # in the order in which they were loaded
        del runs[0]
        gc.collect()
    assert signal_stack.current() == before
    assert handles_signals()
