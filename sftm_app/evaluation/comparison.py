"""Several models measured on the same samples, one after the other: a row each, with intervals and the time left."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sftm_app.errors import SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate
from sftm_app.evaluation.intervals import Correct, Interval, accuracy_interval, closed_gap
from sftm_app.evaluation.measuring import Benchmark, Measurement, measure
from sftm_app.planning.plan import Plan


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        measurement: as far as it is measured.
        state: "waiting", "active", "done" or "failed".
        problem: why it failed, in a sentence.
        accuracy: the mean accuracy over the tasks, 0..1, once it is done.
        closed: the share of the gap between base and individual models that it closes, for merges that are done; None
            where there is no clear gap.
    """

    measurement: Measurement
    state: Literal["waiting", "active", "done", "failed"] = "waiting"
    problem: str = ""
    accuracy: Interval | None = None
    closed: Interval | None = None

    @property
    def candidate(self) -> Candidate:
        """The model."""
        return self.measurement.candidate

    @property
    def is_merge(self) -> bool:
        """Whether it is neither the base nor the tasks' own models."""
        return self.candidate.key not in (BASE.key, INDIVIDUAL.key)


@dataclass(frozen=True)
class Comparison:
    """Models measured on the same samples.

    Attributes:
        n_samples: by task.
        rows: base, individual models, then merges in the order in which they were asked for.
        fraction: how far along it is, 0..1.
        remaining_s: seconds left, once that can be said.
    """

    n_samples: Mapping[str, int]
    rows: tuple[Row, ...] = ()
    fraction: float = 0.0
    remaining_s: float | None = None

    @property
    def active(self) -> Row | None:
        """The row that is being measured."""
        return next((row for row in self.rows if row.state == "active"), None)

    @property
    def finished(self) -> tuple[Row, ...]:
        """The rows that need no more work."""
        return tuple(row for row in self.rows if row.state in ("done", "failed"))

    def correct(self, candidate: Candidate) -> Correct | None:
        """The answers of a model that is done."""
        return next((r.measurement.correct for r in self.rows if r.candidate == candidate and r.state == "done"), None)

    def with_candidates(self, candidates: Sequence[Candidate]) -> Comparison:
        """With rows that wait for these models, and for base and individual models; those that are done are kept."""
        done = {row.candidate.key: row for row in self.rows if row.state == "done"}
        asked = {candidate.key: candidate for candidate in (BASE, INDIVIDUAL, *candidates)}
        new = {key: Row(Measurement(candidate, {})) for key, candidate in asked.items()}
        ends = {BASE.key, INDIVIDUAL.key}
        rows = [*(done.get(key, new[key]) for key in (BASE.key, INDIVIDUAL.key))]
        rows += [row for key, row in done.items() if key not in ends]
        rows += [row for key, row in new.items() if key not in ends and key not in done]
        return replace(self, rows=tuple(rows), fraction=0.0, remaining_s=None)

    def with_row(self, place: int, row: Row) -> Comparison:
        """With another row at a place."""
        return replace(self, rows=(*self.rows[:place], row, *self.rows[place + 1 :]))


def compare(benchmark: Benchmark, comparison: Comparison) -> Generator[Comparison, None, None]:
    """Measure every row that waits. A model that cannot be merged or measured fails alone.

    Args:
        benchmark: what the models are measured with.
        comparison: rows, those that wait included.

    Yields:
        The comparison after each step; in the last one no row waits.
    """
    waiting = [place for place, row in enumerate(comparison.rows) if row.state == "waiting"]
    plans: dict[int, Plan | None] = {}
    for place in waiting:
        try:
            candidate = comparison.rows[place].candidate
            # What is known needs no merge.
            known = len(benchmark.known(candidate)) == len(benchmark.samples)
            plans[place] = None if known else benchmark.plan(candidate)
        except SFTMError as error:
            failed = replace(comparison.rows[place], state="failed", problem=str(error))
            comparison = comparison.with_row(place, failed)
    yield comparison
    clock = _Clock(sum(comparison.n_samples.values()), {place: _merge_seconds(plan) for place, plan in plans.items()})
    for place, plan in plans.items():
        row = replace(comparison.rows[place], state="active")
        try:
            for now in measure(benchmark, row.candidate, plan):
                row = replace(row, measurement=now)
                yield clock.tell(comparison.with_row(place, row), place)
            row = _finish(comparison, row)
        except SFTMError as error:
            row = replace(row, state="failed", problem=str(error))
        clock.close(place, row.measurement)
        comparison = comparison.with_row(place, row)
        yield clock.tell(comparison, place)


def _finish(comparison: Comparison, row: Row) -> Row:
    correct = row.measurement.correct
    base, individual = comparison.correct(BASE), comparison.correct(INDIVIDUAL)
    closed = closed_gap(correct, base, individual) if row.is_merge and base and individual else None
    return replace(row, state="done", accuracy=accuracy_interval(correct), closed=closed)


def _merge_seconds(plan: Plan | None) -> float:
    """What a merge is expected to take; nothing is hashed."""
    return sum(entry.seconds for entry in plan.cost.entries) if plan else 0.0


class _Clock:
    """Predicts the time left from the plans' estimates and from how long the answers so far took."""

    def __init__(self, n_samples: int, merging_s: Mapping[int, float]) -> None:
        self._started = time.monotonic()
        self._n_samples = n_samples
        self._merging_s = dict(merging_s)
        self._n_answers, self._spent_merging_s = 0, 0.0
        self._fraction = 0.0

    def tell(self, comparison: Comparison, place: int) -> Comparison:
        """The comparison with fraction and time left."""
        now, elapsed = comparison.rows[place].measurement, time.monotonic() - self._started
        open_rows = place in self._merging_s
        answers = self._n_answers + (now.n_answers - now.n_known if open_rows else 0)
        if not answers:
            return comparison
        merged_s = self._spent_merging_s + (now.seconds if open_rows else 0.0)
        per_answer = (elapsed - merged_s) / answers
        merging = sum(self._merging_s.values()) - (self._merging_s[place] * now.merged if open_rows else 0.0)
        n_left = self._n_samples * len(self._merging_s) - (now.n_answers if open_rows else 0)
        left = merging + n_left * per_answer
        self._fraction = max(self._fraction, elapsed / (elapsed + left) if elapsed + left else 1.0)
        return replace(comparison, fraction=self._fraction, remaining_s=left)

    def close(self, place: int, measured: Measurement) -> None:
        """A row needs no more work."""
        del self._merging_s[place]
        self._n_answers += measured.n_answers - measured.n_known
        self._spent_merging_s += measured.seconds
