"""What the tab shows for what is chosen: one function for each group of outputs, in the outputs' order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.family import Samples
from sftm_app.inspection.layers import map_layers
from sftm_app.ui.handlers import say_info
from sftm_app.ui.inspect import compare_panel, feature_panel, layer_panel, map_panel, meaning_panel
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.layout import ALL_TASKS
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.steer_panel import steer
from sftm_app.ui.inspect.what_if_panel import predicted
from sftm_app.ui.rank_slider import amount_update
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.evaluate_inputs import N_INPUTS, showing
from sftm_app.ui.trying.trying import merges_quickly
from sftm_app.ui.view import View
from sftm_app.ui.widgets.html import Safe, hint, notice
from sftm_app.ui.workspace import Workspace

_HIDDEN = gr.update(visible=False)


def show_controls(studio: Studio, ws: Workspace, view: View) -> tuple[Any, ...]:
    """Updates of measure, about, layer, first, second, task, number for a workspace just opened with this view."""
    layers = map_layers(studio.preflight(ws))
    names = [layer.name for layer in layers]
    # Also without ".weight", as a person would write it into an address.
    asked = next((n for n in names if view.layer in (n, n.removesuffix(".weight"))), None)
    if view.layer and asked is None:
        say_info(f"These models have no layer {view.layer[:120]}; another one is shown.")
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


def show_map(studio: Studio, chosen: InspectState) -> Iterator[tuple[Any, Safe]]:
    """The map while it fills, and what its colours mean."""
    found, measure = studio.preflight(chosen.ws).require(), map_panel.known_measure(chosen.measure)
    for figure, problems in map_panel.map_steps(studio, found, measure, chosen.about, chosen.settings, chosen.layer):
        yield figure, map_panel.measure_help(measure, chosen.settings, problems)


def show_layer(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """Title, spectra, note on clusters; choices of first, second and task, which are the layer's; the rank's end."""
    looked = chosen.look(studio)
    detail = layer_panel.detail_of(studio, looked)
    first, second = layer_panel.choose_pair(looked, chosen.first, chosen.second)
    members = looked.members
    member = chosen.member(looked)
    return (
        layer_panel.layer_title(looked, detail),
        layer_panel.spectra_figure(looked, detail, selected=_ring(studio, looked, chosen)),
        layer_panel.clusters_html(detail),
        gr.update(choices=members, value=members[first]),
        gr.update(choices=members, value=members[second]),
        gr.update(choices=members, value=members[member]),
        _count_scale(looked, chosen),
    )


def _count_scale(looked: LayerView, chosen: InspectState) -> Any:
    """A slider that counts features ends where the layer's do."""
    rank = getattr(chosen.settings.params, "rank", None)
    return amount_update("count", rank, min(looked.layer.shape)) if isinstance(rank, int) else gr.skip()


def show_prediction(studio: Studio, chosen: InspectState) -> tuple[Any, Safe]:
    """Bars and figures of the what-if: what follows a slider."""
    try:
        return predicted(studio, chosen.ws, chosen.layer, chosen.settings, chosen.pinned)
    except SFTMError as error:
        return gr.skip(), notice("warning", "These settings cannot be worked out here", error)


