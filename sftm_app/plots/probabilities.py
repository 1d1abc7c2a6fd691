"""What several models answer for one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sftm_app.plots.style import Series, make_figure, make_message, method_colour, plain, ticks


def probabilities(
    labels: Sequence[str],
    series: Sequence[Series],
    truth: int | None = None,
    title: str = "",
    most: int = 12,
    measure: str = "probability",
) -> go.Figure:
    """Horizontal grouped bars of class probabilities (0..1), one group a class, one bar a model.

    Of many classes the `most` likely ones (by any model, and the true one) are shown, in their own order. `truth` is
    the index of the right class, marked with a tick. measure: what the values are; those of another than "probability"
    may be -1..1.
    """
    for one in series:
        if len(one.values) != len(labels):
            raise ValueError(f"probabilities: {one.name} has {len(one.values)} values for {len(labels)} classes.")
    if not series or not labels:
        return make_message("probabilities", "No model has answered yet.", title)
    table = np.array([[np.nan if v is None else v for v in one.values] for one in series], dtype=np.float64)
    rank = np.where(np.isnan(table), -np.inf, table).max(axis=0)
    if truth is not None:
        rank[truth] = np.inf
    shown = np.sort(np.argsort(-rank, kind="stable")[:most])
    names = [("✓ " if i == truth else "") + labels[i] for i in shown]
    texts = [plain(labels[i]) for i in shown]
    percent = measure == "probability"
    data: list[dict[str, Any]] = []
    for one, row in zip(series, table[:, shown], strict=True):
        name = plain(one.name)
        data.append(
            {
                "type": "bar",
                "x": [None if np.isnan(value) else round(float(value), 5) for value in row],
                "y": list(range(len(shown))),
                "text": texts,
                "textposition": "none",
                "name": name,
                "orientation": "h",
                "marker": {"color": one.colour or method_colour(one.name, len(data)), "line": {"width": 0}},
                "hovertemplate": f"<b>{name}</b><br>%{{text}} %{{x:{'.1%' if percent else '.3f'}}}<extra></extra>",
            }
        )
    height = int(np.clip(90 + len(shown) * (10 + 9 * len(series)), 220, 900))
    lowest = 0.0 if percent else min(0.0, float(np.nanmin(table[:, shown], initial=0.0)) * 1.05)
    layout = {
        "xaxis": {"range": [lowest, 1], "tickformat": ".0%" if percent else "", "title": {"text": plain(measure)}},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks(names, limit=24)},
        "barmode": "group",
        "bargap": 0.28,
        "bargroupgap": 0.06,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    }
    meta = {"classes": [int(i) for i in shown], "truth": truth}
    return make_figure("probabilities", data, layout, title, height=height, meta=meta)
