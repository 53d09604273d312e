"""The progress of long commands: lines of text, and bars, which are shown only on a terminal."""

import io
import sys

import pytest
from rich.console import Console

from wae import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    """Make stderr a terminal, and return it. In a fixture it would be too early: pytest sets stderr later."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_say_prints_one_line_whatever_is_in_it():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), width=20)
    progress.say(console, "a [red] :cat: of\nbytes \udcff that are no UTF-8")
    assert console.file.buffer.getvalue() == b"a [red] :cat: of\\nbytes \\udcff that are no UTF-8\n"


def test_a_bar_is_shown_on_a_terminal(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    assert list(progress.track([1, 2, 3], "counting")) == [1, 2, 3]
    with progress.bar("exporting [a] as :cat:", None):  # no markup of rich's: it may be a file's name
        pass
    assert "counting" in terminal.getvalue()
    assert "exporting [a] as :cat:" in terminal.getvalue()


def test_bars_can_be_nested(monkeypatch):
    """Rich itself shows only one at a time, and raises an error for a second."""
    terminal = on_a_terminal(monkeypatch)
    with progress.bar("deploying", None):
        assert list(progress.track([1, 2, 3], "reading")) == [1, 2, 3]
    with progress.bar("again", 1) as advance:
        advance(1)
    assert all(word in terminal.getvalue() for word in ("deploying", "reading", "again"))


def test_a_bar_counts_what_is_done_and_is_removed_at_the_end(monkeypatch):
    on_a_terminal(monkeypatch)
    with progress.bar("all", None):
        (bars,) = progress._open
        done = [(bars.tasks[1].completed, bars.tasks[1].total) for _ in progress.track("abc", "letters")]
        assert done == [(0, 3), (1, 3), (2, 3)]
        with progress.bar("bytes", 10) as advance:
            advance(4)
            assert bars.tasks[-1].completed == 4
        assert [task.description for task in bars.tasks] == ["all"]


def test_redirected_output_gets_to_its_file_while_a_bar_is_shown(monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    for line in progress.track(["one", "two"], "printing"):
        print(line)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_without_a_terminal_rich_is_not_needed(monkeypatch):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(progress.track([1, 2], "counting")) == [1, 2]


@pytest.mark.parametrize("colours", ["", "1"], ids=["plain", "forced-colours"])
def test_no_bar_is_shown_without_a_terminal(monkeypatch, capsys, colours):
    monkeypatch.setenv("FORCE_COLOR", colours)
    assert list(progress.track([1, 2, 3], "counting")) == [1, 2, 3]
    with progress.progress() as bar:
        bar.add_task("exporting", total=1)
    assert capsys.readouterr() == ("", "")


def test_only_the_first_process_shows_a_bar(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with progress.bar("counting", 1, first=False) as advance:
        advance(1)
    assert terminal.getvalue() == ""
