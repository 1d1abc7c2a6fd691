"""Find the best merge on the Merge tab: the handlers as plain functions, and the thread behind them."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr
import pytest
from tab_values import after, values_of

from sftm_app.errors import JobError
from sftm_app.methods.settings import merge_settings
from sftm_app.tuning import search as searching
from sftm_app.ui import loading
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging.search_panel import SearchPanel
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.searches import SearchBoard
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.widgets import parse_selection
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")
METHODS = ["sftm", "average"]


@pytest.fixture
def tab(studio: Studio) -> MergeTab:
    with gr.Blocks():
        return MergeTab(studio, gr.State(Workspace()), Parts(studio.keeper))


@pytest.fixture
def panel(tab: MergeTab) -> SearchPanel:
    return tab.search


def asked(tab: MergeTab, ws: Workspace, trials: int, **changes: Any) -> dict[Any, Any]:
    """The values of everything on the tab, with this workspace loaded and so many trials asked for."""
    panel = tab.search
    opened = {component for component in panel.opened if hasattr(component, "value")}
    values = after(values_of(tab.form, tab.inputs | opened, workspace=ws), panel.open(ws))
    values |= {panel.methods: METHODS, panel.trials: trials}
    return values | {getattr(panel, name): value for name, value in changes.items()}


def wait(studio: Studio, ws: Workspace) -> SearchBoard:
    """The board once its thread has ended."""
    for thread in threading.enumerate():
        if thread.name == "search":
            thread.join(60)
    board = studio.searches.board(workspace_key(ws))
    assert board is not None
    return board


def click(*data: object) -> Any:
    return parse_selection({"x": None, "y": None, "customdata": list(data), "curve": 0})


def test_a_search_runs_and_is_there_after_a_restart(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: SearchPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert panel.open(workspace)[panel.methods]["value"][0] == "sftm" and not panel.restore(
        {panel.workspace: workspace}
    )
    started = panel.begin(asked(tab, workspace, 3))
    assert started[panel.stop]["visible"] and started[panel.timer].active and not started[panel.start]["interactive"]
    board = wait(studio, workspace)
    assert board.state == "done" and len(board.search.tried) == 3 and board.note == ""
    shown = panel.show(workspace, None)
    assert "3 trials" in shown[panel.progress] and "own accuracy" in shown[panel.best]
    assert "Plain average" in shown[panel.table] and "samples per task of the demo" in shown[panel.table]
    assert shown[panel.plots]["visible"] and shown[panel.fold]["open"] and not shown[panel.timer].active
    assert {shown[panel.x]["value"], shown[panel.y]["value"]} < {"a", "b", "c"}
    assert not {panel.table, panel.chart} & set(panel.show(workspace, board.drawn)), "nothing is sent twice"
    assert panel.x not in panel.show(workspace, (), ("c", "b")), "the tasks that a person chose stay"
    drawn = panel.draw({panel.workspace: workspace, panel.x: "c", panel.y: "b"})[panel.chart]
    assert drawn.layout.xaxis.title.text.startswith("c:") and len(drawn.data) >= 3

    again = panel.restore({panel.workspace: workspace})
    assert (again[panel.methods], again[panel.trials]) == (METHODS, 3), "a page that is opened later asks for the same"

    # One click puts a trial's settings into the form; a click in the plot names them first.
    best = board.search.best
    assert best is not None
    number = board.search.tried.index(best)
    settings = panel.settings_of(workspace, click("use", number))
    assert settings == best.settings
    written = after(asked(tab, workspace, 3), tab.take(workspace, settings))
    assert tab.form.read_settings(written)[0].params == best.settings.params
    monkeypatch.setattr("sftm_app.ui.merging.search_panel.parse_selection", lambda event: click("trial", number))
    picked = panel.pick({panel.workspace: workspace}, gr.EventData(None, {}))
    assert f"Trial {number + 1}" in picked[panel.picked] and "Use these settings" in picked[panel.picked]
    assert panel.settings_of(workspace, click("use", "method:average")) is not None, "rows of the table too"
    for odd in (click("use", 99), click("use", -1), click("use", 0.5), click("use", "method:none"), click(3), None):
        assert panel.settings_of(workspace, odd) is None

    # Another server finds it on disk, and Search goes on with it.
    other = Studio(studio.settings, studio.session)
    with gr.Blocks():
        later = MergeTab(other, gr.State(Workspace()), Parts(other.keeper))
    found = later.search.restore({later.search.workspace: workspace})
    assert "3 trials are kept of an earlier search" in found[later.search.progress]
    assert found[later.search.methods] == METHODS and found[later.search.trials] == 3
    assert "Plain average" in found[later.search.table]
    later.search.begin(asked(later, workspace, 4))
    grown = wait(other, workspace)
    assert [one.settings for one in grown.search.tried[:3]] == [one.settings for one in board.search.tried]
    assert len(grown.search.tried) == 4
    later.search.begin(asked(later, workspace, 1, limit=10, methods=["average"]))
    assert "another search" in later.search.show(workspace, None)[later.search.progress]
    assert len(wait(other, workspace).search.tried) == 1


def test_stop_and_cancel(
    studio: Studio, workspace: Workspace, tab: MergeTab, panel: SearchPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()
    first = searching.propose

    def held(*arguments: Any) -> Any:
        reached.set()
        go.wait(60)
        return first(*arguments)

    monkeypatch.setattr(searching, "propose", held)
    values = asked(tab, workspace, 50)
    panel.begin(values)
    assert reached.wait(60)
    with pytest.raises(JobError, match="runs already"):
        panel.begin(values)
    panel.end(values)
    go.set()
    board = wait(studio, workspace)
    assert board.state == "done" and len(board.search.tried) == 1 and board.search.comparison is not None
    reached.clear()
    go.clear()
    panel.begin(values)
    assert reached.wait(60)
    panel.give_up(values)
    go.set()
    assert wait(studio, workspace).state == "cancelled"
    shown = panel.watch(values)
    assert "was cancelled" in shown[panel.progress] and "1 trial is kept" in shown[panel.progress]


def test_without_samples_it_says_how_to_add_some(studio: Studio, tab: MergeTab, panel: SearchPanel) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    said = panel.begin(asked(tab, own, 3))[panel.progress]
    assert "cannot be searched yet" in said and "one subfolder per task" in said
    assert merge_settings("average", {}, own.weights).method not in said
