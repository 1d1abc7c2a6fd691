"""A search from Python and from the command line: the same, and it goes on where it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from image_folders import write_images

import sftm_app
from sftm_app import cli
from sftm_app.errors import RecipeError, SampleError
from sftm_app.evaluation.samples import Samples
from sftm_app.planning.recipe import load_recipe
from sftm_app.session import Session
from sftm_app.tuning.search import Search
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.reader import open_reader


@pytest.fixture
def recipe(classifiers: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    tasks = "\n".join(f"  - {{path: {classifiers / task}}}" for task in "abc")
    file.write_text(
        f"base: {classifiers / 'base'}\ntasks:\n{tasks}\nmethod: sftm\nparams: {{scaling: 0.7}}\ndevice: cpu\n"
    )
    return file


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_command_and_the_function_search_the_same(
    recipe: Path,
    classifiers: Path,
    samples: dict[str, Samples],
    session: Session,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, best, output = write_images(tmp_path / "images", samples), tmp_path / "best.yaml", tmp_path / "out"
    command = ["search", recipe, "--samples", images, "--methods", "sftm,average", "--output-dir", output, "--quiet"]
    assert run(*command, "--trials", 3, "--output", best) == 0
    said = capsys.readouterr().out
    assert "Best of 3 trials: " in said and "images: has no folder 'c', so this task is left out." in said
    assert "Mean accuracy on 15 other samples per task" in said and "best: " in said
    for title in ("Base", "Individual", "Plain average"):
        assert title in said
    assert run(*command, "--output", best) == 2 and "exists already" in capsys.readouterr().err

    # The recipe merges, to the tensors that the best trial had.
    found = load_recipe(best)
    assert run("merge", best, "--output", tmp_path / "merged") == 0
    steps: list[Search] = []
    given = {"methods": ("average", "sftm"), "folder": output, "session": session, "progress": steps.append}
    again = sftm_app.search(classifiers / "base", [classifiers / task for task in "abc"], images, 3, **given)
    settings = again.best.settings
    assert (
        (found.method, found.params) == (again.recipe.method, again.recipe.params) == (settings.method, settings.params)
    )
    assert tuple(task.weight for task in found.tasks) == settings.weights
    assert len(again.tried) == 3, "the trials of the command count"
    whole = {name: value for name, value in vars(settings.params).items()}
    weighted = [{"path": str(task.path), "name": task.name, "weight": task.weight} for task in again.recipe.tasks]
    sftm_app.merge(classifiers / "base", weighted, tmp_path / "same", settings.method, "cpu", session=session, **whole)
    first, second = (open_checkpoint(tmp_path / name) for name in ("merged", "same"))
    with open_reader(first) as one, open_reader(second) as other:
        assert all(torch.equal(one(name), other(name)) for name in first.tensors)
    assert steps[-1].phase == "done"


def test_it_refuses_what_cannot_be_searched(
    recipe: Path, classifiers: Path, samples: dict[str, Samples], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", recipe, "--samples", tmp_path / "none") == 2
    assert "none: does not exist" in capsys.readouterr().err
    images = write_images(tmp_path / "images", samples)
    assert run("search", recipe, "--samples", images, "--methods", "slerp") == 2
    assert "merges exactly 2 tasks" in capsys.readouterr().err
    assert run("search", recipe, "--samples", images, "--methods", "sftn") == 2
    assert "Did you mean 'sftm'?" in capsys.readouterr().err
    tasks = [classifiers / "a", classifiers / "b"]
    with pytest.raises(RecipeError, match="trials: 0 is not"):
        sftm_app.search(classifiers / "base", tasks, images, 0)
    with pytest.raises(SampleError, match="There is no task 'z'"):
        sftm_app.search(classifiers / "base", tasks, {"z": samples["a"]}, folder=tmp_path)
    shutil.rmtree(images / "b")
    assert not (tmp_path / "searches").exists(), "nothing is written before all is known"


def test_ctrl_c_says_that_the_trials_are_kept(
    recipe: Path,
    samples: dict[str, Samples],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("sftm_app.cli_tuning.search_recipe", interrupted)
    images = write_images(tmp_path / "images", samples)
    assert run("search", recipe, "--samples", images, "--output-dir", tmp_path) == 130
    assert "The trials so far are kept" in capsys.readouterr().err
