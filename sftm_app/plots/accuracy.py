"""Accuracy of several models on every task."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sftm_app.plots.bars import grouped_bars
from sftm_app.plots.style import Series, method_colour


def accuracy_bars(
    tasks: Sequence[str],
    models: Sequence[str],
    values: Sequence[Sequence[float | None]],
    colours: Sequence[str] | None = None,
    title: str = "",
) -> go.Figure:
    """One group a task, one bar a model. values: len(models) x len(tasks), fractions 0..1, None where not measured."""
    if len(values) != len(models):
        raise ValueError(f"accuracy_bars: {len(values)} rows of values for {len(models)} models.")
    series = [
        Series(name, row, colours[i] if colours else method_colour(name, i))
        for i, (name, row) in enumerate(zip(models, values, strict=True))
    ]
    axis = {"range": [0, 1.02], "tickformat": ".0%"}
    empty = "Nothing has been evaluated yet."
    return grouped_bars(tasks, series, "accuracy", "accuracy", title, "%{y:.1%}", empty, axis=axis)
