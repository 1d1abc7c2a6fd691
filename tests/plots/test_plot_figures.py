"""The numbers in the figures are the numbers that were given."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.angles import principal_angles
from sftm_app.plots.comparison import AccuracyBar, comparison_bars
from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.preservation import ErrorSeries, error_ceiling, prediction_bars, preservation
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.reasons import NO_COEFFICIENTS, feature_reasons
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra
from sftm_app.plots.style import INK, Series, make_figure, plot_text
from sftm_app.ui.widgets import PlotlyView

HOSTILE = "<b>x</b><script>alert(1)</script>"


BLUE, RED = "#0072b2", "#d55e00"
TASK = SpectrumTrace("a", "#0072b2", [2.0, 1.0, 0.9], 1.6, {0.8: 1}, 1.4, [(1, 3)])

# Every plot: as it is usually, with its rarer parts, and empty.
PLOTS: dict[str, Callable[[], go.Figure]] = {
    "layer map": lambda: layer_map([[0.1, None]], ["r"], ["q", "k"], "change"),
    "layer map, chosen": lambda: layer_map([[0.1]], ["r"], ["q"], "change", (0, 0), [["t"]], zmax=2.0),
    "layer map, log": lambda: layer_map([[1.0, 1e6, None, 0.0]], ["r"], list("qkvo"), "condition", log=True),
    "layer map, percent": lambda: layer_map([[0.2]], ["r"], ["q"], "change", number=".1%"),
    "layer map, empty": lambda: layer_map([[None]], ["r"], ["q"], "change"),
    "spectra": lambda: spectra([TASK, TASK]),
    "spectra, stacked": lambda: spectra([TASK], stacked=True),
    "spectra, merged and chosen": lambda: spectra([TASK], merged_trace("SFTM", [3.0, 0.0]), (0, 1)),
    "spectra, empty": lambda: spectra([]),
    "overlap": lambda: overlap_heatmap(np.eye(3), "a", "b", "read", 0.1),
    "overlap, chosen": lambda: overlap_heatmap(np.eye(600), "a", "b", "both", 0.1, (2, 2)),
    "overlap, empty": lambda: overlap_heatmap(np.zeros((0, 2)), "a", "b", "write", 0.1),
    "task overlap": lambda: task_overlap(np.eye(2), ["a", "b"], title="T"),
    "task overlap, many and chosen": lambda: task_overlap(np.eye(13), list("abcdefghijklm"), selected=(0, 1)),
    "task overlap, signed": lambda: task_overlap(-np.eye(2), ["a", "b"], "interference", signed=True),
    "task overlap, empty": lambda: task_overlap([[np.nan]], ["a"]),
    "probabilities": lambda: probabilities(["a", "b"], [Series("m", [0.1, None], BLUE)], truth=1),
    "probabilities, empty": lambda: probabilities([], []),
    "accuracy": lambda: accuracy_bars(["t1", "t2"], [Series("base", [0.5, None], BLUE)]),
    "accuracy, hatched": lambda: accuracy_bars(["t1"], [Series("WUDI", [0.5], BLUE, "/")]),
    "accuracy, empty": lambda: accuracy_bars([], []),
    "comparison": lambda: comparison_bars([AccuracyBar("SFTM", 0.7, 0.65, 0.74)], 0.5, 0.8),
    "comparison, ends unknown": lambda: comparison_bars([AccuracyBar("SFTM", 0.7, 0.65, 0.74)]),
    "comparison, empty": lambda: comparison_bars([]),
    "preservation": lambda: preservation(
        ["t"], [ErrorSeries("a", BLUE, [8e-8], [0.5]), ErrorSeries("b", RED, (), [None])]
    ),
    "preservation, empty": lambda: preservation([], []),
    "prediction": lambda: prediction_bars(["t"], [ErrorSeries("rank 25%", BLUE, [0.1], [None])]),
    "prediction, empty": lambda: prediction_bars([], []),
    "angles": lambda: principal_angles([1.0, 20.0], [2.0], [60.0, 70.0], [80.0], "a", "b"),
    "angles, empty": lambda: principal_angles([], [], [], [], "a", "b"),
    "reasons": lambda: feature_reasons(2.0, [("b · feature 1", -0.5, "#d55e00")], 0.25, 2.0),
    "reasons, no coefficient": lambda: feature_reasons(2.0, [], 0.0, None),
    "reasons, not finite": lambda: feature_reasons(float("nan"), [], 0.0, 1.0),
}


def sent(figure: go.Figure) -> dict[str, Any]:
    """What the browser gets."""
    result: dict[str, Any] = json.loads(figure.to_json())
    return result


def array(value: Any) -> np.ndarray[Any, Any]:
    """A list, or plotly's base64 form of an array."""
    if not isinstance(value, dict):
        return np.asarray(value, dtype=float)
    flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=np.dtype(value["dtype"]).newbyteorder("<"))
    return flat.reshape([int(part) for part in str(value.get("shape", len(flat))).split(",")])


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_every_plot_has_our_template_and_not_that_of_plotly(plot: Callable[[], go.Figure]) -> None:
    template = sent(plot())["layout"]["template"]
    assert template["layout"]["font"]["family"] == "var(--plot-font)"
    assert set(template["data"]) == {"heatmap"}, "plotly's default has settings for every kind of trace"


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_plotly_finds_nothing_wrong_in_any_plot(plot: Callable[[], go.Figure]) -> None:
    """Figures are made unchecked because checking is slow; here plotly checks every setting of them."""
    figure = sent(plot())
    # It refuses unknown settings and wrong values, and would change what it only puts up with.
    checked = sent(go.Figure(figure))
    checked["layout"]["template"]["data"]["heatmap"][0].pop("type")
    assert checked["data"] == figure["data"]
    assert {"shapes": [], **checked["layout"]} == {"shapes": [], **figure["layout"]}


