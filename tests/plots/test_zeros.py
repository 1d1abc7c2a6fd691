"""A value of zero is shown as such in every figure: an axis without a mark looks as if nothing had been measured."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import sftm_app.plots
from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.angles import principal_angles
from sftm_app.plots.comparison import AccuracyBar, comparison_bars
from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.preservation import ErrorSeries, prediction_bars, preservation
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.reasons import feature_reasons
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra
from sftm_app.plots.style import Series
from sftm_app.plots.trials import TrialPoint, importance_figure, trials_figure

BLUE = "#0072b2"
NOTHING = SpectrumTrace("a", BLUE, [0.0, 0.0], 0.0)
SOME = SpectrumTrace("a", BLUE, [2.0, 1.0], 1.6)
NO_ERRORS = [ErrorSeries("SFTM", BLUE, [0.0, 3e-8], [0.0, 0.0])]

# Every figure with nothing but zeros in it, or with values that are nothing at the scale of the axis.
ZEROS: dict[str, Callable[[], go.Figure]] = {
    "layer_map": lambda: layer_map([[0.0, 0.0]], ["r"], ["q", "k"], "readout error"),
    "layer_map, log": lambda: layer_map([[0.0, 0.0]], ["r"], ["q", "k"], "condition", log=True),
    "layer_map, gaps": lambda: layer_map([[0.0, None]], ["r"], ["q", "k"], "change", zmax=0.01),
    "spectra": lambda: spectra([NOTHING]),
    "spectra, merged": lambda: spectra([SOME], merged_trace("SFTM", [0.0, 0.0])),
    "overlap_heatmap": lambda: overlap_heatmap(np.zeros((2, 2)), "a", "b", "both", 0.1),
    "task_overlap": lambda: task_overlap(np.zeros((2, 2)), ["a", "b"]),
    "task_overlap, many": lambda: task_overlap(np.zeros((13, 13)), list("abcdefghijklm")),
    "probabilities": lambda: probabilities(["a", "b"], [Series("m", [0.0, 0.0], BLUE)]),
    "probabilities, cosine": lambda: probabilities(["a"], [Series("m", [0.0], BLUE)], measure="cosine"),
    "accuracy_bars": lambda: accuracy_bars(["t"], [Series("base", [0.0], BLUE), Series("own", [0.5], BLUE)]),
    "comparison_bars": lambda: comparison_bars([AccuracyBar("SFTM", 0.0, 0.0, 0.0)], 0.0, 0.0),
    "preservation": lambda: preservation(["s", "t"], NO_ERRORS),
    "prediction_bars": lambda: prediction_bars(["s", "t"], NO_ERRORS),
    "principal_angles": lambda: principal_angles([0.0, 0.0], [0.0, 0.0], [60.0, 70.0], [80.0, 85.0], "a", "b"),
    "feature_reasons": lambda: feature_reasons(0.0, [("b", 0.0, BLUE)], 0.0, 0.0),
    "trials_figure": lambda: trials_figure([TrialPoint(0, "SFTM", 0.0, 0.0, "sftm")], "a", "b", 0),
    "importance_figure": lambda: importance_figure({"scaling": 0.0, "rank": 0.0}),
}


def marks(figure: dict[str, Any]) -> list[bool]:
    """For each zero in a figure: whether a person sees it."""
    data, layout = figure["data"], figure["layout"]
    texts = [note["text"] for note in layout.get("annotations", ())] + [str(one.get("name")) for one in data]
    said = any(text.endswith((" 0", "are 0.")) or text.startswith("0 ") for text in texts)
    if not data or said:
        return [said]
    seen = []
    for trace in data:
        if trace["type"] == "bar":
            lengths = trace["x" if trace["orientation"] == "h" else "y"]
            template, position = trace.get("texttemplate"), trace.get("textposition")
            for place, length in enumerate(lengths):
                if length is not None and abs(length) < 1e-6:
                    label = template[place] if isinstance(template, list) else template
                    where = position[place] if isinstance(position, list) else position
                    seen.append(where == "outside" and (label == "0" or "%{x" in str(label)))
        elif trace["type"] == "heatmap":
            seen.append(bool(trace.get("texttemplate")))
        elif not trace.get("meta", {}).get("aid"):
            # A line or a dot at zero is drawn like any other.
            seen.append("y" in trace and trace["mode"] != "none")
    return seen


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_are_seen(name: str) -> None:
    figure = json.loads(ZEROS[name]().to_json())
    seen = marks(figure)
    assert seen and all(seen), figure["data"]
    for axis, settings in figure["layout"].items():
        if axis.startswith(("xaxis", "yaxis")) and "range" in settings:
            low, high = settings["range"]
            assert low != high, f"{axis} is empty"


def test_the_table_has_every_figure() -> None:
    made = set()
    for module in pkgutil.iter_modules(sftm_app.plots.__path__):
        found = importlib.import_module(f"sftm_app.plots.{module.name}")
        for name, function in inspect.getmembers(found, inspect.isfunction):
            returns = inspect.signature(function).return_annotation
            if returns == "go.Figure" and not name.startswith(("_", "make_")) and function.__module__ == found.__name__:
                made.add(name)
    assert made - {"unchecked_figure"} == {name.partition(",")[0] for name in ZEROS}


def test_what_can_be_seen_says_nothing() -> None:
    for figure in (preservation(["t"], [ErrorSeries("a", BLUE, [0.5], [None])]), layer_map([[0.1]], ["r"], ["q"], "x")):
        sent = json.loads(figure.to_json())
        assert all("texttemplate" not in trace for trace in sent["data"])
        assert not sent["layout"].get("annotations")
