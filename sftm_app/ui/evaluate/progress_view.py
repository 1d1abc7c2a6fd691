"""How far a measurement is, and what failed."""

from __future__ import annotations

from sftm_app.ui.comparisons import Board
from sftm_app.ui.widgets.html import Html, notice, progress
from sftm_app.units import format_duration


def progress_of(board: Board | None) -> object:
    """Changes whenever another task of a model is complete: seldom, compared with the bar."""
    if board is None:
        return None
    counts, rows = board.comparison.n_samples, board.comparison.rows
    complete = sum(len(row.measurement.sheets.get(task, ())) == n for row in rows for task, n in counts.items())
    return board.state, complete, sum(row.state == "failed" for row in rows)


def progress_html(board: Board) -> Html:
    """A bar while models are measured, a sentence if that ended early."""
    if board.state == "cancelled":
        return notice("warning", "The measurement was cancelled", "What was measured is kept.")
    if board.state == "failed":
        return notice("error", "The measurement stopped", board.problem)
    if board.state == "done":
        return Html("")
    if board.state == "waiting":
        return progress(None, "Waiting for another measurement to end")
    comparison, active = board.comparison, board.comparison.active
    if active is None:
        return progress(None, "Reading the models")
    measured = active.measurement
    task = next((task for task, n in comparison.n_samples.items() if len(measured.sheets.get(task, ())) < n), "")
    title = active.candidate.title
    label = f"Merging: {title}" if measured.merged < 1 else f"Trying on {task}: {title}"
    left = f" · {format_duration(comparison.remaining_s)} left" if comparison.remaining_s is not None else ""
    return progress(comparison.fraction, label, f"{len(comparison.finished)} of {len(comparison.rows)} models{left}")


def failures_html(board: Board | None) -> Html:
    """The models that could not be measured, and why."""
    rows = board.comparison.rows if board else ()
    failed = [f"{row.candidate.title}: {row.problem}" for row in rows if row.state == "failed"]
    return notice("warning", "Not measured", items=failed) if failed else Html("")