def test_layer_map_keeps_values_leaves_gaps_and_frames_the_selected_cell() -> None:
    names: list[list[str | None]] = [["t00", "t01", None], ["t10", "t11", "t12"]]
    figure = sent(
        layer_map([[0.1, 0.2, None], [0.3, float("inf"), 0.5]], ["l0", "l1"], ["q", "k", "v"], "change", (1, 2), names)
    )
    trace, layout = figure["data"][0], figure["layout"]
    grid = array(trace["z"])
    assert np.allclose(grid[0, :2], [0.1, 0.2]) and grid[1, 2] == pytest.approx(0.5)
    assert np.isnan(grid[0, 2]) and np.isnan(grid[1, 1]), "None and infinity are blank"
    assert trace["customdata"] == names
    assert (trace["zmin"], trace["zmax"]) == (0, pytest.approx(0.5))
    frame = layout["shapes"][0]
    assert (frame["x0"], frame["x1"], frame["y0"], frame["y1"]) == (1.5, 2.5, 0.5, 1.5)
    assert layout["meta"]["selected"] == [1, 2] and layout["meta"]["missing"] == 2
    assert "l1 · k" in trace["text"][1][1] and "t10" in trace["text"][1][0]


def test_layer_map_refuses_a_wrong_shape_and_explains_an_empty_one() -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        layer_map([[1.0]], ["a", "b"], ["c"], "m")
    assert "No layer" in sent(layer_map([[None]], ["a"], ["c"], "m"))["layout"]["annotations"][0]["text"]


def test_task_overlap_has_a_cell_for_each_pair() -> None:
    matrix = np.array([[np.nan, 0.25], [0.25, np.nan]])
    figure = sent(task_overlap(matrix, ["a", HOSTILE], selected=(0, 1)))
    grid = array(figure["data"][0]["z"])
    assert grid[0, 1] == 0.25 and np.isnan(grid[0, 0])
    assert figure["layout"]["xaxis"]["ticktext"][1].startswith("&lt;b&gt;")
    with pytest.raises(ValueError, match="task_overlap"):
        task_overlap(matrix, ["a"])
    assert "two tasks" in sent(task_overlap([[np.nan]], ["a"]))["layout"]["annotations"][0]["text"]


