"""The merges of a workspace: found whatever lies beside them, named, coloured, and deleted with care."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sftm_app.errors import InputError, JobError, OutputError
from sftm_app.jobs.events import Started
from sftm_app.jobs.folder import RunFolder, create_run
from sftm_app.jobs.removal import delete_run
from sftm_app.jobs.worker import work
from sftm_app.methods import METHODS
from sftm_app.output.publish import publish
from sftm_app.planning.recipe import make_recipe
from sftm_app.plots.style import merge_colour, merge_pattern, method_colour, method_pattern
from sftm_app.ui.merges import FOLDER, Merges
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace


def merge(studio: Studio, ws: Workspace, method: str = "average", **params: Any) -> RunFolder:
    """A finished run."""
    tasks = [{"path": task.path, "name": task.name} for task in ws.tasks]
    folder = create_run(studio.settings.runs_dir, make_recipe(ws.base, tasks, method, params, device="cpu"))
    folder.append(Started.by(psutil.Process()))
    work(folder, studio.session)
    return folder


@pytest.fixture
def merges(studio: Studio) -> Merges:
    return Merges(studio.settings)


def test_runs_and_saved_models_are_one_list(studio: Studio, workspace: Workspace, merges: Merges) -> None:
    assert merges.of(workspace) == []
    first, second = merge(studio, workspace), merge(studio, workspace, "task_arithmetic", scaling=0.5)
    publish(first.model, studio.settings.saved_dir / "mine")
    found = merges.of(workspace)
    assert [one.name for one in found] == ["Plain average", "Task arithmetic, scaling 0.5"]
    assert [one.run for one in found] == [first, second]
    assert found[0].saved == (studio.settings.saved_dir / "mine",) and found[0].folder == first.model
    assert merges.of(replace(workspace, tasks=workspace.tasks[:2])) == []
    shutil.rmtree(first.path)
    again = {one.id: one for one in merges.of(workspace)}
    assert again.keys() == {one.id for one in found}, "the saved copy is the same merge"
    left = again[found[0].id]
    assert left.run is None and left.folder == studio.settings.saved_dir / "mine"


def test_names_notes_and_colours_outlive_a_restart(studio: Studio, workspace: Workspace, merges: Merges) -> None:
    for _ in range(2):
        merge(studio, workspace)
    one, two = merges.of(workspace)
    assert (one.name, two.name) == ("Plain average", "Plain average (2)")
    merges.describe(two, "  my <b>best</b>\n one ", "line 1\nline 2")
    one, two = Merges(studio.settings).of(workspace)
    assert (two.name, two.settings_name) == ("my <b>best</b> one", "Plain average (2)")
    assert two.about.notes == "line 1\nline 2"
    assert [one.about.place, two.about.place] == [0, 1]
    delete_run(one.run)
    merges.forget(one)
    (left,) = merges.of(workspace)
    assert (left.about.place, left.name) == (1, two.name), "a merge keeps its colour when another one goes"
    third = merge(studio, workspace)
    assert {m.run.run_id: m.about.place for m in merges.of(workspace)}[third.run_id] == 0
    merges.describe(left, "", "")
    assert merges.find(workspace, left.id).about.name == ""
    with pytest.raises(OutputError, match="120 characters"):
        merges.describe(left, "x" * 121, "")
    with pytest.raises(InputError, match="not there any more"):
        merges.find(workspace, "../../etc")


@pytest.mark.parametrize("damage", ["recipe.yaml", "model/sftm_report.json", "model", "about", "stray"])
def test_a_broken_file_does_not_break_the_list(
    studio: Studio, workspace: Workspace, merges: Merges, damage: str
) -> None:
    broken, sound = merge(studio, workspace), merge(studio, workspace)
    ids = [one.id for one in merges.of(workspace)]
    if damage == "about":
        for file in (studio.settings.output_dir / FOLDER).iterdir():
            file.write_bytes(b"\xff{")
    elif damage == "stray":
        studio.settings.saved_dir.mkdir()
        (studio.settings.saved_dir / "file.txt").write_text("x")
        (studio.settings.saved_dir / "other").mkdir()
        (studio.settings.runs_dir / "odd").mkdir()
    elif damage == "model":
        shutil.rmtree(broken.model)
    else:
        (broken.path / damage).write_text("{")
    found = [one.id for one in Merges(studio.settings).of(workspace)]
    assert found == (ids if damage in ("about", "stray") else ids[1:])
    assert sound.report.is_file()


def test_looks_of_merges_are_all_different_from_each_other_and_from_methods() -> None:
    looks = [(merge_colour(place), merge_pattern(place)) for place in range(32)]
    methods = [(method_colour(name), method_pattern(name)) for name in METHODS]
    assert len({*looks, *methods}) == len(looks) + len(methods)


def test_a_run_is_deleted_with_what_the_app_wrote_only(studio: Studio, workspace: Workspace) -> None:
    run = merge(studio, workspace)
    (run.path / "mine.txt").write_text("x")
    with pytest.raises(JobError, match=r"did not write \(mine.txt\)"):
        delete_run(run)
    (run.path / "mine.txt").rename(run.model / "mine.txt")
    with pytest.raises(OutputError, match=r"did not write \(mine.txt\)"):
        delete_run(run)
    assert run.report.is_file() and run.recipe()
    (run.model / "mine.txt").unlink()
    (run.path / "worker.log").write_text("")
    delete_run(run)
    assert not run.path.exists() and list(studio.settings.runs_dir.iterdir()) == []


def test_neither_a_running_merge_nor_a_link_is_deleted(studio: Studio, workspace: Workspace, tmp_path: Path) -> None:
    run = merge(studio, workspace)
    elsewhere = tmp_path / "elsewhere"
    run.path.rename(elsewhere)
    os.symlink(elsewhere, run.path)
    with pytest.raises(JobError, match="is a link"):
        delete_run(run)
    waiting = create_run(studio.settings.runs_dir, run.recipe())
    with pytest.raises(JobError, match="still running"):
        delete_run(waiting)
    assert (elsewhere / "model" / "sftm_report.json").is_file() and waiting.path.is_dir()
