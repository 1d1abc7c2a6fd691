"""Search for the best merge: propose settings, merge in memory, try on the validation samples; report on test samples.

The test samples are seen by five models at the end: the base, the tasks' own models, the plain average, the default and
the best of the search. So their accuracy is not flattered by having been chosen on the same samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from sftm_app.engine.run import run
from sftm_app.errors import MethodError, NumericalError, RecipeError, ResourceError
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.candidates import INDIVIDUAL, method_candidate
from sftm_app.evaluation.comparison import Comparison, compare
from sftm_app.evaluation.intervals import accuracy_difference
from sftm_app.evaluation.labelled import family_at
from sftm_app.evaluation.measuring import SAMPLES_PER_STEP, TEXTS_WRITTEN_PER_STEP, measure
from sftm_app.evaluation.shared_models import SharedModels
from sftm_app.evaluation.tokens import batches
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.device import resolve_device
from sftm_app.planning.recipe import DEFAULT_METHOD
from sftm_app.preflight.preflight import Preflight
from sftm_app.tuning.setup import Setup
from sftm_app.tuning.study import Tried, append_trial, best_of, claim, propose, read_trials, score_of
from sftm_app.units import format_distinct

# What every merge is compared with, besides the default.
BASELINE = "average"
# The time of a trial is predicted from so many before it.
RECENT = 10
BYTES_OF_FLOAT32 = 4


@dataclass(frozen=True)
class Budget:
    """When a search ends: after so many trials, those of an interrupted search included, or after minutes."""

    trials: int = 50
    minutes: float | None = None


@dataclass(frozen=True)
class Search:
    """A search, as far as it is.

    Attributes:
        n_trials: how many were asked for.
        n_samples: by task, how many validation samples there are.
        tried: the trials that ended, those of an interrupted search included.
        own: by task, how many validation samples its own model answers correctly; empty until that is known.
        phase: what it is at: the "own" models, "trials", the "test" samples, or "done".
        active: the settings that are tried now.
        fraction: how far along the phase is, 0..1.
        remaining_s: seconds left of the phase, once that can be said.
        per_minute: trials a minute, once that is known.
        comparison: the models on the test samples, at the end.
    """

    n_trials: int
    n_samples: Mapping[str, int]
    tried: tuple[Tried, ...] = ()
    own: Mapping[str, int] | None = None
    phase: Literal["own", "trials", "test", "done"] = "own"
    active: MergeSettings | None = None
    fraction: float = 0.0
    remaining_s: float | None = None
    per_minute: float | None = None
    comparison: Comparison | None = None

    @property
    def best(self) -> Tried | None:
        """The best trial on the validation samples."""
        return best_of(self.tried)


def never() -> bool:
    """A search without a Stop."""
    return False


def search(setup: Setup, budget: Budget, stopped: Callable[[], bool] = never) -> Generator[Search, None, None]:
    """Carry out a search, or go on with one. Closing it cancels it; the trials that ended stay.

    Args:
        setup: what is searched.
        budget: when it ends.
        stopped: asked before each trial: whether to end now, and report what was found.

    Yields:
        The search after every tensor and every few samples; the last one is "done".

    Raises:
        OutputError: another process searches the same, or the folder cannot be written.
        SampleError: a task's model cannot be tried, or the samples do not suit it.
        ResourceError: the memory that is free does not hold the models.
    """
    n_samples = {task: len(samples) for task, samples in setup.validation.items()}
    with claim(setup.folder):
        now = Search(budget.trials, n_samples, read_trials(setup.folder))
        yield now
        for own in _own_counts(setup):
            now = replace(now, own=own if len(own) == len(n_samples) else None)
            yield now
        now = yield from _trials(setup, budget, stopped, replace(now, phase="trials"))
        now = replace(now, phase="test", fraction=0.0, remaining_s=None)
        if now.best is not None:
            for comparison in compare(setup.reporting, final_comparison(setup, now.best)):
                fraction, left = comparison.fraction, comparison.remaining_s
                now = replace(now, comparison=comparison, fraction=fraction, remaining_s=left)
                yield now
        yield replace(now, phase="done", fraction=1.0, remaining_s=None)


def final_comparison(setup: Setup, best: Tried) -> Comparison:
    """The models that are tried on the test samples at the end, none of them yet."""
    n_samples = {task: len(samples) for task, samples in setup.test.items()}
    merges = [method_candidate(BASELINE), method_candidate(DEFAULT_METHOD), setup.candidate(best.settings)]
    return Comparison(n_samples).with_candidates(merges)


def verdict(comparison: Comparison, best_key: str) -> str:
    """How the best of a search compares with the default on the test samples, in a sentence; "" if that is not known.

    Args:
        comparison: of `final_comparison`, done.
        best_key: of the best candidate.
    """
    correct = {row.candidate.key: row.measurement.correct for row in comparison.rows if row.state == "done"}
    default = method_candidate(DEFAULT_METHOD).key
    if best_key == default:
        return "The default is the best that was found."
    if best_key not in correct or default not in correct:
        return ""
    gain = accuracy_difference(correct[best_key], correct[default])
    points = f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.holds_zero:
        return f"The best of the search is not distinguishable from the default on these samples: {points}."
    return f"The best of the search is {'above' if gain.value > 0 else 'below'} the default: {points}."


def restore(setup: Setup, n_trials: int) -> Search:
    """A search as it was left, without going on. Tries no model."""
    n_samples = {task: len(samples) for task, samples in setup.validation.items()}
    own = setup.choosing.known(INDIVIDUAL)
    counts = {task: sum(sheet.correct) for task, sheet in own.items()} if len(own) == len(n_samples) else None
    found = Search(n_trials, n_samples, read_trials(setup.folder), counts, "done")
    if found.best is None:
        return found
    final = final_comparison(setup, found.best)
    if any(len(setup.reporting.known(row.candidate)) < len(setup.test) for row in final.rows):
        return found
    *_, comparison = compare(setup.reporting, final)
    return replace(found, comparison=comparison)


def _own_counts(setup: Setup) -> Iterator[dict[str, int]]:
    """How many validation samples each task's own model answers correctly, task by task."""
    benchmark = setup.choosing
    for now in measure(benchmark, INDIVIDUAL, None):
        complete = {task: sheet for task, sheet in now.sheets.items() if len(sheet) == len(setup.validation[task])}
        yield {task: sum(sheet.correct) for task, sheet in complete.items()}


