"""The benchmark suite: one benchmark from end to end, and the tables of made-up results."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "benches"
sys.path.append(str(BENCHES))  # scripts, no package: they import each other by name

import limits  # noqa: E402
import report  # noqa: E402
import tables  # noqa: E402
from classifiers import agreeing, cells, forms, make, side  # noqa: E402


def timing(seconds: float) -> dict[str, float]:
    return {"median": seconds, "p10": 0.9 * seconds, "p90": 1.1 * seconds, "images_per_second": 8 / seconds}


def made_up(full: bool = True, **medians: float) -> dict[str, Any]:
    """A file of pytest-benchmark, as conftest.py fills it: one benchmark for each keyword."""
    return {
        "datetime": "2001-02-03T04:05:06",
        "commit_info": {"id": "abcdef0123456789", "dirty": False},
        "machine_info": {
            "wae": {
                "processor": "Slow (TM) Processor",
                "gpu": None,
                "threads": 2,
                "backend": "cpu:avx2",
                "limits": {"OMP_NUM_THREADS": "2"},
            },
            "wae run": {"versions": {"torch": "1.0", "openvino": None}, "seconds": 3.0, "full": full},
        },
        "benchmarks": [
            {
                "name": name,
                "extra_info": {
                    "table": "encode",
                    "images": 8,
                    "ours": "wae-kernels",
                    "timings": {"wae-kernels": timing(seconds), "PyTorch eager": timing(0.1)},
                },
            }
            for name, seconds in medians.items()
        ],
    }


def added(folder: Path, given: dict[str, Any]) -> Path:
    path = folder / "given.json"
    path.write_text(json.dumps(given))
    return report.add(path, folder / "results")


def benchmark(table: str, **facts: Any) -> dict[str, Any]:
    run = {
        "datetime": "2001-02-03",
        "commit": "abc",
        "dirty": True,
        "versions": {},
        "seconds": 1,
        "full": True,
    }
    return {"name": table, "run": run, "table": table, **facts}


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
    return {"machine": made_up()["machine_info"]["wae"], "benchmarks": list(benchmarks)}


def row(lines: list[str], start: str) -> list[str]:
    (found,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


# ------------------------------------------------------------------------------------------ result files


def test_a_run_is_kept_by_machine_with_its_date_commit_and_versions(tmp_path: Path) -> None:
    path = added(tmp_path, made_up(a=0.01))
    assert path.name == "slow-tm-processor-cpu-avx2-2-threads.json"
    (kept,) = json.loads(path.read_text())["benchmarks"]
    assert kept["run"]["commit"] == "abcdef0123456789"
    assert kept["run"]["datetime"] == "2001-02-03T04:05:06"
    assert kept["run"]["versions"]["torch"] == "1.0"
    assert kept["timings"]["wae-kernels"]["median"] == 0.01


def test_a_part_replaces_what_it_measured_again_and_nothing_else(tmp_path: Path) -> None:
    added(tmp_path, made_up(a=0.01, b=0.02))
    path = added(tmp_path, made_up(b=0.03, c=0.04))
    kept = {
        b["name"]: b["timings"]["wae-kernels"]["median"] for b in json.loads(path.read_text())["benchmarks"]
    }
    assert kept == {"a": 0.01, "b": 0.03, "c": 0.04}


def test_a_short_run_leaves_the_full_one_alone_and_is_shown_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, short = added(tmp_path, made_up(a=0.01)), added(tmp_path, made_up(full=False, a=0.02))
    assert short.name == full.name.replace(".json", ".short.json")

    def shown() -> float:
        (only,) = report.shown(full.parent)
        return float(only["benchmarks"][0]["timings"]["wae-kernels"]["median"])

    assert shown() == 0.01
    assert short.name in capsys.readouterr().out
    full.unlink()
    assert shown() == 0.02


def test_results_under_other_limits_are_not_mixed(tmp_path: Path) -> None:
    path = added(tmp_path, made_up(a=0.01))
    before = path.read_text()
    other = made_up(a=0.02)
    other["machine_info"]["wae"]["limits"] = {}
    with pytest.raises(SystemExit, match="was measured on"):
        added(tmp_path, other)
    assert path.read_text() == before


def test_a_file_without_benchmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no benchmarks"):
        added(tmp_path, made_up())
    assert not (tmp_path / "results").exists()


def test_text_without_the_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN} without an end")
    with pytest.raises(SystemExit, match="must hold the lines"):
        report.write_between(page, "body")
    assert page.read_text() == f"{report.BEGIN} without an end"


# ------------------------------------------------------------------------------------------------ tables


def test_bounds_give_the_ratio_by_batch_and_mark_what_falls_short() -> None:
    lines = tables.bounds(
        [
            result(
                end_to_end(8, eager=1.6, openvino=0.8, ours=0.4, deployed=0.2),
                end_to_end(1, eager=0.2, openvino=0.12, ours=0.05, deployed=0.05),
                end_to_end(32, eager=9.0, openvino=9.0, ours=1.0, deployed=1.0),
            )
        ]
    )
    assert row(lines, "WAE-VGG16, deployed, against VGG16 eager") == ["5x", "7x", "**4.00x** / 8.00x"]
    assert row(lines, "WAE-VGG16, deployed, against VGG16, both OpenVINO")[2] == "**2.40x** / 4.00x"
    assert row(lines, "WAE-VGG16, deployed, against VGG16, both ONNX Runtime")[2] == "not measured"


def test_the_fastest_of_the_other_peers_counts() -> None:
    timings = {"wae-kernels": 1.0, "PyTorch eager": 1.2, "OpenVINO": 4.0, "ONNX Runtime": 2.0}
    encode = benchmark(
        "encode", images=1, ours="wae-kernels", timings={side: timing(s) for side, s in timings.items()}
    )
    assert row(tables.bounds([result(encode)]), "encode against the fastest other peer")[2] == "2.00x"


def test_a_bound_from_above_is_per_pixel() -> None:
    timings = {"84 of 224 x 224": timing(1.0), "1 of 2048 x 2048": timing(2.4)}
    megapixels = {"84 of 224 x 224": 1.0, "1 of 2048 x 2048": 2.0}
    sizes = benchmark("resolution, encode", timings=timings, ours="84 of 224 x 224", megapixels=megapixels)
    lines = tables.bounds([result(sizes)])
    what = "encode's time per pixel at 2048 x 2048 against 224 x 224"
    assert row(lines, what) == ["at most 1.15x", "", "**1.20x**"]


def test_the_short_table_names_the_fastest_engine() -> None:
    lines = tables.short(result(end_to_end(8, eager=1.6, openvino=0.8, ours=0.4, deployed=0.2)))
    assert row(lines, "VGG16 at 224, eager") == ["1600 ms, 5/s, 1.00x"]
    assert row(lines, "WAE-VGG16, deployed") == ["200 ms, 40/s, 8.00x (OpenVINO)"]
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
        "| one image, pixels a side, eager | 1 | 2 |",
    ]
    assert row(lines, "WAE-VGG16, our ops") == ["400 (360-440), 4.00x", ""]
    assert "| VGG16 at 224 | 902 |" in lines
    assert row(lines, "low body") == ["60 (54-66), 75.0%"]
    assert row(lines, "A") == ["1000 (900-1100)", "4000 (3600-4400)"]


def test_a_gpu_has_tables_of_its_own_and_no_share_in_the_bounds() -> None:
    """The bounds are the processor's, as is the summary in the README."""
    timings = {"wae-kernels": timing(0.001), "PyTorch eager": timing(0.02)}
    ops = [
        benchmark("encode", device=device, images=batch, ours="wae-kernels", timings=timings)
        for device in ("cpu", "cuda")
        for batch in (1, 8)
    ]
    network = end_to_end(1, eager=1.6, ours=0.4) | {"device": "cuda"}
    both = result(*ops, network)
    lines = tables.full(both)
    heads = [line for line, below in pairwise(lines) if below.startswith("|---")]
    assert heads == [
        "| encode | batch 1 | batch 8 |",
        "| encode, GPU | batch 1 | batch 8 |",
        "| end to end, GPU, batch 1 | eager |",
    ]
    assert row(tables.bounds([both]), "encode against PyTorch eager")[2] == "20.00x / 20.00x"
    assert tables.short(both) == []


