"""A pinned view next to the current one: two layers, or two settings on one."""

from __future__ import annotations

import contextlib
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.plots.preservation import ErrorSeries, prediction_bars
from sftm_app.plots.style import method_colour
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.layer_panel import spectra_figure
from sftm_app.ui.inspect.layer_view import default_settings, look
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.what_if_panel import error_series, figures_html
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned
from sftm_app.ui.widgets import PlotlyView
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import code, heading, join, notice
from sftm_app.ui.wording import settings_title
from sftm_app.ui.workspace import Workspace


class Side:
    """One column: heading, spectra with that of the merge, predicted preservation, figures."""

    def __init__(self, studio: Studio, name: str) -> None:
        self.studio = studio
        with gr.Column(min_width=380, elem_classes="sf-stack"):
            self.title = block(elem_id=f"{name}-title")
            self.spectra = PlotlyView(label=f"Spectra, {name}", filename=f"spectra-{name}", elem_id=f"{name}-spectra")
            self.bars = PlotlyView(
                label=f"Preservation, {name}", filename=f"preservation-{name}", elem_id=f"{name}-bars"
            )
            self.figures = block(elem_id=f"{name}-figures")
        self.views: set[Any] = {self.title, self.spectra, self.bars, self.figures}

    def clear(self, title: object = "") -> Updates:
        """Show nothing but a title."""
        hidden = gr.update(value=None, visible=False)
        return {self.title: title, self.spectra: hidden, self.bars: hidden, self.figures: ""}

    def show(self, ws: Workspace, shown: Pinned, other: Pinned, title: str) -> Updates:
        """Show a view. other: the one in the other column, whose errors share the axes."""
        settings = shown.settings or default_settings(ws)
        try:
            looked = look(self.studio, ws, shown.layer)
            what_if = looked.what_if
            made = what_if.predict(settings)
            merged = looked.spectrum(settings)
        except SFTMError as error:
            return self.clear(notice("info", f"{title}: this view cannot be shown", error))
        name = settings_title(settings)
        spectra = spectra_figure(looked, looked.detail, merged, settings, stacked=True)
        series = [error_series(name, method_colour(settings.method), made)]
        bars = prediction_bars(looked.members, series, height=280, compared=_errors(self.studio, ws, other))
        return {
            self.title: heading(title, join([code(looked.title), " ", name])),
            self.spectra: gr.update(value=spectra, visible=True),
            self.bars: gr.update(value=bars, visible=True),
            self.figures: figures_html(looked, what_if, made),
        }


class ComparePanel:
    """Both columns; hidden while nothing is pinned."""

    def __init__(self, studio: Studio, unpin: gr.Button) -> None:
        self.unpin = unpin
        with gr.Column(visible=False, elem_classes="sf-stack", elem_id="compare") as self.box:
            section("Side by side", "The pinned view and the current one: two layers, or two settings.")
            self.note = block()
            with gr.Row(equal_height=False, elem_classes="sf-split"):
                self.pinned, self.now = Side(studio, "pinned"), Side(studio, "now")
        self.views: set[Any] = {self.box, unpin, self.note, *self.pinned.views, *self.now.views}

    def show(self, state: InspectState) -> Updates:
        """The pinned view and the current one, if one is pinned."""
        visible = gr.update(visible=state.pinned is not None)
        if state.pinned is None:
            return {self.box: visible, self.unpin: visible, self.note: "", **self.pinned.clear(), **self.now.clear()}
        same = state.now == state.pinned
        note = notice("info", "Both sides are the same", "Choose another layer or other settings to compare.")
        return {
            self.box: visible,
            self.unpin: visible,
            self.note: note if same else "",
            **self.pinned.show(state.ws, state.pinned, state.now, "Pinned"),
            **self.now.show(state.ws, state.now, state.pinned, "Now"),
        }


def _errors(studio: Studio, ws: Workspace, shown: Pinned) -> list[ErrorSeries]:
    with contextlib.suppress(SFTMError):
        made = look(studio, ws, shown.layer).what_if.predict(shown.settings or default_settings(ws))
        return [error_series("", "", made)]
    return []
