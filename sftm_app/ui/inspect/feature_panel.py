"""One singular feature: its gain, its neighbours in other tasks, and how the merge changed its coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.inspection.feature import FeatureDetail, feature_detail
from sftm_app.inspection.layer import CLUSTER_SENTENCE
from sftm_app.inspection.reasons import Neighbour
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.reasons import feature_reasons
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.clicks import whole
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml, PlotlyView, Selection, UncheckedDropdown, view_link
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, chip, heading, hint, join, stack, stat, stats, table
from sftm_app.ui.wording import settings_title

# As many rows as there are bars next to them.
MOST_SHOWN = 8


class FeaturePanel:
    """The choice of a feature, its figures, and its neighbours."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        section(
            "A singular feature",
            "Click a point of a spectrum or a cell of an overlap, or choose a feature here.",
            elem_id="feature",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=260):
                self.task = UncheckedDropdown(
                    label="Task", info="The task that the feature belongs to.", choices=[], elem_id="feature-task"
                )
                self.number = gr.Number(
                    value=1,
                    precision=0,
                    label="Feature",
                    info="1 is the feature with the largest gain.",
                    elem_id="feature-number",
                )
            with gr.Column(scale=3, min_width=420):
                self.figures = block(elem_id="feature-figures")
        with gr.Row(equal_height=False, elem_classes="sf-split"):
            self.reasons = PlotlyView(label="How its coefficient came about", filename="coefficient", elem_id="reasons")
            self.neighbours = LinkedHtml(elem_id="neighbours")
        self.choices: set[Any] = {self.task, self.number}
        self.views: set[Any] = {self.figures, self.reasons, self.neighbours}

    def open(self, members: Sequence[str], task: str, feature: int) -> Updates:
        """Offer the tasks that hold the layer. feature: counted from 0."""
        return {self.task: gr.update(choices=list(members), value=task or None), self.number: feature + 1}

    def choose(self, state: InspectState) -> Updates:
        """The same, after the layer changed."""
        looked = state.look(self.studio)
        members = looked.members
        return {self.task: gr.update(choices=members, value=members[looked.member(state.task)])}

    def open_feature(self, state: InspectState, task: str, feature: int) -> Updates:
        """Choose a feature, counted from 0, and show it."""
        return {self.task: task, self.number: feature + 1, **self.show(replace(state, task=task, feature=feature))}

    def show(self, state: InspectState) -> Updates:
        """Figures of the feature, why its coefficient is what it is, and its neighbours."""
        looked = state.look(self.studio)
        try:
            detail = self._detail(state)
        except SFTMError:  # which the what-if panel shows
            text = hint("Nothing can be predicted for these settings.")
            return {self.figures: text, self.reasons: None, self.neighbours: ""}
        return {
            self.figures: feature_html(looked, detail, state.settings),
            self.reasons: reasons_figure(looked, detail),
            self.neighbours: neighbours_html(looked, detail),
        }

    def neighbour(self, state: InspectState, selection: Selection) -> Neighbour | None:
        """The neighbour whose bar was clicked in the plot of the coefficient."""
        detail, place = self._detail(state), whole(selection.customdata)
        if detail is None or place is None or place >= min(MOST_SHOWN, len(detail.neighbours)):
            return None
        return detail.neighbours[place]

    def _detail(self, state: InspectState) -> FeatureDetail | None:
        looked = state.look(self.studio)
        member, feature = looked.feature(state.task, state.feature)
        if feature is None:
            return None
        what_if = looked.what_if
        return feature_detail(what_if, what_if.predict(state.settings), looked.names, member, feature)


def feature_html(looked: LayerView, detail: FeatureDetail | None, settings: MergeSettings) -> Html:
    """Figures of a feature, and the sentence on its coefficient."""
    if detail is None:
        return stack(heading("No feature"), hint("This task did not change the layer, so it has no features here."))
    rank = f"feature {detail.feature + 1} of {detail.n_features}"
    shown = [
        stat("Gain", f"{detail.gain:.3g}", f"{detail.energy_share:.1%} of the task's energy here"),
        stat("Readout after the merge", f"{detail.readout:.3g}", f"{detail.wanted:.3g} wanted"),
        stat("Energy in stronger features", f"{detail.energy_before:.1%}", rank),
    ]
    if detail.coefficient is not None:
        shown.insert(1, stat("Coefficient", f"{detail.coefficient:.3g}", settings_title(settings)))
    where = join([chip(detail.task, looked.colour(detail.member)), " ", looked.title])
    cluster = ""
    if detail.cluster is not None:
        start, stop = detail.cluster
        cluster = hint(f"Features {start + 1} to {stop} have nearly equal gains. {CLUSTER_SENTENCE}")
    title = f"Feature {detail.feature + 1} of {detail.task}"
    return stack(heading(title, where), stats(shown), hint(detail.sentence), cluster)


def neighbours_html(looked: LayerView, detail: FeatureDetail | None) -> Html:
    """The closest features of the other tasks, each a link to it."""
    if detail is None or not detail.neighbours:
        return hint("No other task has features in this layer.")
    rows = [
        (
            view_link(
                join([chip(near.task, looked.colour(near.member)), f" feature {near.feature + 1}"]),
                "feature",
                ("feature", near.task, near.feature),
            ),
            f"{near.gain:.3g}",
            f"{near.read_cosine:+.2f}",
            f"{near.write_cosine:+.2f}",
            f"{near.entry:+.3f}",
            *([] if near.contribution is None else [f"{near.contribution:+.3g}"]),
        )
        for near in detail.neighbours[:MOST_SHOWN]
    ]
    # Without coefficients the rows end at the entry of A.
    columns = ["closest features", "gain", "read cosine", "write cosine", "entry of A", "contributes"][: len(rows[0])]
    return table(columns, rows, numeric=range(1, len(columns)))


def reasons_figure(looked: LayerView, detail: FeatureDetail | None) -> Any:
    """How the coefficient follows from the target and what the neighbours already write."""
    if detail is None:
        return None
    named = [
        (f"{near.task}, feature {near.feature + 1}", near.contribution, looked.colour(near.member))
        for near in detail.neighbours
        if near.contribution is not None
    ]
    rest = (detail.rest or 0.0) + sum(contribution for _, contribution, _ in named[MOST_SHOWN:])
    return feature_reasons(detail.wanted, named[:MOST_SHOWN], rest, detail.coefficient, detail.calibrated)
