"""The Inspect tab: its handlers as plain functions, on a tiny pack."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from tab_values import after, values_of
from tiny_checkpoints import change_weights

from sftm_app.engine.run import run
from sftm_app.errors import InputError
from sftm_app.evaluation.candidates import method_candidate
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.measures import MEASURES, MeasureValue
from sftm_app.linalg.preservation import errors, measure
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe
from sftm_app.ui import loading
from sftm_app.ui.inspect import map_panel
from sftm_app.ui.inspect.clicks import layer_name, link_target, spectrum_point
from sftm_app.ui.inspect.map_panel import map_steps
from sftm_app.ui.inspect.panels import Panels
from sftm_app.ui.inspect.pictures import SIDE, picture_uri
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.tab import InspectTab
from sftm_app.ui.keeping import Parts
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View, view_to_query
from sftm_app.ui.widgets import Selection, parse_selection, slider_rows
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.reader import open_reader

pytestmark = pytest.mark.usefixtures("no_server")

NAME = "encoder.layer.1.intermediate.dense.weight"
OTHER = "encoder.layer.0.output.dense.weight"


def settings(method: str = "sftm", weights: tuple[float, ...] = (1.0, 1.0, 1.0), **values: Any) -> MergeSettings:
    return merge_settings(method, values, weights)


@pytest.fixture
def chosen(workspace: Workspace) -> InspectState:
    texts = {"measure": "change", "layer": NAME, "first": "a", "second": "b", "task": "a"}
    return InspectState(**texts, ws=workspace, settings=settings())


@pytest.fixture
def tab(studio: Studio) -> InspectTab:
    with gr.Blocks():
        return InspectTab(studio, gr.State(Workspace()), Parts(studio.keeper))


@pytest.fixture
def panels(tab: InspectTab) -> Panels:
    return tab.panels


# The map


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("about", ["", "b"])
def test_the_map_fills_up_and_ends_complete(studio: Studio, workspace: Workspace, measure: str, about: str) -> None:
    found = studio.preflight(workspace)
    layers = map_layers(found)
    steps = list(map_steps(studio, found, measure, about, settings(), layers[3].name))
    assert not any(problems for _, problems in steps)
    figures = [figure for figure, _ in steps]
    blanks = [int(np.isnan(np.array(figure.data[0].z, float)).sum()) for figure in figures]
    assert blanks == sorted(blanks, reverse=True)
    names = [name for row in figures[-1].data[0].customdata for name in row if name]
    assert sorted(names) == sorted(layer.name for layer in layers)
    assert figures[-1].data[0].z.size - blanks[-1] == len(layers)


def test_the_map_of_one_task_shows_that_task(studio: Studio, workspace: Workspace) -> None:
    found = studio.preflight(workspace)
    layers = map_layers(found)
    for task, name in enumerate(workspace.task_names):
        figure, _ = list(map_steps(studio, found, "rank_90", name, settings(), None))[-1]
        cells = dict(zip(np.ravel(figure.data[0].customdata), np.ravel(figure.data[0].z), strict=True))
        for layer in layers:
            value = studio.inspector.value(found, layer, "rank_90", settings())
            assert cells[layer.name] == pytest.approx(value.tasks[layer.members.index(task)])


def test_a_broken_layer_leaves_the_rest_of_the_map(studio: Studio) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["vit.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")

    change_weights(studio.settings.models_dir / "a" / "model.safetensors", spoil)
    own = loading.load_own(studio, "base", ["a", "b"])
    found = studio.preflight(own)
    figure, problems = list(map_steps(studio, found, "change", "", settings(weights=(1.0, 1.0)), None))[-1]
    assert len(problems) == 1 and "layer.0.output.dense.weight" in problems[0]
    assert int(np.isfinite(np.array(figure.data[0].z, float)).sum()) == len(map_layers(found)) - 1


# The layer


def choices(tab: InspectTab) -> tuple[Any, ...]:
    panels = tab.panels
    return panels.map.about, panels.map.layer, panels.pairs.first, panels.pairs.second, panels.feature.task


def test_a_layer_shows_spectra_and_its_members(tab: InspectTab, panels: Panels, chosen: InspectState) -> None:
    shown = tab.chains.layer.show(replace(chosen, first="c", second="a", task="b"))
    assert set(shown) <= tab.chains.layer.outputs
    assert NAME.removesuffix(".weight") in shown[panels.layer.title]
    spectra = shown[panels.layer.spectra]
    assert {trace.name.split(" · ")[0] for trace in spectra.data if trace.showlegend is not False} == {"a", "b", "c"}
    assert [shown[choice]["value"] for choice in choices(tab)[2:]] == ["c", "a", "b"]
    settled = panels.layer.show_settled(chosen)
    assert any("merged" in str(trace.name) for trace in settled[panels.layer.spectra].data)
    assert "sf-notice" in settled[panels.layer.warnings]


def test_where_two_tasks_meet(panels: Panels, chosen: InspectState) -> None:
    pairs = panels.pairs
    shown = pairs.show(chosen)
    assert set(shown) == pairs.views and (shown[pairs.first], shown[pairs.second]) == ("a", "b")
    again = pairs.show(replace(chosen, second="a"))
    assert (again[pairs.first], again[pairs.second]) == ("a", "b"), "shown is what is drawn"
    assert all(np.array(shown[overview].data[0].z).shape == (3, 3) for overview in pairs.overviews)
    assert "features of a" in shown[pairs.pair_read].layout.yaxis.title.text
    assert "features of b" in shown[pairs.pair_write].layout.xaxis.title.text
    both = np.array(shown[pairs.pair_both].data[0].z)
    assert both.min() < 0 < both.max(), "entries of A have signs"
    assert len(shown[pairs.angles].data) == 4


def test_unknown_names_from_the_browser_do_no_harm(tab: InspectTab, chosen: InspectState) -> None:
    with pytest.raises(InputError, match="no layer"):
        tab.chains.layer.show(replace(chosen, layer="../../etc/passwd"))
    shown = tab.chains.layer.show(replace(chosen, first="nobody", second="a", task="<b>"))
    assert [shown[choice]["value"] for choice in choices(tab)[2:]] == ["a", "b", "a"]


def test_opening_with_a_view_shows_that_view(tab: InspectTab, panels: Panels, workspace: Workspace) -> None:
    view = View(
        measure="condition", about="b", layer=NAME.removesuffix(".weight"), first="c", second="b", task="c", feature=2
    )
    asked = replace(workspace, asked=(("view", urlencode(view_to_query(view))),))
    shown = tab.open_workspace({tab.workspace: asked})
    assert [shown[choice]["value"] for choice in choices(tab)] == ["b", NAME, "c", "b", "c"]
    assert (shown[panels.map.measure], shown[panels.feature.number]) == ("condition", 3)
    shown = tab.open_workspace({tab.workspace: replace(workspace, asked=(("view", "measure=x&about=x"),))})
    about, layer, first, second, _ = (shown[choice] for choice in choices(tab))
    assert (about["value"], first["value"], second["value"]) == ("", "a", "b")
    assert (shown[panels.map.measure], shown[panels.feature.number]) == ("change", 1)
    assert layer["value"] in [name for _, name in layer["choices"]]


# What if


@pytest.mark.parametrize(
    "asked",
    [
        settings(scaling=0.5),
        settings(rank=4, weights=(1.0, 0.5, 2.0)),
        settings(rank="90% energy"),
        settings(variant="mapping", rank=0.5),
        settings("average"),
        settings("task_arithmetic", scaling=0.4),
        settings("ties", scaling=0.7),
    ],
)
def test_the_bars_are_what_the_merge_itself_reports(
    studio: Studio, panels: Panels, chosen: InspectState, asked: MergeSettings
) -> None:
    """The predicted errors against a merge of the same settings, read off the merged tensor."""
    shown = panels.what_if.show(replace(chosen, settings=asked))
    bars, figures = shown[panels.what_if.bars], shown[panels.what_if.figures]
    found = studio.preflight(chosen.ws)
    tasks = [{"path": t.path, "name": t.name, "weight": w} for t, w in zip(chosen.ws.tasks, asked.weights, strict=True)]
    recipe = make_recipe(chosen.ws.base, tasks, asked.method, vars(asked.params), device="cpu")
    merged = next(one for one in run(prepare(recipe, studio.session), studio.session) if one.entry.name == NAME)

    with open_reader(found.base) as read:
        change = merged.tensor - read(NAME)
    layer = next(layer for layer in map_layers(found) if layer.name == NAME)
    wanted = errors(measure(change, studio.inspector.factors(found, layer).factors)).readout
    assert list(bars.data[0].y) == pytest.approx(wanted, abs=2e-3)
    assert f"{max(wanted):.2f}" in figures


def test_settings_go_through_the_controls_unchanged(tab: InspectTab, workspace: Workspace) -> None:
    values = values_of(tab.panels, tab.panels.inputs, workspace=workspace)
    for asked in (
        settings(),
        settings(rank=4),
        settings(rank="90% energy", scaling=0.3, weights=(0.5, 1.0, 2.0)),
        settings("average"),
    ):
        shown = after(values, tab.panels.what_if.open(workspace, asked))
        assert tab.panels.read(shown).settings == asked
    odd = tab.panels.read(values | {tab.panels.what_if.weights: slider_rows(["x"], ["#fff"], [3.0])})
    assert odd.settings.weights == (1.0, 1.0, 1.0)


def test_a_method_for_another_number_of_tasks_is_said_and_empties_nothing(
    tab: InspectTab, workspace: Workspace
) -> None:
    form = tab.panels.what_if.form
    values = values_of(tab.panels, tab.panels.inputs, workspace=workspace) | {tab.panels.map.layer: NAME}
    shown = form.follow(values | {form.method: "slerp"})
    (said,) = [text for text in shown.values() if "2 tasks, not 3" in str(text)]
    assert "Plain average" in said
    state = tab.panels.read(after(values, shown))
    assert state.settings == settings("average")
    assert tab.panels.what_if.show(state)[tab.panels.what_if.bars] is not None
    two = replace(workspace, tasks=workspace.tasks[:2])
    assert tab.panels.read(after(values | {tab.workspace: two}, shown)).settings.method == "slerp"


def test_settings_that_cannot_be_predicted_are_said(panels: Panels, chosen: InspectState) -> None:
    state = replace(chosen, settings=settings("slerp"), measure="readout_error", pinned=chosen.now)
    shown = panels.what_if.show(state)
    assert shown[panels.what_if.bars] is None and "Nothing can be predicted" in shown[panels.what_if.figures]
    settled = panels.layer.show_settled(state)
    assert not any("merged" in str(trace.name) for trace in settled[panels.layer.spectra].data)
    assert "Nothing can be predicted" in panels.feature.show(state)[panels.feature.figures]
    (drawn,) = panels.map.draw(state)
    assert "2 tasks" in drawn[panels.map.help]
    assert "cannot be shown" in panels.compare.show(state)[panels.compare.now.title]
    sample = panels.steer.pick(state)[panels.steer.sample]
    (tried,) = panels.steer.show(replace(state, sample=sample))
    assert "cannot be scaled" in tried[panels.steer.verdict]


# A feature


def test_a_feature_shows_its_figures_and_neighbours(panels: Panels, chosen: InspectState) -> None:
    feature = panels.feature
    shown = feature.show(replace(chosen, task="b", feature=1))
    assert "Feature 2 of b" in shown[feature.figures] and "Coefficient" in shown[feature.figures]
    assert len(shown[feature.reasons].data) >= 1
    assert "data-sf-go" in shown[feature.neighbours]
    beyond = feature.show(replace(chosen, feature=9_999))
    assert "Feature 16 of a" in beyond[feature.figures], "a number beyond the last one shows the last one"


def test_a_method_without_coefficients_is_shown_by_what_is_read_back(panels: Panels, chosen: InspectState) -> None:
    state = replace(chosen, settings=settings("ties"))
    shown = panels.feature.show(state)
    figures = shown[panels.feature.figures]
    assert "Readout after the merge" in figures and ">Coefficient<" not in figures
    assert "no coefficients" in figures or "no coefficients" in str(shown[panels.feature.reasons].to_json())
    assert "data-sf-go" in shown[panels.feature.neighbours]
    assert any("merged" in str(trace.name) for trace in panels.layer.show_settled(state)[panels.layer.spectra].data)


def test_what_a_feature_of_an_image_model_means(panels: Panels, chosen: InspectState) -> None:
    (shown,) = panels.meaning.show(chosen)
    assert "mages only" in shown[panels.meaning.tokens] or "image" in shown[panels.meaning.tokens]
    excited = shown[panels.meaning.excited]
    assert excited.count("<img") == 6 and "data:image/png;base64" in excited


@pytest.mark.parametrize("method", ["sftm", "ties"])
def test_switching_a_feature_off_changes_the_answer_and_no_file(
    studio: Studio, panels: Panels, chosen: InspectState, method: str
) -> None:
    steer, state = panels.steer, replace(chosen, settings=settings(method))
    sample = ImageSamples(np.random.default_rng(0).integers(0, 255, (1, 8, 8), np.uint8), np.array([1]))
    model_pool = studio.model_pool(chosen.ws)
    merged = method_candidate(method, vars(state.settings.params), state.settings.weights)
    before = model_pool.model(merged, "a").answer(sample)[0].scores
    (same,), (off,) = (steer.show(replace(state, factor=factor, sample=sample)) for factor in (1.0, 0.0))
    figure = off[steer.chart]
    assert "stays the same" in same[steer.verdict] and "× 0" in off[steer.verdict]
    assert figure["visible"] and "<img" in off[steer.excited]
    bars = [np.array(trace.y if trace.orientation != "h" else trace.x) for trace in figure["value"].data]
    assert not np.allclose(bars[0], bars[1]), "the shown scores must differ"
    assert model_pool.model(merged, "a").answer(sample)[0].scores == before, "the merged model itself is left alone"
    (nothing,) = steer.show(state)
    assert "Pick a sample" in nothing[steer.verdict] and not nothing[steer.chart]["visible"]


def test_a_picked_sample_is_shown_in_the_inputs(studio: Studio, panels: Panels, chosen: InspectState) -> None:
    steer = panels.steer
    shown = steer.pick(chosen)
    assert len(shown[steer.sample]) == 1 and shown[steer.boxes.pad] is not None
    own = loading.load_own(studio, "base", ["a", "b"])
    nothing = steer.pick(replace(chosen, ws=own, settings=settings(weights=(1.0, 1.0))))
    assert nothing[steer.sample] is None and "No samples" in nothing[steer.boxes.known]


def test_inputs_suit_the_task_once(panels: Panels, chosen: InspectState) -> None:
    steer = panels.steer
    shown = steer.suit(chosen)
    assert shown[steer.sample] is None and shown[steer.fitted] == "a" and set(shown) == steer.inputs
    assert steer.suit(replace(chosen, fitted="a")) == {}, "a sample of the same task stays"


def test_the_picture_shows_where_a_sample_is_read() -> None:
    image, heat = np.full((4, 4), 100, np.uint8), np.array([[2.0, -1.0], [0.0, 0.0]], np.float32)
    raw = base64.b64decode(picture_uri(image, heat).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(raw))).astype(int)
    assert pixels.shape == (SIDE, SIDE, 3)
    red, blue, plain = pixels[5, 5], pixels[5, -5], pixels[-5, 5]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] and list(plain) == [100, 100, 100]


# Events


def test_no_event_of_the_tab_is_dropped_while_another_runs(studio: Studio) -> None:
    """Gradio's own default drops it and all that follows: the page would show what was left."""
    with gr.Blocks() as page:
        InspectTab(studio, gr.State(Workspace()), Parts(studio.keeper))
    modes = [function.trigger_mode for function in page.fns.values() if function.fn is not None]
    named = [mode for mode in modes if mode != "once"]
    # Left are the forms' own: which group of controls is shown follows the method at once.
    assert len(named) > 50 and modes.count("once") <= 1


