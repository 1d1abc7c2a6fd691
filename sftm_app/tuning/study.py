"""The trials of a search: a file with a line for each, and what they propose to try next.

A proposal depends on the trials before it alone: the sampler is made anew for each, with a seed that is their number.
So a search that was stopped or killed goes on as one that never was.

The file is not one of Optuna's storages: for a search over twenty settings, its SQLite storage writes to the disk
twenty times per trial, which takes half a second, and its journal cannot be read after a crash in the middle of a line.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter, ValidationError

from sftm_app.errors import OutputError, RecipeError
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.tuning.space import Space
from sftm_app.weights.partial import LOCK_NAME, folder_lock, is_live, write_lock
from sftm_app.weights.regular import read_file

SEED = 0
# Proposals are random until so many trials of the methods that go on are known.
N_RANDOM = 10
# So many methods go on after each was tried at its defaults: trials are few, and the settings of a method many.
N_KEPT = 4
TRIALS_NAME = "trials.jsonl"


@dataclass(frozen=True)
class Tried:
    """A trial that ended.

    Attributes:
        settings: what was merged.
        correct: by task, how many validation samples the merge answered correctly; empty if it failed.
        score: the mean over tasks of the share of what each task's own model answers; None if it failed.
        seconds: that it took.
        problem: why it failed, in a sentence.
    """

    settings: MergeSettings
    correct: Mapping[str, int]
    score: float | None
    seconds: float
    problem: str = ""


def score_of(correct: Mapping[str, int], own: Mapping[str, int]) -> float:
    """The mean over tasks of correct answers relative to those of the task's own model.

    A task whose own model answers nothing correctly counts as if it had answered one sample.

    Args:
        correct, own: by task, the numbers of correct answers to the same samples.
    """
    return sum(correct[task] / max(own[task], 1) for task in own) / len(own)


def best_of(tried: Sequence[Tried]) -> Tried | None:
    """The trial with the highest score, the first of equals; None if none merged."""
    return max((one for one in tried if one.score is not None), key=lambda one: one.score or 0.0, default=None)


def propose(space: Space, tried: Sequence[Tried], own: MergeSettings | None = None) -> MergeSettings:
    """The settings to try next: the starts of the space, then what TPE proposes for the best few methods of these.

    Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011; in Optuna's version with groups of
    parameters that occur together (Watanabe, "Tree-Structured Parzen Estimator", arXiv 2304.11127).

    Args:
        space: what is searched.
        tried: the trials so far, in their order.
        own: a person's settings, the first of the starts.
    """
    known = [one.settings for one in tried]
    start = next((one for one in space.starts(own) if one not in known), None)
    if start is not None:
        return start
    narrow = replace(space, methods=best_methods(space, tried[: len(space.starts(own))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=SEED + len(tried), multivariate=True, group=True, n_startup_trials=N_RANDOM
        )
        return narrow.draw(study_of(narrow, tried, sampler).ask())


def best_methods(space: Space, starts: Sequence[Tried], n: int = N_KEPT) -> tuple[str, ...]:
    """The methods with the highest scores among the starts, at most `n`, in the order of the space."""
    scores: dict[str, float] = {}
    for one in starts:
        if one.score is not None:
            scores[one.settings.method] = max(one.score, scores.get(one.settings.method, 0.0))
    kept = sorted(scores, key=lambda name: -scores[name])[:n]
    return tuple(name for name in space.methods if name in kept) or space.methods


def study_of(space: Space, tried: Sequence[Tried], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """The trials with the space's methods as a study of Optuna's, in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler or optuna.samplers.RandomSampler(seed=SEED))
    study.add_trials([_frozen(space, one) for one in tried if one.settings.method in space.methods])
    return study


def _frozen(space: Space, tried: Tried) -> FrozenTrial:
    chosen, known = space.choices(tried.settings), space.distributions(tried.settings.method)
    # A failed merge counts as worse than all others, so that nothing like it is proposed.
    state = TrialState.PRUNED if tried.score is None else TrialState.COMPLETE
    distributions = {name: known[name] for name in chosen}
    return create_trial(state=state, value=tried.score, params=chosen, distributions=distributions)


@dataclass(frozen=True)
class _Line:
    method: str
    params: dict[str, Any]
    weights: tuple[float, ...]
    correct: dict[str, int]
    score: float | None
    seconds: float
    problem: str


_LINE = TypeAdapter(_Line)


def read_trials(folder: Path) -> tuple[Tried, ...]:
    """The trials in a folder, in their order; none if there is no file. A line that a crash has torn is left out."""
    try:
        lines = read_file(folder / TRIALS_NAME).split(b"\n")
    except OSError:
        return ()
    found = []
    for line in lines:
        with contextlib.suppress(ValidationError, RecipeError):
            one = _LINE.validate_json(line)
            settings = merge_settings(one.method, one.params, one.weights)
            found.append(Tried(settings, one.correct, one.score, one.seconds, one.problem))
    return tuple(found)


def append_trial(folder: Path, tried: Tried) -> None:
    """Write a trial to the file of a folder, and wait until it is on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    settings = tried.settings
    line = _Line(
        settings.method,
        values_of(settings.params),
        settings.weights,
        dict(tried.correct),
        tried.score,
        tried.seconds,
        tried.problem,
    )
    try:
        with open(folder / TRIALS_NAME, "ab") as file:
            # It begins with a line's end, in case that the line before was torn.
            file.write(b"\n" + _LINE.dump_json(line))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{folder}: a trial cannot be written ({error.strerror}). Free some space, or choose another output folder."
        ) from None


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other searches out of a folder, which is made if it does not exist.

    Raises:
        OutputError: another search is at it, or it cannot be written.
    """
    lock = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            if is_live(lock):
                raise OutputError(f"{folder}: another search is at these models and samples. Wait for it, or stop it.")
            write_lock(lock)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}). Choose another output folder.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
