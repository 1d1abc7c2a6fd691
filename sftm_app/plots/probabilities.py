"""What several models answer to one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from sftm_app.plots.bars import LEGEND_ABOVE, bar
from sftm_app.plots.style import Series, make_figure, make_message, plot_text, ticks


def likely_classes(models: Sequence[Series], truth: int | None = None, most: int = 12) -> list[int]:
    """The classes worth showing.

    Args:
        models: the score of each class by each model.
        truth: the correct class, which is always shown.
        most: how many classes to show.

    Returns:
        The classes with the highest score by any model, in their own order.
    """
    scores = np.array([[-np.inf if v is None else v for v in model.values] for model in models], dtype=np.float64)
    best = np.where(np.isnan(scores), -np.inf, scores).max(axis=0)
    if truth is not None:
        best[truth] = np.inf
    return sorted(np.argsort(-best, kind="stable")[:most].tolist())


def probabilities(
    labels: Sequence[str],
    models: Sequence[Series],
    truth: int | None = None,
    most: int = 12,
    measure: str = "probability",
) -> go.Figure:
    """Horizontal bars: one group for each class, one bar in it for each model.

    Args:
        labels: the classes.
        models: their scores, one for each class.
        truth: the correct class, marked with a tick; None if it is not known.
        most: how many classes to show, see `likely_classes`.
        measure: what the scores are. Probabilities are 0..1, anything else may be -1..1.

    Raises:
        ValueError: a model has another number of scores than there are classes.
    """
    for model in models:
        if len(model.values) != len(labels):
            raise ValueError(f"probabilities: {model.name} has {len(model.values)} values for {len(labels)} classes.")
    if not models or not labels:
        return make_message("probabilities", "No model has answered yet.")
    shown = likely_classes(models, truth, most)
    picked = [replace(model, values=[model.values[i] for i in shown]) for model in models]
    percent = measure == "probability"
    names = [("✓ " if i == truth else "") + labels[i] for i in shown]
    groups = [labels[i] for i in shown]
    data = [bar("probabilities", groups, model, ".1%" if percent else ".3f", horizontal=True) for model in picked]
    height = int(np.clip(90 + len(shown) * (10 + 9 * len(models)), 220, 900))
    lowest = 0.0 if percent else min(0.0, *(v * 1.05 for model in picked for v in model.values if v is not None))
    layout = {
        "xaxis": {"range": [lowest, 1], "tickformat": ".0%" if percent else "", "title": {"text": plot_text(measure)}},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks(names, limit=24)},
        "barmode": "group",
        "bargap": 0.28,
        "bargroupgap": 0.06,
        "legend": {**LEGEND_ABOVE, "traceorder": "normal"},
    }
    meta = {"classes": shown, "truth": truth}
    return make_figure("probabilities", data, layout, height=height, meta=meta)
