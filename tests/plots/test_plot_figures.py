"""The numbers in the figures are the numbers that were given."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from sftm_app.plots import (
    Series,
    SpectrumTrace,
    accuracy_bars,
    layer_map,
    overlap_heatmap,
    preservation,
    probabilities,
    reduce_matrix,
    spectra,
    task_overlap,
)

HOSTILE = "<b>x</b><script>alert(1)</script>"


TASK = SpectrumTrace("a", "#0072b2", [2.0, 1.0], 1.6, {0.8: 1})

# Every plot: as it is usually, with its rarer parts, and empty.
PLOTS: dict[str, Callable[[], go.Figure]] = {
    "layer map": lambda: layer_map([[0.1, None]], ["r"], ["q", "k"], "change"),
    "layer map, chosen": lambda: layer_map([[0.1]], ["r"], ["q"], "change", (0, 0), [["t"]], zmax=2.0),
    "layer map, empty": lambda: layer_map([[None]], ["r"], ["q"], "change"),
    "spectra": lambda: spectra([TASK, TASK]),
    "spectra, stacked": lambda: spectra([TASK], stacked=True),
    "spectra, empty": lambda: spectra([]),
    "overlap": lambda: overlap_heatmap(np.eye(3), "a", "b", "read", 0.1),
    "overlap, chosen": lambda: overlap_heatmap(np.eye(600), "a", "b", "both", 0.1, (2, 2)),
    "overlap, empty": lambda: overlap_heatmap(np.zeros((0, 2)), "a", "b", "write", 0.1),
    "task overlap": lambda: task_overlap(np.eye(2), ["a", "b"], title="T"),
    "task overlap, many and chosen": lambda: task_overlap(np.eye(13), list("abcdefghijklm"), selected=(0, 1)),
    "task overlap, empty": lambda: task_overlap([[np.nan]], ["a"]),
    "probabilities": lambda: probabilities(["a", "b"], [Series("m", [0.1, None])], truth=1, title="T"),
    "probabilities, empty": lambda: probabilities([], []),
    "accuracy": lambda: accuracy_bars(["t1", "t2"], ["base"], [[0.5, None]], title="T"),
    "accuracy, empty": lambda: accuracy_bars([], [], []),
    "preservation": lambda: preservation(["t"], {"sftm": [8e-8]}, {"sftm": [0.5], "average": [None]}),
    "preservation, empty": lambda: preservation([], {}, {}),
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


def test_spectra_draw_gains_energy_and_marks() -> None:
    task = SpectrumTrace("a", "#0072b2", [2.0, 1.0, 0.0], 1.6, {0.8: 1, 1.0: 2, 0.99: 99})
    gains, energy, marks, energy_marks = sent(spectra([task]))["data"]
    assert array(gains["x"]).tolist() == [1, 2, 3]
    assert array(gains["y"])[:2].tolist() == [2, 1] and np.isnan(array(gains["y"])[2]), (
        "zero has no place on a log axis"
    )
    assert np.allclose(array(energy["y"]), [0.8, 1, 1])
    assert marks["x"] == [1, 2] and marks["y"] == [2, 1], "a rank beyond the spectrum is left out"
    assert np.allclose(energy_marks["y"], [0.8, 1])
    assert "effective rank 1.6" in gains["name"] and energy["showlegend"] is False
    assert sent(spectra([task]))["layout"]["yaxis"]["type"] == "log"


def test_spectra_of_tasks_with_one_name_switch_separately() -> None:
    task = SpectrumTrace("a", "#0072b2", [1.0], 1.0)
    assert len({trace["legendgroup"] for trace in sent(spectra([task, task]))["data"]}) == 2


def test_spectra_without_features_say_so() -> None:
    figure = sent(spectra([SpectrumTrace("a", "#000000", [], 0.0)]))
    assert "did not change" in figure["layout"]["annotations"][0]["text"]
    assert sent(spectra([SpectrumTrace("a", "#000000", [0.0, 0.0], 0.0)]))["data"], "an all-zero spectrum draws"


@pytest.mark.parametrize("shape", [(3, 3), (512, 512), (513, 700), (1, 2000), (1500, 1)])
def test_reduce_matrix_keeps_the_largest_of_each_block(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).random(shape)
    small, down, across = reduce_matrix(matrix)
    assert small.dtype == np.float32 and max(small.shape) <= 512
    assert (down, across) == tuple(-(-size // 512) for size in shape)
    for r in range(0, small.shape[0], 97):
        for c in range(0, small.shape[1], 89):
            block = matrix[r * down : (r + 1) * down, c * across : (c + 1) * across]
            assert small[r, c] == pytest.approx(block.max(), abs=6e-5)


def test_reduce_matrix_ignores_nan_beside_numbers_and_takes_empty_ones() -> None:
    matrix = np.full((4, 4), np.nan)
    matrix[0, 0] = 0.5
    small, _, _ = reduce_matrix(matrix, most=2)
    assert small[0, 0] == 0.5 and np.isnan(small[1, 1])
    assert reduce_matrix(np.zeros((0, 5)))[0].shape == (0, 5)
    with pytest.raises(ValueError, match="1 dimensions"):
        reduce_matrix(np.zeros(3))


def test_overlap_counts_features_from_one_and_names_the_random_level() -> None:
    figure = sent(overlap_heatmap(np.eye(4), "a", HOSTILE, "write", 0.0567, (2, 3)))
    trace, layout = figure["data"][0], figure["layout"]
    assert np.array_equal(array(trace["z"]), np.eye(4))
    assert (trace["x0"], trace["dx"], trace["y0"], trace["dy"]) == (1, 1, 1, 1)
    assert "0.0567" in layout["title"]["subtitle"]["text"] and layout["title"]["text"] == "Write overlap"
    frame = layout["shapes"][0]
    assert frame["x0"] < 2.5 < 3.5 < frame["x1"] and frame["y0"] < 1.5 < 2.5 < frame["y1"]
    assert "<script" not in json.dumps(figure)


def test_a_large_overlap_is_reduced_and_says_so() -> None:
    figure = sent(overlap_heatmap(np.zeros((1025, 600)), "a", "b", "both", 0.01))
    trace = figure["data"][0]
    assert array(trace["z"]).shape == (342, 300) and (trace["dy"], trace["dx"]) == (3, 2)
    assert "3 × 2" in figure["layout"]["title"]["subtitle"]["text"]


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
    figure = sent(probabilities(labels, [Series("base", values), Series(HOSTILE, values)], truth=19, most=3))
    assert figure["layout"]["meta"]["classes"] == [3, 7, 19]
    assert figure["data"][0]["x"] == [0.1, 0.9, 0.0]
    assert figure["layout"]["yaxis"]["ticktext"] == ["c3", "c7", "✓ c19"]
    assert figure["data"][1]["name"].startswith("&lt;b&gt;")
    with pytest.raises(ValueError, match="2 values for 20 classes"):
        probabilities(labels, [Series("x", [0.5, 0.5])])
    assert "No model" in sent(probabilities([], []))["layout"]["annotations"][0]["text"]


def test_accuracy_bars_group_by_task() -> None:
    figure = sent(accuracy_bars(["t1", "t2"], ["base", "sftm"], [[0.25, None], [0.5, 0.75]]))
    base, sftm = figure["data"]
    assert base["y"] == [0.25, None] and sftm["y"] == [0.5, 0.75]
    assert figure["layout"]["xaxis"]["ticktext"] == ["t1", "t2"]
    assert base["marker"]["color"] != sftm["marker"]["color"]
    with pytest.raises(ValueError, match="1 rows"):
        accuracy_bars(["t1"], ["a", "b"], [[0.1]])
    with pytest.raises(ValueError, match="1 values for 2 groups"):
        accuracy_bars(["t1", "t2"], ["a"], [[0.1]])


def test_preservation_has_two_panels_and_one_legend() -> None:
    figure = sent(
        preservation(["t1", "t2"], {"sftm": [0.0, 0.1]}, {"sftm": [0.5, 0.6], "average": [1, None]}, {"sftm": "SFTM"})
    )
    data = figure["data"]
    assert [trace["y"] for trace in data] == [[0.0, 0.1], [0.5, 0.6], [1, None]]
    assert [trace["showlegend"] for trace in data] == [True, False, True]
    assert data[0]["name"] == "SFTM" and data[0]["xaxis"] == "x" and data[1]["xaxis"] == "x2"
    with pytest.raises(ValueError, match="1 errors for 2 tasks"):
        preservation(["t1", "t2"], {"a": [1.0]}, {})
