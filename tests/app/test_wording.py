"""Numbers and errors in sentences."""

from pathlib import Path

import pytest

from wae.wording import amount, compared_milliseconds, counted, first_line, milliseconds, reason, shown


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "linked folder", "2 linked folders"),
        (1000, "process", "1,000 processes"),
        (1, "class", "1 class"),
        (10, "class", "10 classes"),
    ],
)
def test_the_noun_agrees_with_its_number(number, noun, expected):
    assert counted(number, noun) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (33_284_000_000, "33.284 G"),
        (263_700_000, "0.264 G"),
        (99_900_000, "99.90 M"),
        (100_000, "0.10 M"),
        (99_900, "99.90 K"),
        (450, "0.45 K"),
    ],
)
def test_a_small_amount_is_in_a_small_unit(number, expected):
    """Multiply-adds of small networks are not "0.000 G"."""
    assert amount(number) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(51.2e-6, "0.0512"), (0.004, "4"), (0.012345, "12.3"), (0.09996, "100"), (1.2344, "1234")],
)
def test_milliseconds_have_three_digits_or_all(seconds, expected):
    """Those of small networks are not "0.05"."""
    assert milliseconds(seconds) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (0.006, 0.007, ("6", "7")),
        (0.006, 0.006, ("6", "6")),
        (0.0060004, 0.006, ("6.0004", "6")),
        (0.01234, 0.01233, ("12.34", "12.33")),
        (123.4562, 123.4564, ("123456.2", "123456.4")),
    ],
)
def test_two_times_that_are_compared_have_the_digits_that_tell_them_apart(one, other, expected):
    assert compared_milliseconds(one, other) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no\nsuch"), "no"),
        (ValueError("\n  no\nsuch"), "no"),
        (AssertionError(), "AssertionError"),
        (AssertionError("\n"), "AssertionError"),
        (OSError("gone"), "gone"),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected


def test_the_reason_of_an_error_of_the_system_is_without_number_and_file():
    with pytest.raises(OSError, match="Errno") as caught:
        Path("/dev/null/x").read_bytes()
    assert reason(caught.value) == "Not a directory"
    assert reason(OSError("truncated\nfile")) == "truncated"
    assert reason(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "'a'"),
        ("x" * 100, "'" + "x" * 79),
        ([3, None], "[3, None]"),
        ([10**5000], "a number that is too long to print"),  # Python refuses to
    ],
    ids=["text", "long text", "list", "long number"],
)
def test_a_value_of_a_file_is_shown(value, expected):
    assert shown(value) == expected
