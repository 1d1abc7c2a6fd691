"""A finished merge opens with what it can do, measured at once where samples are known."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from test_evaluate import text_models as text_models
from test_evaluate import text_studio as text_studio
from test_merges import merge

from sftm_app.errors import InputError, JobError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.packs import load_samples
from sftm_app.jobs.folder import RunFolder
from sftm_app.ui import loading
from sftm_app.ui.app import TABS, Page
from sftm_app.ui.merging import result_scores
from sftm_app.ui.merging.result_scores import board_key, measure_run, scores_of, workspace_of
from sftm_app.ui.merging.run_panel import RunPanel
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.fixture
def panel(studio: Studio) -> RunPanel:
    with gr.Blocks():
        made = RunPanel(studio)
        made.lay_out_buttons()
        made.lay_out()
    return made


def finish() -> None:
    """Wait until nothing is measured any more."""
    for thread in threading.enumerate():
        if thread.name == "compare":
            thread.join(60)


def make_old(run: RunFolder) -> None:
    long_ago = time.time() - 10 * result_scores.JUST_ENDED_S
    os.utime(run.report, (long_ago, long_ago))


def test_a_merge_is_measured_at_once_and_opens_with_its_scores(
    studio: Studio, workspace: Workspace, panel: RunPanel
) -> None:
    run = merge(studio, workspace, "task_arithmetic", scaling=0.5)
    first = panel.show(run.run_id)
    assert first[panel.timer].active and first[panel.stop_measuring]["visible"] and not first[panel.measure]["visible"]
    watched = {panel.run_id: run.run_id, panel.scored: first[panel.scored]}
    assert first[panel.scored] is not None and panel.runs not in panel.watch(watched)
    finish()
    assert set(panel.watch(watched)) > {panel.scores, panel.bars, panel.timer}
    shown = panel.show(run.run_id)
    assert not shown[panel.timer].active and not shown[panel.stop_measuring]["visible"] and shown[panel.next]["visible"]
    scores, pool = shown[panel.scores], studio.model_pool(workspace)
    for task in studio.packs[0].tasks:
        samples = load_samples(task)
        for model in (
            BASE,
            INDIVIDUAL,
            method_candidate("average"),
            method_candidate("task_arithmetic", {"scaling": 0.5}),
        ):
            right = [one.correct for one in pool.model(model, task.name).answer(samples)]
            assert f"{sum(map(bool, right)) / len(right):.1%}" in scores
    assert "12 samples per task of the demo" in scores and "95 % intervals" in scores
    assert all(f">{title}<" in scores for title in ("This merge", "Plain average", "Individual", "Base"))
    assert [trace.name for trace in shown[panel.bars]["value"].data][-1] in ("This merge", "Plain average")
    # What does not predict accuracy stays folded.
    assert "error" not in scores and not panel.details.open


def test_it_is_known_after_a_restart(studio: Studio, workspace: Workspace) -> None:
    run = merge(studio, workspace)
    measure_run(studio, run)
    finish()
    again = Studio(studio.settings, studio.session)
    found = scores_of(again, run)
    assert not found.measuring and not found.askable and found.figure is not None
    assert again.comparisons.board(board_key(run)) is None, "nothing was measured again"


def test_an_old_large_merge_is_measured_when_asked(
    studio: Studio, workspace: Workspace, panel: RunPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = merge(studio, workspace)
    make_old(run)
    monkeypatch.setattr(result_scores, "merges_quickly", lambda studio, ws: False)
    shown = panel.show(run.run_id)
    assert shown[panel.measure]["visible"] and "not measured on them yet" in shown[panel.scores]
    panel.begin_measuring({panel.run_id: run.run_id})
    finish()
    shown = panel.show(run.run_id)
    assert not shown[panel.measure]["visible"] and "This merge" in shown[panel.scores]
    assert "Plain average" not in shown[panel.scores], "it would have to be merged first"


def test_what_is_cancelled_is_not_begun_again_by_itself(
    studio: Studio, workspace: Workspace, panel: RunPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    carry_out = studio.comparisons._carry_out

    def held(job: Any) -> Any:
        go.wait(60)
        return carry_out(job)

    monkeypatch.setattr(studio.comparisons, "_carry_out", held)
    run = merge(studio, workspace)
    assert panel.show(run.run_id)[panel.stop_measuring]["visible"]
    panel.cancel_measuring({panel.run_id: run.run_id})
    go.set()
    finish()
    shown = panel.show(run.run_id)
    assert "was cancelled" in shown[panel.measured] and shown[panel.measure]["visible"]
    board = studio.comparisons.board(board_key(run))
    assert board is not None and board.state == "cancelled"


def test_without_samples_it_says_how_to_add_some(studio: Studio, panel: RunPanel) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    run = merge(studio, own)
    shown = panel.show(run.run_id)
    assert "No labelled samples yet" in shown[panel.scores] and "one subfolder per task" in shown[panel.scores]
    assert "error" not in shown[panel.scores] and not shown[panel.measure]["visible"] and not shown[panel.timer].active
    with pytest.raises(JobError, match="No labelled samples are known"):
        measure_run(studio, run)


def test_samples_next_to_the_base_are_used(text_studio: Studio) -> None:
    ws = loading.load_own(text_studio, "bert/base", ["bert/a", "bert/b"])
    folder = text_studio.settings.models_dir / "bert" / "samples"
    folder.mkdir()
    for task in "ab":
        (folder / f"{task}.csv").write_text("text,label\nthe cat,good\na dog,bad\n")
    run = merge(text_studio, ws)
    assert workspace_of(text_studio, run).inputs == ws.inputs
    assert scores_of(text_studio, run).measuring
    finish()
    assert "2 samples per task of" in scores_of(text_studio, run).html


def test_samples_that_cannot_be_read_are_said_and_stop_nothing(text_studio: Studio, tmp_path: Path) -> None:
    ws = loading.load_own(text_studio, "bert/base", ["bert/a", "bert/b"])
    folder = text_studio.settings.models_dir / "bert" / "samples"
    folder.mkdir()
    (folder / "a.csv").write_text("nothing\n")
    found = scores_of(text_studio, merge(text_studio, ws))
    assert "was not measured" in found.html and "needs the columns" in found.html and not found.measuring


def test_one_click_goes_to_evaluate_with_the_merge_ticked(studio: Studio, workspace: Workspace) -> None:
    page = Page(studio, TABS)
    run = merge(studio, workspace)
    values = {page.workspace: workspace, page.merge.run.run_id: run.run_id}
    shown = page.evaluate_merge(values)
    assert shown[page.tabs].selected == "evaluate"
    assert shown[page.evaluate.models]["value"] == ["base", "individual", "method:average", f"folder:{run.model}"]
    own = loading.load_own(studio, "base", ["a", "b"])
    with pytest.raises(InputError, match="other models than those that are loaded"):
        page.evaluate_merge(values | {page.workspace: own})
    with pytest.raises(JobError, match="No merge is chosen"):
        page.evaluate_merge(values | {page.merge.run.run_id: ""})


def test_while_nothing_changes_only_the_bar_is_sent(
    studio: Studio, workspace: Workspace, panel: RunPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, carry_out = threading.Event(), studio.comparisons._carry_out

    def held(job: Any) -> Any:
        go.wait(60)
        return carry_out(job)

    monkeypatch.setattr(studio.comparisons, "_carry_out", held)
    run = merge(studio, workspace)
    first = panel.show(run.run_id)
    again = panel.show(run.run_id)  # the job has begun by now, and waits
    assert first[panel.scored] is not None
    assert set(panel.watch({panel.run_id: run.run_id, panel.scored: again[panel.scored]})) == {panel.measured}
    go.set()
    finish()
