"""Where everything of the Inspect tab stands. What it does is wired in tab.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.inspection.measures import MEASURES
from sftm_app.ui.inspect.glossary import words_html
from sftm_app.ui.inspect.steer_panel import SteerControls, build_steer
from sftm_app.ui.inspect.what_if_panel import WhatIfControls, build_views, build_what_if, lost_help
from sftm_app.ui.trying.evaluate_inputs import Inputs, build_inputs
from sftm_app.ui.view import FIRST_MEASURE
from sftm_app.ui.widgets import LinkedHtml, PlotlyView
from sftm_app.ui.widgets.html import Safe, empty_state, heading

ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class Side:
    """One column of the comparison: the outputs of compare_panel.side."""

    title: gr.HTML
    spectrum: PlotlyView
    bars: PlotlyView
    figures: gr.HTML

    @property
    def views(self) -> list[Any]:
        return [self.title, self.spectrum, self.bars, self.figures]


@dataclass(frozen=True)
class Components:
    """Everything on the tab that an event reads or redraws."""

    empty: gr.HTML
    body: gr.Column
    measure: gr.Dropdown
    about: gr.Dropdown
    layer: gr.Dropdown
    pin: gr.Button
    unpin: gr.Button
    measure_help: gr.HTML
    layers_map: PlotlyView
    title: gr.HTML
    warnings: LinkedHtml
    spectrum: PlotlyView
    clusters: gr.HTML
    what_if: WhatIfControls
    tasks_read: PlotlyView
    tasks_write: PlotlyView
    tasks_both: PlotlyView
    first: gr.Dropdown
    second: gr.Dropdown
    top: gr.Slider
    pair_read: PlotlyView
    pair_write: PlotlyView
    pair_both: PlotlyView
    angles: PlotlyView
    task: gr.Dropdown
    number: gr.Number
    feature: gr.HTML
    reasons: PlotlyView
    neighbours: LinkedHtml
    where: gr.Textbox
    tokens: gr.HTML
    excited: gr.HTML
    inputs: Inputs
    steer: SteerControls
    own_excited: gr.HTML
    compare: gr.Column
    compare_note: gr.HTML
    pinned_side: Side
    now_side: Side


def lay_out() -> Components:
    """Build the tab's components, top to bottom."""
    empty = gr.HTML(
        empty_state("Nothing to inspect yet", "Load models on the Models tab; one click on a demo is enough."),
        apply_default_css=False,
    )
    with gr.Column(visible=False, elem_classes="sf-stack") as body:
        made: dict[str, Any] = {"empty": empty, "body": body}
        made |= _map() | _layer() | _pairs() | _feature() | _compare()
    return Components(**made)


def _map() -> dict[str, Any]:
    with gr.Row(equal_height=False):
        measure = gr.Dropdown(
            [(measure.title, measure.name) for measure in MEASURES.values()],
            value=FIRST_MEASURE,
            label="Measure",
            info="What the map's colours mean.",
            scale=2,
            min_width=200,
            elem_id="measure",
        )
        about = gr.Dropdown(
            [(ALL_TASKS, "")], value="", label="Of", info="All tasks together, or one.", min_width=160, elem_id="about"
        )
        layer = gr.Dropdown(
            label="Layer",
            info="Click a cell of the map, or choose a layer here.",
            choices=[],
            value=None,
            scale=3,
            # So wide that a whole layer's name fits; in a narrow window it moves below the measures.
            min_width=400,
            elem_id="layer",
        )
        with gr.Column(scale=1, min_width=120, elem_classes="sf-buttons"):
            pin = gr.Button("Pin this view", size="sm", elem_id="pin")
            unpin = gr.Button("Unpin", size="sm", visible=False, elem_id="unpin")
    measure_help = gr.HTML(apply_default_css=False)
    gr.HTML(words_html(), apply_default_css=False)
    layers_map = PlotlyView(label="Map of the model", filename="map", elem_id="layer-map", min_plot_height=300)
    return {
        "measure": measure,
        "about": about,
        "layer": layer,
        "pin": pin,
        "unpin": unpin,
        "measure_help": measure_help,
        "layers_map": layers_map,
    }


def _layer() -> dict[str, Any]:
    title = gr.HTML(apply_default_css=False, elem_id="layer-title")
    warnings = LinkedHtml(elem_id="warnings")
    with gr.Row(equal_height=False, elem_classes="sf-split"):
        with gr.Column(scale=3, min_width=420, elem_classes="sf-stack"):
            spectrum = PlotlyView(label="Singular spectra of the tasks", filename="spectra", elem_id="spectra")
            clusters = gr.HTML(apply_default_css=False)
            bars, figures = build_views()
            gr.HTML(lost_help(), apply_default_css=False)
        with gr.Column(scale=2, min_width=340, elem_id="what-if"):
            gr.HTML(
                heading("What if", "Settings of a merge; the plots beside show what they would keep in this layer."),
                apply_default_css=False,
            )
            what_if = build_what_if(bars, figures)
    return {"title": title, "warnings": warnings, "spectrum": spectrum, "clusters": clusters, "what_if": what_if}


