"""`wae bench`: what it measures, checks, prints and refuses."""

import base64
import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from command_line import run
from PIL import Image
from rich.console import Console

from wae import progress
from wae.commands import bench as commands_bench
from wae.experiments import bench, bench_report, machine
from wae.experiments.bench import Comparison, Row, Side
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError
from wae.inference.engines import ENGINES, EngineError
from wae.inference.timing import Timing
from wae.models.counting import count
from wae.models.pairs import pair

NETWORK = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.add_module(classifier, nn.Linear(8, 5))

    def forward(self, image):
        return self.fc(self.features(image).flatten(1))

def build():
    return Tiny("fc")

def other():
    return Tiny("last")

class HeadFirst(Tiny):  # the linear layer that it defines last does not compute the scores
    def __init__(self):
        super().__init__("fc")
        self.gate = nn.Linear(8, 8)

    def forward(self, image):
        assert image.shape[2] in (16, 8)  # full and half resolution
        features = self.features(image).flatten(1)
        return self.fc(features * self.gate(features).sigmoid())

def head_first():
    return HeadFirst()

def nothing():
    return None
"""
QUICK = ("--size", 16, "--seconds", 0.02, "--precision", "float32", "--engine", "eager")


@pytest.fixture
def network(tmp_path, monkeypatch):
    (tmp_path / "tiny_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    return "tiny_network:build"


def comparison(network="a", images=1, eager=0.4, rows=(("openvino", "int8", 0.2, 0.1),), **options):
    made = [
        Row(engine, precision, *(Side(x, 0.9 * x, 1.1 * x, 0.0) for x in times))
        for engine, precision, *times in rows
    ]
    counted = {"stock": 4_000_000, "wae": 1_000_000}
    return Comparison(
        network, 32, images, counted, "somewhere", Timing(eager, eager, eager, 3), made, **options
    )


# ------------------------------------------------------------------------------------------------- end to end


@pytest.mark.slow
def test_bench_prints_tables_and_verdict_and_writes_report_and_json(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    report, data = tmp_path / "out" / "report.html", tmp_path / "data.json"
    arguments = (network, "small_vgg", "--batch", 1, 2, *QUICK, "--size", 28, "-o", report, "--json", data)
    assert run("bench", *arguments) == 0
    *lines, answer = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110  # sentences; the tables:
    assert max(len(line) for line in lines if "│" in line) <= 80
    assert answer.startswith("Is WAE worth it here? ")
    kept = json.loads(data.read_text())
    assert kept["machine"]["threads"] == torch.get_num_threads()
    found = bench.from_data(kept)
    assert [(c.network, c.images, c.size) for c in found] == [
        (name, batch, 28) for name in (network, "small_vgg") for batch in (1, 2)
    ]
    for each in found:
        (row,) = each.rows
        assert (row.engine, row.precision) == ("eager", "float32")
        assert 0 < row.wae.p10 <= row.wae.median <= row.wae.p90
        assert 0 <= row.wae.difference < 1e-4
        assert f"{row.ratio:.2f}x" in "\n".join(lines)
    assert bench_report.verdict(found) == kept["verdict"] == answer
    page = report.read_text()
    assert "http" not in page
    assert answer in page
    (encoded,) = re.findall('src="data:image/png;base64,([^"]*)"', page)
    assert base64.b64decode(encoded).startswith(b"\x89PNG")
    assert run("bench", *arguments) == 1
    assert "report.html" in capsys.readouterr().err


@pytest.mark.slow
def test_int8_is_calibrated_on_the_bundled_photos(network, monkeypatch, capsys):
    if reason := ENGINES["openvino"].why_not("cpu", "int8"):
        pytest.skip(reason)
    monkeypatch.setattr("warnings.filters", [])  # the libraries warn about themselves
    arguments = ("bench", network, "--batch", 2, "--size", 16, "--seconds", 0.02, "--engine", "openvino")
    arguments += ("--precision", "int8")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "int8 was calibrated on crops of the bundled photos." in printed
    assert "no accuracy is claimed" in printed


def test_calibration_images_are_read_from_a_folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(bench.crops(20, 40).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    assert bench._images(folder, 16).shape == (40, 3, 16, 16)
    (folder / "0.png").unlink()
    with pytest.raises(CalibrationError, match="at least 40 images, got 39"):
        bench._images(folder, 16)


# --------------------------------------------------------------------------------------- checked before timed


def test_a_side_that_disagrees_is_not_timed(network, tmp_path, monkeypatch, capsys):
    deploy = bench.deploy

    def wrong_in_openvino(model, size, batch, engine, **options):
        if engine == "openvino":
            raise DisagreementError("scores differ\nby much")
        return deploy(model, size, batch, "eager", **options)

    monkeypatch.setattr(bench, "deploy", wrong_in_openvino)
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["eager"], name="openvino"))
    data = tmp_path / "data.json"
    assert run("bench", network, *QUICK, "openvino", "--batch", 1, "--json", data) == 0
    printed = capsys.readouterr().out
    assert "left out: openvino float32: scores differ\n" in printed
    assert "│ eager" in printed
    assert "│ openvino" not in printed
    (kept,) = json.loads(data.read_text())["comparisons"]
    assert kept["left_out"] == [{"engine": "openvino", "precision": "float32", "reason": "scores differ"}]
    assert run("bench", network, *QUICK[:-1], "openvino", "--batch", 1) == 1
    assert "nothing can be timed: openvino float32: scores differ" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_named_unless_engines_are_chosen(network, monkeypatch, capsys):
    missing = replace(ENGINES["openvino"], packages={"no_such_module": "no-such-package"})
    monkeypatch.setattr(bench, "ENGINES", {"eager": ENGINES["eager"], "openvino": missing})
    assert run("bench", network, *QUICK[: QUICK.index("--engine")], "--batch", 1) == 0
    reason = "openvino needs packages that are not installed: `pip install no-such-package`"
    assert f"left out: openvino float32: {reason}\n" in capsys.readouterr().out
    assert run("bench", network, *QUICK, "--batch", 1) == 0
    assert "left out" not in capsys.readouterr().out


def test_a_table_is_printed_before_the_next_comparison(network, monkeypatch, capsys):
    def compare(pair, size, batch, *arguments):
        if batch == 2:
            assert "a, 32 x 32, batch 1; PyTorch eager: 400 ms" in capsys.readouterr().out
        return comparison(images=batch)

    monkeypatch.setattr(bench, "compare", compare)
    assert run("bench", network, *QUICK, "--batch", 1, 2) == 0


@pytest.mark.parametrize("error", [EngineError, ValueError])
def test_the_comparisons_that_succeed_are_reported_beside_one_that_fails(
    network, error, monkeypatch, tmp_path, capsys
):
    def compare(pair, size, batch, *arguments):
        if batch == 2:
            raise error("nothing can be timed")
        return comparison(images=batch)

    monkeypatch.setattr(bench, "compare", compare)
    path = tmp_path / "found.json"
    assert run("bench", network, *QUICK, "--batch", 1, 2, 4, "--json", path) == 1
    printed = capsys.readouterr()
    assert printed.err == f"wae: {network}, batch 2: nothing can be timed\n"
    assert "at batch 1, 2.00x at batch 4, against" in printed.out
    assert [found["images"] for found in json.loads(path.read_text())["comparisons"]] == [1, 4]
    assert run("bench", network, *QUICK, "--batch", 2) == 1
    assert "Is WAE worth it here?" not in capsys.readouterr().out


def test_results_are_printed_even_if_the_report_cannot_be_written(network, monkeypatch, tmp_path, capsys):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("wae.storage.files.written", full_disk)
    monkeypatch.setattr(bench_report, "page", lambda found: "made")
    assert run("bench", network, *QUICK, "--batch", 1, "-o", tmp_path / "report.html") == 1
    printed = capsys.readouterr()
    assert "Is WAE worth it here? " in printed.out
    assert "report.html: No space left on device" in printed.err
    monkeypatch.setattr(bench_report, "page", None)  # draws a figure: called only if -o asks for the report
    assert run("bench", network, *QUICK, "--batch", 1) == 0


def test_wae_is_made_for_the_size_of_the_images():
    """DLA does not take the half of the usual 224 x 224."""
    pytest.importorskip("timm", reason="timm is not installed")
    assert pair("dla46_c", (64, 64)).wae(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_each_side_is_timed_on_its_own_images(network, monkeypatch):
    deployments, shapes = [], {}

    class Deployed:
        def __init__(self, model, *arguments, **options):
            self.difference = 0.2 if hasattr(model, "image_scale") else 0.1
            deployments.append(
                (*arguments, options["precision"], options["max_drop"], options["calibration"])
            )

        def __call__(self, images):
            return images

    def interleaved(calls, seconds, **options):
        assert seconds == 0.5
        given = {name: call() for name, call in calls.items()}
        shapes.update({name: (*result.shape, result.dtype) for name, result in given.items()})
        scaled = given["stock eager float32"]
        assert scaled.abs().max() < 3  # normalised, as photos are
        assert torch.equal(given["eager"], made.stock(scaled))
        times = {"stock eager float32": 0.4, "wae eager float32": 0.1, "eager": 0.8}
        return {name: Timing(times[name], 0.9 * times[name], 1.1 * times[name], 3) for name in calls}

    monkeypatch.setattr(bench, "deploy", Deployed)
    monkeypatch.setattr("wae.experiments.machine.interleaved", interleaved)
    made = pair(network)
    found = bench.compare(made, 16, 3, ["eager"], ["float32"], 0.5)
    assert deployments == [((16, 16), 3, "eager", "float32", None, None)] * 2
    assert shapes == {
        "stock eager float32": (3, 3, 16, 16, torch.float32),
        "wae eager float32": (3, 3, 16, 16, torch.uint8),
        "eager": (3, 5, torch.float32),
    }
    (row,) = found.rows
    assert row.stock == Side(0.4, 0.9 * 0.4, 1.1 * 0.4, 0.1)
    assert row.wae == Side(0.1, 0.9 * 0.1, 1.1 * 0.1, 0.2)
    assert (found.eager.median, found.size, found.images) == (0.8, 16, 3)
    wae = count(made.wae, (16, 16)).multiply_adds
    assert found.multiply_adds == {"stock": 3 * 9 * 8 * 16 * 16 + 8 * 5, "wae": wae}


def test_a_custom_network_has_as_many_classes_as_scores(network):
    """Not as the linear layer defined last has outputs. The network accepts images of one size only."""
    made = pair("tiny_network:head_first", (16, 16))
    assert made.wae(torch.zeros(1, 3, 16, 16)).shape == made.stock(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_the_current_step_is_shown_below_the_bar_of_comparisons(monkeypatch):
    """A terminal has one set of bars: a calibration during the step adds its own to the same set."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar("comparisons", 2), commands_bench._steps() as step:
        step("building")
        step("timing")
        (bars,) = progress._open
        assert [task.description for task in bars.tasks] == ["comparisons", "timing"]
    assert not progress._open


