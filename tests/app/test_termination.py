"""How signals end a process, tested inside one; tests/app/commands sends signals to commands."""

from __future__ import annotations

import signal
import threading
import time
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