def _trials(setup: Setup, budget: Budget, stopped: Callable[[], bool], now: Search) -> Generator[Search, None, Search]:
    models: SharedModels | None = None
    started, n_before = time.monotonic(), len(now.tried)
    while not stopped():
        fraction, left = _how_far(now, budget, time.monotonic() - started)
        now = replace(now, active=None, fraction=fraction, remaining_s=left)
        if fraction >= 1:
            break
        if models is None:
            refuse_large(setup.found)
            models = SharedModels(setup.found, list(setup.validation), resolve_device(setup.session.device))
        began = time.monotonic()
        now = replace(now, active=propose(setup.space, now.tried, setup.own))
        yield now
        tried = yield from _try(setup, models, now, began)
        append_trial(setup.folder, tried)
        now = replace(now, tried=(*now.tried, tried))
        spent = sum(one.seconds for one in now.tried[n_before:])
        now = replace(now, per_minute=60 * (len(now.tried) - n_before) / spent)
        yield now
    return replace(now, active=None)


def _how_far(now: Search, budget: Budget, elapsed_s: float) -> tuple[float, float | None]:
    """The share of the budget that is used, 0..1, and the seconds left, once that can be said."""
    recent = [one.seconds for one in now.tried[-RECENT:]]
    done = len(now.tried) / budget.trials if budget.trials > 0 else 1.0
    left = max(0, budget.trials - len(now.tried)) * sum(recent) / len(recent) if recent else None
    if budget.minutes is not None:
        limit = 60 * budget.minutes
        done = max(done, elapsed_s / limit if limit > 0 else 1.0)
        left = min(left, limit - elapsed_s) if left is not None else limit - elapsed_s
    return min(done, 1.0), left if left is None else max(0.0, left)


def _try(setup: Setup, models: SharedModels, now: Search, began: float) -> Generator[Search, None, Tried]:
    """Merge the active settings and try them on the validation samples. Settings that do not merge fail alone."""
    settings, own = now.active, now.own
    assert settings is not None and own is not None
    correct: dict[str, int] = {}
    try:
        plan = setup.choosing.plan(setup.candidate(settings))
        assert plan is not None
        for merged in run(plan, setup.session):
            models.load([(merged.entry.name, merged.tensor)])
            yield now
    except (MethodError, NumericalError, RecipeError, ResourceError) as error:
        return Tried(settings, {}, None, time.monotonic() - began, str(error))
    for task, samples in setup.validation.items():
        model, sheet = models.model(task), AnswerSheet()
        for positions in batches(range(len(samples)), _step(setup, task)):
            sheet = sheet.followed_by(model.answer(samples.take(list(positions))))
            yield now
        correct[task] = sum(sheet.correct)
    return Tried(settings, correct, score_of(correct, own), time.monotonic() - began)


def _step(setup: Setup, task: str) -> int:
    index = [one.name for one in setup.found.tasks].index(task)
    return TEXTS_WRITTEN_PER_STEP if family_at(setup.found, index).writes else SAMPLES_PER_STEP


def refuse_large(found: Preflight) -> None:
    """Refuse a search whose models do not fit into the memory that is free.

    Raises:
        ResourceError: they do not fit.
    """
    n_entries = sum(math.prod(one.shape) for one in found.base.tensors.values())
    # One backbone in float32 for all tasks, and while it is built, the base as it is stored.
    needed, free = n_entries * BYTES_OF_FLOAT32 + found.base.n_bytes, psutil.virtual_memory().available
    if needed > free:
        needs, has = format_distinct(needed, free)
        raise ResourceError(
            f"Trying merges takes {needs} of memory, and {has} are free. Close other programs, or search on another "
            "machine."
        )