@pytest.mark.parametrize("difference", [0.9, float("nan")])
def test_int8_scores_that_are_far_off_are_refused(difference, monkeypatch):
    monkeypatch.setattr(bench, "deploy", lambda *_, **__: SimpleNamespace(difference=difference))
    with pytest.raises(DisagreementError, match="int8 scores are wrong by"):
        bench._deployed(torch.nn.Identity(), torch.zeros(2), 8, 1, ENGINES["openvino"], "int8")


def test_the_stock_network_gets_the_same_images_normalised(network):
    made = pair(network)
    bench.scale_for_photos(made.wae)
    crops = bench.crops(16, 3)
    assert crops.shape == (3, 3, 16, 16)
    assert bench.crops(700, 1).shape == (1, 3, 700, 700)  # larger than the photos
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == 3
    assert bench._as_taken(made.wae, made.wae, crops) is crops
    scaled = bench._as_taken(made.stock, made.wae, crops)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(scaled, (crops / 255 - mean) / deviation, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the verdict


def test_the_ratio_compares_the_fastest_form_of_each_side():
    rows = (("openvino", "int8", 0.2, 0.15), ("onnxruntime", "int8", 0.3, 0.1))
    assert comparison(rows=rows).ratio == pytest.approx(2.0)
    assert comparison(rows=rows, eager=0.05).stock == (0.05, "PyTorch eager")


@pytest.mark.parametrize(
    ("times", "word"),
    [
        (((0.2, 0.1), (0.2, 0.1)), "yes"),
        (((0.2, 0.1), (0.2, 0.19)), "in part"),
        (((0.2, 0.3), (0.2, 0.2)), "no"),
    ],
)
def test_the_verdict_is_yes_no_or_in_part(times, word):
    found = [
        comparison(images=batch, rows=(("openvino", "int8", *each),))
        for batch, each in zip((1, 8), times, strict=True)
    ]
    answer = bench_report.verdict([*found, comparison("b")])
    one, eight = (each.ratio for each in found)
    assert f"worth it here? {word} for a: {one:.2f}x at batch 1, {eight:.2f}x at batch 8" in answer
    assert (
        f"({one / 4:.0%}, {eight / 4:.0%} of 4.00x, the ratio of multiply-adds); yes for b: 2.00x" in answer
    )
    assert answer.count("\n") == 0


@pytest.mark.parametrize("rows", [(("openvino", "int8", 0.2, 0.1),), (("openvino", "int8", 0.2, 0.3),)])
def test_the_verdict_is_in_doubt_if_the_machine_was_busy(rows):
    sure = bench_report.verdict([comparison(others=0.01, rows=rows), comparison("b", others=None, rows=rows)])
    word = "yes" if rows[0][3] < rows[0][2] else "no"
    assert f"? {word} for a: " in sure
    busy = [comparison(others=0.01, rows=rows), comparison(images=8, others=1.5, rows=rows)]
    unsure = bench_report.verdict([*busy, comparison("b", rows=rows)])
    assert f"? perhaps {word} for a: " in unsure
    assert f"; {word} for b: " in unsure
    said = " a: other programs used 1.5 cores meanwhile: do not rely on these times."
    assert unsure.endswith(said)
    assert "perhaps" not in sure
    assert "rely" not in sure


@pytest.mark.parametrize(
    ("instructions", "text"),
    [(["avx2", "amx_int8"], "i486 (avx2, amx_int8), 2 threads"), ([], "i486, 2 threads")],
)
def test_the_page_names_the_cpu_and_its_instructions_if_known(instructions, text, monkeypatch):
    about = {**machine.machine(), "processor": "i486", "threads": 2, "instructions": instructions}
    monkeypatch.setattr(bench_report, "machine", lambda: about)
    assert f"<p>{text}, " in bench_report.page([comparison()])


def test_the_share_is_relative_to_the_ratio_of_multiply_adds():
    shown = comparison(images=8)
    assert bench_report.cells(shown) == [["openvino", "int8", "200", "100", "2.00x", "50%", "80"]]
    console = Console(width=80, record=True)
    console.print(bench_report.table(shown))
    assert "of 4.00x" in console.export_text()


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("no_such_network",), 2, "there is no network no_such_network; need a NAME"),
        (("tiny_network:none",), 2, "tiny_network:none cannot be called: .* 'none'"),
        (("no_such_module:build",), 2, "no_such_module:build cannot be called: No module"),
        (("tiny_network:nothing",), 2, "must return a torch.nn.Module, got NoneType"),
        (("tiny_network:other",), 2, "around tiny_network:other: Tiny must have its classifier in"),
        (("maxvit_t",), 2, "WAE cannot be built around maxvit_t"),
        (("enet",), 2, "enet scores pixels; a classifier is needed"),
        (("small_vgg", *QUICK, "-o", "x", "--json", "./x", "--force"), 2, "--json: needs another file"),
        (("small_vgg", "--engine", "cudagraphs"), 1, "--engine: cudagraphs runs on cuda, not on cpu"),
        (("small_vgg", *QUICK, "--batch", 1, "--precision", "int8"), 1, "no engine computes in this"),
        (("small_vgg", *QUICK, "--precision", "int8", "--calibrate", "none"), 1, "none must be a folder"),
        (("small_vgg", *QUICK, "--calibrate", "none"), 2, "--calibrate: needs int8 in --precision"),
        (("small_vgg", *QUICK, "--batch", 1, "--size", "500"), 1, "takes no images of 500 x 500"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_are_one_line(arguments, status, message, network, capsys):
    assert run("bench", *arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_an_unknown_precision_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        run("bench", "small_vgg", "--precision", "int3")
    assert "invalid choice: 'int3'" in capsys.readouterr().err
