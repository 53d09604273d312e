"""What a training shows: a line for each epoch, a bar, and tables and images of the result."""

import io

import pytest
import torch
from printed_tables import rich_cells
from rich.console import Console
from tiny_classifier import tiny

from wae.models.autoencoder import to_uint8
from wae.training import observers
from wae.training.accuracy import Accuracy
from wae.training.observers import Terminal, Together
from wae.training.plan import Plan, Stage
from wae.training.stage1 import Quality
from wae.training.state import Epoch
from wae.training.trainer import Observer
from wae_kernels.nn import Decoder

PLAN = Plan("net", (Stage("transform", 2, 0.1), Stage("joint", 3, 0.1), Stage("classifier", 1, 0.1)))
HISTORY = [
    Epoch(0, "transform", 0, {"loss": 3.0}, None, 30.0),
    Epoch(0, "transform", 1, {"loss": 2.0, "energy": 0.5}, None, 60.0),
    Epoch(1, "joint", 0, {"loss": 1.0}, Accuracy(0.5, 0.8, 1.0, 8), 60.0),
    Epoch(1, "joint", 1, {"loss": 0.25}, Accuracy(0.75, 0.9, 1.0, 8), 120.0),
]


def test_there_is_a_line_for_each_epoch_and_for_each_file_left_out():
    console = Console(file=io.StringIO(), width=40)
    with Terminal(console) as terminal:
        terminal.begin(PLAN, HISTORY[:2])
        terminal.start(PLAN, 1, 0, 3)
        terminal.left_out(["b[red].png", "a\x1b.png"])
        terminal.left_out(["b[red].png"])
        terminal.end(HISTORY[2], tiny())
        terminal.start(PLAN, 1, 1, 3)
        terminal.left_out(["b[red].png"])
        terminal.end(HISTORY[3], tiny())
    assert console.file.getvalue().splitlines() == [
        "resuming after stage 1/3 transform, epoch 2/2",
        r"left out: a\x1b.png",
        "left out: b[red].png",
        "stage 2/3 joint, epoch 1/3: loss 1, top-1 accuracy 50.00 %, 60.0 s, 3 images left out",
        "stage 2/3 joint, epoch 2/3: loss 0.25, top-1 accuracy 75.00 %, 120.0 s, 1 image left out",
    ]


def test_the_bar_shows_the_steps_of_an_epoch_and_their_losses(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True, width=200, legacy_windows=False)
    terminal = Terminal(console)
    with terminal as same:
        assert same is terminal
        assert terminal._bar.live.is_started
        terminal.begin(PLAN, [])
        terminal.start(PLAN, 0, 1, 20)
        (task,) = terminal._bar.tasks
        seen = []
        for number in range(1, 12):
            terminal.step(number, {"loss": torch.tensor(10.0 / number)})
            seen.append((task.completed, task.total, task.fields["losses"]))
        terminal._bar.refresh()
        terminal.end(HISTORY[1], tiny())
        assert terminal._bar.tasks == []
    assert not terminal._bar.live.is_started
    assert seen == [
        *((number, 20, "loss 10") for number in range(1, 11)),  # losses are read at every tenth step only
        (11, 20, "loss 0.9091"),
    ]
    shown = console.file.getvalue()
    assert "loss 0.9091" in shown
    assert "resuming" not in shown


def test_together_passes_every_report_to_each_observer():
    class Recorder(Observer):
        def __init__(self):
            self.all = []

        def __getattribute__(self, name):
            if name in ("begin", "start", "step", "left_out", "end"):
                return lambda *arguments: self.all.append((name, *arguments))
            return super().__getattribute__(name)

    one, other = Recorder(), Recorder()
    together = Together([one, other])
    wanted = [
        ("begin", PLAN, HISTORY),
        ("start", PLAN, 1, 2, 3),
        ("step", 4, {"loss": 1}),
        ("left_out", ["a"]),
        ("end", HISTORY[0], None),
    ]
    for name, *arguments in wanted:
        getattr(together, name)(*arguments)
    assert one.all == other.all == wanted


def test_the_table_has_the_last_losses_and_errors_of_each_stage_that_began():
    table = observers.table(PLAN, HISTORY, 10)
    assert [column.header for column in table.columns][3:] == ["top-1 error", "top-5 error", "minutes"]
    assert rich_cells(table) == [
        ["1 transform", "2", "loss 2", "", "", "1.5"],
        ["", "", "energy 0.5", "", "", ""],
        ["2 joint", "2", "loss 0.25", "25.00 %", "10.00 %", "3.0"],
    ]
    assert len(observers.table(PLAN, HISTORY[:2], 10).columns) == 4


def test_the_table_of_five_classes_has_no_top_5_error():
    assert rich_cells(observers.table(PLAN, HISTORY, 5))[-1][3:5] == ["25.00 %", ""]


def test_the_quality_table_has_a_row_for_each_model_and_photo(monkeypatch):
    found = {("a", "x"): 1, ("a", "y"): 2, ("b", "x"): 3, ("b", "y"): 4}
    monkeypatch.setattr(
        observers, "quality", lambda model, photo: Quality(found[model, photo], found[model, photo] / 50)
    )
    models, photos = {"first": "a", "second": "b"}, {"one": "x", "two": "y"}
    assert rich_cells(observers.quality_table(models, photos)) == [
        ["first", "one", "1.00", "2.00 %"],
        ["first", "two", "2.00", "4.00 %"],
        ["second", "one", "3.00", "6.00 %"],
        ["second", "two", "4.00", "8.00 %"],
    ]


@pytest.mark.parametrize("flat", [False, True])
def test_low_and_high_are_shown_over_the_range_from_black_to_white(flat):
    model = tiny()
    model.decoder = Decoder()
    if flat:
        for part in (model.encoder.low, model.encoder.high):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    images = torch.randint(256, (2, 3, 9, 14), dtype=torch.uint8)
    with torch.no_grad():
        if (high := model.decompose(images)[1]).amax() > -high.amin():  # the largest must be negative
            for parameter in model.encoder.high.parameters():
                parameter.neg_()
    shown = observers.shown(model, images)
    with torch.no_grad():
        low, high = model.decompose(images)
        wanted = to_uint8(model.reconstruct(low, high, (9, 14)))
    assert torch.equal(shown["image"], images)
    assert torch.equal(shown["reconstruction"], wanted)
    drawn = [shown[name].float() for name in ("low", "high")]
    if flat:
        assert [part.unique().tolist() for part in drawn] == [[0], [128]]
        return
    assert (drawn[0].min(), drawn[0].max()) == (0, 255)
    assert (drawn[0] - 255 * (low - low.min()) / (low.max() - low.min())).abs().max() <= 0.51
    assert (drawn[1] - 127.5 * (1 + high / high.abs().max())).abs().max() <= 0.51
