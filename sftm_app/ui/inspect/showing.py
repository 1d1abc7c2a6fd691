"""What the tab shows for what is chosen: one function for each group of outputs, in the outputs' order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.family import Samples
from sftm_app.inspection.layers import map_layers
from sftm_app.ui.evaluate_inputs import N_INPUTS, showing
from sftm_app.ui.inspect import compare_panel, feature_panel, layer_panel, map_panel, meaning_panel
from sftm_app.ui.inspect.chosen import Chosen
from sftm_app.ui.inspect.layout import ALL_TASKS
from sftm_app.ui.inspect.steer_panel import steer
from sftm_app.ui.inspect.what_if_panel import predicted
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import View
from sftm_app.ui.widgets.html import Safe, notice
from sftm_app.ui.workspace import Workspace


def show_controls(studio: Studio, ws: Workspace, view: View) -> tuple[Any, ...]:
    """Updates of measure, about, layer, first, second, task, number for a workspace just opened with this view."""
    layers = map_layers(studio.preflight(ws))
    names = [layer.name for layer in layers]
    # Also without ".weight", as a person would write it into an address.
    asked = next((n for n in names if view.layer in (n, n.removesuffix(".weight"))), None)
    if view.layer and asked is None:
        gr.Info(f"These models have no layer {view.layer[:120]}; another one is shown.")
    layer = asked or (names[len(names) // 2] if names else None)
    tasks = list(ws.task_names)
    members = [tasks[i] for i in next((each.members for each in layers if each.name == layer), ())]
    first = view.first if view.first in members else next(iter(members), None)
    second = view.second if view.second in members else next((name for name in members if name != first), first)
    about = view.about if view.about in tasks else ""
    task = view.task if view.task in members else first
    return (
        map_panel.known_measure(view.measure),
        gr.update(choices=[(ALL_TASKS, ""), *((name, name) for name in tasks)], value=about),
        gr.update(choices=[(name.removesuffix(".weight"), name) for name in names], value=layer),
        gr.update(choices=members, value=first),
        gr.update(choices=members, value=second),
        gr.update(choices=members, value=task),
        view.feature + 1 if task == view.task else 1,
    )


def show_map(studio: Studio, chosen: Chosen) -> Iterator[tuple[Any, Safe]]:
    """The map while it fills, and what its colours mean."""
    found, measure = studio.preflight(chosen.ws).require(), map_panel.known_measure(chosen.measure)
    for figure, problems in map_panel.map_steps(studio, found, measure, chosen.about, chosen.settings, chosen.layer):
        yield figure, map_panel.measure_help(measure, chosen.settings, problems)


def show_layer(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """Title, spectra, note on clusters; the choices of first, second and task, which belong to the layer's members."""
    looked = chosen.look(studio)
    detail = layer_panel.detail_of(studio, looked)
    first, second = layer_panel.choose_pair(looked, chosen.first, chosen.second)
    members = looked.members
    member = chosen.member(looked)
    return (
        layer_panel.layer_title(looked, detail),
        layer_panel.spectra_figure(looked, detail, selected=(member, chosen.number - 1)),
        layer_panel.clusters_html(detail),
        gr.update(choices=members, value=members[first]),
        gr.update(choices=members, value=members[second]),
        gr.update(choices=members, value=members[member]),
    )


def show_prediction(studio: Studio, chosen: Chosen) -> tuple[Any, Safe]:
    """Bars and figures of the what-if: what follows a slider."""
    try:
        return predicted(studio, chosen.ws, chosen.layer, chosen.settings, chosen.pinned)
    except SFTMError as error:
        return gr.skip(), notice("warning", "These settings cannot be worked out here", error)


