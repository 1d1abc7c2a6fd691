"""Intervals against the naive bootstrap, the normal approximation, and facts that hold exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from closeness import assert_close

from sftm_app.evaluation.intervals import accuracy_interval, closed_gap, draw, drawn_accuracy

RANDOM = np.random.default_rng(7)


def answers(**shares: float) -> dict[str, list[bool]]:
    """400 answers to each task, exactly this share of them correct."""
    return {task: RANDOM.permutation(400) < share * 400 for task, share in shares.items()}  # type: ignore[misc]


def test_drawn_means_are_those_of_the_naive_bootstrap() -> None:
    """The bootstrap as the textbook writes it: average the n_t answers that were drawn, then the tasks."""
    table = [[[True, False, True], [False, True, True, True, False]]]
    draws = draw([3, 5], n_draws=50)
    positions = [draws.positions(task) for task in range(2)]
    assert [drawn.shape for drawn in positions] == [(50, 3), (50, 5)]
    naive = []
    for one in range(50):
        means = [
            sum(given[i] for i in drawn[one]) / len(given) for given, drawn in zip(table[0], positions, strict=True)
        ]
        naive.append(sum(means) / 2)
    assert_close(drawn_accuracy(table, draws), naive, 1e-12)


def test_every_sample_is_drawn_equally_often() -> None:
    drawn = draw([4]).positions(0)
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    assert not np.array_equal(drawn[0], drawn[1]) or not np.array_equal(drawn[1], drawn[2])


def test_the_interval_is_as_wide_as_the_binomial_says() -> None:
    shares = {"a": 0.7, "b": 0.4, "c": 0.95}
    found = accuracy_interval(answers(**shares))
    assert found.value == pytest.approx(np.mean(list(shares.values())))
    deviation = math.sqrt(sum(p * (1 - p) / 400 for p in shares.values())) / len(shares)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert found.low < found.value < found.high


def test_the_gap_closed_is_a_ratio_of_means_and_its_draws_are_paired() -> None:
    base, individual = answers(a=0.3, b=0.5), answers(a=0.9, b=0.7)
    model = answers(a=0.6, b=0.65)
    found = closed_gap(model, base, individual)
    assert found is not None and found.value == pytest.approx((0.625 - 0.4) / (0.8 - 0.4))
    assert found.low < found.value < found.high
    for same, share in ((base, 0.0), (individual, 1.0)):
        ends = closed_gap(same, base, individual)
        # The same samples are drawn for all models, so nothing varies here.
        assert ends is not None and (ends.value, ends.low, ends.high) == (share, share, share)


def test_a_gap_that_is_not_clear_is_not_divided_by() -> None:
    base, above = answers(a=0.5), answers(a=0.51)
    assert closed_gap(base, base, above) is None
    assert closed_gap(base, base, base) is None
    assert closed_gap(base, above, base) is None
