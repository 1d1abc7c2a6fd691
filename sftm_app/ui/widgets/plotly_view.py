"""A plotly figure that redraws in place, follows the theme and reports clicks (gr.Plot does none of these)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from sftm_app.plots.bundle import plotly_js_path

_MOST_TEXT = 1024
_MOST_ITEMS = 16
# One after the other they are the body of one function: drawing, selecting and keyboard; then the exports.
_SCRIPTS = ("plotly_view.js", "plotly_view_export.js")

# Static on purpose: Gradio re-renders a template that names a prop, which would throw the drawn plot away.
_TEMPLATE = """
<div class="sf-plot" role="group">
  <div class="sf-plot-tools" hidden>
    <button type="button" class="sf-tool sf-plot-png" title="Save this plot as a picture">PNG</button>
    <button type="button" class="sf-tool sf-plot-svg" title="Save this plot as a drawing for any size">SVG</button>
    <button type="button" class="sf-tool sf-plot-csv" title="Save the numbers of this plot">CSV</button>
  </div>
  <div class="sf-plot-stage" role="application" tabindex="0" hidden></div>
  <div class="sf-plot-empty sf-empty">
    <p class="sf-empty-title">Preparing the plot</p><p class="sf-empty-body"></p>
  </div>
  <div class="sf-visually-hidden" aria-live="polite"></div>
</div>
"""


@dataclass(frozen=True)
class Selection:
    """A clicked point, checked. x, y: axis values (a number, or a category's name); customdata: as the plot gave it."""

    x: float | str | None
    y: float | str | None
    customdata: str | float | tuple[str | float | None, ...] | None
    curve: int

    @property
    def cell(self) -> tuple[int, int] | None:
        """(row, column) of a clicked heatmap cell, whole numbers of at least 0; None when it is no cell."""
        if isinstance(self.x, float) and isinstance(self.y, float) and self.x >= -0.5 and self.y >= -0.5:
            return round(self.y), round(self.x)
        return None


class PlotlyView(gr.HTML):  # type: ignore[misc]
    """Shows a figure from `plots/`; `None` shows the empty state, which says what to do next.

    value: a go.Figure, its dict or its JSON. label: what the plot shows, for screen readers. filename: of exports,
    without ending. The `select` event carries a click; read it with `parse_selection`.
    """

    def __init__(
        self,
        value: Any = None,
        *,
        label: str = "Plot",
        empty_title: str = "Nothing to show yet",
        empty_body: str = "",
        min_plot_height: int = 260,
        filename: str = "",
        **kwargs: Any,
    ) -> None:
        self.empty_title = empty_title
        self.empty_body = empty_body
        self.min_plot_height = min_plot_height
        self.filename = filename
        script = plotly_js_path()
        gr.set_static_paths(script)
        super().__init__(
            value=value,
            label=label,
            html_template=_TEMPLATE,
            js_on_load="\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SCRIPTS),
            head=f'<script src="{file_url(script)}"></script>',
            apply_default_css=False,
            empty_title=empty_title,
            empty_body=empty_body,
            min_plot_height=min_plot_height,
            filename=filename,
            **{"padding": False, **kwargs},
        )

    def get_block_name(self) -> str:
        """The front end knows this widget as its parent."""
        return "html"

    def preprocess(self, payload: Any) -> Any:
        """The figure is never read back from the browser."""
        return None

    def postprocess(self, value: Any) -> str | None:
        """Figure, dict or JSON -> JSON text. `<` is written as \\u003c, so no text in it can become markup."""
        if value is None or value == "":
            return None
        if hasattr(value, "to_json"):
            value = value.to_json()
        elif not isinstance(value, str):
            value = json.dumps(value, allow_nan=False)
        return str(value).replace("<", "\\u003c")


def file_url(path: Path) -> str:
    """Address of a file given to gr.set_static_paths, relative to the page (so it also works behind a proxy)."""
    return f"gradio_api/file={quote(path.as_posix(), safe='/:')}"


def parse_selection(event: Any) -> Selection | None:
    """A `select` event's payload as a Selection; None for anything malformed, for it comes from the browser."""
    data = event if isinstance(event, dict) else getattr(event, "_data", None)
    if not isinstance(data, dict):
        return None
    try:
        x, y = _scalar(data.get("x")), _scalar(data.get("y"))
        raw = data.get("customdata")
        custom: str | float | tuple[str | float | None, ...] | None
        if isinstance(raw, Sequence) and not isinstance(raw, (str, bytes)):
            if len(raw) > _MOST_ITEMS:
                return None
            custom = tuple(_scalar(item) for item in raw)
        else:
            custom = _scalar(raw)
    except ValueError:
        return None
    curve = data.get("curve", 0)
    if isinstance(curve, bool) or not isinstance(curve, int) or not 0 <= curve < 10_000:
        return None
    if x is None and y is None and custom is None:
        return None
    return Selection(x, y, custom, curve)


def _scalar(value: Any) -> str | float | None:
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= _MOST_TEXT:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A huge Python int does not fit a float at all.
        if isinstance(value, int) and abs(value) > 2**53:
            raise ValueError("too large")
        if math.isfinite(value):
            return float(value)
    raise ValueError("not a short text or a finite number")
