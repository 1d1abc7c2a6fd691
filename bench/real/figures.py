"""The figures of a study as SVG files, drawn by plotly in the system's Chromium."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly
from playwright.sync_api import Page

from bench.browser import open_page
from sftm_app.evaluation.intervals import Interval

INK, GRID, BLUE, ORANGE = "#333333", "#e3e3e3", "#0072b2", "#d55e00"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#788cfa", "#a0503c", "#b48c50", "#467878")
PERCENT = {"tickformat": ".0%", "gridcolor": GRID, "zerolinecolor": "#999999"}


def layout(**rest: Any) -> dict[str, Any]:
    """The common look."""
    look = {
        "font": {"family": "sans-serif", "size": 13, "color": INK},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
    }
    return {**look, "margin": {"l": 10, "r": 15, "t": 10, "b": 45}, **rest}


def estimates(found: Sequence[Interval]) -> tuple[list[float], dict[str, Any]]:
    """Values and plotly's error bars."""
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in found],
        "arrayminus": [one.value - one.low for one in found],
        "thickness": 1.2,
    }
    return [one.value for one in found], bars


def methods_figure(lines: Sequence[tuple[str, Interval, Interval | None]]) -> dict[str, Any]:
    """The share of the gap closed by each method. lines: title, default, and best; the first one on top."""
    titles = [title for title, _, _ in lines][::-1]
    data: list[dict[str, Any]] = []
    best = [(title, one) for title, _, one in lines if one is not None][::-1]
    for name, pairs, symbol, colour in (
        ("default", [(title, one) for title, one, _ in lines][::-1], "circle", BLUE),
        ("best of a grid, chosen on validation", best, "diamond-open", ORANGE),
    ):
        values, bars = estimates([one for _, one in pairs])
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": values,
                "y": [title for title, _ in pairs],
                "error_x": {**bars, "color": colour},
                "marker": {"symbol": symbol, "size": 9, "color": colour},
            }
        )
    axis = {"title": {"text": "share of the gap between base and individual models"}, **PERCENT}
    categories = {"categoryorder": "array", "categoryarray": titles, "automargin": True, "gridcolor": GRID}
    height = 90 + 26 * len(lines)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return {"data": data, "layout": layout(height=height, width=760, xaxis=axis, yaxis=categories, legend=legend)}


def counts_figure(lines: Sequence[tuple[str, Sequence[int], Sequence[Interval]]]) -> dict[str, Any]:
    """The share of the gap closed with 2, 3, ... tasks. lines: title, numbers of tasks, estimates."""
    data: list[dict[str, Any]] = []
    for place, (title, numbers, found) in enumerate(lines):
        values, bars = estimates(found)
        colour = COLOURS[place % len(COLOURS)]
        # Side by side, so that intervals of different methods can be told apart.
        shifted = [n + 0.06 * (place - (len(lines) - 1) / 2) for n in numbers]
        look: dict[str, Any] = {"line": {"color": colour}, "marker": {"color": colour, "size": 6}}
        data.append({"type": "scatter", "name": title, "x": shifted, "y": values, "error_y": bars} | look)
    return {
        "data": data,
        "layout": layout(
            height=420,
            width=760,
            xaxis={"title": {"text": "tasks"}, "gridcolor": GRID, "dtick": 1},
            yaxis={"title": {"text": "share of the gap"}, "automargin": True, **PERCENT},
        ),
    }


def scatter_figure(merges: Sequence[dict[str, float | str]], names: Sequence[str]) -> dict[str, Any]:
    """The share of the gap over each figure, one panel for each of `names`."""
    data: list[dict[str, Any]] = []
    shown = layout(height=290, width=220 * len(names) + 60, showlegend=False)
    shown["grid"] = {"rows": 1, "columns": len(names), "pattern": "independent", "xgap": 0.18}
    for place, name in enumerate(names, 1):
        suffix = "" if place == 1 else str(place)
        there = [merge for merge in merges if name in merge]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [merge[name] for merge in there],
                "y": [merge["gap closed"] for merge in there],
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "marker": {"color": BLUE, "size": 6, "opacity": 0.6},
            }
        )
        shown[f"xaxis{suffix}"] = {"title": {"text": name}, "gridcolor": GRID}
        title = {"title": {"text": "share of the gap"}} if place == 1 else {}
        shown[f"yaxis{suffix}"] = {**PERCENT, **title, "automargin": True}
    return {"data": data, "layout": shown}


def write(figures: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write figures as SVG. figures: by file name without its ending."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_page() as page:
        page.set_content("<div id=plot></div>")
        page.add_script_tag(path=Path(plotly.__file__).parent / "package_data" / "plotly.min.js")
        for name, figure in figures.items():
            (folder / f"{name}.svg").write_text(_svg(page, figure), encoding="utf-8")


def _svg(page: Page, figure: dict[str, Any]) -> str:
    size = {key: figure["layout"][key] for key in ("width", "height")}
    found: str = page.evaluate(
        "async ([figure, size]) => decodeURIComponent((await Plotly.toImage(figure, {format: 'svg', ...size}))"
        ".replace(/^data:image\\/svg\\+xml,/, ''))",
        [json.loads(json.dumps(figure)), size],
    )
    return found
