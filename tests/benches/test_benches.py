"""The benchmark suite: one benchmark from end to end, and the tables of made-up results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from printed_tables import markdown_row
from programs import run_program

from benches import (
    accuracy,
    accuracy_plot,
    bench_ops,
    deployed,
    limits,
    report,
    result_files,
    sizing,
    tables,
    targets,
)
from benches.classifiers import RUNNERS, cells, forms, make, wanted
from benches.modules import OURS
from wae_kernels import backends

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "benches"


def timing(seconds: float) -> dict[str, float]:
    return {"median": seconds, "p10": 0.9 * seconds, "p90": 1.1 * seconds, "images_per_second": 8 / seconds}


MACHINE = {
    "processor": "Slow (TM) Processor",
    "gpu": None,
    "threads": 2,
    "backend": "cpu:avx2",
    "limits": {"OMP_NUM_THREADS": "2"},
}


def kept(folder: Path, name: str, seconds: float, full: bool = True, **machine: Any) -> Path:
    """Keep a case in which our side takes this many seconds, and return its result file."""
    given = benchmark("encode", images=8, ours="wae-kernels", timings={"wae-kernels": timing(seconds)})
    given = given | {"name": name, "run": given["run"] | {"full": full}}
    return result_files.keep(folder, MACHINE | machine, given)


def medians(path: Path) -> dict[str, float]:
    cases = json.loads(path.read_text())["benchmarks"]
    return {case["name"]: case["timings"]["wae-kernels"]["median"] for case in cases}


def benchmark(table: str, **facts: Any) -> dict[str, Any]:
    run = {
        "datetime": "2001-02-03",
        "commit": "abc",
        "dirty": True,
        "versions": {},
        "seconds": 1,
        "full": True,
    }
    return {"name": table, "run": run, "device": "cpu", "table": table, **facts}


def end_to_end(batch: int, **seconds: float) -> dict[str, Any]:
    """Seconds of stock eager, stock OpenVINO, WAE eager (our ops) and WAE deployed in OpenVINO."""
    names = {
        "eager": "VGG16 at 224 | eager",
        "openvino": "VGG16 at 224 | OpenVINO",
        "ours": "WAE-VGG16, our ops | eager",
        "deployed": "WAE-VGG16, deployed | OpenVINO",
    }
    timings = {names[key]: timing(value) for key, value in seconds.items()}
    return benchmark("end to end", network="VGG16", images=batch, ours=names["ours"], timings=timings)


def result(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {"machine": MACHINE, "benchmarks": list(benchmarks)}


# ------------------------------------------------------------------------------------------ result files


def test_cases_are_kept_in_a_file_for_each_machine(tmp_path: Path) -> None:
    path = kept(tmp_path / "results", "a", 0.01)
    assert path.name == "slow-tm-processor-cpu-avx2-2-threads.json"
    (case,) = json.loads(path.read_text())["benchmarks"]
    assert case["run"]["commit"] == "abc"
    assert case["timings"]["wae-kernels"]["median"] == 0.01


def test_a_case_replaces_the_one_of_its_name_and_nothing_else(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.01), ("b", 0.02), ("b", 0.03), ("c", 0.04)):
        path = kept(tmp_path, name, seconds)
    assert medians(path) == {"a": 0.01, "b": 0.03, "c": 0.04}


def test_a_short_run_does_not_replace_the_full_one_and_is_shown_only_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, short = kept(tmp_path, "a", 0.01), kept(tmp_path, "a", 0.02, full=False)
    assert short.name == full.name.replace(".json", ".short.json")

    def shown() -> float:
        (only,) = result_files.shown(tmp_path)
        return float(only["benchmarks"][0]["timings"]["wae-kernels"]["median"])

    assert shown() == 0.01
    assert short.name in capsys.readouterr().out
    full.unlink()
    assert shown() == 0.02


def test_results_under_other_limits_are_not_mixed(tmp_path: Path) -> None:
    path = kept(tmp_path, "a", 0.01)
    with pytest.raises(ValueError, match="was measured on"):
        kept(tmp_path, "a", 0.02, limits={})
    assert medians(path) == {"a": 0.01}


def test_a_page_without_the_marks_is_not_changed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN} without an end")
    with pytest.raises(SystemExit, match="must hold the lines"):
        report.write_between(page, "body")
    assert page.read_text() == f"{report.BEGIN} without an end"


def test_text_around_the_marks_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN} old {report.END}\nafter\n")
    report.write_between(page, "body")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nbody\n\n{report.END}\nafter\n"


def test_no_pages_are_written_without_result_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benches" / "results").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["report", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no result files in .*results: run `make bench` first"):
        report.main()


def test_the_pages_have_only_parts_with_results() -> None:
    encode = benchmark("encode", images=1, ours="A", timings={"A": timing(1.0)})
    on_gpu = result(encode) | {"machine": MACHINE | {"gpu": "H100"}}
    target = "encode float16 over the fastest baseline"  # for GPUs
    plain = report.summary([result(encode)], [], [Path("docs/two_words.png")])
    assert plain.startswith("![two words](two_words.png)\n\n## Targets\n\nWhat is *required* ")
    assert target not in plain
    assert "Reduced precision" not in plain
    assert target in report.summary([on_gpu], [], [])
    plain = report.everything([result(encode)], [])
    assert "reduced precision" not in plain
    assert "Not timed" not in plain
    assert "\n\n\n" not in plain  # no empty part
    encode["left_out"] = {"B": "it is not installed"}
    assert "Not timed:\n\n- encode" in report.everything([result(encode)], [])


def test_the_pages_have_the_tables_of_the_kept_results() -> None:
    folder = report.ROOT / "benches" / "results"
    results, measured = result_files.shown(folder), deployed.read(folder / deployed.FOLDER)
    for page, body in (
        ("README.md", "\n".join(tables.decision(results))),
        ("docs/benchmarks.md", report.summary(results, measured, [])),
        ("docs/measurements.md", report.everything(results, measured)),
        ("docs/scale.md", "\n".join(sizing.table(measured))),
    ):
        assert f"\n\n{body}\n\n{report.END}" in (report.ROOT / page).read_text(encoding="utf-8"), page


# ------------------------------------------------------------------------------------------------ tables


def bounds(*benchmarks: dict[str, Any]) -> list[str]:
    return targets.bounds([result(*benchmarks)], targets.BOUNDS)


def test_bounds_give_the_ratio_by_batch_and_mark_misses() -> None:
    lines = bounds(
        end_to_end(8, eager=1.6, openvino=0.8, ours=0.4, deployed=0.2),
        end_to_end(1, eager=0.2, openvino=0.12, ours=0.05, deployed=0.05),
        end_to_end(32, eager=9.0, openvino=9.0, ours=1.0, deployed=1.0),
    )
    assert markdown_row(lines, "WAE-VGG16, deployed, over VGG16, eager") == ["5x", "7x", "**4.00x** / 8.00x"]
    same = markdown_row(lines, "WAE-VGG16, deployed, over VGG16, both OpenVINO")
    assert same == ["", "93% of 3.53x", "**2.40x, 68%** / 4.00x, 113%"]
    assert markdown_row(lines, "WAE-VGG16, deployed, over VGG16, both ONNX Runtime")[2] == "not measured"


def test_a_bound_that_is_just_reached_is_met() -> None:
    least = targets.Bound("", "", "", "", least=2)
    assert (least.cell(2.0), least.cell(1.99)) == ("2.00x", "**1.99x**")
    most = targets.Bound("", "", "", "", most=2)
    assert (most.cell(2.0), most.cell(2.01)) == ("2.00x", "**2.01x**")
    share = targets.Bound("", "", "", "", aim=1.0, network="VGG16")
    assert share.cell(targets.multiply_adds("VGG16")) == "3.53x, 100%"


def test_a_side_is_known_by_its_full_name() -> None:
    timings = {"A": timing(3.0), "A, fast": timing(1.0), "B": timing(1.5), "B, fast": timing(1.0)}
    sides = benchmark("encode", ours="A", timings=timings)
    assert (tables.fastest(sides, "A"), tables.ratio(sides, "A", "B")) == ("A", 2.0)


def test_provenance_states_threads_date_commit_and_versions() -> None:
    first = benchmark("encode", ours="A", timings={})
    first["run"] |= {"commit": "0123456789abcdef", "versions": {"torch": "2.10", "openvino": None}}
    second = benchmark("decode", ours="A", timings={})
    second["run"] |= {"dirty": False, "full": False, "seconds": 0.5, "versions": {"torch": "2.10"}}
    third = benchmark("encode", ours="A", timings={})
    third["run"] |= {"dirty": False, "versions": {"torch": "2.10"}}
    assert tables.provenance(result(first, second, third)) == (
        "2 threads, limited by `OMP_NUM_THREADS=2`. 2001-02-03, 1 s per comparison, commits 0123456789 with "
        "uncommitted changes, abc; 2001-02-03, a short run, 0.5 s per comparison, commit abc. torch 2.10."
    )
    alone = {"machine": MACHINE | {"threads": 1, "limits": {}}, "benchmarks": [second]}
    assert tables.provenance(alone).startswith("1 thread. 2001-02-03")


def test_ratios_of_multiply_adds_are_counted() -> None:
    assert round(targets.multiply_adds("VGG16"), 2) == 3.53
    assert round(targets.multiply_adds("ResNet50"), 2) == 2.89


def test_the_decision_table_has_at_most_eight_rows() -> None:
    runs = [end_to_end(n, eager=1.6, openvino=0.8, ours=0.4, deployed=0.2) for n in (1, 8, 32)]
    lines = tables.decision([result(*runs)])
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| VGG16, 1", "| VGG16, 8"]
    assert markdown_row(lines, "VGG16, 8")[1:6] == [
        "1600 ms",
        "800 ms (OpenVINO)",
        "200 ms (OpenVINO)",
        "8.0x",
        "4.0x",
    ]
    two, three = (tables.decision([result(*runs)] * n)[2:] for n in (2, 3))
    assert [line.split(" | ")[0] for line in two] == ["| VGG16, 1"] * 2 + ["| VGG16, 8"] * 2
    assert [line.split(" | ")[0] for line in three] == ["| VGG16, 8"] * 3
    assert len(tables.decision([result(*runs)] * 10)) == 10
    other = {side.replace("VGG16", "ResNet50"): seconds for side, seconds in runs[1]["timings"].items()}
    both = tables.decision([result(runs[1] | {"network": "ResNet50", "timings": other}, runs[1])])
    assert [line.split(" | ")[0] for line in both[2:]] == ["| VGG16, 8", "| ResNet50, 8"]
    assert tables.decision([result(end_to_end(8, eager=1.6, openvino=0.8))]) == lines[:2]  # cut off
    only_ops = result(benchmark("int8, encode", ours="int8", images=1, timings={"int8": timing(1.0)}))
    assert tables.decision([result(*runs), only_ops, only_ops]) == lines


def test_the_fastest_of_the_other_baselines_counts() -> None:
    timings = {"wae-kernels": 1.0, "PyTorch eager": 1.2, "OpenVINO": 4.0, "ONNX Runtime": 2.0}
    encode = benchmark(
        "encode", images=1, ours="wae-kernels", timings={side: timing(s) for side, s in timings.items()}
    )
    assert markdown_row(bounds(encode), "encode over the fastest other baseline")[2] == "2.00x"


def test_the_bound_on_large_images_is_per_pixel() -> None:
    timings = {"84 of 224 x 224": timing(1.0), "1 of 2048 x 2048": timing(2.4)}
    megapixels = {"84 of 224 x 224": 1.0, "1 of 2048 x 2048": 2.0}
    sizes = benchmark("resolution, encode", timings=timings, ours="84 of 224 x 224", megapixels=megapixels)
    lines = bounds(sizes)
    what = "encode, time per pixel: 2048 x 2048 relative to 224 x 224"
    assert markdown_row(lines, what) == ["at most 1.15x", "", "**1.20x**"]


def test_the_short_table_names_the_fastest_engine() -> None:
    lines = tables.short(result(end_to_end(8, eager=1.6, openvino=0.8, ours=0.4, deployed=0.2)))
    assert markdown_row(lines, "VGG16 at 224, eager") == ["1600 ms, 5/s, 1.00x"]
    assert markdown_row(lines, "WAE-VGG16, deployed") == ["200 ms, 40/s, 8.00x (OpenVINO)"]
    some = tables.short(result(end_to_end(1, eager=1.6), end_to_end(8, eager=1.6, deployed=0.2)))
    assert markdown_row(some, "WAE-VGG16, deployed") == ["", "200 ms, 40/s, 8.00x (OpenVINO)"]
    assert tables.short(result()) == []


def test_the_full_tables_hold_everything() -> None:
    parts = {"whole": timing(0.1), "encoder": timing(0.02), "low body": timing(0.06)}
    lines = tables.full(
        result(
            end_to_end(8, eager=1.6, openvino=0.8, ours=0.4),
            benchmark("memory", network="VGG16", images=8, megabytes={"VGG16 at 224 | eager": 901.9}),
            benchmark("parts", network="VGG16", images=1, ours="whole", timings=parts),
            benchmark(
                "sizes",
                images=1,
                runner="eager",
                ours="A | 2",
                timings={"A | 1": timing(1), "A | 2": timing(4)},
            ),
        )
    )
    heads = [line for line, below in pairwise(lines) if below.startswith("|---")]
    assert heads == [
        "| end to end, batch 8 | eager | OpenVINO |",
        "| memory, MB, batch 8 | eager |",
        "| parts | WAE-VGG16, batch 1 |",
        "| one image, side in pixels, eager | 1 | 2 |",
    ]
    assert lines[0] == heads[0]
    assert markdown_row(lines, "WAE-VGG16, our ops") == ["400 (360-440), 4.00x", ""]
    assert "| VGG16 at 224 | 902 |" in lines
    assert markdown_row(lines, "low body") == ["60 (54-66), 75.0%"]
    assert markdown_row(lines, "whole") == ["100 (90-110)"]
    assert markdown_row(lines, "A") == ["1000 (900-1100)", "4000 (3600-4400)"]


def test_networks_are_in_the_same_order_everywhere() -> None:
    vgg, small = end_to_end(8, eager=1.6), end_to_end(1, eager=0.2)
    resnet = end_to_end(1, eager=0.1) | {
        "network": "ResNet50",
        "timings": {"ResNet50 at 224 | eager": timing(1)},
    }
    lines = tables.full(result(resnet, vgg, small))
    names = [line.split(" | ")[0] for line in lines if " at 224 |" in line]
    assert names == ["| VGG16 at 224", "| VGG16 at 224", "| ResNet50 at 224"]
    assert lines[0] == "| end to end, batch 1 | eager |"


def test_a_gpu_has_its_own_tables_and_does_not_count_in_the_cpus_bounds() -> None:
    timings = {"wae-kernels": timing(0.001), "PyTorch eager": timing(0.02)}
    ops = [
        benchmark(
            "encode",
            device=device,
            precision=precision,
            images=batch,
            ours="wae-kernels",
            timings=timings,
        )
        for device, precision in (("cpu", "float32"), ("cuda", "float16"))
        for batch in (1, 8)
    ]
    network = end_to_end(1, eager=1.6, ours=0.4) | {"device": "cuda"}
    both = result(*ops, network)
    lines = tables.full(both)
    heads = [line for line, below in pairwise(lines) if below.startswith("|---")]
    assert heads == [
        "| encode | batch 1 | batch 8 |",
        "| encode, GPU, float16 | batch 1 | batch 8 |",
        "| end to end, GPU, batch 1 | eager |",
    ]
    bound = markdown_row(targets.bounds([both], targets.BOUNDS), "encode over PyTorch eager")
    assert bound[2] == "20.00x / 20.00x"
    assert tables.short(both) == []
    ops[1]["timings"] = {"wae-kernels": timing(0.001)}
    on_cpu = tables.full(result(*ops[:2]))
    assert markdown_row(on_cpu, "wae-kernels") == ["1 (0.9-1.1)"] * 2
    assert markdown_row(on_cpu, "PyTorch eager") == ["20 (18-22), 20.00x", ""]
    assert tables.table_of({"table": "encode"}) == "encode"  # an older file, which names no device


# -------------------------------------------------------------------------------------------- the suite


@pytest.mark.parametrize("network", ["VGG16", "ResNet50"])
def test_a_short_run_has_the_sides_of_the_bounds(network: str) -> None:
    short, full = cells(network, full=False), cells(network, full=True)
    assert set(short) < set(full)
    stock = {runner for form, runner in short if form == f"{network} at 224"}
    deployed = {runner for form, runner in short if form == f"WAE-{network}, deployed"}
    assert stock - {"channels_last"} == deployed >= {"eager"}


def test_wae_on_a_gpu_is_compared_in_every_engine_that_runs_there() -> None:
    on_gpu = cells("ResNet50", full=True, device="cuda")
    assert not any(form.endswith("our ops") for form, _ in on_gpu)
    stock, deployed = (
        {RUNNERS["cuda"][runner].engine for form, runner in on_gpu if form == name}
        for name in ("ResNet50 at 224", "WAE-ResNet50, deployed")
    )
    assert stock == deployed >= {None, "cudagraphs", "compile"}
    assert [form for form, _ in on_gpu].index("ResNet50 at 224") == 0


def test_the_triton_kernels_are_no_side_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU in the machine, Triton runs, but not for tensors on the CPU."""
    monkeypatch.setattr(backends, "available", lambda: [backends.Backend("triton", True, "")])
    assert list(bench_ops._ours(torch.nn.ReLU(), [(torch.ones(1),)])) == [OURS]