def test_probabilities_show_the_likely_classes_and_the_true_one() -> None:
    labels = [f"c{i}" for i in range(20)]
    values = [0.0] * 20
    values[7], values[3] = 0.9, 0.1
    figure = sent(probabilities(labels, [Series("base", values, BLUE), Series(HOSTILE, values, RED)], truth=19, most=3))
    assert figure["layout"]["meta"]["classes"] == [3, 7, 19]
    assert figure["data"][0]["x"] == [0.1, 0.9, 0.0]
    assert figure["layout"]["yaxis"]["ticktext"] == ["c3", "c7", "✓ c19"]
    assert figure["data"][1]["name"].startswith("&lt;b&gt;")
    with pytest.raises(ValueError, match="2 values for 20 classes"):
        probabilities(labels, [Series("x", [0.5, 0.5], BLUE)])
    assert "No model" in sent(probabilities([], []))["layout"]["annotations"][0]["text"]


def test_accuracy_bars_group_by_task() -> None:
    models = [Series("base", [0.25, None], BLUE), Series("sftm", [0.5, 0.75], RED)]
    figure = sent(accuracy_bars(["t1", "t2"], models))
    base, sftm = figure["data"]
    assert base["y"] == [0.25, None] and sftm["y"] == [0.5, 0.75]
    assert figure["layout"]["xaxis"]["ticktext"] == ["t1", "t2"]
    assert (base["marker"]["color"], sftm["marker"]["color"]) == (BLUE, RED)
    with pytest.raises(ValueError, match="1 values for 2 groups"):
        accuracy_bars(["t1", "t2"], [Series("a", [0.1], BLUE)])


def test_comparison_bars_are_sorted_and_keep_their_intervals() -> None:
    merges = [AccuracyBar("low", 0.5, 0.4, 0.62), AccuracyBar(HOSTILE, 0.7, 0.65, 0.74)]
    figure = sent(comparison_bars(merges, 0.3, 0.8))
    trace, layout = figure["data"][0], figure["layout"]
    assert trace["x"] == [0.7, 0.5]
    assert trace["error_x"]["array"] == pytest.approx([0.04, 0.12])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.05, 0.1])
    assert layout["yaxis"]["ticktext"][0].startswith("&lt;b&gt;") and layout["yaxis"]["ticktext"][1] == "low"
    assert [shape["x0"] for shape in layout["shapes"]] == [0.3, 0.8]
    assert [note["text"] for note in layout["annotations"]] == ["base 30.0%", "individual 80.0%"]
    assert layout["xaxis"]["range"][1] >= 0.8


def test_preservation_has_two_panels_and_one_legend() -> None:
    merges = [ErrorSeries("SFTM", BLUE, [0.0, 0.1], [0.5, 0.6]), ErrorSeries("Average", RED, mapping=[1, None])]
    figure = sent(preservation(["t1", "t2"], merges))
    data = figure["data"]
    assert [trace["y"] for trace in data] == [[0.0, 0.1], [0.5, 0.6], [1, None]]
    assert [trace["showlegend"] for trace in data] == [True, False, True]
    assert data[0]["name"] == "SFTM" and data[0]["xaxis"] == "x" and data[1]["xaxis"] == "x2"
    assert [trace["marker"]["color"] for trace in data] == [BLUE, BLUE, RED]
    with pytest.raises(ValueError, match="1 values for 2 groups"):
        preservation(["t1", "t2"], [ErrorSeries("a", BLUE, [1.0])])


