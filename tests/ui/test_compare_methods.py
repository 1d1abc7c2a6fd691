"""Compare methods on the Merge tab: the handlers as plain functions, and the thread behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import gradio as gr
import psutil
import pytest
from tab_values import after, values_of

from sftm_app.errors import InputError, JobError, ResourceError
from sftm_app.evaluation import measuring
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import INDIVIDUAL, method_candidate
from sftm_app.evaluation.packs import load_samples
from sftm_app.methods import METHODS
from sftm_app.methods.settings import merge_settings
from sftm_app.ui import comparisons, loading
from sftm_app.ui.comparisons import Board
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging.comparison_panel import ComparisonPanel, candidates_of
from sftm_app.ui.merging.kept_table import PART
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.widgets import parse_selection
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.fixture
def tab(studio: Studio) -> MergeTab:
    with gr.Blocks():
        return MergeTab(studio, gr.State(Workspace()), Parts(studio.keeper))


@pytest.fixture
def panel(tab: MergeTab) -> ComparisonPanel:
    return tab.comparison


def asked(tab: MergeTab, ws: Workspace, methods: list[str], **changes: Any) -> dict[Any, Any]:
    """The values of everything on the tab, with this workspace loaded and these methods ticked."""
    panel = tab.comparison
    values = values_of(tab.form, tab.inputs | panel.opened, workspace=ws)
    return after(values, panel.open(ws)) | {panel.methods: methods} | {getattr(panel, k): v for k, v in changes.items()}


def wait(studio: Studio, ws: Workspace) -> Board:
    """The board once its thread has ended."""
    for thread in threading.enumerate():
        if thread.name == "compare":
            thread.join(60)
    board = studio.comparisons.board(workspace_key(ws))
    assert board is not None
    return board


def link(key: object) -> Any:
    return parse_selection({"x": None, "y": None, "customdata": ["use", key], "curve": 0})


def test_the_methods_that_fit_are_offered_with_what_they_are_for(panel: ComparisonPanel, workspace: Workspace) -> None:
    shown = panel.open(workspace)
    names = [name for _, name in shown[panel.methods]["choices"]]
    assert names == [name for name in METHODS if name != "slerp"]
    assert shown[panel.methods]["value"] == names[:3]
    about = shown[panel.about]
    assert "Not offered: SLERP merges exactly 2 tasks." in about
    assert all(METHODS[name].summary in about and METHODS[name].reference in about for name in ("sftm", "average"))
    two = Workspace(workspace.base, workspace.tasks[:2])
    assert "slerp" in [name for _, name in panel.open(two)[panel.methods]["choices"]]


def test_a_comparison_is_measured_shown_and_kept(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: ComparisonPanel
) -> None:
    values = asked(tab, workspace, ["average", "sftm"])
    values[next(c for c in tab.form.inputs if c.elem_id == "scaling")] = 0.5
    started = panel.begin(values)
    assert set(started) == panel.views and not started[panel.start]["interactive"]
    board = wait(studio, workspace)
    assert board.state == "done"
    # A page that is opened later shows the same.
    shown = panel.open(workspace)
    table, plot = shown[panel.table], shown[panel.chart]["value"]
    assert "SFTM, scaling 0.5" in table and "12 samples per task of the demo" in table
    assert shown[panel.clear]["visible"] and not shown[panel.timer].active and shown[panel.progress] == ""
    pool, pack = studio.model_pool(workspace), studio.packs[0]
    for row in board.comparison.rows:
        for task in pack.tasks:
            one = accuracy(pool.model(row.candidate, task.name), load_samples(task))
            assert sum(row.measurement.correct[task.name]) / 12 == pytest.approx(one)
            assert f"{one:.1%}" in table
    bars = {m.name: m for m in plot.data}
    merges = [row.accuracy.value for row in board.comparison.rows if row.is_merge and row.accuracy]
    assert list(bars["mean accuracy"].x) == pytest.approx(sorted(merges, reverse=True))
    # What the page shows already is not sent again.
    assert not {panel.table, panel.chart} & set(panel.show(workspace, board.drawn))

    sftm = next(row.candidate for row in board.comparison.rows if row.candidate.kind == "sftm")
    settings = panel.settings_of(workspace, link(sftm.key))
    assert settings == merge_settings("sftm", {"scaling": 0.5}, workspace.weights)
    assert tab.form.read(after(values, tab.form.write_settings(workspace, settings))).params.scaling == 0.5
    for odd in (link("method:none"), link(INDIVIDUAL.key), link(3), parse_selection({"x": 1}), None):
        assert panel.settings_of(workspace, odd) is None

    panel.begin(values | {panel.methods: ["average", "ties"]})
    grown = wait(studio, workspace)
    assert [row.candidate.kind for row in grown.comparison.rows[2:]] == ["sftm", "average", "ties"]
    assert grown.comparison.rows[2] == next(row for row in board.comparison.rows if row.candidate == sftm)
    panel.begin(values | {panel.methods: ["average"], panel.limit: 10})
    assert len(wait(studio, workspace).comparison.rows) == 3, "other samples begin another table"
    cleared = panel.forget(values)
    assert cleared[panel.table] == "" and not cleared[panel.chart]["visible"]


def test_only_the_current_method_takes_the_settings_of_the_form(workspace: Workspace) -> None:
    settings = merge_settings("ties", {"density": 0.4}, (1.0, 2.0, 1.0))
    first, second = candidates_of(workspace, settings, ["average", "ties", "no such method"])
    assert (first.kind, dict(first.params), first.weights) == ("average", {}, (1.0, 2.0, 1.0))
    assert (second.kind, dict(second.params), second.weights) == ("ties", {"density": 0.4}, (1.0, 2.0, 1.0))
    default = merge_settings("ties", {}, workspace.weights)
    assert candidates_of(workspace, default, ["ties"]) == [method_candidate("ties")]


def test_without_samples_it_says_how_to_add_some(studio: Studio, tab: MergeTab, panel: ComparisonPanel) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    said = panel.begin(asked(tab, own, ["average"]))[panel.progress]
    assert "cannot be measured yet" in said and "one subfolder per task" in said
    assert studio.comparisons.board(workspace_key(own)) is None
    with pytest.raises(InputError, match="No method is ticked"):
        panel.begin(asked(tab, own, []))


def test_a_failed_method_is_named_under_the_table(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: ComparisonPanel
) -> None:
    panel.begin(asked(tab, workspace, ["slerp", "average"]))
    board = wait(studio, workspace)
    assert board.state == "done" and [row.state for row in board.comparison.rows] == ["done", "done", "done", "failed"]
    assert "SLERP: SLERP merges exactly 2 tasks" in panel.show(workspace, None)[panel.table]


class Held:
    """Steps of a comparison that wait before the second one until they are let go."""

    def __init__(self, compare: Callable[..., Any]) -> None:
        self.compare, self.reached, self.go = compare, threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        steps = self.compare(*arguments)
        yield next(steps)
        self.reached.set()
        self.go.wait(60)
        yield from steps


def test_one_runs_at_a_time_and_cancel_keeps_what_is_done(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: ComparisonPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel.begin(asked(tab, workspace, ["average"]))
    wait(studio, workspace)
    held = Held(comparisons.compare)
    monkeypatch.setattr(comparisons, "compare", held)
    values = asked(tab, workspace, ["average", "ties"])
    running = panel.begin(values)
    assert held.reached.wait(60)
    assert running[panel.cancel]["visible"] and running[panel.timer].active and not running[panel.clear]["visible"]
    with pytest.raises(JobError, match="being compared already"):
        panel.begin(values)
    panel.forget(values)
    panel.stop(values)
    held.go.set()
    board = wait(studio, workspace)
    assert board.state == "cancelled"
    assert [row.candidate.kind for row in board.comparison.rows] == ["base", "individual", "average"]
    shown = panel.watch(values)
    assert "was cancelled" in shown[panel.progress] and shown[panel.start]["interactive"]
    assert "Plain average" in shown[panel.table]
    held.go.clear()
    held.reached.clear()
    panel.begin(values | {panel.limit: 10})
    assert held.reached.wait(60)
    panel.stop(values)
    held.go.set()
    assert not wait(studio, workspace).comparison.rows
    assert panel.watch(values)[panel.table] == "", "nothing was measured with these samples"


def test_models_that_do_not_fit_into_memory_are_refused(
    workspace: Workspace, tab: MergeTab, panel: ComparisonPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    with pytest.raises(ResourceError, match="1 kB are free"):
        panel.begin(asked(tab, workspace, ["average"]))


def test_an_error_of_ours_ends_it_with_a_sentence(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: ComparisonPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        yield arguments[1]
        raise RuntimeError("a bug")

    monkeypatch.setattr(comparisons, "compare", broken)
    panel.begin(asked(tab, workspace, ["average"]))
    assert wait(studio, workspace).state == "failed"
    shown = panel.watch(asked(tab, workspace, []))
    assert "The measurement stopped" in shown[panel.progress] and "a bug" not in shown[panel.progress]


def test_the_table_outlives_a_restart_and_nothing_is_measured_again(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: ComparisonPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel.begin(asked(tab, workspace, ["average", "task_arithmetic"], limit=10))
    before = wait(studio, workspace)

    def again() -> tuple[Studio, ComparisonPanel]:
        restarted = Studio(studio.settings, studio.session)
        with gr.Blocks():
            return restarted, MergeTab(restarted, gr.State(Workspace()), Parts(restarted.keeper)).comparison

    def measured(*arguments: Any) -> Any:
        raise AssertionError("nothing is measured anew")

    monkeypatch.setattr(measuring, "answers_of", measured)
    restarted, shown = again()
    assert shown.restore({shown.workspace: workspace})[shown.limit] == 10
    after_it = wait(restarted, workspace)
    titles = [row.candidate.title for row in after_it.comparison.rows]
    assert titles == [row.candidate.title for row in before.comparison.rows] and len(titles) == 4
    assert all(row.state == "done" for row in after_it.comparison.rows)
    assert shown.restore({shown.workspace: workspace}) == {}, "it is there already"

    shown.forget({shown.workspace: workspace, shown.drawn: None})
    restarted, shown = again()
    assert shown.restore({shown.workspace: workspace}) == {}
    for garbage in ("{", '{"rows": [{"method": "none"}], "limit": 10}', '{"rows": [], "limit": -1}'):
        restarted.keeper.put(workspace, PART, garbage)
        assert shown.restore({shown.workspace: workspace}) == {}
