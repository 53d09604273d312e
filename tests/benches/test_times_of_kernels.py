"""Times of single layers and of the decoder of scores: docs/kernels.md has tables of the kept results."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from benches import bench_conv3x3, bench_scores, result_files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benches" / "results"
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_layers() -> None:
    assert bench_conv3x3.markdown(RESULTS / "conv3x3") in PAGE, (
        "put in what `python -m benches.bench_conv3x3` prints"
    )


@pytest.mark.parametrize(("processor", "number"), [("Intel", 0), ("AMD", 1)], ids=["forward", "backward"])
def test_the_page_has_the_tables_of_the_decoder_of_scores(processor: str, number: int) -> None:
    kept = result_files.shown(RESULTS / "scores")
    (result,) = [one for one in kept if one["machine"]["processor"].startswith(processor)]
    assert bench_scores.markdown(result, bench_scores.TABLES[number]) in PAGE, (
        "put in what `python -m benches.bench_scores` prints"
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs measure instructions of x86-64")
@pytest.mark.parametrize(
    "options",
    [
        ["fma_rate.cpp"],
        ["layer_cycles.cpp", "-DWAE_AVX2", "-mavx2", "-mfma"],
        [
            "layer_cycles.cpp",
            "-DWAE_AVX512",
            *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")),
            "-mfma",
        ],
    ],
    ids=["fma_rate", "layer_cycles, AVX2", "layer_cycles, AVX-512"],
)
def test_the_programs_that_measure_the_processor_compile(options: list[str]) -> None:
    """The kernels' layers may change, and nothing else compiles these programs."""
    compiler = os.environ.get("CXX") or "c++"
    flags = ["-fsyntax-only", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-I../csrc"]
    done = subprocess.run([compiler, *flags, *options], cwd=ROOT / "benches", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
