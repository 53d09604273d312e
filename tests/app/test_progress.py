"""What commands that take a while print: lines, and a bar on a terminal and nowhere else."""

import io
import sys

import pytest
from rich.console import Console

from wae import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_one_line_whatever_the_names_in_it():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), width=20)
    progress.say(console, "a [red] :cat: of\nbytes \udcff that are no UTF-8")
    assert console.file.buffer.getvalue() == b"a [red] :cat: of\\nbytes \\udcff that are no UTF-8\n"


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.track([1, 2, 3], "counting")) == [1, 2, 3]
    with progress.bar("exporting [a] as :cat:", None):  # names of files: nothing of rich's own
        pass
    assert "counting" in sys.stderr.getvalue()
    assert "exporting [a] as :cat:" in sys.stderr.getvalue()


def test_a_bar_within_another(monkeypatch):
    """Rich showed one at a time, and raised an error for a second."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar("deploying", None):
        assert list(progress.track([1, 2, 3], "reading")) == [1, 2, 3]
    with progress.bar("again", 1) as advance:
        advance(1)
    assert all(word in sys.stderr.getvalue() for word in ("deploying", "reading", "again"))


def test_a_bar_tells_how_many_are_done_and_goes_with_its_work(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar("all", None):
        (bars,) = progress._open
        done = [(bars.tasks[1].completed, bars.tasks[1].total) for _ in progress.track("abc", "letters")]
        assert done == [(0, 3), (1, 3), (2, 3)]
        with progress.bar("bytes", 10) as advance:
            advance(4)
            assert bars.tasks[-1].completed == 4
        assert [task.description for task in bars.tasks] == ["all"]


def test_what_is_printed_into_a_file_gets_there_while_a_bar_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    for line in progress.track(["one", "two"], "printing"):
        print(line)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_without_a_terminal_rich_is_not_needed(monkeypatch):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(progress.track([1, 2], "counting")) == [1, 2]


@pytest.mark.parametrize("colours", ["", "1"], ids=["plain", "forced-colours"])
def test_none_anywhere_else(monkeypatch, capsys, colours):
    monkeypatch.setenv("FORCE_COLOR", colours)
    assert list(progress.track([1, 2, 3], "counting")) == [1, 2, 3]
    with progress.progress() as bar:
        bar.add_task("exporting", total=1)
    assert capsys.readouterr() == ("", "")


def test_the_first_of_several_processes_has_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar("counting", 1, first=False) as advance:
        advance(1)
    assert sys.stderr.getvalue() == ""
