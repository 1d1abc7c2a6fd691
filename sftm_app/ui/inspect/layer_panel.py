"""One layer: its title, its warnings, and the tasks' singular spectra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sftm_app.errors import SFTMError
from sftm_app.inspection.layer import CLUSTER_SENTENCE, LayerDetail
from sftm_app.inspection.warnings import LayerWarning, layer_warnings
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml, PlotlyView, view_link
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, chip, chips, heading, hint, join, notice
from sftm_app.ui.wording import settings_title

# The element that shows each kind of view.
PLACES = {"spectra": "spectra", "overlap": "pairs", "feature": "feature", "what_if": "what-if-bars"}
MOST_OF_A_KIND = 2


class LayerPanel:
    """Title and warnings; the spectra are laid out by `lay_out_spectra`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.title = block(elem_id="layer-title")
        self.warnings = LinkedHtml(elem_id="warnings")

    def lay_out_spectra(self) -> None:
        """The spectra, and what their marked clusters mean."""
        self.spectra = PlotlyView(label="Singular spectra of the tasks", filename="spectra", elem_id="spectra")
        self.clusters = block()
        self.views: set[Any] = {self.title, self.spectra, self.clusters}
        self.settled_views: set[Any] = {self.spectra, self.warnings}

    def show(self, state: InspectState) -> Updates:
        """Title and spectra, without the merge."""
        looked = state.look(self.studio)
        detail = looked.detail
        has_clusters = any(spectrum.clusters for spectrum in detail.spectra)
        return {
            self.title: layer_title(looked, detail),
            self.spectra: spectra_figure(looked, detail, selected=_ring(looked, state)),
            self.clusters: hint(CLUSTER_SENTENCE) if has_clusters else "",
        }

    def show_settled(self, state: InspectState) -> Updates:
        """Spectra with that of the merge, and the warnings: what takes too long while a slider moves."""
        looked, settings = state.look(self.studio), state.settings
        detail, what_if, ring = looked.detail, looked.what_if, _ring(looked, state)
        try:
            merged = looked.spectrum(settings)
            found = layer_warnings(what_if, detail, what_if.predict(settings), looked.names)
        except SFTMError:  # which the what-if panel shows
            return {self.spectra: spectra_figure(looked, detail, selected=ring), self.warnings: ""}
        return {
            self.spectra: spectra_figure(looked, detail, merged, settings, ring),
            self.warnings: warnings_html(looked, found),
        }


def _ring(looked: LayerView, state: InspectState) -> tuple[int, int] | None:
    """Member and feature that the spectra put a ring on."""
    member, feature = looked.feature(state.task, state.feature)
    return None if feature is None else (member, feature)


def layer_title(looked: LayerView, detail: LayerDetail) -> Html:
    """The layer's name and shape, and each task's relative change."""
    changes = [
        chip(f"{s.task} {s.relative_change:.1%}", looked.colour(i), "norm of the change, relative to the base's weight")
        for i, s in enumerate(detail.spectra)
    ]
    m, n = looked.layer.shape
    return join([heading(looked.title, f"{m} outputs × {n} inputs"), chips(changes)])


def spectra_figure(
    looked: LayerView,
    detail: LayerDetail,
    merged: Sequence[float] | None = None,
    settings: MergeSettings | None = None,
    selected: tuple[int, int] | None = None,
    stacked: bool = False,
) -> Any:
    """The tasks' singular spectra in their colours, and that of the merge."""
    traces = [
        SpectrumTrace(
            s.task, looked.colour(i), s.gains, s.effective_rank, s.ranks_for_energy, s.stable_rank, s.clusters
        )
        for i, s in enumerate(detail.spectra)
    ]
    line = merged_trace(settings_title(settings), merged) if merged and settings else None
    return spectra(traces, line, selected, stacked)


def warnings_html(looked: LayerView, warnings: Sequence[LayerWarning]) -> Html:
    """The warnings of a layer, each with a link to what shows it; at most two of a kind."""
    if not warnings:
        return notice("ok", "No warnings for this layer")
    items: list[object] = []
    total = Counter(warning.kind for warning in warnings)
    seen: Counter[str] = Counter()
    for warning in warnings:
        seen[warning.kind] += 1
        if seen[warning.kind] > MOST_OF_A_KIND:
            continue
        more = total[warning.kind] - MOST_OF_A_KIND if seen[warning.kind] == MOST_OF_A_KIND else 0
        others = f" ({more} more like this.) " if more > 0 else " "
        link = view_link("Show", PLACES.get(warning.view, "spectra"), _target(looked, warning))
        items.append(join([warning.sentence, others, link]))
    n_serious = sum(not warning.informational for warning in warnings)
    count = "1 warning" if n_serious == 1 else f"{n_serious} warnings"
    title = f"{count} for this layer" if n_serious else "Notes on this layer"
    return notice("warning" if n_serious else "info", title, items=items)


def _target(looked: LayerView, warning: LayerWarning) -> tuple[str | int, ...]:
    """What the link of a warning opens; nothing if what it scrolls to is shown already."""
    members = looked.members
    tasks = [members[i] for i in warning.tasks]
    if warning.feature is not None and tasks:
        return ("feature", tasks[0], warning.feature)
    if warning.view == "overlap" and len(tasks) == 2:
        return ("overlap", *tasks)
    return ()
