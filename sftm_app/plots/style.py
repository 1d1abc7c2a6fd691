"""The common look of all figures, and the one place where untrusted names become plot text.

Most colours are CSS variables (`var(--plot-...)`, defined in assets/app.css). The browser widget replaces them with
their values in the current theme, so the same figure works in dark and in light mode.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sftm_app.methods import METHODS
from sftm_app.plots.plotly_internals import unchecked_figure

INK = "var(--plot-ink)"
MUTED = "var(--plot-muted)"
GRID = "var(--plot-grid)"
AXIS = "var(--plot-axis)"
SURFACE = "var(--plot-surface)"
ACCENT = "var(--plot-accent)"
# Next to ACCENT, for a second line that is neither a task nor a method.
SECOND = "var(--plot-second)"
FONT = "var(--plot-font)"
TICK_SIZE = 11

# Low to high. In the dark theme they run from dark to bright, so that more always stands out from the page.
SEQUENTIAL = tuple((step / 4, f"var(--plot-seq-{step})") for step in range(5))
# Negative to positive: orange to blue, which colour-blind people can tell apart. Zero looks like the page.
DIVERGING = tuple((step / 4, f"var(--plot-div-{step})") for step in range(5))

# One colour per task, everywhere. The first four are Okabe and Ito's blue, vermillion, green and purple. The others
# were found by search: a contrast of at least 3:1 with the light and the dark card, and as far as possible from those
# before them for normal, red-blind and green-blind vision (a test measures both).
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

# The second channel next to colour, for people and prints that cannot distinguish two hues.
DASHES = ("solid", "dash", "dot", "dashdot")

# Methods have colours of their own, because the bright ones mean tasks.
METHOD_COLOURS = tuple(f"var(--method-{place})" for place in range(1, 9))
# In plotly's words: plain, hatched one way, hatched the other way, dotted.
PATTERNS = ("", "/", "\\", ".")
# Of merges on disk: crossed and striped, so that none looks like a method.
MERGE_PATTERNS = ("x", "-", "|", "+")
MODEL_COLOURS = {"base": "var(--method-base)", "individual": "var(--method-individual)"}

# In the layout of a heatmap whose values are all zero, because one colour everywhere looks like an empty plot.
ZERO_EVERYWHERE: dict[str, Any] = {
    "annotations": [
        {
            "text": "0 everywhere",
            "showarrow": False,
            "x": 0.5,
            "y": 0.5,
            "xref": "paper",
            "yref": "paper",
            "font": {"color": INK, "size": 13},
            "bgcolor": SURFACE,
            "borderpad": 4,
        }
    ]
}

_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class Series:
    """Bars of one colour and pattern.

    Attributes:
        name: what they are of.
        values: one for each group, None where there is none.
        colour, pattern: what fills the bars.
        lows, highs: the ends of each value's interval; empty for bars without one.
    """

    name: str
    values: Sequence[float | None]
    colour: str
    pattern: str = ""
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()


def task_colour(index: int) -> str:
    """The colour of a task, by its position in the workspace, from 0. The colours repeat after twelve."""
    return TASK_COLOURS[index % len(TASK_COLOURS)]


def method_colour(kind: str) -> str:
    """The colour of a model: "base", "individual", or the name of the method that merged it.

    A method's colour follows from its place in the METHODS table. The colours repeat after eight; then its pattern
    distinguishes it.
    """
    return MODEL_COLOURS.get(kind) or METHOD_COLOURS[list(METHODS).index(kind) % len(METHOD_COLOURS)]


def method_pattern(kind: str) -> str:
    """What fills a model's bars: "" for a plain colour. Arguments as of `method_colour`."""
    place = 0 if kind in MODEL_COLOURS else list(METHODS).index(kind)
    return PATTERNS[place // len(METHOD_COLOURS) % len(PATTERNS)]


def merge_colour(place: int) -> str:
    """The colour of a merge on disk, which it keeps in every plot. place: its own, from 0."""
    return METHOD_COLOURS[place % len(METHOD_COLOURS)]


def merge_pattern(place: int) -> str:
    """What fills the bars of a merge on disk. With its colour, 32 merges look different from each other."""
    return MERGE_PATTERNS[place // len(METHOD_COLOURS) % len(MERGE_PATTERNS)]


def plot_text(text: object, limit: int = 80) -> str:
    """Escape a name from a file, so that plotly shows it letter by letter: no tags, links, MathJax or templates.

    Control and bidirectional characters become U+FFFD.

    Args:
        text: the name.
        limit: longer texts are cut in the middle, where names differ least.
    """
    shown = _INVISIBLE.sub("\ufffd", str(text))
    if len(shown) > limit:
        head = (limit - 1) // 2
        shown = f"{shown[:head]}…{shown[len(shown) - (limit - 1 - head) :]}"
    return html.escape(shown, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def rgba(colour: str, alpha: float) -> str:
    """A colour `#rrggbb` with an opacity. Anything else (a CSS variable) is returned unchanged."""
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
    """A figure with the common look.

    Args:
        name: which plot this is. It keeps zoom and legend choices across redraws (uirevision) and names exports.
        data: the traces, in plotly's keys.
        layout: the layout, in plotly's keys; it takes precedence over the common look.
        title, subtitle: plotly text; names in it pass through `plot_text` first.
        height: in pixels.
        meta: further values for the browser and for tests.
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
    return unchecked_figure(data, {**look, **layout})


def make_message(
    name: str,
    text: str,
    title: str = "",
    subtitle: str = "",
    height: int = 320,
    meta: Mapping[str, Any] | None = None,
) -> go.Figure:
    """An empty plot with a sentence (plotly text) in its middle. The other arguments are those of `make_figure`."""
    sentence = {
        "text": text,
        "showarrow": False,
        "x": 0.5,
        "y": 0.5,
        "xref": "paper",
        "yref": "paper",
        "font": {"color": MUTED, "size": 13},
    }
    # Plotly keeps the room that the labels of a previous plot took, unless automargin is off.
    axis = {"visible": False, "automargin": False}
    layout = {"annotations": [sentence], "xaxis": axis, "yaxis": axis}
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
    """Settings of an axis with labels at 0, 1, 2 and so on.

    Args:
        labels: the labels.
        most: if there are more labels, only every k-th is shown.
        limit: how many characters of a label to show.
    """
    step = max(1, -(-len(labels) // most))
    shown = range(0, len(labels), step)
    return {"tickmode": "array", "tickvals": list(shown), "ticktext": [plot_text(labels[i], limit) for i in shown]}
