"""The Inspect tab: its handlers as plain functions, on a tiny pack."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import change_weights

from sftm_app.engine.run import run
from sftm_app.errors import InputError
from sftm_app.evaluation.candidates import method_candidate
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.measures import MEASURES, MeasureValue
from sftm_app.linalg.overlap import readout_error
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.planner import make_plan
from sftm_app.planning.recipe import make_recipe
from sftm_app.ui import loading
from sftm_app.ui.inspect import map_panel
from sftm_app.ui.inspect import showing as show
from sftm_app.ui.inspect import tab as inspect_tab
from sftm_app.ui.inspect.clicks import cell_of, link_of, name_of, place_of
from sftm_app.ui.inspect.layer_panel import detail_of
from sftm_app.ui.inspect.map_panel import map_steps
from sftm_app.ui.inspect.meaning_panel import SIDE, picture_uri
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.what_if_panel import build_views, build_what_if
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View
from sftm_app.ui.widgets import AddressBar, slider_rows
from sftm_app.ui.workspace import Workspace

NAME = "encoder.layer.1.intermediate.dense.weight"
OTHER = "encoder.layer.0.output.dense.weight"


def settings(method: str = "sftm", weights: tuple[float, ...] = (1.0, 1.0, 1.0), **values: Any) -> MergeSettings:
    return merge_settings(method, values, weights)


@pytest.fixture
def chosen(workspace: Workspace) -> InspectState:
    return InspectState(workspace, None, "change", "", NAME, "a", "b", None, "a", 1, "", settings())


def shown(event: dict[str, Any]) -> gr.EventData:
    return gr.EventData(None, {"x": None, "y": None, "customdata": None, "curve": 0, **event})


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


def test_a_layer_shows_spectra_and_its_members(studio: Studio, chosen: InspectState) -> None:
    asked = replace(chosen, first="c", second="a", task="b")
    title, spectra, _, first, second, task, _ = show.show_layer(studio, asked)
    assert NAME.removesuffix(".weight") in title
    assert {trace.name.split(" · ")[0] for trace in spectra.data if trace.showlegend is not False} == {"a", "b", "c"}
    assert (first["value"], second["value"], task["value"]) == ("c", "a", "b")
    settled, warnings = show.show_settled(studio, chosen)
    assert any("merged" in str(trace.name) for trace in settled.data)
    assert "sf-notice" in warnings


def test_where_two_tasks_meet(studio: Studio, chosen: InspectState) -> None:
    read, write, both, first, second, pair_read, pair_write, pair_both, angles = show.show_pair(studio, chosen)
    assert (first, second) == ("a", "b")
    assert show.show_pair(studio, replace(chosen, second="a"))[3:5] == ("a", "b"), "shown is what is drawn"
    assert all(np.array(figure.data[0].z).shape == (3, 3) for figure in (read, write, both))
    assert "features of a" in pair_read.layout.yaxis.title.text
    assert "features of b" in pair_write.layout.xaxis.title.text
    assert np.array(pair_both.data[0].z).min() < 0 < np.array(pair_both.data[0].z).max(), "entries of A have signs"
    assert len(angles.data) == 4


def test_unknown_names_from_the_browser_do_no_harm(studio: Studio, chosen: InspectState) -> None:
    with pytest.raises(InputError, match="no layer"):
        show.show_layer(studio, replace(chosen, layer="../../etc/passwd"))
    updates = show.show_layer(studio, replace(chosen, first="nobody", second="a", task="<b>"))
    assert [update["value"] for update in updates[3:6]] == ["a", "b", "a"]


def test_opening_with_a_view_shows_that_view(studio: Studio, workspace: Workspace) -> None:
    view = View(
        measure="condition", about="b", layer=NAME.removesuffix(".weight"), first="c", second="b", task="c", feature=2
    )
    measure, about, layer, first, second, task, number = show.show_controls(studio, workspace, view)
    found = [update["value"] for update in (about, layer, first, second, task)]
    assert (measure, *found, number) == ("condition", "b", NAME, "c", "b", "c", 3)
    measure, about, layer, first, second, task, number = show.show_controls(
        studio, workspace, View(measure="x", about="x")
    )
    assert (measure, about["value"], first["value"], second["value"], number) == ("change", "", "a", "b", 1)
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
    ],
)
def test_the_bars_are_what_the_merge_itself_reports(studio: Studio, chosen: InspectState, asked: MergeSettings) -> None:
    """The predicted errors against a merge of the same settings, read off the merged tensor."""
    bars, figures = show.show_prediction(studio, replace(chosen, settings=asked))
    found = studio.preflight(chosen.ws)
    tasks = [{"path": t.path, "name": t.name, "weight": w} for t, w in zip(chosen.ws.tasks, asked.weights, strict=True)]
    params = vars(asked.params) if asked.method != "average" else {}
    plan = make_plan(make_recipe(chosen.ws.base, tasks, asked.method, params, device="cpu"))
    merged = next(one for one in run(plan) if one.entry.name == NAME)
    from sftm_app.weights.reader import open_reader

    with open_reader(found.base) as read:
        change = merged.tensor - read(NAME)
    layer = next(layer for layer in map_layers(found) if layer.name == NAME)
    wanted = [readout_error(change, f) for f in studio.inspector.factors(found, layer).factors]
    assert list(bars.data[0].y) == pytest.approx(wanted, abs=2e-3)
    assert f"{max(wanted):.2f}" in figures


def test_settings_go_through_the_controls_unchanged(workspace: Workspace) -> None:
    with gr.Blocks():
        controls = build_what_if(*build_views())
    for asked in (
        settings(),
        settings(rank=4),
        settings(rank="90% energy", scaling=0.3, weights=(0.5, 1.0, 2.0)),
        settings("average"),
    ):
        updates = controls.write(workspace, asked)
        values = [
            component.value if update == gr.skip() else update["value"] if isinstance(update, dict) else update
            for component, update in zip(controls.inputs, updates, strict=True)
        ]
        assert controls.read(workspace, tuple(values)) == asked
    odd = (slider_rows(["x"], ["#fff"], [3.0]), *(component.value for component in controls.form.inputs))
    assert controls.read(workspace, odd).weights == (1.0, 1.0, 1.0)


# A feature


def test_a_feature_shows_its_figures_and_neighbours(studio: Studio, chosen: InspectState) -> None:
    figures, reasons, neighbours = show.show_feature(studio, replace(chosen, task="b", number=2))
    assert "Feature 2 of b" in figures and "Coefficient" in figures
    assert len(reasons.data) >= 1
    assert "data-sf-go" in neighbours
    beyond, _, _ = show.show_feature(studio, replace(chosen, number=10_000))
    assert "Feature 16 of a" in beyond, "a number beyond the last one shows the last one"


def test_what_a_feature_of_an_image_model_means(studio: Studio, chosen: InspectState) -> None:
    tokens, excited = show.show_meaning(studio, chosen)
    assert "images only" in tokens
    assert excited.count("<img") == 6 and "data:image/png;base64" in excited


def test_switching_a_feature_off_changes_the_answer_and_no_file(studio: Studio, chosen: InspectState) -> None:
    sample = ImageSamples(np.random.default_rng(0).integers(0, 255, (1, 8, 8), np.uint8), np.array([1]))
    model_pool = studio.model_pool(chosen.ws)
    merged = method_candidate("sftm", vars(settings().params), settings().weights)
    before = model_pool.model(merged, "a").answer(sample)[0].scores
    (same, _, _), (off, figure, excited) = (show.show_sample(studio, chosen, factor, sample) for factor in (1.0, 0.0))
    assert "stays the same" in same and "× 0" in off and figure["visible"] and "<img" in excited
    bars = [np.array(trace.y if trace.orientation != "h" else trace.x) for trace in figure["value"].data]
    assert not np.allclose(bars[0], bars[1]), "the shown scores must differ"
    assert model_pool.model(merged, "a").answer(sample)[0].scores == before, "the merged model itself is left alone"
    said, hidden, _ = show.show_sample(studio, chosen, 0.0, None)
    assert "Pick a sample" in said and not hidden["visible"]


def test_a_picked_sample_is_shown_in_the_inputs(studio: Studio, chosen: InspectState) -> None:
    sample, *updates = show.pick_sample(studio, chosen)
    assert len(sample) == 1 and len(updates) == 8
    own = loading.load_own(studio, "base", ["a", "b"])
    nothing, *_, said = show.pick_sample(studio, replace(chosen, ws=own))
    assert nothing is None and "No samples" in said


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
        inspect_tab.build(studio, gr.State(Workspace()), gr.State(None), gr.State("inspect"), AddressBar())
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


def test_two_views_stand_side_by_side(studio: Studio, chosen: InspectState) -> None:
    assert show.show_comparison(studio, chosen)[0]["visible"] is False
    pinned = replace(chosen, pinned=Pinned(OTHER, settings("average")))
    box, unpin, note, left, *_, right_figures = show.show_comparison(studio, pinned)
    assert box["visible"] and unpin["visible"] and note == ""
    assert OTHER.removesuffix(".weight") in left and "Plain average" in left and "sf-stat" in right_figures
    same = show.show_comparison(studio, replace(chosen, pinned=chosen.now))
    assert "same" in same[2]
    gone = show.show_comparison(studio, replace(chosen, pinned=Pinned("gone", settings())))
    assert "cannot be shown" in gone[3]


# Clicks come from the browser


@pytest.mark.parametrize("data", [None, [1], [1, -1], ["a", 1], [1, 2, 3], [True, 1], [1e12, 1], {"a": 1}])
def test_a_point_of_a_spectrum_is_two_whole_numbers_or_nothing(data: Any) -> None:
    assert place_of(shown({"customdata": data})) is None
    assert place_of(shown({"customdata": [2, 5]})) == (2, 5)


def test_other_clicks_are_checked_too() -> None:
    assert name_of(shown({"customdata": 3})) is None and name_of(shown({"customdata": "x"})) == "x"
    assert cell_of(shown({"x": -7, "y": 1})) is None and cell_of(shown({"x": 2, "y": 1})) == (1, 2)
    members = ["a", "b"]
    assert link_of(shown({"customdata": ["feature", "b", 3]}), members) is not None
    for data in (["feature", "x", 3], ["feature", "a", "b"], ["overlap", "a", "x"], ["spectra", "a", "b"], "feature"):
        assert link_of(shown({"customdata": data}), members) is None


def test_a_layer_that_one_task_lacks_is_shown_for_the_others(studio: Studio, chosen: InspectState) -> None:
    found = studio.preflight(chosen.ws)
    looked = chosen.look(studio)
    detail = detail_of(studio, replace(looked, layer=replace(looked.layer, members=(0, 2))))
    assert [s.task for s in detail.spectra] == ["a", "c"] and len(found.tasks) == 3