def show_settled(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """Spectra with the merged change's own, and the warnings: what takes too long while a slider moves."""
    looked = chosen.look(studio)
    detail = layer_panel.detail_of(studio, looked)
    merged = studio.inspector.spectrum(looked.found, looked.layer, chosen.settings)
    return (
        layer_panel.spectra_figure(looked, detail, merged, chosen.settings, _ring(studio, looked, chosen)),
        layer_panel.warnings_html(looked, layer_panel.warnings_of(studio, looked, detail, chosen.settings)),
    )


def show_pair(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """Tasks against tasks (read, write, both), the two tasks, features against features (the same), and the angles."""
    looked = chosen.look(studio)
    first, second = layer_panel.choose_pair(looked, chosen.first, chosen.second)
    overviews = layer_panel.overview_figures(looked, layer_panel.detail_of(studio, looked), first, second)
    pair = layer_panel.pair_of(studio, looked, first, second, chosen.top)
    return *overviews, looked.members[first], looked.members[second], *layer_panel.pair_figures(pair)


def show_feature(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """Figures of the feature, why its coefficient is what it is, and its neighbours."""
    looked = chosen.look(studio)
    member, feature = chosen.member(looked), feature_of(studio, looked, chosen)
    detail = feature_panel.detail_of(studio, looked, member, feature, chosen.settings)
    return (
        feature_panel.feature_html(looked, detail, chosen.settings),
        feature_panel.reasons_figure(looked, detail),
        feature_panel.neighbours_html(looked, detail),
    )


def show_meaning(studio: Studio, chosen: InspectState) -> tuple[Safe, Safe]:
    """Tokens of the feature's directions, and the samples that excite it; from a forward pass over them."""
    looked = chosen.look(studio)
    member, feature = chosen.member(looked), feature_of(studio, looked, chosen)
    if feature is None:
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


def pick_sample(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """A random labelled sample of the feature's task, and updates of the inputs that show it; or why there is none."""
    looked = chosen.look(studio)
    found = meaning_panel.samples_for(studio, chosen.ws, looked, chosen.member(looked), chosen.where)
    if isinstance(found, Safe):
        return None, *[gr.skip()] * (N_INPUTS - 1), found
    one = found.take([random.randrange(len(found))])
    return one, *showing(studio, chosen.ws, one)


def show_sample(
    studio: Studio, chosen: InspectState, factor: float, sample: Samples | None, asked: bool = True
) -> tuple[Any, ...]:
    """One sample: what the merged model says with and without the feature scaled, and where the feature is read.

    asked: else a model that takes long to merge is not merged for it.
    """
    looked = chosen.look(studio)
    member, feature = chosen.member(looked), feature_of(studio, looked, chosen)
    if feature is None:
        return hint("This task did not change the layer: there is nothing to switch off."), _HIDDEN, ""
    if sample is None:
        return hint("Pick a sample, or give one of your own, to see what the feature does to the answer."), _HIDDEN, ""
    if not (asked or merges_quickly(studio, chosen.ws)):
        return hint("The settings have changed. Ask again: these models take a while to merge."), _HIDDEN, ""
    said, figure = steer(studio, chosen.ws, looked, member, feature, factor, chosen.settings, sample)
    sensed = meaning_panel.sense(studio, chosen.ws, looked, member)
    title = "Where it is read in this sample"
    excited = meaning_panel.excited_html(studio, looked, sensed, member, feature, sample, title)
    return said, gr.update(value=figure, visible=figure is not None), excited


def show_comparison(studio: Studio, chosen: InspectState) -> tuple[Any, ...]:
    """Whether there is a comparison, a note, the pinned side and the present one."""
    if chosen.pinned is None:
        nothing = compare_panel.side(studio, chosen.ws, None, "")
        return gr.update(visible=False), gr.update(visible=False), "", *nothing, *nothing
    return (
        gr.update(visible=True),
        gr.update(visible=True),
        compare_panel.what_differs(chosen.now, chosen.pinned),
        *compare_panel.side(studio, chosen.ws, chosen.pinned, "Pinned", chosen.now),
        *compare_panel.side(studio, chosen.ws, chosen.now, "Now", chosen.pinned),
    )


def feature_of(studio: Studio, looked: LayerView, chosen: InspectState) -> int | None:
    """The chosen feature from 0, the last one for a number beyond; None where the task has none in this layer."""
    n_features = studio.inspector.factors(looked.found, looked.layer).factors[chosen.member(looked)].rank
    return min(chosen.number, n_features) - 1 if n_features else None


def _ring(studio: Studio, looked: LayerView, chosen: InspectState) -> tuple[int, int] | None:
    """Member and feature that the spectra put a ring on."""
    feature = feature_of(studio, looked, chosen)
    return None if feature is None else (chosen.member(looked), feature)
