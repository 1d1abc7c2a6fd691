"""A view that was pinned beside the present one: two layers, or two methods on one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from sftm_app.errors import SFTMError
from sftm_app.methods import METHODS
from sftm_app.methods.settings import merge_settings
from sftm_app.plots.preservation import prediction_bars
from sftm_app.plots.style import method_colour
from sftm_app.ui.inspect.layer_panel import detail_of, spectra_figure
from sftm_app.ui.inspect.layer_view import look, own_weights
from sftm_app.ui.inspect.what_if_panel import figures_html
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, settings_title
from sftm_app.ui.widgets.html import Safe, code, heading, join, notice
from sftm_app.ui.workspace import Workspace


def side(
    studio: Studio, ws: Workspace, shown: Pinned | None, title: str, other: Pinned | None = None
) -> tuple[Any, ...]:
    """One column: heading, spectra with the merged change's own, predicted preservation, figures.

    other: the view in the other column, whose errors share the axes.
    """
    if shown is None:
        return "", None, None, ""
    try:
        looked = look(studio, ws, shown.layer)
    except SFTMError as error:
        return notice("info", f"{title}: this view cannot be shown", error), None, None, ""
    settings = shown.settings or merge_settings("sftm", {}, own_weights(ws))
    detail = detail_of(studio, looked)
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    made = what_if.predict(settings)
    merged = studio.inspector.spectrum(looked.found, looked.layer, settings)
    method = METHODS[settings.method]
    series = [(method.title, method_colour(settings.method), made.readout_errors, made.mapping_errors)]
    return (
        heading(title, join([code(looked.layer.name.removesuffix(".weight")), " ", settings_title(settings)])),
        spectra_figure(looked, detail, merged, settings, stacked=True),
        prediction_bars(looked.members, series, height=280, beside=_errors(studio, ws, other)),
        figures_html(looked, what_if, made),
    )


def _errors(studio: Studio, ws: Workspace, shown: Pinned | None) -> list[tuple[Sequence[float], Sequence[float]]]:
    with contextlib.suppress(SFTMError):
        if shown is not None:
            looked = look(studio, ws, shown.layer)
            settings = shown.settings or merge_settings("sftm", {}, own_weights(ws))
            made = studio.inspector.what_if(looked.found, looked.layer).predict(settings)
            return [(made.readout_errors, made.mapping_errors)]
    return []


def what_differs(now: Pinned, pinned: Pinned | None) -> Safe:
    """A sentence on what the two views differ in."""
    if pinned is None:
        return Safe("")
    if now == pinned:
        return notice("info", "Both sides show the same", "Choose another layer or other settings to compare.")
    return Safe("")
