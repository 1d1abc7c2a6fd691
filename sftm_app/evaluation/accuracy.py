"""The table tasks x models with accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sftm_app.evaluation.candidates import INDIVIDUAL, Candidate, ModelPool
from sftm_app.evaluation.family import Samples, accuracy


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies 0..1: values[row][column] for tasks x candidates; None where not measured yet."""

    tasks: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    values: tuple[tuple[float | None, ...], ...]

    def with_value(self, row: int, column: int, value: float) -> AccuracyTable:
        cells = [list(line) for line in self.values]
        cells[row][column] = value
        return replace(self, values=tuple(tuple(line) for line in cells))

    def mean(self, column: int) -> float | None:
        """The average over tasks; None until every task is measured."""
        cells = [line[column] for line in self.values]
        known = [cell for cell in cells if cell is not None]
        return sum(known) / len(known) if known and len(known) == len(cells) else None

    def normalised(self, column: int) -> float | None:
        """The average over tasks of accuracy relative to the individual model's; None until both are measured."""
        keys = [candidate.key for candidate in self.candidates]
        if INDIVIDUAL.key not in keys:
            return None
        reference = keys.index(INDIVIDUAL.key)
        ratios = []
        for line in self.values:
            ours, theirs = line[column], line[reference]
            if ours is not None and theirs:
                ratios.append(ours / theirs)
        return sum(ratios) / len(ratios) if ratios and len(ratios) == len(self.values) else None


def empty_table(tasks: tuple[str, ...], candidates: tuple[Candidate, ...]) -> AccuracyTable:
    """A table in which nothing is measured yet."""
    return AccuracyTable(tasks, candidates, tuple((None,) * len(candidates) for _ in tasks))


def fill_table(
    model_pool: ModelPool, table: AccuracyTable, samples: Callable[[str], Samples], limit: int | None = None
) -> Iterator[AccuracyTable]:
    """Measure every cell, column by column, yielding the table after each.

    `samples(task)` gives a task's samples and is asked once per task; `limit` keeps that many of them, of all classes.
    """
    kept: dict[str, Samples] = {}
    for column, candidate in enumerate(table.candidates):
        for row, task in enumerate(table.tasks):
            if task not in kept:
                kept[task] = samples(task) if limit is None else samples(task).subset(limit)
            value = accuracy(model_pool.model(candidate, task), kept[task])
            table = table.with_value(row, column, value)
            yield table
