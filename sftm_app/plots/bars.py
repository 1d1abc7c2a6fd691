"""What the bar charts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sftm_app.plots.style import INK, MUTED, Series, plot_text, ticks

LEGEND_ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
# A shorter bar, as a share of the axis, cannot be seen.
LEAST_SEEN = 1e-3
# The bars of one group stand next to each other, with a gap between groups.
GROUPED = {"barmode": "group", "bargap": 0.24, "bargroupgap": 0.06}


def bar(
    plot: str,
    groups: Sequence[str],
    series: Series,
    value_format: str = ".3g",
    horizontal: bool = False,
    end: float = 1.0,
) -> dict[str, Any]:
    """One series as a plotly trace, with bars at 0, 1, 2 and so on. A bar that is too short to be seen says "0".

    Args:
        plot: the plot's name, for the error.
        groups: the group of each bar.
        series: its values, one for each group.
        value_format: how a value is written when the pointer is over a bar.
        horizontal: whether the bars are horizontal.
        end: where the axis ends.

    Raises:
        ValueError: the number of values is not the number of groups.
    """
    if len(series.values) != len(groups):
        raise ValueError(f"{plot}: {series.name} has {len(series.values)} values for {len(groups)} groups.")
    name = plot_text(series.name)
    along, across = ("x", "y") if horizontal else ("y", "x")
    return {
        "type": "bar",
        "orientation": "h" if horizontal else "v",
        across: list(range(len(groups))),
        along: [None if v is None else float(v) for v in series.values],
        "text": [plot_text(group) for group in groups],
        **zero_labels(series.values, end),
        "name": name,
        "marker": {"color": series.colour, "line": {"width": 0}, **_filled(series.pattern)},
        "hovertemplate": f"<b>{name}</b><br>%{{text}} %{{{along}:{value_format}}}<extra></extra>",
        **({f"error_{along}": _intervals(series)} if series.lows else {}),
    }


def zero_labels(values: Sequence[float | None], end: float) -> dict[str, Any]:
    """What makes bars that are too short to be seen say "0": next to nothing would look like nothing measured.

    Args:
        values: the lengths of the bars.
        end: where the axis ends.
    """
    is_short = [value is not None and abs(value) < end * LEAST_SEEN for value in values]
    if not any(is_short):
        return {"textposition": "none"}
    return {
        "texttemplate": ["0" if short else "" for short in is_short],
        "textposition": ["outside" if short else "none" for short in is_short],
        "textangle": 0,
        "textfont": {"color": MUTED, "size": 11},
        "cliponaxis": False,
    }


def _intervals(series: Series) -> dict[str, Any]:
    """The intervals of the bars as plotly's error bars."""
    ends = list(zip(series.values, series.lows, series.highs, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if v is None or high is None else high - v for v, _, high in ends],
        "arrayminus": [None if v is None or low is None else v - low for v, low, _ in ends],
        "color": INK,
        "thickness": 1.2,
        "width": 3,
    }


def _filled(pattern: str) -> dict[str, Any]:
    return {"pattern": {"shape": pattern, "size": 6, "solidity": 0.5}} if pattern else {}


def group_axis(groups: Sequence[str], limit: int = 18) -> dict[str, Any]:
    """The x axis of vertical bars: names of at most `limit` characters, turned where they would not fit."""
    return {"showgrid": False, "autotickangles": [0, -35, -90], **ticks(groups, limit=limit)}