# -------------------------------------------------------------------------------------------- the suite


@pytest.fixture(scope="module")
def conftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benches_conftest", BENCHES / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_sides_that_differ_are_not_timed(conftest: ModuleType, wrong: float) -> None:
    right = torch.ones(3)
    conftest.require_equal("a side", [right * 1.00001], [right], 1e-4)
    with pytest.raises(AssertionError, match="a side differs by"):
        conftest.require_equal("a side", [right * wrong], [right], 1e-4)


@pytest.mark.parametrize("network", ["VGG16", "ResNet50"])
def test_a_short_run_has_the_sides_that_the_bounds_are_about(network: str) -> None:
    short, full = cells(network, full=False), cells(network, full=True)
    assert set(short) < set(full)
    stock = {runner for form, runner in short if form == f"{network} at 224"}
    deployed = {runner for form, runner in short if form == f"WAE-{network}, deployed"}
    assert stock - {"channels_last"} == deployed >= {"eager"}
    groups = agreeing(network, [side(*cell) for cell in full])
    assert sorted(len(group) for group in groups)[-1] == sum("WAE" in form for form, _ in full)
    assert len(groups) == 3


@torch.no_grad()
@pytest.mark.parametrize("runner", ["eager", "channels_last"])
def test_our_and_stock_ops_run_in_the_same_network(runner: str) -> None:
    image = torch.randn(1, 3, 64, 64)
    names = [f"WAE-ResNet50, {kind}" for kind in ("stock ops", "our encoder", "our ops")]
    built = [forms("ResNet50")[form]() for form in names]
    assert not any(model.training for model in built)  # or wae.deploy would refuse it
    stock, encoder, ours = (
        make(form, runner, model, image) for form, model in zip(names, built, strict=True)
    )
    for run in (encoder, ours):
        torch.testing.assert_close(run(image), stock(image), rtol=1e-4, atol=1e-4)


