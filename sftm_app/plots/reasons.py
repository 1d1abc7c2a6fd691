"""Why a feature has its coefficient: what its neighbours contribute to its readout, and what is left to add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sftm_app.plots.style import ACCENT, AXIS, INK, MUTED, make_figure, make_message, plot_text

TITLE = "Why the feature has this coefficient"
NO_COEFFICIENTS = "This method does not combine the tasks' features, so they have no coefficients."


@dataclass(frozen=True)
class Step:
    """One bar of the waterfall.

    Attributes:
        label: what it stands for.
        start: where it starts.
        length: its length, with its sign.
        colour: of the bar.
        index: the position of a neighbour's contribution, from 0; None for the other bars.
    """

    label: str
    start: float
    length: float
    colour: str
    index: int | None = None

    @property
    def end(self) -> float:
        """Where it ends."""
        return self.start + self.length


def reason_steps(
    contributions: Sequence[tuple[str, float, str]], rest: float, coefficient: float, calibrated: float = 0.0
) -> tuple[Step, ...]:
    """The bars from top to bottom: contributions, the rest, the own coefficient, calibration if any, and their sum."""
    parts = [(label, value, colour, index) for index, (label, value, colour) in enumerate(contributions)]
    steps, start = [], 0.0
    for label, value, colour, index in [
        *parts,
        ("all other features", rest, MUTED, None),
        ("own coefficient", coefficient, ACCENT, None),
        *([("calibration", calibrated, MUTED, None)] if calibrated else []),
    ]:
        steps.append(Step(label, start, float(value), colour, index))
        start = steps[-1].end
    return (*steps, Step("readout", 0.0, start, INK))


def feature_reasons(
    wanted: float,
    contributions: Sequence[tuple[str, float, str]],
    rest: float,
    coefficient: float | None,
    calibrated: float = 0.0,
) -> go.Figure:
    """A waterfall that ends at the feature's readout: contributions of neighbours + rest + own coefficient.

    Where the merge is calibrated, its effect on the readout is the last step.

    Args:
        wanted: the readout that was asked for, drawn as a dotted line.
        contributions: (label, value, colour) for each neighbour. A click on one reports its position, from 0, as
            customdata; a click on another bar reports none.
        rest: the contribution of all other features.
        coefficient: the feature's own; None if the merged matrix is not a combination of the tasks' features.
        calibrated: what calibration adds to the readout.
    """
    if coefficient is None:
        return make_message("feature-reasons", NO_COEFFICIENTS, TITLE, height=200)
    steps = reason_steps(contributions, rest, coefficient, calibrated)
    readout = steps[-1].length
    height = 96 + 24 * len(steps)
    meta = {"wanted": wanted, "readout": readout}
    numbers = [wanted, *(step.end for step in steps)]
    if not np.isfinite(numbers).all():
        return make_message("feature-reasons", "This feature's readout is not a finite number.", TITLE, height=200)
    shown = [plot_text(step.label, 28) for step in steps]
    places = list(range(len(steps)))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [step.length for step in steps],
        "base": [step.start for step in steps],
        "y": places,
        "customdata": [step.index for step in steps],
        "text": [plot_text(step.label) for step in steps],
        "texttemplate": "%{x:+.3~g}",
        "textposition": "outside",
        "textfont": {"color": INK},
        "cliponaxis": False,
        "hovertext": [f"<b>{plot_text(step.label)}</b><br>{step.length:+.4g}, then {step.end:.4g}" for step in steps],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": [step.colour for step in steps], "line": {"width": 0}},
        "width": 0.62,
        "name": "readout",
    }
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    room = 0.2 * (high - low or 1.0)
    layout = {
        "xaxis": {"range": [low - room, high + room], "zeroline": True, "title": {"text": "readout of this feature"}},
        "yaxis": {
            "range": [len(steps) - 0.4, -0.6],
            "showgrid": False,
            "tickvals": places,
            "ticktext": shown,
        },
        "margin": {"l": 8, "r": 28, "t": 58, "b": 8},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "shapes": [_wanted_line(wanted, len(steps))],
    }
    subtitle = f"dotted: wanted {wanted:.4g} · reached {readout:.4g}"
    return make_figure("feature-reasons", [_joints(steps), bars], layout, TITLE, subtitle, height, meta)


def _joints(steps: Sequence[Step]) -> dict[str, Any]:
    """Thin lines from the end of each bar to the next."""
    x: list[float | None] = []
    y: list[float | None] = []
    for place, step in enumerate(steps[:-1]):
        x += [step.end, step.end, None]
        y += [place, place + 1, None]
    line = {"color": AXIS, "width": 1}
    look = {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False, "meta": {"aid": True}}
    return {"type": "scatter", "x": x, "y": y, **look}


def _wanted_line(wanted: float, n_steps: int) -> dict[str, Any]:
    line = {"color": INK, "width": 1.5, "dash": "dot"}
    return {"type": "line", "x0": wanted, "x1": wanted, "y0": -0.6, "y1": n_steps - 0.4, "line": line}