@torch.no_grad()
def test_every_form_of_wae_must_give_the_scores_of_pytorchs_operators() -> None:
    names = ["ResNet50 at 112 | eager", "WAE-ResNet50, our ops | eager", "WAE-ResNet50, stock ops | eager"]
    scores = wanted("ResNet50", names, torch.randn(1, 3, 32, 32))
    assert scores[names[1]] is scores[names[2]]
    assert not torch.equal(scores[names[0]][0], scores[names[1]][0])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("runner", ["eager", "channels_last"])
def test_our_and_stock_ops_give_the_same_scores_in_a_network(runner: str) -> None:
    image = torch.randn(1, 3, 64, 64)
    names = [f"WAE-ResNet50, {kind}" for kind in ("stock ops", "our encoder", "our ops")]
    built = [forms("ResNet50")[form]() for form in names]
    assert not any(model.training for model in built)  # or wae.deploy would refuse it
    stock, encoder, ours = (
        make(form, RUNNERS["cpu"][runner], model, image) for form, model in zip(names, built, strict=True)
    )
    for run in (encoder, ours):
        torch.testing.assert_close(run(image), stock(image), rtol=1e-4, atol=1e-4)


def test_our_ops_are_the_encoder_and_the_convolutions() -> None:
    model = forms("ResNet50")["WAE-ResNet50, our ops"]()
    image = torch.randn(1, 3, 64, 64)

    def called(form: str) -> set[str]:
        run = make(form, RUNNERS["cpu"]["eager"], model, image)
        with torch.no_grad(), torch.profiler.profile() as profile:
            run(image)
        return {event.key for event in profile.key_averages() if event.key.startswith("wae::")}

    assert called("WAE-ResNet50, our encoder") == {"wae::encode"}
    assert called("WAE-ResNet50, our ops") == {"wae::encode", "wae::conv3x3"}