def test_our_ops_are_the_encoder_and_the_convolutions() -> None:
    model = forms("ResNet50")["WAE-ResNet50, our ops"]()
    image = torch.randn(1, 3, 64, 64)

    def called(form: str) -> set[str]:
        run = make(form, "eager", model, image)
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


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="Linux on x86-64 only"
)
@pytest.mark.slow  # a process of its own
def test_onnx_runtime_is_limited_and_still_right() -> None:
    """In a process of its own, whose ONNX Runtime asks for AVX-512 nowhere."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    code = """
import limits, torch
limits.apply()
assert not any(limits._find(*part) for part in limits._code(limits._library()))
from wae.inference.engines import ENGINES
layer, image = torch.nn.Conv2d(16, 32, 3), torch.randn(1, 16, 20, 20)
got = ENGINES["onnxruntime"].build(layer.eval(), [image])(image)
torch.testing.assert_close(got, layer(image).detach(), rtol=1e-4, atol=1e-4)
"""
    environment = {**os.environ, "WAE_BENCH_ONNXRUNTIME": "avx2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=BENCHES, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # a second process imports everything, which collecting the suite does
def test_a_benchmark_runs_and_its_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("README.md", "docs/benchmarks.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(f"kept\n{report.BEGIN}\nold\n{report.END}\nkept too\n")
    (tmp_path / "benches").mkdir()
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", str(BENCHES), "-q", "-k", "backward and cpu-encode-1"]
    done = subprocess.run(
        [*command, "--seconds", "0", f"--benchmark-json={output}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.setattr(sys, "argv", ["report.py", "--add", str(output), "--root", str(tmp_path)])
    report.main()
    (kept,) = (tmp_path / "benches" / "results").glob("*.short.json")
    assert json.loads(kept.read_text())["benchmarks"][0]["timings"]["PyTorch eager"]["median"] > 0
    readme, page = ((tmp_path / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    assert readme.startswith("kept\n")
    assert readme.endswith("kept too\n")
    assert "\nold\n" not in readme
    assert "| encode + backward against PyTorch | 1.3x |" in readme
    assert "| PyTorch eager, channels_last |" in page
    assert (tmp_path / "docs" / "speed.png").stat().st_size > 1000
