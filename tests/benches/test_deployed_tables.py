"""The tables made from the result files of `wae bench`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from printed_tables import markdown_row

from benches import deployed, report, sizing
from wae.experiments import bench, bench_report, machine
from wae.experiments.bench import Comparison, NotTimed, Row, Side
from wae.inference.timing import Timing


def comparison(network: str, images: int, stock: float, wae: float) -> Comparison:
    """In OpenVINO, int8; eager PyTorch takes a second."""
    sides = [Side(x, x, x, 0.0) for x in (stock, wae)]
    counted = {"stock": 3_000, "wae": 1_000}
    eager = Timing(1.0, 1.0, 1.0, 3)
    rows, left_out = [Row("openvino", "int8", *sides)], [NotTimed("eager", "int8", "no")]
    return Comparison(network, 224, images, counted, "photos", eager, rows, left_out, 0.5)


def kept(folder: Path, *comparisons: Comparison) -> list[deployed.Measured]:
    data = bench.as_data(comparisons, 1.0) | {"commit": "0123456789abcdef"}
    (folder / "a.json").write_text(json.dumps(data))
    return deployed.read(folder)


def test_targets_and_the_share_of_the_multiply_adds(tmp_path: Path) -> None:
    measured = kept(tmp_path, comparison("vgg16", 8, 0.2, 0.1), comparison("vgg16", 1, 0.06, 0.02))
    lines = deployed.bounds(measured)
    start = "WAE-VGG16 int8 over VGG16 int8, both openvino"
    assert markdown_row(lines, start) == ["3x / 3.2x", "3.4x / 3.6x", "3.00x, 100% / **2.00x, 67%**"]
    assert markdown_row(lines, start.replace("openvino", "onnxruntime"))[-1] == "not measured"
    start = "WAE-VGG16, fastest precision, over VGG16, eager float32"
    assert markdown_row(lines, start)[-1] == "50.0x / **10.0x**"
    assert markdown_row(lines, start.replace("VGG16", "ResNet50"))[-1] == "not measured"


def test_machines_for_a_billion_images_a_day(tmp_path: Path) -> None:
    alone = [replace(comparison("vgg16", images, 0.2, 0.1), others=0.0) for images in (8, 2)]
    measured = kept(tmp_path, *alone, comparison("vgg16", 16, 0.2, 0.1))
    threads = measured[0].about["machine"]["threads"]
    per_core = [8 / seconds / threads for seconds in (0.2, 0.1)]
    needed = [1e9 / 86_400 / rate / 64 for rate in per_core]
    cells = markdown_row(sizing.table(measured), "vgg16, 8")
    assert cells[1:4] == ["int8: openvino, openvino", *(f"{rate:.1f}" for rate in per_core)]
    assert all(0 <= int(cell) - need < 1 for cell, need in zip(cells[4:], needed, strict=True))
    assert "vgg16, 2" not in "".join(sizing.table(measured))  # a larger batch takes fewer machines
    assert "vgg16, 16" not in "".join(sizing.table(measured))  # other programs ran
    assert markdown_row(sizing.table(measured), "any") == ["a GPU", *["not measured"] * 5]


def test_a_row_for_each_network_and_number_of_images(tmp_path: Path) -> None:
    measured = kept(tmp_path, comparison("resnet50", 8, 0.2, 0.1), comparison("resnet50", 1, 0.05, 0.02))
    lines = deployed.decision(measured)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| resnet50, 1", "| resnet50, 8"]
    assert markdown_row(lines, "resnet50, 8")[1:] == [
        "1000 ms",
        "200 ms (openvino int8)",
        "100 ms (openvino int8)",
        "10.0x",
        "2.00x",
        "67% of 3.00x",
    ]


def test_every_table_says_where_it_was_measured(tmp_path: Path) -> None:
    text = "\n".join(deployed.tables(kept(tmp_path, comparison("resnet50", 8, 0.2, 0.1))))
    assert "commit 0123456789." in text
    assert "**Not reliable:** other programs used 0.5 cores meanwhile." in text
    assert "| resnet50 at 224, 8 | 1000 | openvino | int8 | 200 | 100 | 2.00x | 67% | 80 |" in text
    assert "Left out: eager int8: no" in text


def test_comparisons_of_one_run_are_one_table(tmp_path: Path) -> None:
    measured = kept(tmp_path, comparison("resnet50", 8, 0.2, 0.1), comparison("resnet50", 1, 0.05, 0.02))
    other = measured[0]._replace(about=measured[0].about | {"date": "2020-01-01T00:00:00"})
    text = "\n".join(deployed.tables([*measured, other]))
    assert text.count("| network, batch |") == 2
    assert text.count("Left out: eager int8: no") == 2
    one, eight = "| resnet50 at 224, 1 | 1000 | ", "| resnet50 at 224, 8 | 1000 | "
    assert text.index(one) < text.index(eight) < text.index("2020-01-01") < text.rindex(one)


def test_a_run_on_a_quiet_machine_is_not_called_unreliable(tmp_path: Path) -> None:
    measured = kept(tmp_path, comparison("resnet50", 8, 0.2, 0.1))
    assert deployed.quiet(measured) == []
    alone = [m._replace(comparison=replace(m.comparison, others=0.0)) for m in measured]
    assert deployed.quiet(alone) == alone
    assert "**Not reliable" not in "\n".join(deployed.tables(alone))
    assert "## Reduced precision" in report.summary([], alone, [])
    assert "| resnet50, 8 | " in report.summary([], alone, [])
    assert "## In reduced precision" in report.everything([], alone)


def test_the_instructions_that_processors_of_one_name_differ_in_are_named() -> None:
    about = {"machine": {"processor": "X", "threads": 2, "instructions": ["avx2", "avx512_f", "amx_int8"]}}
    assert deployed.machine(about) == "X with AMX, 2 threads"
    about["machine"]["limits"] = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert deployed.machine(about) == "X, 2 threads, limited by `ONEDNN_MAX_CPU_ISA=AVX2`"
    about["machine"] = {"processor": "X", "threads": 2, "instructions": ["avx2", "avx512_f"]}
    assert deployed.machine(about) == "X, 2 threads"
    about["machine"] = {"processor": "X", "threads": 2, "instructions": ["avx2"]}
    assert deployed.machine(about) == "X without AVX-512, 2 threads"


def test_a_limited_run_has_its_own_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path, comparison("vgg16", 8, 0.2, 0.1))
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    for limit in machine.LIMITS:  # which may be set for the tests
        monkeypatch.delenv(limit, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    lines = deployed.bounds(kept(tmp_path, comparison("vgg16", 8, 0.4, 0.1)))
    assert lines[0].count("limited by `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`") == 1
    cells = markdown_row(lines, "WAE-VGG16 int8 over VGG16 int8, both openvino")
    assert sorted(cells[2:]) == ["**2.00x, 67%**", "4.00x, 133%"]
    assert "Limited by ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16." in bench_report.notes(
        [comparison("vgg16", 8, 1, 1)]
    )