def test_prediction_bars_keep_names_colours_and_errors_in_two_panels() -> None:
    merges = [
        ErrorSeries("SFTM, rank 25%", BLUE, [0.1, 0.2], [0.3, None]),
        ErrorSeries(HOSTILE, INK, [0, 0], [2.2, 1]),
    ]
    figure = sent(prediction_bars(["t1", "t2"], merges))
    data, layout = figure["data"], figure["layout"]
    assert [trace["y"] for trace in data] == [[0.1, 0.2], [0.3, None], [0, 0], [2.2, 1]]
    assert [trace["xaxis"] for trace in data] == ["x", "x2", "x", "x2"]
    assert [trace["showlegend"] for trace in data] == [True, False, True, False]
    assert data[0]["marker"]["color"] == "#0072b2" and data[2]["name"].startswith("&lt;b&gt;")
    assert layout["yaxis"]["range"] == [0, 1.02] and layout["yaxis2"]["range"] == [0, pytest.approx(3.06)]
    assert layout["height"] == 280 and layout["uirevision"] == "prediction"
    assert (layout["yaxis"]["title"]["text"], layout["yaxis2"]["title"]["text"]) == ("readout error", "mapping error")
    with pytest.raises(ValueError, match="2 values for 1 groups"):
        prediction_bars(["t1"], merges)


def test_two_predictions_next_to_each_other_have_the_same_axes() -> None:
    near, far = ErrorSeries("near", BLUE, [0.1], [0.2]), ErrorSeries("far", RED, [4.5], [2.5])
    layouts = [
        sent(prediction_bars(["t"], [one], compared=[other]))["layout"] for one, other in ((near, far), (far, near))
    ]
    for axis, end in (("yaxis", 5), ("yaxis2", 3)):
        assert [layout[axis]["range"] for layout in layouts] == [[0, pytest.approx(1.02 * end)]] * 2


def test_a_method_without_coefficients_has_no_reasons_but_a_sentence() -> None:
    figure = sent(feature_reasons(2.0, [], 0.0, None))
    assert figure["data"] == [] and figure["layout"]["annotations"][0]["text"] == NO_COEFFICIENTS


@pytest.mark.parametrize(
    ("errors", "end"),
    [([], 1), ([None, 0.02], 1), ([1.0], 1), ([1.01], 1.5), ([1.6, 2.0], 2), ([7.6], 10), ([40, float("inf")], 50)],
)
def test_the_end_of_an_error_axis_moves_by_round_steps(errors: list[float | None], end: float) -> None:
    assert error_ceiling(errors) == end


def test_bars_under_a_slider_are_built_fast() -> None:
    tasks, errors = [f"task {i}" for i in range(8)], [0.1] * 8
    series = [ErrorSeries(f"series {i}", BLUE, errors, errors) for i in range(3)]
    content = prediction_bars(tasks, series).to_dict()

    def fastest(build: Callable[[], object]) -> float:
        took = []
        for _ in range(20):
            start = time.perf_counter()
            build()
            took.append(time.perf_counter() - start)
        return min(took)

    # Side by side with a figure that plotly checks, because machines differ.
    assert fastest(lambda: prediction_bars(tasks, series)) < 0.6 * fastest(lambda: go.Figure(content))


# ---- how a plot is added: a data function and a figure function


def running_mean(values: list[float]) -> list[float]:
    return (np.cumsum(values) / np.arange(1, len(values) + 1)).tolist()


def mean_curve(name: str, values: list[float]) -> go.Figure:
    """A line with the mean of the first 1, 2, 3 ... values."""
    trace = {
        "type": "scatter",
        "x": list(range(1, len(values) + 1)),
        "y": running_mean(values),
        "name": plot_text(name),
    }
    return make_figure("mean-curve", [trace], {"yaxis": {"title": {"text": "mean"}}}, title="Mean")


def test_a_new_plot_is_two_functions_and_reaches_the_browser() -> None:
    assert running_mean([1.0, 3.0, 8.0]) == [1, 2, 4]
    payload = PlotlyView(label="Mean").postprocess(mean_curve(HOSTILE, [1.0, 3.0, 8.0]))
    assert payload is not None and "<" not in payload
    figure = json.loads(payload)
    assert figure["data"][0]["y"] == [1, 2, 4] and figure["data"][0]["name"].startswith("&lt;b&gt;")
    assert figure["layout"]["meta"]["name"] == "mean-curve"
    assert sent(go.Figure(figure))["data"] == figure["data"], "plotly finds nothing wrong in it"
