"""Times of segmentation networks: docs/segmentation.md has the table of the kept results."""

from pathlib import Path

from benches import segmentation

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_the_table_of_times() -> None:
    table = segmentation.table(ROOT / "benches" / "results" / "segmentation")
    page = (ROOT / "docs" / "segmentation.md").read_text()
    assert table in page, "put in what `python -m benches.segmentation table` prints"
