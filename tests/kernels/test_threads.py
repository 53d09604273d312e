"""Helper threads that sleep between calls: bit-identical results, no CPU time between calls."""

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
from cases import arguments_of, as_tuple, image_of, int8_encoder, needs_kernels
from torch import Tensor

import wae_kernels  # noqa: F401  (the ops)
from wae_kernels.threads import sleeping

pytestmark = needs_kernels
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


def seeded(call: Callable[[], Any]) -> Tensor:
    """The results of ``call``, always with the same random numbers."""
    torch.manual_seed(0)
    return torch.cat([x.flatten() for x in as_tuple(call())])


def process_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("op", CALLS)
def test_bit_identical(op: str, threads: int) -> None:
    expected = seeded(CALLS[op])
    torch.set_num_threads(threads)
    for _ in range(3):
        with sleeping():
            assert torch.equal(seeded(CALLS[op]), expected)
        assert torch.equal(seeded(CALLS[op]), expected)


def test_many_callers_at_once() -> None:
    expected = seeded(CALLS["encode"])
    torch.manual_seed(0)
    arguments = arguments_of("encode", size=(45, 50))
    torch.set_num_threads(3)

    def call(_: int) -> bool:
        torch.set_num_threads(3)  # each thread has its own number for OpenMP
        with sleeping():
            low, high = torch.ops.wae.encode(*arguments)
        return torch.equal(torch.cat([low.flatten(), high.flatten()]), expected)

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(call, range(200)))


def test_number_of_threads_is_restored() -> None:
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
        lambda x: x @ x,  # MKL has another number of threads than OpenMP
        lambda x: F.conv2d(x[None, None], x[None, None, :3, :3]),
        torch.sin,
        torch.linalg.inv,
    ],
    ids=["matmul", "conv", "sin", "inv"],
)
def test_operators_of_pytorch_run_on_the_calling_thread_only(call: Callable[[Tensor], Tensor]) -> None:
    x, started = torch.eye(500), list[set[str]]()

    def caller() -> None:
        torch.set_num_threads(3)
        before = process_threads()
        with sleeping():
            call(x)
        started.append(process_threads() - before)

    thread = threading.Thread(target=caller)  # OpenMP would start more threads for it
    thread.start()
    thread.join()
    assert started == [set()]


@on_linux
def test_one_helper_fewer_than_threads_until_the_caller_ends() -> None:
    """An inner block does not change the helpers of the outer one."""
    found: dict[str, int] = {}

    def caller() -> None:
        torch.set_num_threads(3)
        before = process_threads()
        with sleeping():
            with sleeping():
                pass
            torch.ops.wae.encode(*arguments_of("encode", size=(200, 50)))
        found["helpers"] = len(process_threads() - before)

    before = process_threads()
    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert found["helpers"] == 2
    ends = time.monotonic() + 10
    while not process_threads() <= before and time.monotonic() < ends:
        time.sleep(0.01)  # the caller tells them to end, but does not wait
    assert process_threads() <= before


@on_linux
def test_helpers_take_no_time_between_calls() -> None:
    torch.set_num_threads(4)
    with sleeping():
        seeded(CALLS["encode"])
        times = []
        for _ in range(5):
            seeded(CALLS["encode"])
            time.sleep(0.005)  # until all of them sleep
            before = time.process_time()
            time.sleep(0.05)
            times.append(time.process_time() - before)
    assert min(times) < 0.002


@on_linux
def test_helpers_avoid_the_core_of_their_caller() -> None:
    """With two cores, the only helper must use the other one."""
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        pytest.skip("needs two cores")
    first, second = cores
    core = ctypes.CDLL(None).sched_getcpu

    def helper_after_call_on(wanted: int, helper: int) -> set[int]:
        """The helper's cores after a call on this core; repeated if the system moved the call to another."""
        for _ in range(100):
            os.sched_setaffinity(0, {wanted})
            os.sched_setaffinity(0, cores)
            before = core()
            seeded(CALLS["encode"])
            if before == core() == wanted:
                return os.sched_getaffinity(helper)
        pytest.skip("the system moves this thread in every call")

    def calls() -> list[set[int]]:
        before = process_threads()
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(2)
        with sleeping():
            seeded(CALLS["encode"])
            (helper,) = map(int, process_threads() - before)
            found = [helper_after_call_on(wanted, helper) for wanted in (first, second)]
            os.sched_setaffinity(helper, {second})  # an affinity set by others stays
            found.append(helper_after_call_on(first, helper))
            found.append(helper_after_call_on(second, helper))
        return found

    with ThreadPoolExecutor(1) as caller:
        found = caller.submit(calls).result()
    assert found == [{second}, {first}, {second}, {second}]


@on_linux
def test_helpers_stay_on_the_cores_of_the_process() -> None:
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        pytest.skip("needs two cores")

    def calls() -> list[set[int]]:
        before = process_threads()
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(2)
        found = []
        with sleeping():
            seeded(CALLS["encode"])
            (helper,) = map(int, process_threads() - before)
            for core in (*cores, *cores):  # one of them is already the helper's core
                for thread in (0, helper):
                    os.sched_setaffinity(thread, {core})
                seeded(CALLS["encode"])
                found.append(os.sched_getaffinity(helper) == {core})
        return found

    with ThreadPoolExecutor(1) as caller:
        assert all(caller.submit(calls).result())


@on_linux
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on
def test_forked_process_starts_its_own_helpers() -> None:
    torch.set_num_threads(3)
    with sleeping():
        expected = seeded(CALLS["encode"])
        if not (child := os.fork()):
            os._exit(7 * torch.equal(seeded(CALLS["encode"]), expected))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
