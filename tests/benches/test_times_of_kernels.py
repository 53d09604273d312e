"""Times of single layers and of the decoder of scores: docs/kernels.md has tables of the kept results."""

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
