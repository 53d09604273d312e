"""wae.inference.timing: how often and in which order functions run, and what is reported."""

import time
from types import SimpleNamespace

import pytest
import torch

from wae.inference import timing
from wae.inference.timing import interleaved, synchronize_for


def test_every_function_runs_once_a_round_and_the_order_changes():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = interleaved(functions, seconds=0, warmup=1, min_rounds=20)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 21
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert list(timings) == ["a", "b", "c"]
    assert [t.runs for t in timings.values()] == [20, 20, 20]


def test_medians_separate_a_slow_function_from_a_fast_one():
    timings = interleaved(
        {"slow": lambda: time.sleep(0.006), "fast": lambda: time.sleep(0.001)}, seconds=0, min_rounds=7
    )
    assert timings["slow"].median >= 0.006 > timings["fast"].p10
    for one in timings.values():
        assert one.p10 <= one.median <= one.p90


def test_rounds_continue_for_the_given_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes_a_second():
        now[0] += 1

    for seconds, runs in ((1, 3), (7.5, 8)):  # three rounds at least
        timings = interleaved({"a": takes_a_second}, seconds=seconds)
        assert timings["a"] == timing.Timing(1.0, 1.0, 1.0, runs)


def test_the_device_is_synchronized_before_each_reading_of_the_clock():
    events = []
    interleaved(
        {"a": lambda: events.append("a")},
        seconds=0,
        min_rounds=2,
        burst=2,
        synchronize=lambda: events.append("wait"),
    )
    timed = events[events.index("wait") + 1 :]  # what comes before is the warm-up
    assert timed == ["wait", "a", "wait", "a", "wait"] * 2


def test_a_turn_settles_before_a_timed_burst():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = interleaved(functions, seconds=0, warmup=0, min_rounds=2, settle=1, burst=3)
    turns = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert sorted(turns) == ["aaaa", "aaaa", "bbbb", "bbbb"]
    assert timings["a"].runs == 6


def test_wrong_numbers_are_refused_and_no_functions_give_no_timings():
    with pytest.raises(ValueError, match="min_rounds"):
        interleaved({"a": lambda: None}, min_rounds=0)
    with pytest.raises(ValueError, match="settle"):
        interleaved({"a": lambda: None}, settle=-1)
    assert interleaved({}) == {}


def test_work_on_a_gpu_is_waited_for_on_that_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize_for(torch.device("cuda:1"))()
    synchronize_for(torch.device("cpu"))()
    assert waited == [torch.device("cuda:1")]
