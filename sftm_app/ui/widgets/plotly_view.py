"""A plotly figure that redraws in place, follows the theme and reports clicks (gr.Plot does none of these)."""

from __future__ import annotations

import json
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from sftm_app.plots.plotly_internals import plotly_js_path
from sftm_app.ui.widgets.gradio_internals import Widget, event_data, file_url

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-(2.0**53), le=2.0**53)]
_Text = Annotated[str, Field(strict=True, max_length=1024)]
_Scalar = _Number | _Text | None


class Selection(BaseModel):
    """A point that was clicked. x, y: axis values (a number, or a category's name); customdata: as the plot gave it."""

    model_config = ConfigDict(frozen=True)

    x: _Scalar = None
    y: _Scalar = None
    customdata: _Scalar | Annotated[tuple[_Scalar, ...], Field(max_length=16)] = None
    curve: Annotated[StrictInt, Field(ge=0, lt=10_000)] = 0

    @property
    def cell(self) -> tuple[int, int] | None:
        """(row, column) of a clicked heatmap cell, whole numbers of at least 0; None if it is no cell."""
        if isinstance(self.x, float) and isinstance(self.y, float) and self.x >= -0.5 and self.y >= -0.5:
            return round(self.y), round(self.x)
        return None


class PlotlyView(Widget):
    """Shows a figure from `plots/`; `None` shows the empty state, which says what to do next.

    value: a go.Figure, its dict or its JSON. label: what the plot shows, for screen readers. filename: of exports,
    without suffix. The `select` event carries a click; read it with `parse_selection`.
    """

    template = """
<div class="sf-plot" role="group">
  <div class="sf-plot-tools" hidden>
    <button type="button" class="sf-tool sf-plot-png" title="Save this plot as a PNG image">PNG</button>
    <button type="button" class="sf-tool sf-plot-svg" title="Save this plot as a vector graphic">SVG</button>
    <button type="button" class="sf-tool sf-plot-csv" title="Save the numbers of this plot">CSV</button>
  </div>
  <div class="sf-plot-stage" role="application" tabindex="0" hidden></div>
  <div class="sf-plot-empty sf-empty">
    <p class="sf-empty-title">Preparing the plot</p><p class="sf-empty-body"></p>
  </div>
  <div class="sf-visually-hidden" aria-live="polite"></div>
</div>
"""
    scripts = ("plotly_view.js", "plotly_view_export.js")

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
        self.empty_title, self.empty_body = empty_title, empty_body
        self.min_plot_height, self.filename = min_plot_height, filename
        script = plotly_js_path()
        gr.set_static_paths(script)
        super().__init__(
            value,
            label=label,
            head=f'<script src="{file_url(script)}"></script>',
            empty_title=empty_title,
            empty_body=empty_body,
            min_plot_height=min_plot_height,
            filename=filename,
            **kwargs,
        )

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


def parse_selection(event: gr.EventData | Any) -> Selection | None:
    """The payload of a `select` event; None for anything malformed, for it comes from the browser."""
    data = event_data(event) if isinstance(event, gr.EventData) else event
    try:
        found = Selection.model_validate(data)
    except ValidationError:
        return None
    return None if found.x is None and found.y is None and found.customdata is None else found
