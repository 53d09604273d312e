"""How signals end a process, within it; tests/app/commands has them sent to whole commands."""

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
def handlers_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_is_raised_once_and_the_cleaning_up_is_not_disturbed() -> None:
    cleaned_up = []

    def work() -> None:
        with terminable():
            try:
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("went on")
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned_up.append(True)

    with pytest.raises(Terminated):
        work()
    assert cleaned_up
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "kind"), [("SIGTERM", Terminated), ("SIGINT", KeyboardInterrupt)])
def test_what_comes_in_the_import_of_an_extension_is_raised_behind_it(
    number: str, kind: type[KeyboardInterrupt]
) -> None:
    """That of Triton failed, PyTorch went on without it, and SIGTERM was ignored from then on."""

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
    [(terminable, signal.SIGTERM), (terminable, signal.SIGINT), (ended_at_once, signal.SIGINT)],
    ids=["TERM", "import", "INT"],
)
def test_a_block_has_a_handler_of_its_own_where_nobody_else_has_one(block, number) -> None:  # type: ignore[no-untyped-def]
    usual = signal.getsignal(number)
    with block():
        assert signal.getsignal(number) != usual
    assert signal.getsignal(number) == usual

    def others(number: int, frame: object) -> None: ...

    for handler in (others, signal.SIG_IGN):
        signal.signal(number, handler)
        with block():
            assert signal.getsignal(number) == handler
        assert signal.getsignal(number) == handler

    signal.signal(number, usual)
    seen = []

    def run() -> None:
        with block():  # raises where it sets a handler
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [usual]