def _pairs() -> dict[str, Any]:
    gr.HTML(
        heading(
            "Where tasks meet",
            "Tasks that read the same input directions and write the same output directions interfere. Click a "
            "pair of tasks, or choose them below, to see their features one by one; click one of them to open it.",
        ),
        apply_default_css=False,
        elem_id="pairs",
    )
    views: dict[str, Any] = {}
    with gr.Row(equal_height=False, elem_classes="sf-three"):
        for kind, label in (("read", "Read overlap"), ("write", "Write overlap"), ("both", "Feature overlap")):
            views[f"tasks_{kind}"] = PlotlyView(
                label=f"{label}, tasks by tasks", filename=f"tasks-{kind}", elem_id=f"tasks-{kind}"
            )
    with gr.Row(equal_height=False):
        views["first"] = gr.Dropdown(
            label="First task", info="Its features are the rows.", choices=[], value=None, elem_id="first-task"
        )
        views["second"] = gr.Dropdown(
            label="Second task", info="Its features are the columns.", choices=[], value=None, elem_id="second-task"
        )
        views["top"] = gr.Slider(
            0,
            64,
            value=0,
            step=1,
            label="Leading features",
            info="Between whose spans the angles are taken; 0: as many as hold 90 % of the energy.",
            elem_id="top",
        )
    with gr.Row(equal_height=False, elem_classes="sf-three"):
        for kind, label in (("read", "Read overlap"), ("write", "Write overlap"), ("both", "Interference")):
            views[f"pair_{kind}"] = PlotlyView(
                label=f"{label} of two tasks", filename=f"{kind}-overlap", elem_id=f"pair-{kind}"
            )
    views["angles"] = PlotlyView(
        label="Principal angles between two tasks", filename="principal-angles", elem_id="angles", min_plot_height=260
    )
    return views


def _feature() -> dict[str, Any]:
    gr.HTML(
        heading(
            "A singular feature",
            "Click a point of a spectrum or a cell of an overlap, or choose a feature here.",
        ),
        apply_default_css=False,
        elem_id="feature",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            task = gr.Dropdown(
                label="Of task", info="Whose feature it is.", choices=[], value=None, elem_id="feature-task"
            )
            number = gr.Number(value=1, precision=0, label="Feature, by gain", elem_id="feature-number")
        with gr.Column(scale=3, min_width=420):
            feature = gr.HTML(apply_default_css=False, elem_id="feature-figures")
    with gr.Row(equal_height=False, elem_classes="sf-split"):
        reasons = PlotlyView(label="How its coefficient came about", filename="coefficient", elem_id="reasons")
        neighbours = LinkedHtml(elem_id="neighbours")
    gr.HTML(heading("What it means", "What the feature listens to, and what it says."), apply_default_css=False)
    tokens = gr.HTML(apply_default_css=False, elem_id="tokens")
    where = gr.Textbox(
        label="Labelled samples",
        info="Inside the models folder, as on the Evaluate tab. Empty: the demo's own.",
        max_lines=1,
        elem_id="inspect-labelled",
    )
    excited = gr.HTML(apply_default_css=False, elem_id="excited")
    gr.HTML(
        heading(
            "Ablate and steer",
            "Switch the feature off in the merged model, or scale it, and see its answers change. No file is touched.",
        ),
        apply_default_css=False,
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            inputs = build_inputs("inspect-")
        with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
            steer = build_steer()
            own_excited = gr.HTML(apply_default_css=False, elem_id="own-excited")
    return {
        "task": task,
        "number": number,
        "feature": feature,
        "reasons": reasons,
        "neighbours": neighbours,
        "tokens": tokens,
        "where": where,
        "excited": excited,
        "inputs": inputs,
        "steer": steer,
        "own_excited": own_excited,
    }


def _compare() -> dict[str, Any]:
    with gr.Column(visible=False, elem_classes="sf-stack", elem_id="compare") as compare:
        gr.HTML(
            heading("Side by side", "The pinned view, and what is chosen now: two layers, or two settings."),
            apply_default_css=False,
        )
        note = gr.HTML(apply_default_css=False)
        with gr.Row(equal_height=False, elem_classes="sf-split"):
            sides = [_side(name) for name in ("pinned", "now")]
    return {"compare": compare, "compare_note": note, "pinned_side": sides[0], "now_side": sides[1]}


def _side(name: str) -> Side:
    with gr.Column(min_width=380, elem_classes="sf-stack"):
        return Side(
            gr.HTML(Safe(""), apply_default_css=False, elem_id=f"{name}-title"),
            PlotlyView(label=f"Spectra, {name}", filename=f"spectra-{name}", elem_id=f"{name}-spectra"),
            PlotlyView(label=f"Preservation, {name}", filename=f"preservation-{name}", elem_id=f"{name}-bars"),
            gr.HTML(apply_default_css=False, elem_id=f"{name}-figures"),
        )
