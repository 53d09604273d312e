"""Signals have a stack to be handled on, whatever the engines did."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux's signals")


def handles_signals():
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return handled == [True]


def test_a_stack_that_the_block_sets_is_not_left():
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
def test_engines_that_have_come_and_gone(name, precision):
    engine = ENGINES[name]
    if reason := engine.why_not("cpu", precision):
        pytest.skip(reason)
    inputs = [torch.rand(2, 3, 8, 8)]
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    before = signal_stack.current()
    runs = [
        engine.open(engine.make(module, inputs, precision, [inputs], inputs), 2, inputs) for _ in range(2)
    ]
    while runs:  # in the order in which they came
        del runs[0]
        gc.collect()
    assert signal_stack.current() == before
    assert handles_signals()
