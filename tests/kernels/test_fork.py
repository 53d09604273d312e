"""Processes that fork or exit during calls of other threads: no lock stays held, no memory is freed early."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import torch
from cases import arguments_of, needs_kernels
from programs import run_program

import wae_kernels  # noqa: F401  (the ops)
from wae_kernels import backends

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # from Python 3.12 on
]


def returns_in_a_forked_process(call: Callable[[], object]) -> bool:
    """Whether ``call`` returns in a forked process, which is killed if it hangs."""
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


def choose_a_backend() -> None:
    with backends.use("reference"):
        pass


def test_fork_during_a_choice_of_a_backend() -> None:
    held = threading.Event()

    def other_thread() -> None:
        with backends._lock:
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=other_thread)
    thread.start()
    held.wait()
    assert returns_in_a_forked_process(choose_a_backend)
    thread.join()
    choose_a_backend()


@needs_kernels
def test_call_in_a_signal_handler() -> None:
    """If the signal interrupts a choice, the thread holds a lock, for which the call must not wait."""
    arguments = arguments_of("encode", size=(2, 2))

    def choose_with_an_interruption() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: torch.ops.wae.encode(*arguments))
        interrupted = SimpleNamespace(
            ask=lambda _: signal.raise_signal(signal.SIGUSR1),
            function=lambda default: None,
            answer=lambda name: None,
            here=ContextVar("here"),
        )
        backends._LIBRARIES.append(interrupted)
        choose_a_backend()

    assert returns_in_a_forked_process(choose_with_an_interruption)


@needs_kernels
def test_fork_during_a_call() -> None:
    """With more networks than the cache of packed weights holds, threads hold its lock most of the time."""
    networks = [arguments_of("encode", size=(2, 2)) for _ in range(6)]
    finished = threading.Event()

    def other_thread() -> None:
        while not finished.is_set():
            for arguments in networks:
                torch.ops.wae.encode(*arguments)

    threads = [threading.Thread(target=other_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert returns_in_a_forked_process(lambda: torch.ops.wae.encode(*networks[0]))
    finally:
        finished.set()
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
ctypes.CDLL(None).__cxa_atexit(at_exit, None, None)  # runs after the destructors of what is created next
before = encode(*arguments)[0]
ctypes.PyDLL(None).exit(0)
"""


@needs_kernels
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_call_during_the_exit_of_the_process() -> None:
    """Packed weights must not be freed before it reads them."""
    result = run_program(EXIT, check=False, MALLOC_PERTURB_="165")  # overwrites freed memory
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
