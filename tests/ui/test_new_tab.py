"""A new tab is a file and a line in the table of tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.ui.app import TABS, Page, Tab
from sftm_app.ui.handlers import handle
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace


class CountTab:
    """Says how many tasks are loaded."""

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.workspace = workspace
        self.count = gr.Markdown("No models are loaded.")
        workspace.change(handle(self.show), {workspace}, self.count)

    def show(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return {self.count: f"{len(values[self.workspace].tasks)} tasks are loaded."}


def test_a_new_tab_is_a_file_and_a_line(studio: Studio) -> None:
    page = Page(studio, (*TABS, Tab("count", "Count", lambda page, own: CountTab(page.studio, page.workspace))))
    titles = [block.label for block in page.blocks.blocks.values() if isinstance(block, gr.Tab)]
    assert titles == ["Models", "Inspect", "Merge", "Evaluate", "Count"]
    tab = page.built["count"]
    assert isinstance(tab, CountTab)
    assert tab.show({tab.workspace: Workspace()}) == {tab.count: "0 tasks are loaded."}
    # The page's address can name it, and clicking it is noted for the address.
    assert page.note_tab("count") == {page.tab: "count"}


class Asked:
    """A request for the page with a query."""

    def __init__(self, query: str) -> None:
        self.query_params = query


def test_an_address_names_a_tab(studio: Studio) -> None:
    page = Page(studio, TABS)
    assert page.open(Asked("tab=merge"))[page.tab] == "merge"  # type: ignore[arg-type]
    for query in ("", "tab=nowhere", "tab=%3Cb%3E"):
        assert page.open(Asked(query))[page.tab] == "models"  # type: ignore[arg-type]
