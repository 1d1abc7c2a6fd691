"""A scaling is picked by agreement with the tasks' own models, and labels are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sftm_app.errors import InputError, RecipeError
from sftm_app.evaluation.candidates import INDIVIDUAL, ModelPool, method_candidate
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.samples import Samples
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.tuning.unlabelled import divergence, pick, scan_scalings


@pytest.fixture
def inputs(samples: dict[str, Samples]) -> dict[str, Samples]:
    """The images without labels."""
    return {task: replace(one, labels=np.full(len(one), -1, np.int64)) for task, one in samples.items()}


@pytest.fixture
def found(classifiers: Path, session: Session) -> Callable[..., Preflight]:
    def build(tasks: str) -> Preflight:
        recipe = make_recipe(classifiers / "base", [classifiers / task for task in tasks], device="cpu")
        return open_inputs(recipe, session).require()

    return build


def test_one_task_alone_is_itself_at_scaling_1(
    found: Callable[..., Preflight], inputs: dict[str, Samples], session: Session
) -> None:
    alone = {"a": inputs["a"]}
    tested = list(scan_scalings(found("a"), alone, session, "task_arithmetic", scalings=(0.5, 1.0, 1.5)))
    assert pick(tested).scaling == 1.0 and pick(tested).divergence < 1e-6
    assert min(one.divergence for one in tested if one.scaling != 1.0) > 1e-4


def test_the_divergence_is_that_of_the_models(
    found: Callable[..., Preflight], inputs: dict[str, Samples], session: Session
) -> None:
    workspace = found("ab")
    (tested,) = scan_scalings(workspace, inputs, session, "sftm", {"rank": 4}, (1.0, 2.0), scalings=(0.7,))
    pool, merge = ModelPool(workspace, session), method_candidate("sftm", {"rank": 4, "scaling": 0.7}, (1.0, 2.0))
    means = []
    for task, one in inputs.items():
        own, given = (
            np.array([answer.scores for answer in pool.model(candidate, task).answer(one)])
            for candidate in (INDIVIDUAL, merge)
        )
        means.append((own * np.log(own / given)).sum(1).mean())
    assert tested.divergence == pytest.approx(np.mean(means), rel=1e-4)


def test_models_that_write_are_compared_by_their_texts() -> None:
    own = {"t": [Answer("yes"), Answer("no"), Answer("a b"), Answer("c")]}
    given = {"t": [Answer("yes "), Answer("yes"), Answer("a b"), Answer("c")]}
    assert divergence(own, given) == 0.25


def test_what_cannot_be_picked_is_refused(
    found: Callable[..., Preflight], inputs: dict[str, Samples], session: Session
) -> None:
    workspace = found("ab")
    with pytest.raises(RecipeError, match="Plain average has no scaling"):
        next(scan_scalings(workspace, inputs, session, "average"))
    with pytest.raises(InputError, match="There is no task 'z'"):
        next(scan_scalings(workspace, {"z": inputs["a"]}, session, "sftm"))
    with pytest.raises(InputError, match="There are no inputs"):
        next(scan_scalings(workspace, {}, session, "sftm"))
