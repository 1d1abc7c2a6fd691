"""What a search for the best merge looks like: its progress, the best so far, its table and its plots."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from sftm_app.methods.params import controls
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.trials import TrialPoint, importance_figure, trials_figure
from sftm_app.tuning.importance import importances
from sftm_app.tuning.search import Search, verdict
from sftm_app.tuning.study import Tried
from sftm_app.ui.comparisons import Board
from sftm_app.ui.merging.comparison_view import FORM, board_table
from sftm_app.ui.searches import SearchBoard
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, hint, join, notice, progress, stack, stat, stats, strong
from sftm_app.ui.wording import settings_title
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_count, format_duration

USE = "use"
TABLE_HELP = (
    "Measured on the other half of the samples, which the search has never seen. So the best is not flattered by "
    "having been chosen."
)


def search_progress(board: SearchBoard) -> Html:
    """A bar while a search runs, a sentence if it ended early."""
    now, n = board.search, format_count(len(board.search.tried), "trial")
    kept = f"{n} {'is' if len(now.tried) == 1 else 'are'} kept"
    note = hint(board.note) if board.note else ""
    if board.state == "cancelled":
        return notice("warning", "The search was cancelled", f"{kept}. Search goes on from there.")
    if board.state == "failed":
        return notice("error", "The search stopped", board.problem)
    if board.state == "left":
        return hint(f"{kept} of an earlier search. Search goes on from there.")
    if board.state == "done":
        failed = [one for one in now.tried if one.problem]
        if now.best is None:
            problem = failed[0].problem if failed else "Allow more trials or minutes."
            return notice("warning", "No trial gave a merge", problem)
        said = f"{format_count(len(failed), 'setting')} could not be merged." if failed else ""
        return stack(hint(f"{n}. {said}"), note)
    left = f" · {format_duration(now.remaining_s)} left" if now.remaining_s is not None else ""
    if now.phase == "own":
        return stack(progress(None, "Trying the tasks' own models"), note)
    if now.phase == "test":
        return stack(progress(now.fraction, "Trying the best on the test samples", left.removeprefix(" · ")), note)
    title = settings_title(now.active) if now.active else "Building the models"
    done = f"{len(now.tried)} of {format_count(now.n_trials, 'trial')}{left}"
    return stack(progress(now.fraction, f"Trying: {title}", done), note)


def search_best(board: SearchBoard) -> Html:
    """The best so far, with its link, and how fast it goes; nothing before the first trial."""
    now, best = board.search, board.search.best
    if best is None or best.score is None:
        return Html("")
    found = stat("best so far, on the samples that choose", f"{best.score:.1%}", "of the tasks' own accuracy")
    speed = [stat("trials a minute", f"{now.per_minute:.0f}")] if now.per_minute else []
    tried = stat("trials", str(len(now.tried)), f"of {now.n_trials}")
    return stack(trial_line("Best", best, now.tried.index(best)), stats([found, tried, *speed]))


def trial_line(what: str, tried: Tried, number: int) -> Html:
    """A trial's settings in words, with the link that puts them into the form."""
    weights = tried.settings.weights
    shown = f" ({', '.join(f'{weight:g}' for weight in weights)})" if len(set(weights)) > 1 else ""
    score = "" if tried.score is None else f" {tried.score:.1%} of the tasks' own accuracy."
    use = view_link("Use these settings", FORM, (USE, number))
    return hint(join([f"{what}: ", strong(settings_title(tried.settings)), f"{shown}.{score} ", use]))


def search_table(ws: Workspace, board: SearchBoard) -> Html | str:
    """The models on the test samples; empty until there are some."""
    comparison = board.search.comparison
    if comparison is None or not comparison.finished:
        return ""
    best, shown = board.search.best, Board(board.conditions, comparison, "done")
    said = verdict(comparison, board.setup.candidate(best.settings).key) if best else ""
    return stack(hint(f"{TABLE_HELP} {said}"), board_table(ws, shown))


def opposed_pair(now: Search) -> tuple[str, str] | None:
    """The two tasks of which one most often gains what the other loses, over all trials; None for a single task."""
    tasks = list(now.n_samples)
    shares = np.array([[one.correct[task] for task in tasks] for one in now.tried if one.correct], np.float64)
    pairs = list(combinations(range(len(tasks)), 2))
    if not pairs or not len(shares):
        return None
    centred = shares - shares.mean(0)
    spread = np.sqrt((centred**2).sum(0)) + 1e-9
    first, second = min(pairs, key=lambda p: float(centred[:, p[0]] @ centred[:, p[1]] / (spread[p[0]] * spread[p[1]])))
    return tasks[first], tasks[second]


def trials_plot(board: SearchBoard, x: str, y: str) -> Any:
    """All trials by what they keep of two tasks."""
    now = board.search
    if now.own is None or x not in now.own or y not in now.own:
        return trials_figure([], x, y)
    own_x, own_y = max(now.own[x], 1), max(now.own[y], 1)
    points = [
        TrialPoint(
            number,
            settings_title(one.settings),
            one.correct[x] / own_x,
            one.correct[y] / own_y,
            one.settings.method,
        )
        for number, one in enumerate(now.tried)
        if one.correct
    ]
    best = now.tried.index(now.best) if now.best else None
    return trials_figure(points, x, y, best)


def importance_plot(board: SearchBoard) -> Any:
    """Which settings of the best method mattered; None while that cannot be told."""
    found, best = importances(board.setup.space, board.search.tried), board.search.best
    if not found or best is None:
        return None
    return importance_figure({_in_words(best.settings, name): value for name, value in found.items()})


def _in_words(settings: MergeSettings, choice: str) -> str:
    """The name of a choice as its control is labelled."""
    name = choice.rpartition(".")[2]
    known = controls(type(settings.params))
    return known[name].label if name in known else "One weight per task"
