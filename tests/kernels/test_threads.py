"""Helpers that sleep between calls: the same bits, no time taken in between."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import arguments_of, as_tuple, image_of, int8_encoder
from torch import Tensor

import wae_kernels  # noqa: F401  (the ops)
from wae_kernels import backends
from wae_kernels.threads import sleeping

pytestmark = pytest.mark.skipif(
    not backends.kernels_run(on_processor=True), reason="needs the compiled kernels"
)
on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's list of threads")


def conv3x3() -> Tensor:
    packed = torch.ops.wae.conv3x3_pack(torch.randn(100, 40, 3, 3))
    result: Tensor = torch.ops.wae.conv3x3(torch.randn(2, 40, 30, 31), packed, None, 100)
    return result


CALLS: dict[str, Callable[[], Any]] = {
    **{
        op: lambda op=op: getattr(torch.ops.wae, op)(*arguments_of(op, size=(45, 50)))
        for op in ("encode", "decode", "decode_scores")
    },
    "encode_int8": lambda: torch.ops.wae.encode_int8(image_of(3, 45, 50, torch.uint8), *int8_encoder()),
    "conv3x3": conv3x3,
}


def drawn(call: Callable[[], Any]) -> Tensor:
    """The results of ``call`` on the same random numbers as any time."""
    torch.manual_seed(0)
    return torch.cat([x.flatten() for x in as_tuple(call())])


def threads_of_the_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("op", CALLS)
def test_the_same_bits(op: str, threads: int) -> None:
    expected = drawn(CALLS[op])
    torch.set_num_threads(threads)
    for _ in range(3):
        with sleeping():
            assert torch.equal(drawn(CALLS[op]), expected)
        assert torch.equal(drawn(CALLS[op]), expected)


def test_many_callers_at_once() -> None:
    expected = drawn(CALLS["encode"])
    torch.manual_seed(0)
    arguments = arguments_of("encode", size=(45, 50))
    torch.set_num_threads(3)

    def call(_: int) -> bool:
        torch.set_num_threads(3)  # OpenMP's number is each thread's own
        with sleeping():
            low, high = torch.ops.wae.encode(*arguments)
        return torch.equal(torch.cat([low.flatten(), high.flatten()]), expected)

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(call, range(200)))


def test_the_number_of_threads_is_put_back() -> None:
    torch.set_num_threads(3)
    with sleeping():
        assert torch.get_num_threads() == 1
        with sleeping():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), sleeping():
        raise KeyError
    assert torch.get_num_threads() == 3
    with sleeping():
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 3


@on_linux
@pytest.mark.parametrize(
    "call",
    [
        lambda x: x @ x,  # MKL's number of threads is another than OpenMP's
        lambda x: F.conv2d(x[None, None], x[None, None, :3, :3]),
        torch.sin,
        torch.linalg.inv,
    ],
    ids=["matmul", "conv", "sin", "inv"],
)
def test_pytorch_s_operators_have_the_calling_thread_alone(call: Callable[[Tensor], Tensor]) -> None:
    x, started = torch.eye(500), list[set[str]]()

    def caller() -> None:
        torch.set_num_threads(3)
        before = threads_of_the_process()
        with sleeping():
            call(x)
        started.append(threads_of_the_process() - before)

    thread = threading.Thread(target=caller)  # OpenMP would start threads for it
    thread.start()
    thread.join()
    assert started == [set()]


@on_linux
def test_helpers_are_as_many_as_threads_less_one_and_end_with_their_caller() -> None:
    """In the outer block, whatever an inner one was."""
    found: dict[str, int] = {}

    def caller() -> None:
        torch.set_num_threads(3)
        before = threads_of_the_process()
        with sleeping():
            with sleeping():
                pass
            torch.ops.wae.encode(*arguments_of("encode", size=(200, 50)))
        found["helpers"] = len(threads_of_the_process() - before)

    before = threads_of_the_process()
    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert found["helpers"] == 2
    ends = time.monotonic() + 10
    while not threads_of_the_process() <= before and time.monotonic() < ends:
        time.sleep(0.01)  # they are told to end, and nobody waits for that
    assert threads_of_the_process() <= before


@on_linux
def test_helpers_take_no_time_between_calls() -> None:
    torch.set_num_threads(4)
    with sleeping():
        drawn(CALLS["encode"])
        times = []
        for _ in range(5):
            drawn(CALLS["encode"])
            time.sleep(0.005)  # the last of them falls asleep
            before = time.process_time()
            time.sleep(0.05)
            times.append(time.process_time() - before)
    assert min(times) < 0.002


@on_linux
def test_helpers_keep_off_the_core_that_their_caller_runs_on() -> None:
    """It is the only helper, and needs the only other core."""
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        pytest.skip("needs two cores")
    first, second = cores
    core = ctypes.CDLL(None).sched_getcpu

    def helper_after_call_on(wanted: int, helper: int) -> set[int]:
        """The cores of the helper after a call on this core, from which the system might have moved it."""
        for _ in range(100):
            os.sched_setaffinity(0, {wanted})
            os.sched_setaffinity(0, cores)
            before = core()
            drawn(CALLS["encode"])
            if before == core() == wanted:
                return os.sched_getaffinity(helper)
        pytest.skip("the system moves this thread in every call")

    def calls() -> list[set[int]]:
        before = threads_of_the_process()
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(2)
        with sleeping():
            drawn(CALLS["encode"])
            (helper,) = map(int, threads_of_the_process() - before)
            found = [helper_after_call_on(wanted, helper) for wanted in (first, second)]
            os.sched_setaffinity(helper, {second})  # what somebody else decides holds
            found.append(helper_after_call_on(first, helper))
            found.append(helper_after_call_on(second, helper))
        return found

    with ThreadPoolExecutor(1) as caller:
        found = caller.submit(calls).result()
    assert found == [{second}, {first}, {second}, {second}]


@on_linux
def test_helpers_keep_to_the_cores_that_the_whole_process_is_given() -> None:
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        pytest.skip("needs two cores")

    def calls() -> list[set[int]]:
        before = threads_of_the_process()
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(2)
        found = []
        with sleeping():
            drawn(CALLS["encode"])
            (helper,) = map(int, threads_of_the_process() - before)
            for core in (*cores, *cores):  # one of them is what the helper has
                for thread in (0, helper):
                    os.sched_setaffinity(thread, {core})
                drawn(CALLS["encode"])
                found.append(os.sched_getaffinity(helper) == {core})
        return found

    with ThreadPoolExecutor(1) as caller:
        assert all(caller.submit(calls).result())


@on_linux
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_process_has_helpers_of_its_own() -> None:
    torch.set_num_threads(3)
    with sleeping():
        expected = drawn(CALLS["encode"])
        if not (child := os.fork()):
            os._exit(7 * torch.equal(drawn(CALLS["encode"]), expected))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
