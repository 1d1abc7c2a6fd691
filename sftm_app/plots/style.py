"""One look for every figure, and the one place where untrusted names become plot text.

Chrome colours are CSS variables (`var(--plot-...)`, defined in assets/app.css): the browser widget replaces them with
what they stand for in the current theme, so that one figure serves dark and light.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

INK = "var(--plot-ink)"
MUTED = "var(--plot-muted)"
GRID = "var(--plot-grid)"
AXIS = "var(--plot-axis)"
SURFACE = "var(--plot-surface)"
ACCENT = "var(--plot-accent)"
# Beside ACCENT, where two things are drawn that are neither tasks nor methods.
SECOND = "var(--plot-second)"
FONT = "var(--plot-font)"
TICK_SIZE = 11

# Low to high; in the dark theme the same names run from dark to bright, so "more" always stands out from the page.
SEQUENTIAL = tuple((step / 4, f"var(--plot-seq-{step})") for step in range(5))
# Negative to positive: orange to blue, which red-blind and green-blind eyes tell apart; zero looks like the page.
DIVERGING = tuple((step / 4, f"var(--plot-div-{step})") for step in range(5))

# One colour per task, everywhere. Okabe and Ito's blue, vermillion, green and purple come first; the other eight were
# found by search: contrast of at least 3:1 with the light and the dark card, and as far as possible from those before
# them for normal, red-blind and green-blind eyes (a test measures both).
TASK_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#788cfa",
    "#a0503c",
    "#b48c50",
    "#467878",
    "#6450dc",
    "#be00a0",
    "#c8321e",
    "#968cc8",
)

# The second channel beside colour, for eyes and prints that cannot tell two hues apart.
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")

# What a model or a method is drawn with. Tasks own the bright colours, so methods get their own few.
METHOD_COLOURS = {
    "base": "var(--method-base)",
    "individual": "var(--method-individual)",
    "average": "var(--method-average)",
    "task_arithmetic": "var(--method-arithmetic)",
    "sftm": "var(--method-sftm)",
}

_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class Series:
    """One named run of numbers: a line, or a set of bars. `None` where there is no number."""

    name: str
    values: Sequence[float | None]
    colour: str | None = None


def task_colour(index: int) -> str:
    """Colour of the task at `index` (0-based, in the order of the workspace); repeats after twelve."""
    return TASK_COLOURS[index % len(TASK_COLOURS)]


def method_colour(name: str, index: int = 0) -> str:
    """Colour of a method or model kind by its key; unknown names take a task colour from the far end."""
    key = name.strip().lower().replace(" ", "_")
    return METHOD_COLOURS.get(key, TASK_COLOURS[-1 - index % len(TASK_COLOURS)])


def plain(text: object, limit: int = 80) -> str:
    """A name from a file as text that plotly shows letter by letter: no tags, links, MathJax, templates, hidden marks.

    Control and bidirectional characters become U+FFFD; texts beyond `limit` are cut in the middle, where names differ
    least.
    """
    shown = _INVISIBLE.sub("\ufffd", str(text))
    if len(shown) > limit:
        head = (limit - 1) // 2
        shown = f"{shown[:head]}…{shown[len(shown) - (limit - 1 - head) :]}"
    return html.escape(shown, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def rgba(colour: str, alpha: float) -> str:
    """`#rrggbb` with an opacity; anything else (a CSS variable) is returned as it is."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def make_figure(
    name: str,
    data: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    title: str = "",
    subtitle: str = "",
    height: int = 320,
    meta: Mapping[str, Any] | None = None,
) -> go.Figure:
    """A figure with the common look. `data`, `layout`: plotly's own keys; `layout` wins over the look.

    `title` and `subtitle` are plotly text: escape names with `plain` first. `name` says which plot this is: it keeps
    zoom and legend choices across redraws (uirevision) and names exports.
    """
    look: dict[str, Any] = {
        "template": _template(),
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 16 if not title else (58 if subtitle else 40), "b": 8},
        "uirevision": name,
        "meta": {"name": name, **(meta or {})},
        "autosize": True,
    }
    if title:
        look["title"] = _heading(title, subtitle)
    # One dict, and unchecked: plotly's checks take most of a figure's time, and every click redraws five. A test has
    # plotly check every plot instead. A template of our own also spares the default one, which is large.
    return go.Figure({"data": list(data), "layout": {**look, **layout}}, _validate=False)


def make_message(
    name: str,
    text: str,
    title: str = "",
    subtitle: str = "",
    height: int = 320,
    meta: Mapping[str, Any] | None = None,
) -> go.Figure:
    """An empty plot with one sentence in its middle. The other arguments are those of `make_figure`."""
    sentence = {
        "text": text,
        "showarrow": False,
        "x": 0.5,
        "y": 0.5,
        "xref": "paper",
        "yref": "paper",
        "font": {"color": MUTED, "size": 13},
    }
    layout = {"annotations": [sentence], "xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return make_figure(name, [], layout, title, subtitle, height, meta)


def _heading(title: str, subtitle: str) -> dict[str, Any]:
    heading: dict[str, Any] = {
        "text": title,
        "font": {"size": 14, "color": INK, "weight": 600},
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 6, "l": 4},
    }
    if subtitle:
        heading["subtitle"] = {"text": subtitle, "font": {"size": 12, "color": MUTED}}
    return heading


def _template() -> dict[str, Any]:
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": AXIS,
        "zerolinecolor": AXIS,
        "tickcolor": AXIS,
        "tickfont": {"color": MUTED, "size": TICK_SIZE},
        "title": {"font": {"color": MUTED, "size": 12}, "standoff": 8},
        "automargin": True,
        "zeroline": False,
        "ticks": "",
        "ticklabelstandoff": 4,
        "ticklabeloverflow": "allow",
    }
    colourbar = {
        "thickness": 10,
        "outlinewidth": 0,
        "tickfont": {"color": MUTED, "size": 11},
        "title": {"font": {"color": MUTED, "size": 11}, "side": "right"},
    }
    return {
        "layout": {
            "xaxis": axis,
            "yaxis": axis,
            "font": {"family": FONT, "color": INK, "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(TASK_COLOURS),
            "hoverlabel": {
                "bgcolor": SURFACE,
                "bordercolor": AXIS,
                "font": {"family": FONT, "color": INK, "size": 12},
                "align": "left",
                "namelength": -1,
            },
            "legend": {"font": {"color": INK, "size": 12}, "bgcolor": "rgba(0,0,0,0)", "itemwidth": 36},
        },
        "data": {"heatmap": [{"colorbar": colourbar}]},
    }


def ticks(labels: Sequence[str], most: int = 40, limit: int = 28) -> dict[str, Any]:
    """Axis settings that show `labels` at 0, 1, 2 ...; every k-th only where all would not fit."""
    step = max(1, -(-len(labels) // most))
    shown = range(0, len(labels), step)
    return {"tickmode": "array", "tickvals": list(shown), "ticktext": [plain(labels[i], limit) for i in shown]}
