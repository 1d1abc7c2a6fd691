"""The time left: it starts with the prediction, follows the pace of the merge, and is never absurd."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from sftm_app.output.progress import TRUST, Clock
from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Cost, EntryCost, Plan
from sftm_app.session import Session

HASHING_S = 3.0


@pytest.fixture
def plan(recipe_for: Callable[..., Any], session: Session) -> Plan:
    """A plan that predicts one second for every tensor."""
    made = prepare(recipe_for(), session)
    entries = tuple(EntryCost(entry.name, 1.0, 0, 0, 0) for entry in made.entries)
    return replace(made, cost=Cost(entries, HASHING_S, 0, 0))


def left_after(plan: Plan, done: int, elapsed_s: float) -> float:
    clock = Clock(plan, time.perf_counter() - elapsed_s)
    steps = [clock.after(entry) for entry in plan.entries[:done]]
    assert steps[-1].fraction == pytest.approx(done / len(plan.entries))
    return steps[-1].remaining_s


def test_the_time_left_starts_with_the_prediction(plan: Plan) -> None:
    n = len(plan.entries)
    for elapsed_s in (0.0, 1.0, 2.0):
        assert left_after(plan, 1, elapsed_s) == pytest.approx(n - 1 + HASHING_S, rel=0.25)


@pytest.mark.parametrize("pace", [0.25, 1.0, 4.0])
def test_the_time_left_comes_to_follow_the_pace_of_the_merge(plan: Plan, pace: float) -> None:
    n = len(plan.entries)
    off = [abs(left_after(plan, done, pace * done) - pace * (n + HASHING_S - done)) for done in range(1, n + 1)]
    assert all(later <= sooner + 0.1 for sooner, later in pairwise(off))
    assert off[3 * n // 4] <= 0.1 * pace * n + 0.5 * HASHING_S


@pytest.mark.parametrize("elapsed_s", [0.1, 1000.0])
def test_the_time_left_is_bounded_by_the_prediction_and_the_time_elapsed(plan: Plan, elapsed_s: float) -> None:
    for done in range(1, len(plan.entries) + 1):
        assert left_after(plan, done, elapsed_s) <= plan.cost.seconds + elapsed_s / TRUST + 0.1


def test_what_is_left_after_the_last_tensor_is_the_hashing(plan: Plan) -> None:
    clock = Clock(plan, time.perf_counter() - len(plan.entries))
    assert clock.last().remaining_s == pytest.approx(HASHING_S, rel=0.1)
