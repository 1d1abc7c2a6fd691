"""Searches without a screen, for Python and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftm_app.errors import SampleError
from sftm_app.evaluation.comparison import Row
from sftm_app.evaluation.labelled import find_samples
from sftm_app.evaluation.samples import Samples
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import Recipe
from sftm_app.session import Session
from sftm_app.tuning.inputs import find_inputs
from sftm_app.tuning.search import Budget, Search, search, verdict
from sftm_app.tuning.setup import LIMIT, Setup, make_setup
from sftm_app.tuning.study import Tried, best_of
from sftm_app.tuning.unlabelled import SCALINGS, TriedScaling, pick, scan_scalings


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        recipe: the given recipe with the best settings.
        best: the trial with them, with its score on the validation samples.
        best_key: of its row among `rows`.
        verdict: how it compares with the default, in a sentence.
        rows: base, the tasks' own models, the plain average, the default and the best, on the test samples.
        tried: all trials.
        folder: where they are kept.
        left_out: sentences on tasks without samples.
    """

    recipe: Recipe
    best: Tried
    best_key: str
    verdict: str
    rows: tuple[Row, ...]
    tried: tuple[Tried, ...]
    folder: Path
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScalingResult:
    """A scaling that was picked without labels.

    Attributes:
        recipe: the given recipe with the scaling.
        picked: the scaling, and how far the merge is from the tasks' own models there.
        tested: the same for every scaling that was tried.
    """

    recipe: Recipe
    picked: TriedScaling
    tested: tuple[TriedScaling, ...]


def run_scalings(
    recipe: Recipe,
    inputs: str | Path | Mapping[str, Samples],
    session: Session,
    scalings: Sequence[float] = (),
    progress: Callable[[TriedScaling], None] | None = None,
) -> ScalingResult:
    """Pick the scaling of a recipe without labels.

    Args:
        recipe: base, tasks, method and its other parameters.
        inputs: by task; or a path, see `tuning.inputs.find_inputs`.
        session: its device runs the models.
        scalings: those to try; by default SCALINGS.
        progress: called after each.

    Raises:
        InputError: base and tasks do not fit together, the inputs cannot be used, or the method has no scaling.
    """
    found = open_inputs(recipe, session).require()
    given = find_inputs(found, Path(os.path.expanduser(inputs))) if isinstance(inputs, str | Path) else inputs
    tested = []
    params, weights = values_of(recipe.params), [task.weight for task in recipe.tasks]
    tries = scalings or SCALINGS
    for one in scan_scalings(found, given, session, recipe.method, params, weights, tries, recipe.split_fused):
        tested.append(one)
        if progress is not None:
            progress(one)
    picked = pick(tested)
    return ScalingResult(replace(recipe, params=replace(recipe.params, scaling=picked.scaling)), picked, tuple(tested))


def setup_search(
    recipe: Recipe,
    samples: str | Path | Mapping[str, Samples],
    session: Session,
    searches: Path,
    methods: Sequence[str] = (),
    weighted: bool = True,
    limit: int | None = LIMIT,
) -> tuple[Setup, tuple[str, ...]]:
    """Open what a recipe merges, and the samples.

    Args:
        recipe: base, tasks, and the settings that are tried first.
        samples: labelled, by task; or a path as the Evaluate tab takes it, or a demo pack's folder.
        session, searches, methods, weighted, limit: see `make_setup`.

    Returns:
        The search, and sentences on tasks without samples.

    Raises:
        InputError: base and tasks do not fit together, a method is unknown, or the samples cannot be used.
    """
    found = open_inputs(recipe, session).require()
    left_out: Sequence[str] = ()
    if isinstance(samples, str | Path):
        samples, left_out = find_samples(found, Path(os.path.expanduser(samples)))
    unknown = set(samples) - {task.name for task in found.tasks}
    if unknown:
        names = ", ".join(task.name for task in found.tasks)
        raise SampleError(f"There is no task {min(unknown)!r} to have samples. The tasks are {names}.")
    own = MergeSettings(recipe.method, recipe.params, tuple(task.weight for task in recipe.tasks))
    setup = make_setup(found, samples, session, searches, methods, weighted, limit, own, recipe.split_fused)
    return setup, tuple(left_out)


def best_recipe(recipe: Recipe, best: MergeSettings) -> Recipe:
    """The recipe with other settings."""
    tasks = tuple(replace(task, weight=weight) for task, weight in zip(recipe.tasks, best.weights, strict=True))
    return replace(recipe, method=best.method, params=best.params, tasks=tasks)


def run_search(
    recipe: Recipe,
    setup: Setup,
    budget: Budget,
    left_out: tuple[str, ...] = (),
    progress: Callable[[Search], None] | None = None,
) -> SearchResult:
    """Carry out a search, or go on with one.

    Args:
        recipe: what the best settings are put into.
        setup, left_out: of `setup_search`.
        budget: when it ends.
        progress: called after every step.

    Raises:
        SampleError: no trial could be merged, or the samples do not suit the models.
        OutputError: another process searches the same, or the folder cannot be written.
    """
    steps = search(setup, budget)
    last = None
    try:
        for last in steps:
            if progress is not None:
                progress(last)
    finally:
        steps.close()
    best = best_of(last.tried) if last is not None else None
    if last is None or best is None or last.comparison is None:
        problems = sorted({one.problem for one in last.tried if one.problem}) if last is not None else []
        raise SampleError(f"No trial gave a merge. {' '.join(problems[:2]) or 'Allow more trials or minutes.'}")
    return SearchResult(
        best_recipe(recipe, best.settings),
        best,
        (key := setup.candidate(best.settings).key),
        verdict(last.comparison, key),
        last.comparison.rows,
        last.tried,
        setup.folder,
        left_out,
    )