def test_many_experts_share_a_column(studio: Studio, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = studio.preflight(workspace)
    first = map_layers(found)[1]
    layers = tuple(
        replace(first, name=f"l.{block}.experts.{i}.w.weight", row=f"l.{block}", column=f"experts.{i}.w")
        for block in range(2)
        for i in range(100)
    )
    monkeypatch.setattr(map_panel, "map_layers", lambda found: layers)
    numbers = {layer.name: float(i) for i, layer in enumerate(layers)}
    value = lambda found, layer, measure, settings: MeasureValue(numbers[layer.name], ())  # noqa: E731
    monkeypatch.setattr(studio.inspector, "value", value)
    figure, _ = list(map_steps(studio, found, "read_overlap", "", settings(), layers[130].name))[-1]
    assert np.array(figure.data[0].z).ravel() == pytest.approx([49.5, 149.5]), "their mean"
    assert list(np.ravel(figure.data[0].customdata)) == [layers[0].name, layers[100].name]


# Two views


def test_two_views_stand_side_by_side(panels: Panels, chosen: InspectState) -> None:
    compare = panels.compare
    assert compare.show(chosen)[compare.box]["visible"] is False
    shown = compare.show(replace(chosen, pinned=Pinned(OTHER, settings("average"))))
    assert shown[compare.box]["visible"] and shown[compare.unpin]["visible"] and shown[compare.note] == ""
    left = shown[compare.pinned.title]
    assert OTHER.removesuffix(".weight") in left and "Plain average" in left
    assert "sf-stat" in shown[compare.now.figures]
    assert "same" in compare.show(replace(chosen, pinned=chosen.now))[compare.note]
    gone = compare.show(replace(chosen, pinned=Pinned("gone", settings())))
    assert "cannot be shown" in gone[compare.pinned.title] and not gone[compare.pinned.spectra]["visible"]


# Clicks come from the browser


@pytest.mark.parametrize("data", [None, [1], [1, -1], ["a", 1], [1, 2, 3], [True, 1], [1e12, 1], {"a": 1}])
def test_a_point_of_a_spectrum_is_two_whole_numbers_or_nothing(data: Any) -> None:
    selection = parse_selection({"x": 1.0, "customdata": data})
    assert selection is None or spectrum_point(selection) is None
    assert spectrum_point(Selection(customdata=[2, 5])) == (2, 5)


def test_other_clicks_are_checked_too() -> None:
    assert layer_name(Selection(customdata=3)) is None and layer_name(Selection(customdata="x")) == "x"
    members = ["a", "b"]
    assert link_target(Selection(customdata=["feature", "b", 3]), members) is not None
    for data in (["feature", "x", 3], ["feature", "a", "b"], ["overlap", "a", "x"], ["spectra", "a", "b"], "feature"):
        assert link_target(Selection(customdata=data), members) is None


def test_clicks_open_what_they_name(tab: InspectTab, panels: Panels, chosen: InspectState) -> None:
    opened = tab.open_layer(chosen, Selection(customdata=OTHER))
    assert opened[panels.map.layer] == OTHER and opened[panels.feature.number] == 1
    assert OTHER.removesuffix(".weight") in opened[panels.layer.title]
    point = tab.open_point(chosen, Selection(customdata=[1, 4]))
    assert (point[panels.feature.task], point[panels.feature.number]) == ("b", 5)
    assert tab.open_point(chosen, Selection(customdata=[7, 4])) == {}
    row = tab.open_row(chosen, Selection(x=3, y=2))
    assert (row[panels.feature.task], row[panels.feature.number]) == ("a", 3)
    pair = tab.open_pair(chosen, Selection(x=2, y=0))
    assert (pair[panels.pairs.first], pair[panels.pairs.second]) == ("a", "c")
    assert tab.open_pair(chosen, Selection(x=9, y=0)) == {}
    near = tab.open_neighbour(chosen, Selection(customdata=0))
    assert near[panels.feature.task] in ("b", "c") and tab.open_neighbour(chosen, Selection(customdata=99)) == {}
    link = tab.follow_link(chosen, Selection(customdata=["overlap", "b", "c"]))
    assert link == {panels.pairs.first: "b", panels.pairs.second: "c"}


def test_a_layer_that_one_task_lacks_is_shown_for_the_others(studio: Studio, chosen: InspectState) -> None:
    found = studio.preflight(chosen.ws)
    looked = chosen.look(studio)
    detail = replace(looked, layer=replace(looked.layer, members=(0, 2))).detail
    assert [s.task for s in detail.spectra] == ["a", "c"] and len(found.tasks) == 3
