"""A scaling is picked by agreement with the tasks' own models, and labels are not looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_images

import sftm_app
from sftm_app import cli
from sftm_app.errors import InputError, RecipeError, SampleError
from sftm_app.evaluation.candidates import INDIVIDUAL, ModelPool, method_candidate
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.samples import Samples
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import load_recipe, make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.tuning.inputs import find_inputs
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


def test_inputs_are_found_and_their_labels_left_out(
    found: Callable[..., Preflight], samples: dict[str, Samples], tmp_path: Path
) -> None:
    labelled, plain = write_images(tmp_path / "labelled", samples), tmp_path / "plain"
    for task in "ab":
        (plain / task).mkdir(parents=True)
        for file in (labelled / task).rglob("*.png"):
            shutil.copy(file, plain / task / f"{file.parent.name}-{file.name}")
    workspace = found("ab")
    for root in (labelled, plain):
        inputs = find_inputs(workspace, root)
        assert {task: len(one) for task, one in inputs.items()} == {"a": 30, "b": 30}
        assert all((one.labels == -1).all() for one in inputs.values())  # type: ignore[union-attr]
    for file in sorted((plain / "a").iterdir())[10:]:
        file.unlink()
    with pytest.raises(SampleError, match="a has 10 inputs"):
        find_inputs(workspace, plain)
    with pytest.raises(SampleError, match="does not exist"):
        find_inputs(workspace, tmp_path / "none")


def test_the_command_picks_what_the_function_picks(
    classifiers: Path, samples: dict[str, Samples], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, recipe, output = write_images(tmp_path / "images", samples), tmp_path / "r.yaml", tmp_path / "picked.yaml"
    base, tasks = classifiers / "base", [classifiers / task for task in "ab"]
    recipe.write_text(f"base: {base}\ntasks: [{tasks[0]}, {tasks[1]}]\nmethod: ties\ndevice: cpu\n")
    command = ["scaling", str(recipe), "--inputs", str(images), "--scalings", "0.5,1", "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert not ended.value.code
    result = sftm_app.pick_scaling(base, tasks, images, "ties", scalings=(0.5, 1.0))
    assert f"Picked: {result.picked.scaling:g}" in capsys.readouterr().out
    assert load_recipe(output).params == result.recipe.params
    assert result.picked == min(result.tested, key=lambda one: one.divergence)
    with pytest.raises(SystemExit) as refused:
        cli.main(command)
    assert refused.value.code == 2 and "exists already" in capsys.readouterr().err
