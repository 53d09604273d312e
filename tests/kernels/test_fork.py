"""Processes that fork, or exit, while other threads are in a call: no lock stays locked, nothing is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import arguments_of

import wae_kernels  # noqa: F401  (the ops)
from wae_kernels import backends

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # from Python 3.12 on
]

needs_kernels = pytest.mark.skipif(
    not backends.kernels_run(on_processor=True), reason="needs the compiled kernels"
)


def ends_in_a_forked_process(call: Callable[[], object]) -> bool:
    """Whether ``call`` returns there. It is ended where it waits for ever."""
    if not (child := os.fork()):
        try:
            call()
            os._exit(7)
        finally:
            os._exit(1)
    stop = threading.Timer(20, os.kill, (child, signal.SIGKILL))
    stop.start()
    status = os.waitpid(child, 0)[1]
    stop.cancel()
    return os.waitstatus_to_exitcode(status) == 7


def choose() -> None:
    with backends.use("reference"):
        pass


def test_a_choice_of_a_backend() -> None:
    held = threading.Event()

    def other_thread() -> None:
        with backends._lock:
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=other_thread)
    thread.start()
    held.wait()
    assert ends_in_a_forked_process(choose)
    thread.join()
    choose()


@needs_kernels
def test_a_call_in_a_signal_handler() -> None:
    """Its thread may be in the middle of a choice, and waited for itself then."""
    arguments = arguments_of("encode", size=(2, 2))

    def choose_and_be_interrupted() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: torch.ops.wae.encode(*arguments))
        backends._CALLBACKS.append((lambda _: signal.raise_signal(signal.SIGUSR1), None))
        choose()

    assert ends_in_a_forked_process(choose_and_be_interrupted)


@needs_kernels
def test_a_call() -> None:
    """Of more networks than are kept packed: to pack one, a thread has the lock for most of its call."""
    calls = [arguments_of("encode", size=(2, 2)) for _ in range(6)]
    over = threading.Event()

    def other_thread() -> None:
        while not over.is_set():
            for arguments in calls:
                torch.ops.wae.encode(*arguments)

    threads = [threading.Thread(target=other_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert ends_in_a_forked_process(lambda: torch.ops.wae.encode(*calls[0]))
    finally:
        over.set()
        for thread in threads:
            thread.join()


EXIT = """
import ctypes, threading, torch, wae_kernels
from cases import arguments_of

def call(_):
    thread = threading.Thread(target=lambda: print(torch.equal(encode(*arguments)[0], before), flush=True))
    thread.start()
    thread.join()

encode, arguments = torch.ops.wae.encode, arguments_of("encode")
at_exit = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(call)
ctypes.CDLL(None).__cxa_atexit(at_exit, None, None)  # runs after the destructors of what the next line makes
before = encode(*arguments)[0]
ctypes.PyDLL(None).exit(0)
"""


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_a_thread_may_call_while_the_process_exits() -> None:
    """It looked at packed weights that were freed by then."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "support"),
        "MALLOC_PERTURB_": "165",  # what is freed does not keep its bytes
    }
    result = subprocess.run([sys.executable, "-c", EXIT], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
