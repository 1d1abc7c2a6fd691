"""Accuracy of several models on every task."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sftm_app.plots.bars import GROUPED, LEGEND_ABOVE, bar, group_axis
from sftm_app.plots.style import Series, make_figure, make_message, plot_text


def accuracy_bars(tasks: Sequence[str], models: Sequence[Series], measure: str = "accuracy") -> go.Figure:
    """One group of bars for each task, one bar in it for each model.

    Args:
        tasks: the tasks.
        models: their accuracies, 0..1, one for each task; None where not measured.
        measure: what the axis says.
    """
    if not tasks or not models:
        return make_message("accuracy", "Nothing has been evaluated yet.")
    layout = {
        **GROUPED,
        "xaxis": group_axis(tasks),
        "yaxis": {"title": {"text": plot_text(measure)}, "range": [0, 1.02], "tickformat": ".0%"},
        "legend": LEGEND_ABOVE,
    }
    return make_figure("accuracy", [bar("accuracy", tasks, model, ".1%") for model in models], layout)
