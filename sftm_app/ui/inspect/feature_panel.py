"""One singular feature: its gain, its neighbours in other tasks, and how the merge changed its coefficient."""

from __future__ import annotations

from typing import Any

from sftm_app.inspection.feature import FeatureDetail, feature_detail
from sftm_app.inspection.layer import CLUSTER_SENTENCE
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.reasons import feature_reasons
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import settings_title
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Safe, chip, heading, hint, join, stack, stat, stats, table

# Beside each other: as many rows as bars.
MOST_SHOWN = 8


def detail_of(
    studio: Studio, looked: LayerView, member: int, feature: int | None, settings: MergeSettings
) -> FeatureDetail | None:
    """One feature, from 0, of a member; None for none."""
    if feature is None:
        return None
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    return feature_detail(what_if, what_if.predict(settings), looked.names, member, feature)


def feature_html(looked: LayerView, detail: FeatureDetail | None, settings: MergeSettings) -> Safe:
    """Figures of a feature, the sentence on its coefficient, and its neighbours, each a link to it."""
    if detail is None:
        return stack(heading("No feature"), hint("This task did not change the layer, so it has no features here."))
    title = f"Feature {detail.feature + 1} of {detail.task}"
    shown = [
        stat("Gain", f"{detail.gain:.3g}", f"{detail.energy_share:.1%} of the task's energy here"),
        stat("Coefficient", f"{detail.coefficient:.3g}", settings_title(settings)),
        stat("Read back from the merge", f"{detail.readout:.3g}", f"{detail.wanted:.3g} is asked for"),
        stat("Energy before it", f"{detail.energy_before:.1%}", f"in the stronger of {detail.n_features} features"),
    ]
    where = join([chip(detail.task, looked.colour(detail.member)), " ", looked.layer.name.removesuffix(".weight")])
    cluster = ""
    if detail.cluster is not None:
        start, stop = detail.cluster
        cluster = hint(f"Features {start + 1} to {stop} have nearly equal gains. {CLUSTER_SENTENCE}")
    return stack(heading(title, where), stats(shown), hint(detail.sentence), cluster)


def neighbours_html(looked: LayerView, detail: FeatureDetail | None) -> Safe:
    """The closest features of the other tasks."""
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
            f"{near.contribution:+.3g}",
        )
        for near in detail.neighbours[:MOST_SHOWN]
    ]
    columns = ["closest features", "gain", "read cos", "write cos", "both", "writes into this one"]
    return table(columns, rows, numeric=range(1, 6))


def reasons_figure(looked: LayerView, detail: FeatureDetail | None) -> Any:
    """How the coefficient follows from what is asked for and what the neighbours already write."""
    if detail is None:
        return None
    shown = detail.neighbours[:MOST_SHOWN]
    rest = detail.rest + sum(near.contribution for near in detail.neighbours[MOST_SHOWN:])
    contributions = [
        (f"{near.task}, feature {near.feature + 1}", near.contribution, looked.colour(near.member)) for near in shown
    ]
    return feature_reasons(detail.wanted, contributions, rest, detail.coefficient)
