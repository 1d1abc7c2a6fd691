"""The Evaluate tab opens as it was left: the task, the ticked models, the sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from tab_values import after, values_of

from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.ui.evaluate.shown import Shown, shown_from_text, shown_to_text
from sftm_app.ui.evaluate.tab import EvaluateTab
from sftm_app.ui.keeping import Parts
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")

TIES = method_candidate("ties").key


def open_tab(studio: Studio) -> EvaluateTab:
    with gr.Blocks(), gr.Tab() as tab:
        return EvaluateTab(studio, gr.State(Workspace()), tab, Parts(studio.keeper))


def opened(tab: EvaluateTab, ws: Workspace) -> dict[Any, Any]:
    """The values of the tab's inputs once a workspace is open."""
    values = values_of(tab, tab.inputs, workspace=ws)
    return after(values, tab.open_workspace(values))


def test_ticks_task_and_sample_outlive_a_reload_and_a_restart(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    values = opened(tab, workspace)
    assert TIES not in values[tab.models]
    sample = ImageSamples(np.full((1, 8, 8), 7, np.uint8), np.array([2]))
    tab.note(values | {tab.task: "b", tab.ticked: (BASE.key, TIES), tab.sample: sample})
    for again in (open_tab(studio), open_tab(Studio(studio.settings, studio.session))):
        shown = again.open_workspace({again.workspace: workspace})
        assert shown[again.models]["value"] == [BASE.key, TIES] and shown[again.ticked] == (BASE.key, TIES)
        assert shown[again.task]["value"] == "b"
        assert (shown[again.sample].images == 7).all() and shown[again.sample].labels.tolist() == [2]
        assert shown[again.boxes.pad]["visible"] and shown[again.boxes.pad]["value"].startswith("gray8:8x8:")
        steps = list(again.ask_kept(opened(again, workspace)))
        assert "label 2 of b" in steps[-1][again.verdict]


def test_a_link_ticks_what_it_names(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    tab.note(opened(tab, workspace) | tab.tick({tab.models: [TIES]}))
    text = shown_to_text(Shown("c", (INDIVIDUAL.key, "method:nothing")), studio.settings.output_dir)
    shown = tab.open_workspace({tab.workspace: replace(workspace, asked=(("evaluate", text),))})
    assert shown[tab.models]["value"] == [INDIVIDUAL.key] and shown[tab.task]["value"] == "c"


def test_nothing_ticked_stays_so(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    tab.note(opened(tab, workspace) | tab.tick({tab.models: []}))
    again = open_tab(studio)
    assert opened(again, workspace)[again.ticked] == ()


def test_selecting_the_tab_before_the_browser_shows_the_ticks_unticks_nothing(
    studio: Studio, workspace: Workspace
) -> None:
    """After a reload the tab is selected while its models are on their way: the browser still says that none is."""
    tab = open_tab(studio)
    values = opened(tab, workspace)
    behind = values | {tab.models: [], tab.task: None}
    assert tab.offer_again(behind)[tab.models]["value"] == list(values[tab.ticked]) != []
    # Earlier still, while the workspace opens on the server.
    assert tab.offer_again(behind | {tab.offered: [], tab.ticked: ()}) == {}
    assert tab.note(behind | {tab.ticked: ()}) == {}, "what the browser does not show yet is not kept"


def test_a_sample_of_another_kind_is_not_shown(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    text = shown_to_text(Shown("a", (), TextSamples(("a cat",), (None,))), studio.settings.output_dir)
    for asked in (text, "task=a&models=&sample=garbage", "task=<b>&models=%00"):
        shown = tab.open_workspace({tab.workspace: replace(workspace, asked=(("evaluate", asked),))})
        assert shown[tab.sample] is None and shown[tab.task]["value"] == "a"


def test_an_address_does_not_tell_where_the_output_is(tmp_path: Path) -> None:
    output = tmp_path / "my output"
    keys = ("base", f"folder:{output}/runs/x y/model", "folder:/elsewhere/model")
    text = shown_to_text(Shown("a", keys), output)
    assert "output" not in text
    assert shown_from_text(text, output) == Shown("a", keys)
    assert shown_from_text("", output) == Shown()
    assert shown_from_text(shown_to_text(Shown("a", ()), output), output) == Shown("a", ())
