"""Counts and sizes in words."""

from __future__ import annotations

import pytest

from sftm_app.units import format_bytes, format_count, format_distinct


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (12_784, "12.8 kB"),
        (999_700, "1 MB"),
        (12_784_000, "12.8 MB"),
        (999_700_000, "1 GB"),
        (999_700_000_000, "1000 GB"),
        (1_234_500_000_000, "1234 GB"),
    ],
)
def test_powers_of_ten_with_three_digits(n: int, words: str) -> None:
    assert format_bytes(n) == words


def test_two_sizes_that_differ_look_different() -> None:
    assert format_distinct(5_000_000_000, 3_000_000) == ("5 GB", "3 MB")
    assert format_distinct(12_784_000, 12_780_000) == ("12.784 MB", "12.78 MB")
    assert format_distinct(1_000_000_001, 1_000_000_000) == ("1.000000001 GB", "1 GB")


def test_a_count_agrees_with_its_noun() -> None:
    assert [format_count(n, "task") for n in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
