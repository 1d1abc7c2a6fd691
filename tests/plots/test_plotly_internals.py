"""What is used of plotly beyond its documented interface, as it was found in the version CHECKED_WITH."""

from __future__ import annotations

import plotly
import plotly.graph_objects as go
import pytest

from sftm_app.plots.plotly_internals import CHECKED_WITH, plotly_js_path, unchecked_figure

VERSIONS = f"checked with plotly {CHECKED_WITH}, this is {plotly.__version__}"


def test_a_figure_is_made_without_checks() -> None:
    wrong = {"type": "bar", "x": [0], "y": [1.0], "no such setting": 1}
    with pytest.raises(ValueError):
        go.Figure({"data": [wrong], "layout": {}})
    figure = unchecked_figure([wrong], {"template": {"layout": {"paper_bgcolor": "red"}}})
    sent = figure.to_plotly_json()
    assert sent["data"][0]["no such setting"] == 1, VERSIONS
    assert sent["layout"]["template"] == {"layout": {"paper_bgcolor": "red"}}, VERSIONS


def test_plotly_js_comes_with_the_package() -> None:
    path = plotly_js_path()
    assert path.name == "plotly.min.js" and path.stat().st_size > 1_000_000, VERSIONS