def test_a_limit_that_cannot_be_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAE_BENCH_ONNXRUNTIME", "sse")
    with pytest.raises(RuntimeError, match="must be avx2, got 'sse'"):
        limits.apply()
    monkeypatch.setenv("WAE_BENCH_ONNXRUNTIME", "avx2")
    monkeypatch.setattr(limits.platform, "machine", lambda: "aarch64")
    with pytest.raises(RuntimeError, match="x86-64 only"):
        limits.apply()
    monkeypatch.setenv("WAE_BENCH_ONNXRUNTIME", "")  # as if it were not set
    limits.apply()


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="Linux on x86-64 only"
)
@pytest.mark.slow  # a separate process
def test_onnx_runtime_is_limited_and_still_right() -> None:
    """In a separate process, whose ONNX Runtime never asks for AVX-512."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    code = """
import torch
from benches import limits
limits.apply()
assert not any(limits._find(*part) for part in limits._code(limits._library()))
from wae.inference.engines import ENGINES
layer, image = torch.nn.Conv2d(16, 32, 3), torch.randn(1, 16, 20, 20)
got = ENGINES["onnxruntime"].build(layer.eval(), [image])(image)
torch.testing.assert_close(got, layer(image).detach(), rtol=1e-4, atol=1e-4)
"""
    run_program(code, WAE_BENCH_ONNXRUNTIME="avx2")


def test_accuracies_have_re_estimated_statistics_if_all_results_do(tmp_path: Path) -> None:
    """Results without re-estimated BatchNorm statistics have the entry too, but it is empty."""
    folder = tmp_path / "imagenette-small_vgg-64"
    folder.mkdir()
    for reestimated, row in (
        (False, "| 80.0 % | 70.0 % |  | 75.0 % (50%) |"),
        (True, "| 81.0 % | 71.0 % |  | 76.0 % (50%) |"),
    ):
        for network, score in (("64 x 64", 0.8), ("32 x 32", 0.7), ("WAE", 0.75)):
            found = {"accuracy": score + 0.01} if reestimated else {}
            result = {"network": network, "seed": 0, "accuracy": score, "remeasured": found}
            (folder / f"{network}.json").write_text(json.dumps(result))
        (*_, line) = accuracy.table(tmp_path)
        assert row in line


def test_the_plot_compares_each_network_with_the_full_one_of_the_same_seeds(tmp_path: Path) -> None:
    (line,) = (line for line in accuracy.LINES if line.folder == "imagenette-small_vgg-64")
    trainings = [
        {"network": network, "seed": seed, "accuracy": score, "multiply_adds": cost}
        for network, cost, scores in (
            ("64 x 64", 400, (0.8, 0.84)),
            ("40 x 40, fine-tuned", 200, (0.79, 0.84)),
            ("Wavelet+CNN", 100, (0.7, 0.7)),
            ("WAE", 240, (0.78, 0.79)),
            ("pruned, Taylor", 100, (0.81,)),  # one seed only
        )
        for seed, score in enumerate(scores)
    ]
    full, smaller, haar, wae, pruned = accuracy_plot.points(line, trainings)
    assert full == (accuracy_plot.FULL, False, 1.0, (0.0, 0.0))
    assert (smaller.style, haar.style, wae.style, pruned.style) == (
        accuracy_plot.SMALLER,
        accuracy_plot.OTHER,
        accuracy_plot.WAE,
        accuracy_plot.PRUNED,
    )
    assert [point.from_trained for point in (smaller, haar, wae, pruned)] == [True, False, False, True]
    assert [point.cost for point in (smaller, haar, wae, pruned)] == [0.5, 0.25, 0.6, 0.25]
    assert smaller.gains == pytest.approx((-1, 0))
    assert wae.gains == pytest.approx((-2, -5))
    assert pruned.gains == pytest.approx((1,))
    folder = tmp_path / line.folder
    folder.mkdir()
    for number, training in enumerate(trainings):
        (folder / f"{number}.json").write_text(json.dumps(training))
    (file,) = accuracy_plot.draw(tmp_path, tmp_path)
    assert file.stat().st_size > 1000


def run_suite(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", str(BENCHES), "-q", "--seconds", "0", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "benches"), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # collecting the suite in a second process imports everything
def test_a_benchmark_runs_and_its_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("README.md", "docs/benchmarks.md", "docs/measurements.md", "docs/scale.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        old = "".join(f"{mark}\nold\n{report.END}\n" for mark in (report.BEGIN, report.ACCURACIES))
        (tmp_path / page).write_text(f"kept\n{old}kept too\n")
    results = tmp_path / "benches" / "results"
    run_suite("-k", "backward and encode-cpu-1", "--keep", str(results))
    monkeypatch.setattr(sys, "argv", ["report.py", "--root", str(tmp_path)])
    report.main()
    (file,) = results.glob("*.short.json")
    (case,) = json.loads(file.read_text())["benchmarks"]
    assert case["timings"]["PyTorch eager"]["median"] > 0
    assert 0 < case["errors"]["wae-kernels"] < 1e-2
    names = "README.md", "docs/benchmarks.md", "docs/measurements.md"
    readme, page, tables_page = ((tmp_path / name).read_text() for name in names)
    assert readme.startswith("kept\n")
    assert readme.endswith("kept too\n")
    assert "\nold\n" not in readme
    assert "| encode + backward over PyTorch eager | 1.3x |" in page
    assert "| PyTorch eager, channels_last |" in tables_page
    assert (tmp_path / "docs" / "speed.png").stat().st_size > 1000


@pytest.mark.slow  # the same
def test_a_gpus_case_runs_on_the_stand_in(tmp_path: Path) -> None:
    run_suite("-p", "stand_in", "-k", "calls and cuda", "--keep", str(tmp_path), "--case-seconds", "60")
    (file,) = tmp_path.glob("*.json")
    (case,) = json.loads(file.read_text())["benchmarks"]
    assert case["device"] == "cuda"
    assert case["precision"] == "float16"
    assert set(case["timings"]) >= {"module", "op", "PyTorch eager"}
