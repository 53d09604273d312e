"""The table of a claim's results: the recovered share, cost and times."""

from dataclasses import replace

import pytest
import torch
from reproductions import DIGITS

from wae.experiments.reproduction.results import Result
from wae.experiments.reproduction.table import Row, markdown, recovered, rows, timed
from wae.inference.timing import Timing


def test_the_recovered_share_and_the_table():
    def row(network, *accuracies):
        return Row(network, range(len(accuracies)), list(accuracies), 10_000_000, 5.0)

    table = [row("28 x 28", 0.90, 0.92), row("14 x 14", 0.80, 0.82), row("WAE", 0.89, 0.91)]
    assert recovered(table, DIGITS, "WAE") == pytest.approx(0.9)
    assert recovered(table[1:], DIGITS, "WAE") is None
    lines = markdown(table, DIGITS).splitlines()
    alone = markdown([row("WAE", 0.9)], DIGITS).splitlines()
    assert alone[2] == "| WAE | 90.00 % |  |  | 10.00 M | 5 us |"  # one seed has no spread
    assert "| WAE | 90.00 % | 1.41 | 90 % | 10.00 M (100%) | 5 us |" in lines
    lighter = markdown([table[0], replace(table[1], multiply_adds=2_500_000)], DIGITS)
    assert "| 14 x 14 | 81.00 % | 1.41 |  | 2.50 M (25%) | 5 us |" in lighter
    nothing_lost = [row("28 x 28", 0.80), row("14 x 14", 0.82), row("WAE", 0.81)]
    assert recovered(nothing_lost, DIGITS, "WAE") is None


def test_a_share_is_of_the_seeds_that_the_networks_have_in_common():
    """It compared the mean of some seeds with the means of all, as for pruned networks, which have one."""
    table = [
        Row("28 x 28", [0, 1, 2], [0.90, 0.94, 0.92], 10, 5.0),
        Row("14 x 14", [0, 1, 2], [0.80, 0.86, 0.82], 10, 5.0),
        Row("WAE", [0], [0.89], 10, 5.0),
        Row("WAE, mimic", [2, 1], [0.91, 0.93], 10, 5.0),
        Row("Wavelet+CNN", [3], [0.99], 10, 5.0),
    ]
    shares = [recovered(table, DIGITS, row.network) for row in table]
    assert shares == [1, 0, pytest.approx(0.9), pytest.approx(0.08 / 0.09), None]
    means = [line.split(" | ")[1] for line in markdown(table[:-1], DIGITS).splitlines()[2:]]
    assert means == ["92.00 %", "82.67 %", "89.00 % (seed 0)", "92.00 % (seeds 2, 1)"]


def test_accuracies_with_reestimated_statistics_have_their_own_columns():
    table = [
        Row(name, [0], [accuracy], 10_000_000, 5.0, remeasured)
        for name, accuracy, remeasured in (
            ("28 x 28", 0.9, [0.92]),
            ("14 x 14", 0.8, [0.82]),
            ("WAE", 0.84, [0.90]),
            ("WAE, mimic", 0.85, []),
        )
    ]
    lines = markdown(table, DIGITS).splitlines()
    assert lines[0].endswith("| time per image | re-estimated statistics | recovered |")
    assert {line.count("|") for line in lines} == {9}
    assert lines[2].endswith("| 5 us | 92.00 % |  |")
    assert lines[4] == "| WAE | 84.00 % |  | 40 % | 10.00 M (100%) | 5 us | 90.00 % | 80 % |"
    assert lines[5].endswith("| 5 us |  |  |")


def test_each_network_with_results_has_a_row_and_is_timed_here():
    results = [
        Result(network, 0, 0.5, 1.0, [0.5], {}, {}, number)
        for network, number in (("WAE", 11), ("28 x 28", 22))
    ]
    table = rows(results, DIGITS, seconds=0)
    assert [row.network for row in table] == ["28 x 28", "WAE"]
    assert [row.multiply_adds for row in table] == [22, 11]
    assert all(row.microseconds > 0 for row in table)
    assert [row.remeasured for row in table] == [[], []]
    results = [replace(result, remeasured={"accuracy": 0.7}) for result in results]
    assert [row.remeasured for row in rows(results, DIGITS, seconds=0)] == [[0.7], [0.7]]


def test_networks_are_timed_per_image_as_they_are_used(monkeypatch):
    """In evaluation mode, without gradients, and with WAE's normalisation folded."""
    models, scores = {name: DIGITS.build(name) for name in ("28 x 28", "WAE")}, {}
    with torch.no_grad():
        models["WAE"].low_norm.running_mean.fill_(9.0)

    images = torch.full((100, 3, 28, 28), 7, dtype=torch.uint8)
    expected = {name: model.eval()(images) for name, model in models.items()}
    normalised, forward = set(), torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(
        torch.nn.BatchNorm2d,
        "forward",
        lambda norm, x: normalised.add(norm.num_features) or forward(norm, x),
    )

    def interleaved(calls, seconds):
        scores.update({name: call() for name, call in calls.items()})
        return {"WAE": Timing(50.0, 1, 1, 1), "28 x 28": Timing(200.0, 1, 1, 1)}

    monkeypatch.setattr("wae.experiments.reproduction.table.interleaved", interleaved)
    monkeypatch.setattr(torch, "randint", lambda low, high, size, dtype: images.reshape(size))
    for model in models.values():
        model.train()
    assert timed(models, DIGITS, 1.0) == {"WAE": 0.5, "28 x 28": 2.0}
    for name, wanted in expected.items():
        assert not scores[name].requires_grad
        torch.testing.assert_close(scores[name], wanted, rtol=1e-3, atol=1e-3, check_stride=False)
    assert normalised
    assert 3 not in normalised  # the number of channels of low and high
