"""A new tab is a file and a line in the table of tabs. What it shows is kept as what the others show is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from sftm_app.ui.app import TABS, Page, Tab
from sftm_app.ui.handlers import handle
from sftm_app.ui.keeping import Parts
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, store


class CountTab:
    """Counts the tasks, in words that the person can change."""

    def __init__(self, studio: Studio, workspace: gr.State, parts: Parts) -> None:
        self.workspace, self.part = workspace, parts.add("count")
        self.unit = gr.Textbox("tasks")
        self.count = gr.Markdown("No models are loaded.")
        shown = {self.unit, self.count, self.part.shown}
        workspace.change(handle(self.open), {workspace}, shown)
        self.unit.change(handle(self.note), {workspace, self.unit}, shown)

    def open(self, values: dict[Any, Any]) -> dict[Any, Any]:
        ws = values[self.workspace]
        unit, _ = self.part.asked(ws)
        return {self.unit: unit or "tasks", self.count: f"{len(ws.tasks)} {unit or 'tasks'} are loaded."}

    def note(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return self.part.note(values[self.workspace], values[self.unit])


MORE = (*TABS, Tab("count", "Count", lambda page, own: CountTab(page.studio, page.workspace, page.parts)))


def test_a_new_tab_is_a_file_and_a_line(studio: Studio) -> None:
    page = Page(studio, MORE)
    titles = [block.label for block in page.blocks.blocks.values() if isinstance(block, gr.Tab)]
    assert titles == ["Models", "Inspect", "Merge", "Evaluate", "Count"]
    tab = page.built["count"]
    assert isinstance(tab, CountTab)
    assert tab.open({tab.workspace: Workspace()})[tab.count] == "0 tasks are loaded."
    # The page's address can name it, and clicking it is noted for the address.
    assert page.note_tab("count", {page.workspace: Workspace()})[page.tab] == "count"


def test_what_a_new_tab_shows_is_kept_and_shared(studio: Studio, workspace: Workspace) -> None:
    tab = Page(studio, MORE).built["count"]
    assert isinstance(tab, CountTab)
    noted = tab.note({tab.workspace: workspace, tab.unit: "models"})
    assert noted == {tab.part.shown: "models"}, "in the address"
    # After a restart, and in another tab of the browser.
    again = Page(Studio(studio.settings, studio.session), MORE).built["count"]
    assert isinstance(again, CountTab)
    assert again.open({again.workspace: workspace})[again.count] == "3 models are loaded."
    # From a link, which counts more.
    linked = replace(workspace, asked=(("count", "nets"),))
    assert again.open({again.workspace: linked})[again.count] == "3 nets are loaded."


class Asked:
    """A request for the page with a query."""

    def __init__(self, query: str) -> None:
        self.query_params = query


def test_an_address_names_a_tab(studio: Studio) -> None:
    page = Page(studio, TABS)
    assert page.open(Asked("tab=merge"))[page.tab] == "merge"  # type: ignore[arg-type]
    for query in ("", "tab=nowhere", "tab=%3Cb%3E"):
        assert page.open(Asked(query))[page.tab] == "models"  # type: ignore[arg-type]


def test_an_address_is_opened_again_although_nothing_in_it_changed(studio: Studio, workspace: Workspace) -> None:
    page = Page(studio, TABS)
    store(studio.settings.output_dir, workspace)
    asked = Asked("demo=tiny&tab=merge&merge=method%3Daverage")
    first = page.open(asked)[page.workspace]  # type: ignore[arg-type]
    assert first.asked == (("merge", "method=average"),) and first.inputs == workspace.inputs
    back = Event({"query": asked.query_params, "onlyTab": False})
    second = page.go({page.workspace: first}, back)[page.workspace]  # type: ignore[arg-type]
    assert second != first and replace(second, visit=first.visit) == first


class Event:
    """What the address bar reports when a person went back or forward."""

    def __init__(self, data: object) -> None:
        self._data = data


def test_going_back_to_another_tab_leaves_the_models_alone(studio: Studio, workspace: Workspace) -> None:
    page = Page(studio, TABS)
    shown = page.go({page.workspace: workspace}, Event({"query": "demo=tiny&tab=merge", "onlyTab": True}))  # type: ignore[arg-type]
    assert shown[page.tab] == "merge" and page.workspace not in shown
    for odd in (None, 7, {"query": 3}, {"query": "x" * 100_000, "onlyTab": True}, {"query": "tab=nowhere"}):
        shown = page.go({page.workspace: workspace}, Event(odd))  # type: ignore[arg-type]
        assert shown[page.tab] == "models" and shown[page.workspace].inputs == workspace.inputs
