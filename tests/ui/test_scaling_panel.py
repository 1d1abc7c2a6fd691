"""Pick the scaling without labels, on the Merge tab."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from tab_values import values_of

from sftm_app.errors import InputError, RecipeError
from sftm_app.tuning.unlabelled import SCALINGS, TriedScaling
from sftm_app.ui import loading
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging.scaling_panel import ScalingPanel, scalings_html
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import parse_selection
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.fixture
def tab(studio: Studio) -> MergeTab:
    with gr.Blocks():
        return MergeTab(studio, gr.State(Workspace()), Parts(studio.keeper))


@pytest.fixture
def panel(tab: MergeTab) -> ScalingPanel:
    return tab.scaling


def asked(tab: MergeTab, ws: Workspace) -> dict[Any, Any]:
    return values_of(tab.form, tab.inputs | {tab.scaling.where, tab.scaling.count}, workspace=ws)


def click(*data: object) -> Any:
    return parse_selection({"x": None, "y": None, "customdata": list(data), "curve": 0})


def test_a_scaling_is_picked_and_used(workspace: Workspace, tab: MergeTab, panel: ScalingPanel) -> None:
    values = asked(tab, workspace)
    *steps, last = panel.begin(values)
    assert len(steps) == len(SCALINGS) + 1 and "Use this scaling" not in steps[-1][panel.found]
    assert "Picked: scaling" in last[panel.found] and last[panel.progress] == ""
    assert last[panel.found].count("Use this scaling") == len(SCALINGS)
    settings = panel.settings_with(values, click("scaling", 0.8))
    assert settings is not None and settings.params.scaling == 0.8 and settings.method == "sftm"
    for odd in (click("scaling", "0.8"), click("scaling", 9.0), click("use", 0.8), None):
        assert panel.settings_with(values, odd) is None
    values[tab.form.params.method] = "average"
    assert panel.settings_with(values, click("scaling", 0.8)) is None
    with pytest.raises(RecipeError, match="has no scaling"):
        list(panel.begin(values))


def test_without_inputs_it_says_how_to_add_some(studio: Studio, tab: MergeTab, panel: ScalingPanel) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    with pytest.raises(InputError, match="no labelled samples"):
        list(panel.begin(asked(tab, own)))


def test_the_picked_one_stands_out() -> None:
    shown = scalings_html([TriedScaling(0.4, 0.3), TriedScaling(0.8, 0.1), TriedScaling(1.2, 0.2)], True)
    assert "<strong>0.8</strong>" in shown and "<strong>0.4</strong>" not in shown
