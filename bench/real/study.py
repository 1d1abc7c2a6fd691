"""One bench with all its seeds: which samples a model gets right, and how much of the gap it closes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bench.real.bench import TEST, Settings
from bench.real.merging import Workplace, open_workplace
from bench.real.results import BASE, INDIVIDUAL, Case, Correct, correctness, stored, stored_merge
from sftm_app.evaluation.intervals import (
    Draws,
    Interval,
    Table,
    draw,
    drawn_accuracy,
    drawn_gap,
    gap_closed,
    interval,
    mean_accuracy,
)

Model = str | Settings


@dataclass(frozen=True, eq=False)
class Study:
    """A bench with several seeds.

    Attributes:
        name: of the bench.
        places: base and tasks, one for each seed.
        parts: the test parts that are used.
        heads: the tasks whose heads answer; None for all that have samples.
    """

    name: str
    places: tuple[Workplace, ...]
    parts: tuple[str, ...] = (TEST,)
    heads: tuple[str, ...] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose heads answer."""
        place = self.places[0]
        return self.heads or tuple(name for name in place.names if name in place.bench.scored)

    def on(self, *parts: str) -> Study:
        """The same on other parts."""
        return replace(self, parts=parts)

    def scoring(self, *heads: str) -> Study:
        """The same merges, read by the heads of these tasks only."""
        return replace(self, heads=heads)

    def first_seed(self) -> Study:
        """The same with the first seed only."""
        return replace(self, places=self.places[:1])

    def of(self, names: Sequence[str]) -> Study:
        """The same with fewer tasks, merged in this order."""
        return replace(self, places=tuple(open_workplace(p.bench, p.session, names) for p in self.places))

    @property
    def _cases(self) -> list[Case]:
        return [(task, part) for task in self.tasks for part in self.parts]

    def measure(self, model: Model, remerge: bool = False) -> Table:
        """Per seed and task, on which samples a model is right. remerge: see `results.correctness`."""
        return [self._join(correctness(place, model, self._cases, remerge)) for place in self.places]

    def table(self, model: Model) -> Table | None:
        """The same from what was measured before; None if anything is missing."""
        found = [stored(place, model, self._cases) for place in self.places]
        return None if any(one is None for one in found) else [self._join(one) for one in found if one is not None]

    def _join(self, correct: Correct) -> list[NDArray[np.bool_]]:
        return [np.concatenate([correct[task, part] for part in self.parts]) for task in self.tasks]

    @cached_property
    def ends(self) -> tuple[Table, Table]:
        """What the base with each task's head and each task's own model get right."""
        return self.measure(BASE), self.measure(INDIVIDUAL)

    @cached_property
    def draws(self) -> Draws:
        """The bootstrap draws, the same for every model."""
        return draw([len(task) for task in self.ends[0][0]], len(self.places))

    def gap(self, model: Model) -> Interval | None:
        """The share of the gap that a model closes; None if it was not measured."""
        table = self.table(model)
        return None if table is None else gap_closed(table, *self.ends, self.draws)

    def accuracy(self, model: Model) -> Interval | None:
        """The mean accuracy of a model; None if it was not measured."""
        table = self.table(model)
        draws = self.draws
        return None if table is None else interval(mean_accuracy(table), drawn_accuracy(table, draws))

    def difference(self, model: Model, other: Model) -> Interval | None:
        """How much more of the gap `model` closes than `other`, with a paired interval; None if not measured."""
        tables = self.table(model), self.table(other)
        if tables[0] is None or tables[1] is None:
            return None
        gaps = [drawn_gap(table, *self.ends, self.draws) for table in tables if table is not None]
        base, individual = (mean_accuracy(end) for end in self.ends)
        values = [(mean_accuracy(table) - base) / (individual - base) for table in tables if table is not None]
        return interval(values[0] - values[1], gaps[0] - gaps[1])

    def figures(self, chosen: Settings) -> dict[str, float]:
        """The figures of a merge, averaged over seeds; empty if it was not made."""
        found = [stored_merge(place, chosen) for place in self.places]
        kept = [one["figures"] for one in found if one]
        return {name: float(np.mean([figures[name] for figures in kept])) for name in kept[0]} if kept else {}


def best_of(study: Study, grid: Sequence[Settings]) -> Settings | None:
    """The settings with the highest mean accuracy; the first of equals; None if any was not measured."""
    tables = [study.table(chosen) for chosen in grid]
    if not grid or any(table is None for table in tables):
        return None
    accuracies = [mean_accuracy(table) for table in tables if table is not None]
    return grid[int(np.argmax(accuracies))]
