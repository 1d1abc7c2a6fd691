"""Accuracy of models on labelled samples, and the table tasks x models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from sftm_app.errors import SampleError
from sftm_app.evaluation.candidates import INDIVIDUAL, Candidate, ModelPool
from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.samples import Samples


def accuracy(model: EvaluationModel, samples: Samples) -> float:
    """The share of samples that a model answers correctly, 0..1. Raises SampleError as `correct_answers`."""
    return fmean(correct_answers(model, samples))


def correct_answers(model: EvaluationModel, samples: Samples) -> tuple[bool, ...]:
    """Whether a model answers each sample correctly.

    Raises:
        SampleError: there are no samples, or the correct answer to one of them is not known.
    """
    answers = model.answer(samples)
    if not answers or any(answer.correct is None for answer in answers):
        raise SampleError("Accuracy needs samples whose correct answers are all known.")
    return tuple(bool(answer.correct) for answer in answers)


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies 0..1.

    Attributes:
        tasks: the rows.
        candidates: the columns.
        values: values[row][column], None where not measured yet.
    """

    tasks: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    values: tuple[tuple[float | None, ...], ...]

    def with_value(self, row: int, column: int, value: float) -> AccuracyTable:
        """A table with one more value."""
        cells = [list(line) for line in self.values]
        cells[row][column] = value
        return replace(self, values=tuple(map(tuple, cells)))

    def mean(self, column: int) -> float | None:
        """The mean over the tasks; None until every task is measured."""
        known = [value for line in self.values if (value := line[column]) is not None]
        return fmean(known) if known and len(known) == len(self.values) else None

    def normalised(self, column: int) -> float | None:
        """The mean over the tasks of accuracy relative to the individual model's; None until both are measured."""
        keys = [candidate.key for candidate in self.candidates]
        if INDIVIDUAL.key not in keys:
            return None
        reference = keys.index(INDIVIDUAL.key)
        pairs = [(line[column], line[reference]) for line in self.values]
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        return fmean(ratios) if ratios and len(ratios) == len(self.values) else None


def empty_table(tasks: tuple[str, ...], candidates: tuple[Candidate, ...]) -> AccuracyTable:
    """A table in which nothing is measured yet."""
    return AccuracyTable(tasks, candidates, tuple((None,) * len(candidates) for _ in tasks))


def fill_table(
    model_pool: ModelPool, table: AccuracyTable, samples: Callable[[str], Samples], limit: int | None = None
) -> Iterator[AccuracyTable]:
    """Measure every cell, column by column.

    Args:
        model_pool: builds the models.
        table: the rows and columns.
        samples: gives a task's samples; called once for each task.
        limit: how many samples of a task to use at most, evenly over the classes.

    Yields:
        The table after each cell.
    """
    cached: dict[str, Samples] = {}
    for column, candidate in enumerate(table.candidates):
        for row, task in enumerate(table.tasks):
            if task not in cached:
                cached[task] = samples(task) if limit is None else samples(task).subset(limit)
            value = accuracy(model_pool.model(candidate, task), cached[task])
            table = table.with_value(row, column, value)
            yield table
