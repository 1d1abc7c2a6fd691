"""The leaderboard: every merge of a workspace with its scores, sorted, filtered, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sftm_app.errors import SFTMError
from sftm_app.evaluation.model_keys import model_key
from sftm_app.evaluation.scores import Score, ScoreTable, score_table
from sftm_app.jobs.removal import delete_run
from sftm_app.output.removal import remove_output
from sftm_app.ui.evaluate.score_view import known_answers
from sftm_app.ui.evaluate.sources import Source, sample_set
from sftm_app.ui.merges import Merge
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

MEAN, NAME, TIME, SIZE = "mean", "name", "time", "size"


@dataclass(frozen=True)
class Order:
    """How the lines are sorted. column: MEAN, NAME, TIME, SIZE, or "task:" and a task's name."""

    column: str = MEAN
    descending: bool = True

    def after_click(self, column: str) -> Order:
        """The order after a click on a column's title: the other way round, or a column's usual way first."""
        if column == self.column:
            return Order(column, not self.descending)
        return Order(column, column not in (NAME, TIME, SIZE))


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """The merges of a workspace.

    Attributes:
        merges: all of them, oldest first.
        scores: by the key of each merge's candidate.
        tasks: the tasks with samples.
        n_samples: per task, of the task that has most; 0 where there are none.
    """

    merges: tuple[Merge, ...]
    scores: ScoreTable
    tasks: tuple[str, ...] = ()
    n_samples: int = 0

    def mean(self, merge: Merge) -> Score | None:
        """The mean over the tasks; None where it is not measured on all of them."""
        return self.scores.mean(merge.candidate.key)

    def score(self, merge: Merge, task: str) -> Score | None:
        """The score on one task; None where it is not measured."""
        return self.scores.score(merge.candidate.key, task)

    @property
    def best(self) -> Merge | None:
        """The merge with the highest mean."""
        done = [(score.value, one) for one in self.merges if (score := self.mean(one))]
        return max(done, key=lambda pair: pair[0])[1] if done else None

    @property
    def unmeasured(self) -> tuple[Merge, ...]:
        """The merges that lack the score of a task."""
        return tuple(one for one in self.merges if self.mean(one) is None)


def leaderboard(studio: Studio, ws: Workspace, source: Source, measure: str = "") -> Leaderboard:
    """The merges of a workspace with their scores on these samples.

    Args:
        source: of the samples. Without samples the merges are listed without scores.
        measure: see `score_table`.
    """
    merges = tuple(studio.merges.of(ws)) if studio.usable(ws) else ()
    nothing = score_table({})
    if not merges:
        return Leaderboard((), nothing)
    try:
        known = sample_set(studio, ws, source)
    except SFTMError:
        return Leaderboard(merges, nothing)
    sheets = known_answers(studio, ws, known, [one.candidate for one in merges])
    tasks = tuple(known.digests)
    return Leaderboard(merges, score_table(sheets, measure), tasks, max(known.n_samples.values()))


def arranged(board: Leaderboard, order: Order, wanted: str) -> list[Merge]:
    """The merges whose name, settings or notes hold all words of `wanted`, in this order; unmeasured ones are last."""
    words = wanted.lower().split()
    found = [one for one in board.merges if all(word in _text(one) for word in words)]
    key = _sort_key(board, order.column)
    placed = [(key(one), one) for one in found]
    known = [(value, one) for value, one in placed if value is not None]
    known.sort(key=lambda pair: pair[0], reverse=order.descending)
    return [*(one for _, one in known), *(one for value, one in placed if value is None)]


def _text(merge: Merge) -> str:
    return f"{merge.name} {merge.settings_name} {merge.about.notes}".lower()


def _sort_key(board: Leaderboard, column: str) -> Callable[[Merge], float | None]:
    if column == NAME:
        # Names as numbers: their places in the alphabet.
        places = {one.id: place for place, one in enumerate(sorted(board.merges, key=lambda one: one.name.lower()))}
        return lambda merge: float(places[merge.id])
    if column == TIME:
        return lambda merge: merge.report.seconds
    if column == SIZE:
        return lambda merge: float(merge.report.output_bytes)
    if column.startswith("task:"):
        return lambda merge: score.value if (score := board.score(merge, column.removeprefix("task:"))) else None
    return lambda merge: score.value if (score := board.mean(merge)) else None


def to_csv(board: Leaderboard, merges: Sequence[Merge]) -> str:
    """The lines as CSV, with scores from 0 to 1."""
    held = io.StringIO(newline="")
    writer = csv.writer(held)
    scores = ["mean", "mean low", "mean high", *board.tasks]
    writer.writerow(["name", "settings", *scores, "seconds", "bytes", "folder", "notes"])
    for one in merges:
        mean = board.mean(one)
        ends = [mean.value, mean.interval.low, mean.interval.high] if mean else [None] * 3
        values = [*ends, *(score.value if (score := board.score(one, task)) else None for task in board.tasks)]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        size = [f"{one.report.seconds:.2f}", one.report.output_bytes]
        writer.writerow([one.name, one.settings_name, *shown, *size, one.folder, one.about.notes])
    return held.getvalue()


def delete_merge(studio: Studio, ws: Workspace, merge: Merge) -> None:
    """Delete a merge: its run, its saved copies, its name and notes, and the answers that are kept of it.

    Raises:
        JobError, OutputError: a folder holds what this app did not write, or cannot be removed.
    """
    key = model_key(studio.preflight(ws), merge.candidate, studio.session)
    if merge.run is not None:
        delete_run(merge.run)
    for folder in merge.saved:
        remove_output(folder)
    studio.answers.forget(key)
    studio.merges.forget(merge)
