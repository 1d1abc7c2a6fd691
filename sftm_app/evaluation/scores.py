"""Scores with the draws that say how far they could be off: means, ratios and differences have intervals too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.intervals import Draws, Interval, Vector, draw, interval
from sftm_app.evaluation.measures import Measure, measure_for


@dataclass(frozen=True, eq=False)
class Score:
    """A score, and the same in every bootstrap draw, float64 (draws,). Scores of the same draws are paired."""

    value: float
    drawn: Vector

    @cached_property
    def interval(self) -> Interval:
        """The score with its 95 % interval."""
        return interval(self.value, self.drawn)

    def __sub__(self, other: Score) -> Score:
        return Score(self.value - other.value, self.drawn - other.drawn)

    def over(self, other: Score) -> Score | None:
        """This score as a share of another one; None if that is 0."""
        if other.value <= 0:
            return None
        return Score(self.value / other.value, self.drawn / np.where(other.drawn > 0, other.drawn, np.nan))


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of scores of different tasks."""
    return Score(float(np.mean([one.value for one in scores])), np.mean([one.drawn for one in scores], axis=0))


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The scores of models on the same samples.

    Attributes:
        measures: by task, how it is scored.
        cells: by model and task; models that lack a task have no score for it yet.
    """

    measures: Mapping[str, Measure]
    cells: Mapping[str, Mapping[str, Score]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(self.measures)

    def score(self, model: str, task: str) -> Score | None:
        """The score of a model on a task; None until it is measured."""
        return self.cells.get(model, {}).get(task)

    def mean(self, model: str) -> Score | None:
        """The mean over the tasks; None until every task is measured."""
        found = self.cells.get(model, {})
        return mean_score(list(found.values())) if self.tasks and len(found) == len(self.tasks) else None

    def normalised(self, model: str, own: str) -> Score | None:
        """The mean over the tasks of a model's score as a share of each task's own model's.

        Args:
            model: the model.
            own: the key of the tasks' own models.

        Returns:
            The mean; None until both are measured on every task, or where an own model scores 0.
        """
        shares = []
        for task in self.tasks:
            ours, theirs = self.score(model, task), self.score(own, task)
            share = ours.over(theirs) if ours and theirs else None
            if share is None:
                return None
            shares.append(share)
        return mean_score(shares) if shares else None

    def difference(self, model: str, other: str) -> Interval | None:
        """How much higher one model's mean is than another's, with a paired interval; None until both are known."""
        ours, theirs = self.mean(model), self.mean(other)
        return (ours - theirs).interval if ours and theirs else None


def score_table(sheets: Mapping[str, Mapping[str, AnswerSheet]], measure: str = "") -> ScoreTable:
    """Score answers.

    Args:
        sheets: by model and task, complete sheets. All models answered the same samples.
        measure: the name of a measure; empty for the one that suits each task best, as where this one does not suit.

    Returns:
        The table. A task's draws are the same for all models.

    Raises:
        InputError: there is no such measure.
    """
    examples: dict[str, AnswerSheet] = {}
    for by_task in sheets.values():
        examples |= {task: sheet for task, sheet in by_task.items() if task not in examples and len(sheet)}
    measures = {task: measure_for(sheet, measure) for task, sheet in examples.items()}
    draws = draw([len(sheet) for sheet in examples.values()])
    places = {task: place for place, task in enumerate(examples)}
    cells = {
        model: {
            task: _scored(measures[task], sheet, draws, places[task])
            for task, sheet in by_task.items()
            if task in places and len(sheet) == len(examples[task])
        }
        for model, by_task in sheets.items()
    }
    return ScoreTable(measures, cells)


def _scored(measure: Measure, sheet: AnswerSheet, draws: Draws, place: int) -> Score:
    return Score(measure.score(sheet), measure.drawn(sheet, draws, place))
