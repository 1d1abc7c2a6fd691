"""The numbers in the figures of the Inspect tab: spectra, overlap, angles, reasons, and the map's powers of ten."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_plot_figures import HOSTILE, array, sent

from sftm_app.plots.angles import angle_points, principal_angles
from sftm_app.plots.layer_map import layer_map, log_scale, log_ticks
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.reasons import feature_reasons, reason_steps
from sftm_app.plots.reduce import points_to_draw, reduce_matrix
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra, spectrum_points

# ---- what is reduced


@pytest.mark.parametrize("shape", [(3, 3), (512, 512), (513, 700), (1, 2000), (1500, 1)])
def test_reduce_matrix_keeps_the_strongest_entry_of_each_block_and_says_where_it_was(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    small = reduce_matrix(matrix)
    assert small.cells.dtype == np.float32 and max(small.cells.shape) <= 512
    assert (small.down, small.across) == tuple(-(-size // 512) for size in shape)
    assert small.is_smaller == (max(shape) > 512)
    for r in range(0, small.cells.shape[0], 97):
        for c in range(0, small.cells.shape[1], 89):
            top, left = r * small.down, c * small.across
            block = matrix[top : top + small.down, left : left + small.across]
            assert abs(small.cells[r, c]) == np.abs(block).max() and small.cells[r, c] in block
            down, across = divmod(int(small.within[r, c]), small.across)
            assert matrix[top + down, left + across] == small.cells[r, c]


def test_reduce_matrix_ignores_nan_beside_numbers_and_takes_empty_ones() -> None:
    matrix = np.full((4, 4), np.nan)
    matrix[0, 0] = -0.5
    small = reduce_matrix(matrix, most=2).cells
    assert small[0, 0] == -0.5 and np.isnan(small[1, 1])
    assert reduce_matrix(np.zeros((0, 5))).cells.shape == (0, 5)
    assert reduce_matrix(np.zeros((0, 5000))).cells.shape == (0, 5000)
    with pytest.raises(ValueError, match="1 dimensions"):
        reduce_matrix(np.zeros(3))


@pytest.mark.parametrize("count", [0, 1, 2048, 2049, 5000, 100_000])
def test_thinned_keeps_ends_strong_features_and_marks(count: int) -> None:
    keep = [700, 1999, -1, 10**6]
    places = points_to_draw(count, keep)
    assert len(places) == min(count, len(places)) <= 2048 and (np.diff(places) > 0).all()
    if count <= 2048:
        assert places.tolist() == list(range(count))
    else:
        assert places[0] == 0 and places[-1] == count - 1 and {700, 1999} <= set(places.tolist())
        assert places[:512].tolist() == list(range(512))
        assert np.diff(places).max() <= 2 * count / 1500 + 1, "the rest is spread evenly"


def test_thinned_refuses_more_marks_than_there_is_room_for() -> None:
    with pytest.raises(ValueError, match="no room among 100"):
        points_to_draw(1000, range(60), most=100)


# ---- spectra


def test_spectra_draw_gains_energy_and_marks() -> None:
    task = SpectrumTrace("a", "#0072b2", [2.0, 1.0, 0.0], 1.6, {0.8: 1, 1.0: 2, 0.99: 99}, 1.25)
    gains, energy, marks, energy_marks, *rings = sent(spectra([task]))["data"]
    assert array(gains["x"]).tolist() == [1, 2, 3]
    shown = array(gains["y"])
    assert shown[:2].tolist() == [2, 1] and np.isnan(shown[2]), "zero has no place on a log axis"
    assert np.allclose(array(energy["y"]), [0.8, 1, 1])
    assert marks["x"] == [1, 2] and marks["y"] == [2, 1], "a rank beyond the spectrum is left out"
    assert np.allclose(energy_marks["y"], [0.8, 1])
    assert "effective rank 1.6, stable 1.2" in gains["name"] and energy["showlegend"] is False
    assert energy["meta"]["spans"] == [[1, 1, "1 features hold 80%"], [2, 2, "2 features hold 100%"]]
    assert marks["customdata"] == [[0, 0], [0, 1]] and marks["text"] == ["80% of the energy", "100% of the energy"]
    assert [ring["x"] for ring in rings] == [[None], [None]], "nothing is chosen"
    assert sent(spectra([task]))["layout"]["yaxis"]["type"] == "log"


def test_points_of_a_spectrum_name_their_task_and_feature_but_those_of_the_merge_do_not() -> None:
    tasks = [SpectrumTrace("none", "#000000", [], 0.0), SpectrumTrace("a", "#0072b2", [2.0, 1.0], 1.6)]
    merged = merged_trace(HOSTILE, [3.0, 1.0, 1.0])
    gains, energy, merged_gains, merged_energy, *_ = sent(spectra(tasks, merged))["data"]
    assert array(gains["customdata"]).tolist() == array(energy["customdata"]).tolist() == [[1, 0], [1, 1]]
    assert "customdata" not in merged_gains and "customdata" not in merged_energy
    assert merged_gains["name"].startswith("merged (&lt;b&gt;") and "stable 1.2" in merged_gains["name"]
    assert merged_gains["line"]["color"] == "var(--plot-ink)" and merged_gains["line"]["width"] > gains["line"]["width"]
    assert array(merged_gains["y"]).tolist() == [3, 1, 1]
    p = np.array([3, 1, 1]) / 5
    assert merged.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum())) and merged.stable_rank == 11 / 9


def test_the_chosen_feature_gets_a_ring_in_both_panels() -> None:
    tasks = [SpectrumTrace("a", "#0072b2", [2.0, 1.0, 0.0], 1.6), SpectrumTrace("b", "#d55e00", [4.0, 3.0], 1.9)]
    left, right = sent(spectra(tasks, selected=(1, 1)))["data"][-2:]
    assert (left["x"], left["y"], left["xaxis"]) == ([2], [3], "x")
    assert (right["x"], right["xaxis"]) == ([2], "x2") and right["y"] == [1]
    assert left["meta"] == {"aid": True, "ring": True} and left["hoverinfo"] == "skip"
    assert sent(spectra(tasks, selected=(0, 2)))["data"][-2]["y"] == [None], "a gain of zero has no place"
    for elsewhere in ((0, 3), (5, 0)):
        assert sent(spectra(tasks, selected=elsewhere))["data"][-1]["x"] == [None]


def test_clusters_are_marked_on_the_line_and_named_beside_their_points() -> None:
    gains = [9.0, 5.0, 4.9, 1.0, 0.99, 0.98]
    task = SpectrumTrace("a", "#0072b2", gains, 3.0, clusters=[(3, 6), (1, 3), (5, 9)])
    bands, line, *_ = sent(spectra([task]))["data"]
    assert bands["x"] == [2, 3, None, 4, 5, 6, None] and bands["hoverinfo"] == "skip"
    assert np.allclose([y for y in bands["y"] if y], gains[1:]) and bands["legendgroup"] == line["legendgroup"]
    assert line["meta"]["spans"] == [
        [2, 3, "nearly equal gains: features 2 to 3"],
        [4, 6, "nearly equal gains: features 4 to 6"],
    ]
    many = SpectrumTrace("a", "#0072b2", list(range(40, 0, -1)), 3.0, clusters=[(i, i + 2) for i in range(0, 40, 2)])
    assert sent(spectra([many]))["data"][0]["x"].count(None) == 8, "only the strongest eight"


def test_a_long_spectrum_is_thinned_and_its_features_keep_their_numbers() -> None:
    gains = np.linspace(9, 1, 6001)
    task = SpectrumTrace("a", "#0072b2", gains, 5000.0, {0.9: 3001}, clusters=[(4003, 4006)])
    points = spectrum_points(task, chosen=5555)
    assert len(points.features) <= 2048 and {0, 3000, 4003, 4005, 5555, 6000} <= set(points.features.tolist())
    assert np.allclose(points.gains, gains[points.features])
    assert np.allclose(points.energy, (np.cumsum(gains**2) / (gains**2).sum())[points.features])
    figure = sent(spectra([task], selected=(0, 5555)))
    line = next(trace for trace in figure["data"] if trace["mode"] == "lines" and "customdata" in trace)
    assert np.array_equal(array(line["customdata"])[:, 1] + 1, array(line["x"]))
    assert figure["data"][-2]["x"] == [5556]
    marks = next(trace for trace in figure["data"] if isinstance(trace["x"], list) and trace["x"] == [3001])
    assert marks["y"] == [pytest.approx(gains[3000])]


def test_spectra_of_tasks_with_one_name_switch_separately() -> None:
    task = SpectrumTrace("a", "#0072b2", [1.0], 1.0)
    groups = {trace["legendgroup"] for trace in sent(spectra([task, task]))["data"] if not trace["meta"].get("aid")}
    assert len(groups) == 2


def test_spectra_without_features_say_so() -> None:
    figure = sent(spectra([SpectrumTrace("a", "#000000", [], 0.0)]))
    assert "did not change" in figure["layout"]["annotations"][0]["text"]
    zeros = sent(spectra([SpectrumTrace("a", "#000000", [0.0, 0.0], 0.0)]))
    assert "gains of this layer are 0" in zeros["layout"]["annotations"][0]["text"]


# ---- overlap


def test_overlap_counts_features_from_one_and_names_the_random_level() -> None:
    figure = sent(overlap_heatmap(np.eye(4), "a", HOSTILE, "write", 0.0567, (2, 3)))
    trace, layout = figure["data"][0], figure["layout"]
    assert np.array_equal(array(trace["z"]), np.eye(4)) and (trace["zmin"], trace["zmax"]) == (0, 1)
    assert (trace["x0"], trace["dx"], trace["y0"], trace["dy"]) == (1, 1, 1, 1)
    assert "0.0567" in layout["title"]["subtitle"]["text"] and layout["title"]["text"] == "Write overlap"
    frame = layout["shapes"][0]
    assert frame["x0"] < 2.5 < 3.5 < frame["x1"] and frame["y0"] < 1.5 < 2.5 < frame["y1"]
    assert "<script" not in json.dumps(figure)


def test_entries_of_a_keep_their_sign_and_their_colours_diverge_from_zero() -> None:
    trace = sent(overlap_heatmap([[0.2, -0.5]], "a", "b", "both", 0.01))["data"][0]
    assert np.allclose(array(trace["z"]), [[0.2, -0.5]])
    assert (trace["zmin"], trace["zmax"]) == (-0.5, 0.5)
    assert [stop[1] for stop in trace["colorscale"]] == [f"var(--plot-div-{step})" for step in range(5)]


def test_a_large_overlap_is_reduced_says_so_and_can_name_the_very_features() -> None:
    matrix = np.zeros((1025, 600))
    matrix[4, 3] = -0.75
    figure = sent(overlap_heatmap(matrix, "a", "b", "both", 0.01))
    trace = figure["data"][0]
    cells = array(trace["z"])
    assert cells.shape == (342, 300) and (trace["dy"], trace["dx"]) == (3, 2)
    assert "3 × 2" in figure["layout"]["title"]["subtitle"]["text"]
    assert cells[1, 1] == -0.75 and trace["meta"] == {"block": [3, 2]}
    down, across = divmod(int(array(trace["customdata"])[1, 1]), 2)
    assert (1 * 3 + down, 1 * 2 + across) == (4, 3)
    assert array(trace["customdata"]).shape == cells.shape


def test_interference_of_tasks_may_be_negative() -> None:
    trace = sent(task_overlap([[0.1, -0.4], [-0.4, 0.1]], ["a", "b"], "interference", signed=True))["data"][0]
    assert (trace["zmin"], trace["zmax"]) == (pytest.approx(-0.4), pytest.approx(0.4))
    assert trace["colorscale"][2][1] == "var(--plot-div-2)"


# ---- angles


def test_principal_angles_are_degrees_counted_from_one() -> None:
    figure = sent(principal_angles([1.5, 30.0], [80.0], [70.0, 80.0], [85.0], "a", HOSTILE))
    found = {trace["name"]: (array(trace["x"]).tolist(), array(trace["y"]).tolist()) for trace in figure["data"]}
    assert found == {
        "read": ([1, 2], [1.5, 30]),
        "write": ([1], [80]),
        "random, read": ([1, 2], [70, 80]),
        "random, write": ([1], [85]),
    }
    dashes = [trace["line"]["dash"] for trace in figure["data"]]
    assert dashes == ["solid", "solid", "dash", "dash"] and "<b>x" not in figure["layout"]["title"]["subtitle"]["text"]
    x, y = angle_points(np.linspace(0, 90, 5000))
    assert len(x) <= 2048 and x[-1] == 5000 and y[-1] == 90


# ---- reasons


def test_the_steps_to_a_coefficient_add_up() -> None:
    steps = reason_steps([("b", 0.5, "#000000"), ("c", -0.75, "#ffffff")], 0.25, 2.0)
    assert [(step.label, step.start, step.length) for step in steps] == [
        ("b", 0, 0.5),
        ("c", 0.5, -0.75),
        ("all other features", -0.25, 0.25),
        ("own coefficient", 0.0, 2.0),
        ("readout", 0.0, 2.0),
    ]
    assert [step.index for step in steps] == [0, 1, None, None, None] and steps[1].colour == "#ffffff"
    *_, last, total = reason_steps([("b", 0.5, "#000000")], 0.25, 2.0, -0.75)
    assert (last.label, last.start, last.length, total.length) == ("calibration", 2.75, -0.75, 2.0)


def test_reasons_show_what_was_wanted_and_what_was_reached() -> None:
    figure = sent(feature_reasons(3.0, [(HOSTILE, 0.5, "#d55e00")], 0.25, 2.0))
    bars, layout = figure["data"][1], figure["layout"]
    assert bars["x"] == [0.5, 0.25, 2, 2.75] and bars["base"] == [0, 0.5, 0.75, 0]
    assert bars["customdata"] == [0, None, None, None] and bars["marker"]["color"][0] == "#d55e00"
    assert layout["shapes"][0]["x0"] == layout["shapes"][0]["x1"] == 3 < layout["xaxis"]["range"][1]
    assert "wanted 3 · reached 2.75" in layout["title"]["subtitle"]["text"] and "<script" not in json.dumps(figure)


# ---- the map


def test_the_map_takes_values_that_span_decades() -> None:
    grid = np.array([[1.0, 1e6], [np.nan, 0.0]])
    powers, span = log_scale(grid)
    assert np.allclose(powers[0], [0, 6]) and np.isnan(powers[1, 0]) and powers[1, 1] == 0 and span == (0, 6)
    trace = sent(layer_map(grid.tolist(), ["a", "b"], ["q", "k"], "condition", log=True, number=".3g"))["data"][0]
    assert trace["meta"]["values"] == [[1, 1e6], [None, 0]], "the CSV has the values themselves"
    bar = trace["colorbar"]
    assert bar["tickvals"] == [0, 3, 6] and bar["ticktext"] == ["1", "1000", "10<sup>6</sup>"]
    assert "condition 1e+06" in trace["text"][0][1] and "condition 0" in trace["text"][1][1]
    assert log_scale(np.zeros((1, 1)))[1][0] == 0, "nothing above 0 does not fail"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.0, 1e6, (1, 10, 100, 1e3, 1e4, 1e5, 1e6)[::2]),
        (3.0, 80.0, (5, 10, 20, 50)),
        (1.1, 1.9, (1.1, 1.9)),
        (1e-8, 1.0, (1e-8, 1e-6, 1e-4, 1e-2, 1.0)),
    ],
)
def test_a_log_colour_bar_names_round_values(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(("n_rows", "n_labels"), [(1, 1), (12, 12), (48, 48), (80, 40)])
def test_maps_of_all_depths_fit_and_their_rows_are_named(n_rows: int, n_labels: int) -> None:
    rows = [f"layer {i}" for i in range(n_rows)]
    figure = sent(layer_map([[0.5] * 14] * n_rows, rows, [f"module {i}" for i in range(14)], "change"))
    axis, height = figure["layout"]["yaxis"], figure["layout"]["height"]
    assert 190 <= height <= 900 and len(axis["ticktext"]) == n_labels
    assert height >= 900 or n_labels == n_rows
    assert (height - 110) / n_labels >= 14, "labels do not lie on each other"


def test_numbers_of_a_map_are_written_as_asked() -> None:
    trace = sent(layer_map([[0.1234, None]], ["a"], ["q", "k"], "change", number=".1%"))["data"][0]
    assert "change 12.3%" in trace["text"][0][0] and "no value" in trace["text"][0][1]
    assert trace["colorbar"]["tickformat"] == ".1~%"


def test_a_map_that_is_still_empty_says_what_it_is_told_to() -> None:
    figure = sent(layer_map([[None]], ["a"], ["c"], "m", empty="Computing the first layers."))
    assert figure["layout"]["annotations"][0]["text"] == "Computing the first layers."
