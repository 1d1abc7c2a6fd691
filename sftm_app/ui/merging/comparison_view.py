"""What a comparison of methods looks like: its progress, its table, its plot."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate
from sftm_app.evaluation.comparison import Comparison, Row
from sftm_app.evaluation.intervals import Interval
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.plots.comparison import AccuracyBar, comparison_bars
from sftm_app.ui.comparisons import Board
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, hint, join, notice, small, stack, strong, table
from sftm_app.ui.wording import settings_title
from sftm_app.ui.workspace import Workspace

# The element that "Use these settings" scrolls to.
FORM = "method"
HELP = (
    "Gap closed: 0 % is as good as the base, 100 % as good as each task's own model. Small print: 95 % intervals, from "
    "the choice of samples. Differences within them may be chance."
)
NO_GAP = "No gap is given where the individual models are not clearly better than the base on so few samples."


def candidate_settings(ws: Workspace, candidate: Candidate) -> MergeSettings:
    """The settings that a merge was measured with."""
    return merge_settings(candidate.kind, candidate.params, candidate.weights or ws.weights)


def row_title(ws: Workspace, row: Row) -> str:
    """The model and those of its settings that are not defaults."""
    return settings_title(candidate_settings(ws, row.candidate)) if row.is_merge else row.candidate.title


def board_table(ws: Workspace, board: Board) -> Html:
    """Models x (mean accuracy, gap closed, seconds, tasks), the best merge in bold, and how to read it."""
    comparison = board.comparison
    merges = [row for row in comparison.rows if row.is_merge]
    done = sorted((row for row in merges if row.accuracy), key=_accuracy, reverse=True)
    best = max(map(_accuracy, done), default=None)
    ends = [row for row in comparison.rows if not row.is_merge]
    open_rows = [row for row in merges if row.state in ("waiting", "active")]
    tasks = list(comparison.n_samples)
    rows = [_cells(ws, row, tasks, best) for row in [*ends, *done, *open_rows]]
    columns = ["model", "mean accuracy", "gap closed", "merged in", *tasks]
    failed = [f"{row_title(ws, row)}: {row.problem}" for row in comparison.rows if row.state == "failed"]
    problems = notice("warning", "Not measured", items=failed) if failed else ""
    help_line = HELP if all(row.closed for row in done) else f"{HELP} {NO_GAP}"
    return stack(table(columns, rows, range(1, len(columns)), _conditions(board)), hint(help_line), problems)


def _accuracy(row: Row) -> float:
    return row.accuracy.value if row.accuracy else 0.0


def _conditions(board: Board) -> str:
    """What the table was measured with."""
    conditions, counts = board.conditions, sorted(set(board.comparison.n_samples.values()))
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    source = f"of {conditions.where}" if conditions.where else "of the demo, which no model was trained on"
    split = " Fused maps were split." if conditions.split_fused else ""
    left_out = f" {' '.join(conditions.left_out)}" if conditions.left_out else ""
    return f"{n} samples per task {source}.{split}{left_out}"


def _cells(ws: Workspace, row: Row, tasks: Sequence[str], best: float | None) -> list[object]:
    title: object = row_title(ws, row)
    is_best = row.is_merge and row.accuracy is not None and row.accuracy.value == best
    if row.is_merge:
        use = view_link("Use these settings", FORM, ("use", row.candidate.key))
        title = join([strong(title) if is_best else title, use], "<br>")
    correct = row.measurement.correct
    return [
        title,
        _with_interval(row.accuracy, "·", is_best),
        _with_interval(row.closed, "–" if row.accuracy and row.is_merge else ""),
        _seconds(row.measurement.seconds) if row.is_merge and row.state == "done" else "",
        *(f"{fmean(correct[task]):.1%}" if row.accuracy else "·" for task in tasks),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.05 else "under 0.1 s"


def _with_interval(found: Interval | None, missing: str, bold: bool = False) -> object:
    if found is None:
        return missing
    value = f"{found.value:.1%}"
    between = small(f"{found.low:.0%} to {found.high:.0%}")
    return join([strong(value) if bold else value, between], " ")


def board_plot(ws: Workspace, board: Board) -> Any:
    """Mean accuracies with intervals; None until a merge is measured."""
    comparison = board.comparison
    bars = [
        AccuracyBar(row_title(ws, row), a.value, a.low, a.high)
        for row in comparison.rows
        if row.is_merge and (a := row.accuracy) is not None
    ]
    return comparison_bars(bars, _mean(comparison, BASE), _mean(comparison, INDIVIDUAL)) if bars else None


def _mean(comparison: Comparison, candidate: Candidate) -> float | None:
    return next((row.accuracy.value for row in comparison.rows if row.candidate == candidate and row.accuracy), None)