def show_settled(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """Spectra with the merged change's own, and the warnings: what takes too long while a slider moves."""
    looked = chosen.look(studio)
    detail = layer_panel.detail_of(studio, looked)
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    made = what_if.predict(chosen.settings)
    selected = (chosen.member(looked), chosen.number - 1)
    return (
        layer_panel.spectra_figure(looked, detail, what_if.spectrum(made), chosen.settings, selected),
        layer_panel.warnings_html(looked, layer_panel.warnings_of(studio, looked, detail, chosen.settings)),
    )


def show_pair(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """Tasks against tasks (read, write, both), features against features (read, write, both), and the angles."""
    looked = chosen.look(studio)
    first, second = layer_panel.choose_pair(looked, chosen.first, chosen.second)
    overviews = layer_panel.overview_figures(looked, layer_panel.detail_of(studio, looked), first, second)
    return (*overviews, *layer_panel.pair_figures(layer_panel.pair_of(studio, looked, first, second, chosen.top)))


def show_feature(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """Figures of the feature, why its coefficient is what it is, and its neighbours."""
    looked = chosen.look(studio)
    detail = feature_panel.feature_of(studio, looked, chosen.task, chosen.number, chosen.settings)
    return (
        feature_panel.feature_html(looked, detail, chosen.settings),
        feature_panel.reasons_figure(looked, detail),
        feature_panel.neighbours_html(looked, detail),
    )


def show_meaning(studio: Studio, chosen: Chosen) -> tuple[Safe, Safe]:
    """Tokens of the feature's directions, and the samples that excite it; from a forward pass over them."""
    looked = chosen.look(studio)
    member, feature = chosen.member(looked), chosen.number - 1
    if not _has(studio, chosen):
        return Safe(""), Safe("")
    try:
        sensed = meaning_panel.sense(studio, chosen.ws, looked, member)
    except SampleError as error:
        return notice("info", "The models of this task cannot be tried", error), Safe("")
    tokens = meaning_panel.tokens_html(studio, looked, sensed, member, feature)
    samples = meaning_panel.samples_for(studio, chosen.ws, looked, member, chosen.where)
    if isinstance(samples, Safe):
        return tokens, samples
    return tokens, meaning_panel.excited_html(studio, looked, sensed, member, feature, samples)


def pick_sample(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """A random labelled sample of the feature's task, and updates of the inputs that show it; or why there is none."""
    looked = chosen.look(studio)
    found = meaning_panel.samples_for(studio, chosen.ws, looked, chosen.member(looked), chosen.where)
    if isinstance(found, Safe):
        return None, *[gr.skip()] * (N_INPUTS - 1), found
    one = found.take([random.randrange(len(found))])
    return one, *showing(studio, chosen.ws, one)


def show_sample(studio: Studio, chosen: Chosen, factor: float, sample: Samples) -> tuple[Any, ...]:
    """One sample: what the merged model says with and without the feature scaled, and where the feature is read."""
    looked = chosen.look(studio)
    member, feature = chosen.member(looked), chosen.number - 1
    if not _has(studio, chosen):
        return "", gr.update(visible=False), ""
    said, figure = steer(studio, chosen.ws, looked, member, feature, factor, chosen.settings, sample)
    sensed = meaning_panel.sense(studio, chosen.ws, looked, member)
    title = "Where it is read in this sample"
    excited = meaning_panel.excited_html(studio, looked, sensed, member, feature, sample, title)
    return said, gr.update(value=figure, visible=figure is not None), excited


def show_comparison(studio: Studio, chosen: Chosen) -> tuple[Any, ...]:
    """Whether there is a comparison, a note, the pinned side and the present one."""
    if chosen.pinned is None:
        nothing = compare_panel.side(studio, chosen.ws, None, "")
        return gr.update(visible=False), gr.update(visible=False), "", *nothing, *nothing
    return (
        gr.update(visible=True),
        gr.update(visible=True),
        compare_panel.what_differs(chosen.now, chosen.pinned),
        *compare_panel.side(studio, chosen.ws, chosen.pinned, "Pinned"),
        *compare_panel.side(studio, chosen.ws, chosen.now, "Now"),
    )


def _has(studio: Studio, chosen: Chosen) -> bool:
    """Whether the chosen task has a feature of the chosen number in the chosen layer."""
    looked = chosen.look(studio)
    factors = studio.inspector.factors(looked.found, looked.layer).factors[chosen.member(looked)]
    return chosen.number <= factors.rank
