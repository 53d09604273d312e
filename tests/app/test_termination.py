"""How signals end a process, tested inside one; tests/app/commands sends signals to commands."""

from __future__ import annotations

import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType

import pytest

from wae.termination import Terminated, ended_at_once, terminable


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_raised_once_and_do_not_interrupt_the_clean_up(first: signal.Signals) -> None:
    cleaned_up = []

    def work() -> None:
        with terminable():
            try:
                signal.raise_signal(first)
                pytest.fail("the signal was not raised")
            finally:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGHUP)
                cleaned_up.append(True)

    with pytest.raises(Terminated) as raised:
        work()
    assert raised.value.number == first
    assert cleaned_up
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_worker_that_the_same_signal_ended_is_no_error() -> None:
    """A closed terminal signals every process; PyTorch's handler raised an error in the clean-up."""

    def lost(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal: Hangup")

    def work() -> None:
        with terminable():
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGCHLD)

    before = signal.signal(signal.SIGCHLD, lost)
    try:
        with pytest.raises(Terminated):
            work()
        assert signal.getsignal(signal.SIGCHLD) is lost
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("number", "kind"), [("SIGTERM", Terminated), ("SIGHUP", Terminated), ("SIGINT", KeyboardInterrupt)]
)
def test_a_signal_during_the_import_of_an_extension_is_raised_after_it(
    number: str, kind: type[KeyboardInterrupt]
) -> None:
    """Otherwise the import of Triton fails, PyTorch continues without it, and later SIGTERMs are ignored."""

    class Loader(ExtensionFileLoader):
        def create_module(self, spec: ModuleSpec) -> ModuleType:
            signal.raise_signal(getattr(signal, number))
            return ModuleType(spec.name)

    def work() -> None:
        with terminable():
            imported.append(Loader("fast", "fast.so").create_module(ModuleSpec("fast", None)))
            time.sleep(60)

    imported: list[ModuleType] = []
    with pytest.raises(kind):
        work()
    assert imported


@pytest.mark.parametrize(
    ("number", "kind"), [("SIGTERM", Terminated), ("SIGHUP", Terminated), ("SIGINT", KeyboardInterrupt)]
)
def test_a_signal_where_python_ignores_exceptions_is_raised_after_that(
    number: str, kind: type[KeyboardInterrupt], capsys: pytest.CaptureFixture[str]
) -> None:
    """If it were lost there, ``wae eval --deployed`` would go on after SIGTERM, and ignore all later ones."""

    class Watched:
        pass

    def work() -> None:
        with terminable():
            one = Watched()
            weakref.finalize(one, signal.raise_signal, getattr(signal, number))
            del one
            went_on.append(True)
            time.sleep(60)

    went_on: list[bool] = []
    usual = sys.unraisablehook
    with pytest.raises(kind):
        work()
    assert went_on
    assert sys.unraisablehook == usual
    assert "Exception ignored" not in capsys.readouterr().err


def test_other_exceptions_that_python_ignores_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("reported")

    sys.unraisablehook, pytests = sys.__unraisablehook__, sys.unraisablehook
    try:
        with terminable():
            Failing()
    finally:
        sys.unraisablehook = pytests
    assert "ValueError: reported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("block", "number"),
    [
        (terminable, signal.SIGTERM),
        (terminable, signal.SIGHUP),
        (terminable, signal.SIGINT),
        (ended_at_once, signal.SIGINT),
    ],
    ids=["terminable-SIGTERM", "terminable-SIGHUP", "terminable-SIGINT", "ended_at_once-SIGINT"],
)
def test_a_block_replaces_only_the_default_handler_and_only_in_the_main_thread(block, number) -> None:  # type: ignore[no-untyped-def]
    usual = signal.getsignal(number)
    with block():
        assert signal.getsignal(number) != usual
    assert signal.getsignal(number) == usual

    def custom(number: int, frame: object) -> None: ...

    for handler in (custom, signal.SIG_IGN):
        signal.signal(number, handler)
        with block():
            assert signal.getsignal(number) == handler
        assert signal.getsignal(number) == handler

    signal.signal(number, usual)
    seen = []

    def run() -> None:
        with block():  # would raise if it set a handler
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [usual]
